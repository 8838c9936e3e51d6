"""The options of `workers`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Literal

from nl.config.fields import Ignored, ZeroMeansDefault
from nl.config.types import Alias, Count, Duration, Flag, Milliseconds, Options, SecretText, Size, StoreName, Text
from nl.errors import ConfigError

DEFAULT_WORKER_API = "grpc://127.0.0.1:50061"
_UNIX = re.compile(r"unix:(?://)?(/[^\0]+)")
_URI = re.compile(r"(grpcs?|https?)://([^/:\s]+|\[[^\]\s]+\])(?::([0-9]{1,5}))?/?")


class ClientTlsOptions(Options):
    """TLS towards a server."""

    ca_file: Text | None = None
    """PEM file with the authorities to trust."""
    cert_file: Text | None = None
    """PEM file with the client's certificate chain."""
    key_file: Text | None = None
    """PEM file with the client's private key."""
    use_native_roots: Flag | None = None
    """Trust the system's authorities."""

    def check(self) -> None:
        """A certificate needs its key."""
        if (self.cert_file is None) != (self.key_file is None):
            raise ConfigError("", "cert_file and key_file belong together; expected both or neither")


_TOKEN = re.compile("[!-~]+")


class WorkerApiEndpoint(Options):
    """Where a worker finds its scheduler."""

    uri: Text = DEFAULT_WORKER_API
    """`grpc://host:port`, `grpcs://host:port` for TLS, or `unix:/path`."""
    timeout: Annotated[float, ZeroMeansDefault()] = 5.0
    """Seconds to wait for a connection."""
    tls_config: ClientTlsOptions | None = None
    """TLS; for `grpcs` the system's authorities if not set."""
    token: SecretText | None = None
    """The token to come in with, `"${NL_WORKER_TOKEN}"` say: of `nl token create NAME --allow worker`. A worker in the
    process of its scheduler needs none."""
    token_file: Text | None = None
    """A file with the token in its first line, read for each connection."""

    @property
    def address(self) -> tuple[str, int, bool]:
        """(host, port, whether TLS is spoken), or (`unix:/path`, 0, False); checked when the config was read."""
        unix = _UNIX.fullmatch(self.uri)
        if unix is not None:
            return f"unix:{unix[1]}", 0, False
        match = _URI.fullmatch(self.uri)
        assert match is not None
        tls = match[1] in {"grpcs", "https"}
        return match[2].strip("[]"), int(match[3] or (443 if tls else 80)), tls

    def check(self) -> None:
        """The address must be one, and a token is in one place."""
        if self.token is not None and self.token_file is not None:
            raise ConfigError("token_file", "says the same as token; expected only one of the two")
        if self.token is not None and _TOKEN.fullmatch(self.token.strip()) is None:
            raise ConfigError("token", "is empty, or has characters that no token has; expected a token")
        match = _URI.fullmatch(self.uri)
        if _UNIX.fullmatch(self.uri) is None and (match is None or int(match[3] or 0) > 65535):
            expected = "expected grpc://host:port, grpcs://host:port or unix:/path"
            raise ConfigError("uri", f'"{self.uri}" is not an address; {expected}')


class UploadActionResult(Options):
    """Which results a worker writes to the action cache."""

    ac_store: StoreName | None = None
    """The action cache. If not set, this worker writes no results to it; clients and schedulers then have to."""
    upload_ac_results_strategy: Literal["success_only", "never", "everything", "failures_only"] = "success_only"
    """Which results go to the action cache."""
    historical_results_store: StoreName | None = None
    """Where results are kept for looking at later; the worker's own store if not set."""
    upload_historical_results_strategy: Literal["success_only", "never", "everything", "failures_only"] | None = (
        "failures_only")
    """Which results are kept for looking at later."""
    success_message_template: Text = ""
    """What the client is told about a successful action."""
    failure_message_template: Text = ""
    """What the client is told about a failed action."""


class PropertySource(Options):
    """Where a platform property's values come from: exactly one of the keys."""

    values: tuple[Text, ...] | None = None
    """The values themselves."""
    query_cmd: str | None = None
    """A command, run when the worker starts; each line that it prints is a value."""

    def check(self) -> None:
        """Exactly one source."""
        if (self.values is None) == (self.query_cmd is None):
            raise ConfigError("", "expected exactly one of values and query_cmd")


class EnvironmentSource(Options):
    """Where an environment variable's value comes from: exactly one of the keys."""

    property: Text | None = None
    """A platform property of the action."""
    value: Text | None = None
    """The value itself."""

    def check(self) -> None:
        """Exactly one source."""
        if (self.property is None) == (self.value is None):
            raise ConfigError("", "expected exactly one of property and value")


class DirectoryCacheOptions(Options):
    """Whole input directories kept between actions."""

    max_entries: Count = 1000
    """How many."""
    max_size_bytes: Size = 10 * 1024**3
    """How large together; 0 means any size."""
    cache_root: Text = ""
    """Where; beside the work directory if empty."""
    experimental_subtree_caching: Flag = False
    """Keep subdirectories by themselves."""
    max_concurrent_fetches: Count = 64
    """How many files are fetched at once."""
    experimental_get_tree_prefetch: Flag = False
    """Fetch trees in one call."""


class IsolationOptions(Options):
    """How actions are kept apart from the server, from its stores and from each other."""

    kind: Literal["sandbox", "uid", "plain"] | None = None
    """`sandbox` (namespaces: an action sees the machine read-only, its inputs as its own, no other process and no
    network), `uid` (the server is root, and actions run as other users), or `plain` (actions run as the server does;
    their inputs are looked at when they have ended). If not set, the strongest that this machine allows; if set, the
    worker does not start where it is not possible."""
    network: Flag = False
    """Let sandboxed actions use the network, also those that do not ask for it with the platform property
    `requires-network`."""
    rootfs: Flag = False
    """The input root is the root directory of sandboxed actions, which see nothing else (BuildStream)."""
    hidden_paths: tuple[Text, ...] = ()
    """Absolute paths that sandboxed actions do not see, besides what the config names (stores, secrets), other actions,
    /run, and the home of the server's user."""
    visible_paths: tuple[Text, ...] = ()
    """Absolute paths in what is hidden that sandboxed actions see all the same, read-only: a toolchain in a home."""
    first_uid: Count = 60706
    """Where the server is root, actions run with uids (and gids) from this one on, each alone with its own. The default
    is a range that Linux distributions leave free."""
    uids: Count = 448
    """How many there are, and so how many actions run at once at most."""

    def check(self) -> None:
        """Paths are absolute, uids are nobody's."""
        for key, paths in (("hidden_paths", self.hidden_paths), ("visible_paths", self.visible_paths)):
            for at, path in enumerate(paths):
                if not path.startswith("/"):
                    raise ConfigError(f"{key}[{at}]", f'"{path}" is not absolute; expected a path that begins with /')
        if self.first_uid < 1 or self.uids < 1 or self.first_uid + self.uids > 1 << 32:
            problem = f"{self.uids} uids from {self.first_uid} on; expected at least one, none of them 0, below 2**32"
            raise ConfigError("first_uid", problem)


class LocalWorkerOptions(Options):
    """A worker in this process. It talks to its scheduler over the network all the same."""

    name: Text = ""
    """Begins the worker's id and its log lines; `${WORKER_NAME}` is the usual way to tell replicas apart."""
    worker_api_endpoint: WorkerApiEndpoint = WorkerApiEndpoint()
    """The scheduler's worker API."""
    max_action_timeout_s: Annotated[Duration, Alias("max_action_timeout"), ZeroMeansDefault()] = 1200.0
    """The longest that an action may run, and the limit for those that set none."""
    max_upload_timeout_s: Annotated[Duration, Alias("max_upload_timeout"), ZeroMeansDefault()] = 600.0
    """How long the outputs of an action may take to upload."""
    max_cleanup_wait_s: Annotated[Duration, ZeroMeansDefault()] = 30.0
    """How long to wait for an earlier run of the same operation to be cleaned up."""
    max_cleanup_backoff_ms: Annotated[
        Milliseconds, ZeroMeansDefault(), Ignored("the end of cleaning up is waited for, not polled")] = 500
    """The longest pause between looks whether it has been."""
    max_inflight_tasks: Count = 0
    """How many actions run at once; 0 means as many as the platform properties admit."""
    timeout_handled_externally: Flag = False
    """Leave an action's time limit to `entrypoint`."""
    entrypoint: Text = ""
    """A program put in front of every action's command."""
    experimental_precondition_script: str | None = None
    """A program that is run before every action; if it fails, the action goes back to the scheduler."""
    cas_fast_slow_store: StoreName
    """The store that holds inputs and gets outputs: any store that can hand out local files (`filesystem`, or
    `fast_slow` with a `filesystem` as its fast side)."""
    upload_action_result: UploadActionResult = UploadActionResult()
    """Which results are written to the action cache."""
    work_directory: Text
    """Where actions run. Made, and emptied, when the worker starts."""
    platform_properties: Mapping[str, PropertySource] = field(default_factory=dict)
    """What this worker offers, matched by the scheduler."""
    additional_environment: Mapping[
        str,
        Literal["from_environment", "timeout_millis", "side_channel_file", "action_directory"] | EnvironmentSource,
    ] = field(default_factory=dict)
    """Environment variables that every action gets besides its own."""
    input_file_cache_size: Size = 4 * 1024**3
    """How many bytes of input files the worker keeps by itself, in `work_directory`, where an action could write to the
    store's own files (runner `plain`). They are copies, and not counted in a store's `max_bytes`."""
    directory_cache: Annotated[DirectoryCacheOptions | None, Ignored("inputs are hard-linked file by file")] = None
    """Whole input directories kept between actions."""
    experimental_active_input_leases: Annotated[
        Flag, Ignored("a linked input outlives its eviction anyway")] = False
    """Pin the inputs of running actions in the local store."""
    isolation: IsolationOptions = IsolationOptions()
    """How actions are kept apart."""
    use_namespaces: Flag | None = None
    """NativeLink's name for `isolation: { kind: "sandbox" }`, if true."""
    use_mount_namespace: Flag | None = None
    """Part of `use_namespaces` here: a sandbox without it would be none."""

    def check(self) -> None:
        """NativeLink's options must not contradict `isolation`."""
        if self.use_mount_namespace and not self.use_namespaces:
            raise ConfigError("use_mount_namespace", "is only possible with use_namespaces: true")
        if self.use_namespaces and self.isolation.kind not in (None, "sandbox"):
            raise ConfigError("use_namespaces", f'contradicts isolation.kind: "{self.isolation.kind}"')


class WorkerEntry(Options):
    """One worker."""

    local: LocalWorkerOptions
    """The one kind of worker there is."""
