"""The options of `servers`: the services, and on which listener (listeners.py) they are."""

from __future__ import annotations

from typing import Annotated

from nl.config.auth import AuthOptions
from nl.config.convert import mapped
from nl.config.fields import Conversion, Entries, Ignored, Raw, Unsupported, ZeroMeansDefault, join
from nl.config.listeners import Listener
from nl.config.types import Alias, Duration, Flag, Options, SchedulerName, Size, StoreName, Text
from nl.errors import ConfigError

# ---------------------------------------------------------------------------------------------------------- services


def _instances(raw: Raw, path: str, conversion: Conversion) -> list[tuple[str, Raw]]:
    """`[{ instance_name, ... }]`, or the older `{ "<instance>": {...} }`."""
    if isinstance(raw, list):
        return [(f"{path}[{i}]", entry) for i, entry in enumerate(raw)]
    if not isinstance(raw, dict):
        raise ConfigError(path, "neither a list nor an object; expected a list of { instance_name, ... }")
    if raw:
        conversion.warn(path, "is written as a map of instances, an older form; "
                              'better as a list: [{ instance_name: "main", ... }]')
    entries = []
    for name, inner in raw.items():
        at = join(path, name)
        if not isinstance(inner, dict):
            raise ConfigError(at, f"not an object; expected a list of {{ instance_name, ... }} at {path}")
        if "instance_name" in inner:
            raise ConfigError(join(at, "instance_name"), "says the name twice; expected it only as the key")
        entries.append((at, {"instance_name": name, **inner}))
    return entries


_BYTESTREAM_SHARED = ("max_bytes_per_stream", "persist_stream_on_disconnect_timeout_s",
                      "persist_stream_on_disconnect_timeout")


def _bytestreams(raw: Raw, path: str, conversion: Conversion) -> list[tuple[str, Raw]]:
    """Like `_instances`, or the older `{ cas_stores: { "<instance>": "STORE" }, ... }`."""
    if not (isinstance(raw, dict) and "cas_stores" in raw):
        return _instances(raw, path, conversion)
    shared = {}
    for key, value in raw.items():
        if key in _BYTESTREAM_SHARED:
            shared[key] = value
        elif key == "max_decoding_message_size":
            conversion.warn(join(path, key), "has no effect here; set it in the listener's http section")
        elif key != "cas_stores":
            names = ", ".join(("cas_stores", *_BYTESTREAM_SHARED[:2], "max_decoding_message_size"))
            raise ConfigError(join(path, key), f"unknown key; expected one of {names}")
    at = join(path, "cas_stores")
    conversion.warn(path, "is written with cas_stores, an older form; "
                          'better as a list: [{ instance_name: "main", cas_store: "CAS" }]')
    return [(join(at, name), {"instance_name": name, "cas_store": store, **shared})
            for name, store in mapped(raw["cas_stores"], at).items()]


_MAP_FORM = Entries(_instances, 'also the older { "<instance>": { ... } }')
_BYTESTREAM_FORM = Entries(_bytestreams, 'also the older { cas_stores: { "<instance>": "<store>" } }')


class CasService(Options):
    """ContentAddressableStorage for one instance name."""

    instance_name: str = ""
    """The instance name that clients send."""
    cas_store: StoreName
    """The store that holds the blobs."""
    experimental_chunking: Annotated[Options | None, Unsupported("blobs are not split into chunks")] = None
    """Content-defined chunking."""


class AcService(Options):
    """ActionCache for one instance name."""

    instance_name: str = ""
    """The instance name that clients send."""
    ac_store: StoreName
    """The store that holds the action results."""
    check_completeness: Flag = True
    """Answer only with results whose outputs are all in the CAS of this instance name; others are misses, also for
    Execute. Asking keeps the outputs from eviction. It is not done twice where `ac_store` is a
    `completeness_checking`."""
    read_only: Flag = False
    """Refuse uploads of results from clients."""


class RemoteExecution(Options):
    """Remote execution, as announced to clients."""

    scheduler: SchedulerName
    """The scheduler whose platform properties are announced."""


class CapabilitiesService(Options):
    """What is announced to clients of one instance name."""

    instance_name: str = ""
    """The instance name that clients send."""
    remote_execution: RemoteExecution | None = None
    """Announce remote execution; only caching if not set."""
    remote_cache_compression: Flag = False
    """Announce compressed transfer of blobs (zstd), which is taken and given in any case. An instance whose store keeps
    blobs as zstd announces it always."""


class ExecutionService(Options):
    """Execution and its operations for one instance name."""

    instance_name: str = ""
    """The instance name that clients send."""
    cas_store: StoreName
    """The store in which actions and commands are found."""
    scheduler: SchedulerName
    """The scheduler that gets the actions."""


class ByteStreamService(Options):
    """ByteStream for one instance name."""

    instance_name: str = ""
    """The instance name that clients send."""
    cas_store: StoreName
    """The store that holds the blobs."""
    max_bytes_per_stream: Annotated[
        Size, ZeroMeansDefault(), Ignored("messages are as large as what the client has room for")] = 64 * 1024
    """The size of the messages in which a blob is sent."""
    persist_stream_on_disconnect_timeout_s: Annotated[
        Duration, Alias("persist_stream_on_disconnect_timeout"), ZeroMeansDefault()] = 60.0
    """How long an upload that was cut off can be resumed."""
    idle_upload_timeout_s: Annotated[Duration, ZeroMeansDefault()] = 300.0
    """How long an upload may go without a byte from its client, while the connection stands, before it is ended
    (DEADLINE_EXCEEDED)."""


class FetchService(Options):
    """The Remote Asset API's Fetch."""

    instance_name: str = ""
    """The instance name that clients send."""
    fetch_store: StoreName
    """The store that holds what was fetched."""


class PushService(Options):
    """The Remote Asset API's Push."""

    instance_name: str = ""
    """The instance name that clients send."""
    push_store: StoreName
    """The store that gets what is pushed."""
    read_only: Flag = False
    """Refuse pushes."""


class WorkerApiService(Options):
    """The API that workers connect to. Clients should not be able to reach it."""

    scheduler: SchedulerName
    """The scheduler that hands out actions."""
    disable_kill_revoked_operations: Annotated[
        Flag, Ignored("an action that was taken from a worker is always killed there")] = False
    """Let a worker finish an action that was taken from it."""
    kill_revoked_operations_interval_s: Annotated[
        Duration, ZeroMeansDefault(), Ignored("a kill is sent once, and a worker that does not confirm it is removed"),
    ] = 5.0
    """How often workers are told again to kill what was taken from them."""


class BepService(Options):
    """Build events."""

    store: StoreName
    """The store that gets the events."""


class AdminService(Options):
    """Administration over HTTP/1.1: `POST {path}/scheduler/{scheduler}/set_drain_worker/{worker_id}/{0|1}` takes a
    worker out of service once it has finished what it runs, and back; `.../set_drain_property/{name}/{value}/{0|1}` all
    workers that declare it. Ids of workers are in the status page.
    """

    path: str = "/admin"
    """Where it begins."""

    def check(self) -> None:
        """A path, and not all of them."""
        if not self.path.startswith("/") or not self.path.strip("/"):
            raise ConfigError("path", f"{self.path!r} is no path; expected one such as /admin")


class HealthService(Options):
    """Health over HTTP/1.1."""

    path: str = "/status"
    """Where it is answered."""
    timeout_seconds: Annotated[Duration, ZeroMeansDefault(), Ignored("health is known, not tried out")] = 5.0
    """How long a check may take."""


class ServicesOptions(Options):
    """What is served on a listener. A service that is not named is not served."""

    cas: Annotated[tuple[CasService, ...] | None, _MAP_FORM] = None
    """Blobs: one entry per instance name."""
    ac: Annotated[tuple[AcService, ...] | None, _MAP_FORM] = None
    """Action results: one entry per instance name."""
    capabilities: Annotated[tuple[CapabilitiesService, ...] | None, _MAP_FORM] = None
    """What is announced: one entry per instance name that has remote execution."""
    execution: Annotated[tuple[ExecutionService, ...] | None, _MAP_FORM] = None
    """Remote execution: one entry per instance name."""
    bytestream: Annotated[tuple[ByteStreamService, ...] | None, _BYTESTREAM_FORM] = None
    """Large blobs: one entry per instance name."""
    fetch: Annotated[tuple[FetchService, ...] | None, _MAP_FORM,
                     Unsupported("the Remote Asset API is not served")] = None
    """The Remote Asset API's Fetch. Only an empty value is accepted."""
    push: Annotated[tuple[PushService, ...] | None, _MAP_FORM,
                    Unsupported("the Remote Asset API is not served")] = None
    """The Remote Asset API's Push. Only an empty value is accepted."""
    worker_api: WorkerApiService | None = None
    """The API that workers connect to."""
    experimental_bep: Annotated[BepService | None, Unsupported("build events are not stored")] = None
    """Build events."""
    admin: AdminService | None = None
    """Administration over HTTP/1.1."""
    health: HealthService | None = None
    """Health over HTTP/1.1 and gRPC."""


class IdentityHeader(Options):
    """Who asks, taken from a request header."""

    header_name: Text | None = "x-identity"
    """The header."""
    required: Annotated[Flag, Unsupported("requests without an identity are not refused")] = False
    """Refuse requests without it."""


class ServerOptions(Options):
    """One listener and what is served on it."""

    name: Text = ""
    """For logs."""
    listener: Listener
    """Where to listen."""
    services: ServicesOptions
    """What to serve."""
    any_instance_name: Flag = False
    """Serve every instance name that is not configured as the instance `""`. Clients have default names of their own
    (moon: `moon-outputs`, siso: `default_instance`) that a cache for everybody need not know."""
    auth: AuthOptions | None = None
    """Who may do what on this listener, in place of the config's own `auth`."""
    experimental_identity_header: Annotated[IdentityHeader | None, Ignored("identities are not recorded")] = None
    """Who asks, taken from a request header."""
