"""The options of `servers`: listeners and the services on them."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from nl.config.auth import AuthOptions
from nl.config.convert import mapped
from nl.config.fields import Conversion, Entries, Ignored, Raw, Unsupported, ZeroMeansDefault, join
from nl.config.types import Alias, Count, Duration, Flag, Options, SchedulerName, Size, StoreName, Text
from nl.errors import ConfigError

_HOST = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.%a-z]+\])?")


def parse_socket_address(text: str) -> tuple[str, int]:
    """(host, port) of `127.0.0.1:50051`, `[::]:50051`, `localhost:50051` or `:50051` (all IPv4 addresses).

    Raises ValueError.
    """
    host, colon, port = text.strip().rpartition(":")
    if not colon or not re.fullmatch(r"[0-9]{1,5}", port, re.ASCII) or not _HOST.fullmatch(host):
        raise ValueError(f'"{text}" is not an address; expected host:port such as "127.0.0.1:50051" or "[::]:50051"')
    if int(port) > 65535:
        raise ValueError(f'"{text}" has a port above 65535; expected host:port')
    return (host.strip("[]") or "0.0.0.0", int(port))


# ---------------------------------------------------------------------------------------------------------- listener


class CompressionOptions(Options):
    """Compression of single gRPC messages (not of blobs)."""

    send_compression_algorithm: Literal["none", "gzip"] | None = None
    """How messages to clients that accept it are compressed."""
    accepted_compression_algorithms: tuple[Literal["none", "gzip"], ...]
    """How clients may compress their messages."""


class AdvancedHttpOptions(Options):
    """Knobs of HTTP/2; what is not set keeps this server's default."""

    http2_keep_alive_interval: Count | None = None
    """Seconds between PINGs on an idle connection."""
    experimental_http2_keep_alive_timeout_s: Annotated[
        Count | None, Alias("experimental_http2_keep_alive_timeout")] = None
    """Seconds to wait for a PING's answer before the connection is closed."""
    experimental_http2_max_pending_accept_reset_streams: Count | None = None
    """How many streams a client may reset in a short time before it counts as an attack."""
    experimental_http2_initial_stream_window_size: Count | None = None
    """Flow-control window of a stream, in bytes."""
    experimental_http2_initial_connection_window_size: Count | None = None
    """Flow-control window of a connection, in bytes."""
    experimental_http2_adaptive_window: Annotated[Flag, Ignored("windows are fixed here")] = False
    """Size the windows by measured round trips."""
    experimental_http2_max_frame_size: Count | None = None
    """The largest DATA frame that clients may send, in bytes."""
    experimental_http2_max_concurrent_streams: Count | None = None
    """How many calls a client may have open at once on one connection."""
    experimental_http2_max_send_buf_size: Count | None = None
    """Bytes that may wait for a slow client on one stream."""
    experimental_http2_enable_connect_protocol: Annotated[Flag, Ignored("nothing here uses extended CONNECT")] = False
    """Announce extended CONNECT (RFC 8441)."""
    experimental_http2_max_header_list_size: Count | None = None
    """The largest set of request headers, in bytes."""


class TlsOptions(Options):
    """TLS on a listener."""

    cert_file: Text
    """PEM file with the certificate chain."""
    key_file: Text
    """PEM file with the private key."""
    client_ca_file: Text | None = None
    """PEM file with the authorities that sign client certificates. Setting it makes client certificates required."""
    client_crl_file: Text | None = None
    """PEM file with revoked client certificates."""

    def check(self) -> None:
        """A revocation list means nothing without client certificates."""
        if self.client_crl_file is not None and self.client_ca_file is None:
            raise ConfigError("client_crl_file", "set without client_ca_file; expected both or neither")


class HttpListener(Options):
    """A socket that speaks gRPC over HTTP/2 and, on the same port, HTTP/1.1."""

    socket_address: Text
    """Where to listen: `127.0.0.1:50051`, `[::]:50051`, `localhost:50051`, or `:50051` for all addresses."""
    freebind: Flag = False
    """Bind also while the address does not exist yet (IP_FREEBIND)."""
    compression: CompressionOptions | None = None
    """gRPC message compression; off if not set."""
    advanced_http: AdvancedHttpOptions = AdvancedHttpOptions()
    """Knobs of HTTP/2."""
    max_decoding_message_size: Annotated[Size, ZeroMeansDefault()] = 4 * 1024 * 1024
    """The largest gRPC message that is accepted. Methods that need more take more: UpdateActionResult and
    FindMissingBlobs 16 MiB, BatchUpdateBlobs 7 MiB."""
    tls: TlsOptions | None = None
    """TLS; plaintext if not set."""

    @property
    def address(self) -> tuple[str, int]:
        """(host, port) to bind; checked when the config was read."""
        return parse_socket_address(self.socket_address)

    def check(self) -> None:
        """The address must be one."""
        try:
            parse_socket_address(self.socket_address)
        except ValueError as exc:
            raise ConfigError("socket_address", str(exc)) from None


class Listener(Options):
    """What a server listens on."""

    http: HttpListener
    """The one kind of listener there is."""


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
    remote_cache_compression: Annotated[Flag, Ignored("compressed transfer of blobs is not offered")] = False
    """Announce compressed transfer of blobs."""


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
    """Administration over HTTP/1.1."""

    path: str = "/admin"
    """Where it begins."""


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
    admin: Annotated[AdminService | None, Ignored("administration over HTTP is not served")] = None
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
