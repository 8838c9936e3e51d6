"""Binding sockets and turning listener options into what the transport is told. Nothing is accepted here."""

from __future__ import annotations

import errno
import os
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import trio

from nl.config.listeners import AdvancedHttpOptions, ConnectionOptions, HttpListener, TlsOptions
from nl.errors import ConfigError
from nl.rpc.h2.limits import Limits
from nl.rpc.live_tls import LiveContext
from nl.rpc.options import ServerOptions
from nl.rpc.tls import server_context
from nl.server.sockets import UnixPath, listen_tcp, listen_unix
from nl.web.connection import HttpLimits

_REASONS = {
    errno.EADDRINUSE: "is already in use by another process or by another listener of this one ([::] takes IPv4, "
                      "too); choose another port",
    errno.EADDRNOTAVAIL: "is not an address of this machine",
    errno.EACCES: "needs privileges that this process does not have (ports below 1024 do)",
}
_UNIX_REASONS = {
    errno.EADDRINUSE: "is already in use by another process or by another listener of this one; choose another path",
    errno.EACCES: "may not be made by this process; check the permissions of its folder",
    errno.ENOENT: "cannot be made: its folder does not exist",
}


@dataclass(slots=True)
class Bound:
    """The listening sockets of one configured address."""

    sockets: list[trio.SocketListener]
    addresses: list[str] = field(init=False)
    """Each as it really is, for logs and for whoever connects: `host:port` or `unix:/path`."""
    _unix_path: UnixPath | None = None

    def __post_init__(self) -> None:
        self.addresses = [_address_of(each) for each in self.sockets]

    def close(self) -> None:
        """Closes them, and removes what a unix socket has in the file system."""
        for each in self.sockets:
            each.socket.close()
        if self._unix_path is not None:
            self._unix_path.remove()


async def bind(listener: HttpListener, *, path: str) -> Bound:
    """Listening sockets for the configured address: one for each address that its host name has.

    Raises ConfigError, naming the address and `path`, when that cannot be had.
    """
    if listener.unix_path is not None:
        return _bind_unix(listener, path=path)
    host, port = listener.address
    try:
        found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ConfigError(path, f'"{listener.socket_address}" cannot be resolved: {error.strerror or error}') from error
    listeners: list[trio.SocketListener] = []
    try:
        for family, _, _, _, address in dict.fromkeys(found):
            listeners.append(listen_tcp(family, address, freebind=listener.freebind))
    except OSError as error:
        for each in listeners:
            each.socket.close()
        raise _refused(listener, error, _REASONS, path=path) from error
    return Bound(listeners)


def _bind_unix(listener: HttpListener, *, path: str) -> Bound:
    file = os.path.abspath(listener.unix_path or "")
    try:
        sockets = [listen_unix(file, mode=int(listener.unix_socket_mode, 8))]
        return Bound(sockets, UnixPath(file))
    except OSError as error:
        raise _refused(listener, error, _UNIX_REASONS, path=path) from error


def _refused(listener: HttpListener, error: OSError, reasons: Mapping[int, str], *, path: str) -> ConfigError:
    reason = reasons.get(error.errno or 0, error.strerror or str(error))
    return ConfigError(path, f"Address '{listener.socket_address}' {reason}")


def _address_of(listener: trio.SocketListener) -> str:
    name = listener.socket.getsockname()
    if listener.socket.family == socket.AF_UNIX:
        return f"unix:{name}"
    host, port = name[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def transport_options(listener: HttpListener, *, path: str) -> ServerOptions:
    """What the transport is told. `path` is where the listener stands in the config.

    Raises ConfigError if a file of its TLS section cannot be used.
    """
    connections = listener.connections
    options = ServerOptions(
        limits=_limits(listener.advanced_http),
        max_message_size=int(listener.max_decoding_message_size),
        handshake_timeout=float(connections.handshake_timeout_s),
        stall_timeout=float(connections.stall_timeout_s),
        window_timeout=float(connections.window_timeout_s),
        idle_timeout=float(connections.idle_timeout_s) or None,
        max_connections=int(connections.max_connections),
        max_held=int(connections.max_held_bytes),
    )
    http = listener.advanced_http
    if http.http2_keep_alive_interval is not None:
        options = replace(options, keepalive_interval=float(http.http2_keep_alive_interval) or None)
    if http.experimental_http2_keep_alive_timeout_s is not None:
        options = replace(options, keepalive_timeout=float(http.experimental_http2_keep_alive_timeout_s))
    if http.experimental_http2_max_send_buf_size is not None:
        options = replace(options, max_send_buffer=int(http.experimental_http2_max_send_buf_size))
    if listener.compression is not None:
        send = listener.compression.send_compression_algorithm
        accepted = listener.compression.accepted_compression_algorithms
        options = replace(
            options,
            send_compression=send if send != "none" else None,
            accepted_compression=tuple(each for each in accepted if each != "none"),
        )
    if listener.tls is not None:
        options = replace(options, tls=_tls(listener.tls, path=f"{path}.tls"))
    return options


def _tls(tls: TlsOptions, *, path: str) -> ssl.SSLContext | LiveContext:
    def load() -> ssl.SSLContext:
        try:
            return server_context(
                cert_file=tls.cert_file,
                key_file=tls.key_file,
                client_ca_file=tls.client_ca_file,
                client_crl_file=tls.client_crl_file,
                client_optional=tls.client_auth == "accept",
            )
        except ConfigError as error:
            raise ConfigError(f"{path}.{error.path}", error.problem) from error

    if not tls.reload_interval_s:
        return load()
    files = (tls.cert_file, tls.key_file, tls.client_ca_file, tls.client_crl_file)
    return LiveContext(load, [file for file in files if file is not None], interval_s=tls.reload_interval_s)


def http_limits(connections: ConnectionOptions) -> HttpLimits:
    """What the HTTP/1.1 side is told."""
    return HttpLimits(header_timeout=connections.handshake_timeout_s, stall_timeout=connections.stall_timeout_s)


def _limits(http: AdvancedHttpOptions) -> Limits:
    given = {
        "stream_window": http.experimental_http2_initial_stream_window_size,
        "connection_window": http.experimental_http2_initial_connection_window_size,
        "max_frame_size": http.experimental_http2_max_frame_size,
        "max_concurrent_streams": http.experimental_http2_max_concurrent_streams,
        "max_header_list_size": http.experimental_http2_max_header_list_size,
        "reset_burst": http.experimental_http2_max_pending_accept_reset_streams,
    }
    return replace(Limits(), **{name: int(value) for name, value in given.items() if value is not None})
