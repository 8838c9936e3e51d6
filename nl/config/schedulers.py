"""The scheduler kinds that a config may name, and their options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from nl.config.convert import mapped, struct, suggest
from nl.config.fields import Conversion, Ignored, Raw, ZeroMeansDefault, join
from nl.config.types import (
    Count,
    Duration,
    Options,
    SecretText,
    ServerAddress,
    SignedDuration,
    Size,
    StoreName,
    Tagged,
    Text,
)
from nl.config.workers import ClientTlsOptions
from nl.errors import ConfigError

AllocationStrategy = Literal["least_recently_used", "most_recently_used", "round_robin", "least_loaded"]
PropertyKind = Literal["minimum", "exact", "priority", "ignore"]


class SimpleSchedulerOptions(Options):
    """Queues actions and matches them to workers by platform properties."""

    EXAMPLE = '{ name: "MAIN", simple: { supported_platform_properties: { cpu_count: "minimum", OSFamily: "exact" } } }'

    supported_platform_properties: Mapping[str, PropertyKind] = field(
        default_factory=dict)
    """The platform properties that actions may ask for, and how a worker's value must compare: `minimum` (a number,
    taken from the worker while the action runs), `exact` (the same text), `priority` (must be there, any value; only
    tells the worker), `ignore`. An action that asks for another property is refused."""
    retain_completed_for_s: Annotated[Duration, ZeroMeansDefault()] = 60.0
    """How long a finished operation can still be asked for."""
    client_action_timeout_s: Annotated[Duration, ZeroMeansDefault()] = 60.0
    """How long an action goes on without any client listening."""
    worker_timeout_s: Annotated[Duration, ZeroMeansDefault()] = 5.0
    """A worker that has not been heard of for so long is gone; its actions are queued again."""
    max_action_executing_timeout_s: Duration = 0.0
    """How long an action may run without an update from its worker; 0 means any time."""
    unacknowledged_kill_timeout_s: Annotated[Duration, ZeroMeansDefault()] = 60.0
    """How long a worker may take to confirm that it has killed an action."""
    max_job_retries: Annotated[Count, ZeroMeansDefault()] = 3
    """How often an action is tried again after its worker was lost or failed of itself."""
    max_lost_workers: Count = 3
    """An action whose workers were lost so many times in a row fails: it is taken for what ends them. 0 means never."""
    priority_ageing_s: Duration = 600.0
    """How long an action waits behind those of a higher priority at most, before it goes with them; 0 means for
    ever."""
    allocation_strategy: AllocationStrategy = "least_recently_used"
    """Which of several fitting workers gets the action: the one that has been idle for the longest or the shortest
    time, the one whose turn it is, or the one of which the least is in use."""
    shutdown_grace_s: Duration = 30.0
    """How long actions that run may go on, and their clients wait for them, when the server is told to stop."""
    experimental_backend: Literal["memory"] = "memory"
    """Where operations are kept. Only this process's memory is supported."""
    worker_match_logging_interval_s: SignedDuration = 10.0
    """How often it is logged why queued actions find no worker; 0 or -1 means never."""
    fallback_match_interval_s: Annotated[SignedDuration, Ignored("matching misses no event")] = 5.0
    """How often all queued actions are matched anew besides on events; 0 or less means never."""
    max_operations: Annotated[Count, ZeroMeansDefault()] = 100_000
    """How many operations may be unfinished at once; beyond that Execute is refused as RESOURCE_EXHAUSTED."""
    max_retained_bytes: Annotated[Size, ZeroMeansDefault()] = 256 * 1024 * 1024
    """How large the results that are kept for `retain_completed_for_s` may be together; the oldest go early."""
    unmatched_grace_s: Duration = 300.0
    """How long an action waits that no connected worker could ever run, before it fails; 0 means for ever."""
    unknown_platform_properties: Literal["reject", "ignore"] = "reject"
    """What becomes of an action that asks for a property that neither the config nor any worker knows."""
    implied_platform_properties: Mapping[str, tuple[Text, ...]] = field(
        default_factory=lambda: {"OSFamily": ("linux",)})
    """What a worker counts as offering unless it says so itself."""


class CacheLookupOptions(Options):
    """Looks into one action cache before anything is queued, instead of that of the action's instance."""

    EXAMPLE = '{ name: "MAIN", cache_lookup: { ac_store: "AC", scheduler: { simple: {} } } }'

    ac_store: StoreName
    """The action cache."""
    scheduler: SchedulerSpec
    """Who gets what is not in it."""


class AddProperty(Options):
    """Sets a property, whatever it was."""

    name: Text
    """The property."""
    value: Text
    """Its value."""


class ReplaceProperty(Options):
    """Renames a property, or changes its value, where it is there."""

    name: Text
    """The property."""
    value: Text | None = None
    """Only where it has this value."""
    new_name: Text
    """What it is called then."""
    new_value: Text | None = None
    """The value that it has then; as it was if not set."""


class PropertyModification(Options):
    """One change: exactly one of the keys."""

    add: AddProperty | None = None
    """Set a property."""
    remove: Text | None = None
    """The name of a property to drop."""
    replace: ReplaceProperty | None = None
    """Rename or change a property."""

    def check(self) -> None:
        """Exactly one change."""
        if [self.add, self.remove, self.replace].count(None) != 2:
            raise ConfigError("", "expected exactly one of add, remove and replace")


class PropertyModifierOptions(Options):
    """Changes the platform properties of actions before they are matched. Workers get them as they are then."""

    EXAMPLE = """
        { name: "MAIN", property_modifier: {
            modifications: [{ add: { name: "pool", value: "big" } }, { remove: "container-image" }],
            scheduler: { simple: { supported_platform_properties: { pool: "exact" } } },
        } }
    """

    modifications: tuple[PropertyModification, ...] = ()
    """The changes, made in this order."""
    scheduler: SchedulerSpec
    """Who gets the actions then."""


class HistoricalResourceOptions(Options):
    """Raises what actions ask for to what such actions have needed before, by a file that somebody else keeps."""

    EXAMPLE = """
        { name: "MAIN", historical_resource: {
            hints_file: "/var/lib/nl/hints.json",
            scheduler: { simple: { supported_platform_properties: { cpu_count: "minimum", memory_kb: "minimum" } } },
        } }
    """

    hints_file: Text
    """JSON: a list (or `{hints: [...]}`) of `{target_id?, action_mnemonic?, cpu_count?, memory_kb?}`, also with
    `memory_mib`. Of those that fit an action the one for both counts, else that for the target, else that for the
    mnemonic. A file that cannot be used is logged, and the hints of before stay."""
    refresh_interval_s: Duration = 30.0
    """How often it is read again; 0 means never."""
    cpu_property_name: Text = "cpu_count"
    """The property that `cpu_count` raises, where the scheduler knows it."""
    memory_property_name: Text = "memory_kb"
    """The property that `memory_kb` raises, where the scheduler knows it."""
    scheduler: SchedulerSpec
    """Who gets the actions then."""


@dataclass(frozen=True, slots=True)
class SchedulerSpec(Tagged):
    """A scheduler as configured: its kind and that kind's options. Written `{ <kind>: {...} }`, also inside another."""

    kind: str
    options: Options
    path: str = ""

    @classmethod
    def from_raw(cls, raw: Raw, path: str, conversion: Conversion) -> SchedulerSpec:
        """From `{ <kind>: {...} }`."""
        given = mapped(raw, path)
        supported = ", ".join(SCHEDULER_KINDS)
        if len(given) != 1:
            found = ", ".join(given) or "none"
            raise ConfigError(path, f"a scheduler has exactly one kind, found {found}; expected one of {supported}")
        ((kind, inner),) = given.items()
        at = join(path, kind)
        if kind not in SCHEDULER_KINDS:
            hint = suggest(kind, SCHEDULER_KINDS)
            raise ConfigError(at, f"unknown scheduler kind{hint}; expected one of {supported}")
        return cls(kind, struct(SCHEDULER_KINDS[kind], {} if inner is None else inner, at, conversion), path)


class SchedulerEndpoint(Options):
    """The server of a scheduler."""

    address: ServerAddress
    """`grpc://host:port`, `grpcs://host:port` for TLS, or `unix:/path`."""
    tls_config: ClientTlsOptions | None = None
    """TLS; for `grpcs` the system's authorities if not set."""
    compression: Literal["none", "gzip"] = "none"
    """Whether requests are packed. Replies may be, as the server likes."""
    token: SecretText | None = None
    """The token to come in with, `"${NL_TOKEN}"` say. All clients come in with this one there."""
    token_file: Text | None = None
    """A file with the token in its first line, read again when it changes."""
    concurrency_limit: Annotated[Count | None, ZeroMeansDefault()] = None
    """How many calls may be under way on one connection; others wait."""
    connect_timeout_s: Annotated[Duration, ZeroMeansDefault()] = 30.0
    """How long one attempt to connect may take."""
    tcp_keepalive_s: Annotated[Duration, ZeroMeansDefault()] = 30.0
    """After so much silence TCP itself asks whether the server's host is there."""
    http2_keepalive_interval_s: Annotated[Duration, ZeroMeansDefault()] = 30.0
    """After so much silence a connection with calls gets a PING."""
    http2_keepalive_timeout_s: Annotated[Duration, ZeroMeansDefault()] = 20.0
    """How long that PING may go unanswered."""


class SchedulerRetry(Options):
    """When the stream of an operation is taken up again."""

    max_retries: Count = 5
    """How often in a row; 0 means never. What has been told anew begins to count anew."""
    delay: float = 0.1
    """Seconds before the first time, doubled for each further one, up to 10."""
    jitter: float = 0.5
    """By which part the pauses vary at random, half of it up and half of it down."""
    retry_on_errors: Annotated[tuple[Text, ...], Ignored("it is known what may go away by itself")] = ()
    """After which statuses."""

    def check(self) -> None:
        """Pauses are not negative."""
        if self.delay < 0:
            raise ConfigError("delay", f"{self.delay:g} is negative; expected 0 or more seconds")
        if not 0 <= self.jitter <= 2:
            raise ConfigError("jitter", f"{self.jitter:g} is not between 0 and 2")


class GrpcSchedulerOptions(Options):
    """The scheduler of another server: actions go there, and workers connect there.

    That server needs the same blobs. It matches by what the action itself says: what a `property_modifier` or
    `historical_resource` in front changes is not seen there.
    """

    EXAMPLE = '{ name: "MAIN", grpc: { endpoint: { address: "grpc://scheduler:50052" } } }'

    endpoint: SchedulerEndpoint
    """The other server."""
    retry: SchedulerRetry = SchedulerRetry()
    """When the stream of an operation is taken up again."""
    max_concurrent_requests: Count = 0
    """How many operations are followed at once, the others wait here; 0 means any number."""
    connections_per_endpoint: Annotated[Count, ZeroMeansDefault()] = 1
    """How many connections are kept."""
    retain_completed_for_s: Annotated[Duration, ZeroMeansDefault()] = 60.0
    """How long a finished operation can still be asked for."""
    client_action_timeout_s: Annotated[Duration, ZeroMeansDefault()] = 60.0
    """How long an action goes on without any client listening."""
    max_operations: Annotated[Count, ZeroMeansDefault()] = 100_000
    """How many operations may be unfinished at once; beyond that Execute is refused as RESOURCE_EXHAUSTED."""
    max_retained_bytes: Annotated[Size, ZeroMeansDefault()] = 256 * 1024 * 1024
    """How large the results that are kept for `retain_completed_for_s` may be together; the oldest go early."""


SCHEDULER_KINDS: dict[str, type[Options]] = {
    "simple": SimpleSchedulerOptions,
    "cache_lookup": CacheLookupOptions,
    "property_modifier": PropertyModifierOptions,
    "historical_resource": HistoricalResourceOptions,
    "grpc": GrpcSchedulerOptions,
}
