"""The options of `listener`: sockets, what is spoken on them, and what their clients may cost."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from nl.config.fields import Ignored, ZeroMeansDefault
from nl.config.types import Alias, Count, Duration, Flag, Options, Size, Text
from nl.errors import ConfigError

UNIX = "unix:"
_LEAST_WINDOW = 65_535
_MAX_WINDOW = (1 << 31) - 1
_MAX_32 = (1 << 32) - 1
_DAY_S = 86_400
_LEAST_TIMEOUT_S = 0.1
_MODE = re.compile(r"0?[0-7]{3}", re.ASCII)
_HOST = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.%a-z]+\])?")


def parse_socket_address(text: str) -> tuple[str, int]:
    """(host, port) of `127.0.0.1:50051`, `[::]:50051`, `localhost:50051` or `:50051` (all IPv4 addresses).

    Of `unix:/path` it is the text itself and 0. Raises ValueError.
    """
    if text.startswith(UNIX):
        if not text.removeprefix(UNIX).strip() or "\0" in text:
            raise ValueError(f'"{text}" names no socket; expected unix: and a path such as "unix:/run/nl.sock"')
        return text, 0
    host, colon, port = text.strip().rpartition(":")
    if not colon or not re.fullmatch(r"[0-9]{1,5}", port, re.ASCII) or not _HOST.fullmatch(host):
        raise ValueError(f'"{text}" is not an address; expected host:port such as "127.0.0.1:50051" '
                         'or "[::]:50051", or unix:/path')
    if int(port) > 65535:
        raise ValueError(f'"{text}" has a port above 65535; expected host:port')
    return (host.strip("[]") or "0.0.0.0", int(port))


def _in_range(options: Options, key: str, low: int, high: int, source: str) -> None:
    """Refuses a number that is set and out of range. `source` is where the range comes from."""
    value = getattr(options, key)
    if value is not None and not low <= value <= high:
        raise ConfigError(key, f"{value} is out of range; expected {low} to {high} ({source})")


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

    def check(self) -> None:
        """Every number must be one that HTTP/2 allows: a client would refuse the whole connection."""
        window = "RFC 9113, 6.9; clients may send 65535 bytes before they have read our settings"
        _in_range(self, "experimental_http2_initial_stream_window_size", _LEAST_WINDOW, _MAX_WINDOW, window)
        _in_range(self, "experimental_http2_initial_connection_window_size", _LEAST_WINDOW, _MAX_WINDOW, window)
        _in_range(self, "experimental_http2_max_frame_size", 1 << 14, (1 << 24) - 1, "RFC 9113, 6.5.2")
        _in_range(self, "experimental_http2_max_concurrent_streams", 1, _MAX_32, "RFC 9113, 6.5.2")
        _in_range(self, "experimental_http2_max_header_list_size", 1024, _MAX_32, "RFC 9113, 6.5.2; 1 KiB for a call")
        _in_range(self, "experimental_http2_max_send_buf_size", 1 << 14, _MAX_WINDOW, "one frame at least")
        _in_range(self, "experimental_http2_keep_alive_timeout_s", 1, _DAY_S, "a second to a day")
        _in_range(self, "http2_keep_alive_interval", 0, _DAY_S, "0 for never, a day at most")
        _in_range(self, "experimental_http2_max_pending_accept_reset_streams", 1, _MAX_32, "at least one")


class ConnectionOptions(Options):
    """What the clients of a listener may cost, all together and each. These are not NativeLink's."""

    max_connections: Count = 20_000
    """Connections at once, those in their handshake included; further ones wait. All listeners together never take
    more than the limit of open files allows (`global.max_open_files`) after a reserve for stores and uploads."""
    max_held_bytes: Size = 1024 * 1024 * 1024
    """Bytes that may be in memory for clients who do not read, or have not finished sending. Beyond it the connection
    that holds the most is ended."""
    handshake_timeout_s: Duration = 10.0
    """For TLS's handshake and a client's first words; for the headers of an HTTP/1.1 request, too."""
    stall_timeout_s: Duration = 60.0
    """How long a client may take nothing of what is sent to it, before its connection is ended."""
    window_timeout_s: Duration = 600.0
    """How long a call may wait for its client to open HTTP/2's flow-control window, before the call is ended."""
    idle_timeout_s: Duration = 0.0
    """A gRPC connection without calls for this long is asked to leave; 0 means never."""

    def check(self) -> None:
        """No client could do anything in no time, or with no connection."""
        _in_range(self, "max_connections", 1, 10_000_000, "at least one")
        _in_range(self, "max_held_bytes", 16 << 20, 1 << 62, "16 MiB at least: the messages of a few calls")
        for key in ("handshake_timeout_s", "stall_timeout_s", "window_timeout_s"):
            value = getattr(self, key)
            if value < _LEAST_TIMEOUT_S:
                raise ConfigError(key, f"{value:g} is too short; expected at least {_LEAST_TIMEOUT_S:g} s")


class TlsOptions(Options):
    """TLS on a listener."""

    cert_file: Text
    """PEM file with the certificate chain."""
    key_file: Text
    """PEM file with the private key."""
    client_ca_file: Text | None = None
    """PEM file with the authorities that sign client certificates. Setting it makes client certificates required,
    unless `client_auth` says otherwise."""
    client_crl_file: Text | None = None
    """PEM file with revoked client certificates."""
    client_auth: Literal["require", "accept"] = "require"
    """With `client_ca_file`: whether clients must show a certificate (`require`), or may (`accept`: one that is shown
    must be valid, and clients without one are known by other credentials or not at all). Not NativeLink's."""
    reload_interval_s: Duration = 10.0
    """How often the files are looked at; when they have changed, new connections get what they say then. 0 means never.
    Files that cannot be used are logged once, and the old ones stay. Not NativeLink's."""

    def check(self) -> None:
        """Client certificates need an authority that signs them."""
        if self.client_auth == "accept" and self.client_ca_file is None:
            raise ConfigError("client_auth", '"accept" without client_ca_file; expected the file of the authorities')
        if self.client_crl_file is not None and self.client_ca_file is None:
            raise ConfigError("client_crl_file", "set without client_ca_file; expected both or neither")


class HttpListener(Options):
    """A socket that speaks gRPC over HTTP/2 and, on the same port, HTTP/1.1."""

    socket_address: Text
    """Where to listen: `127.0.0.1:50051`, `localhost:50051`, `:50051` for all IPv4 addresses, `[::]:50051` for all
    addresses, IPv4's included, or `unix:/path` for a socket in the file system."""
    unix_socket_mode: Text = "0600"
    """Of a `unix:` socket: who may connect, as a file's permissions in octal digits (`0660`: the group, too). Not
    NativeLink's."""
    freebind: Flag = False
    """Bind also while the address does not exist yet (IP_FREEBIND)."""
    compression: CompressionOptions | None = None
    """gRPC message compression; off if not set."""
    advanced_http: AdvancedHttpOptions = AdvancedHttpOptions()
    """Knobs of HTTP/2."""
    connections: ConnectionOptions = ConnectionOptions()
    """What its clients may cost."""
    max_decoding_message_size: Annotated[Size, ZeroMeansDefault()] = 4 * 1024 * 1024
    """The largest gRPC message that is accepted. Methods that need more take more: UpdateActionResult and
    FindMissingBlobs 16 MiB, BatchUpdateBlobs 7 MiB."""
    tls: TlsOptions | None = None
    """TLS; plaintext if not set."""

    @property
    def address(self) -> tuple[str, int]:
        """(host, port) to bind, or (`unix:/path`, 0); checked when the config was read."""
        return parse_socket_address(self.socket_address)

    @property
    def unix_path(self) -> str | None:
        """The path of a `unix:` socket."""
        host, _ = self.address
        return host.removeprefix(UNIX) if host.startswith(UNIX) else None

    def check(self) -> None:
        """The address must be one."""
        try:
            parse_socket_address(self.socket_address)
        except ValueError as exc:
            raise ConfigError("socket_address", str(exc)) from None
        if not _MODE.fullmatch(self.unix_socket_mode):
            problem = f'"{self.unix_socket_mode}" is no mode; expected octal digits such as "0600" or "0660"'
            raise ConfigError("unix_socket_mode", problem)


class Listener(Options):
    """What a server listens on."""

    http: HttpListener
    """The one kind of listener there is."""
