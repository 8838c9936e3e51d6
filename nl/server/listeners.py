"""Binding sockets and turning listener options into what the transport is told. Nothing is accepted here."""

from __future__ import annotations

import errno
import socket
import ssl
from dataclasses import replace
from typing import Any

import trio

from nl.config.servers import AdvancedHttpOptions, HttpListener, TlsOptions
from nl.errors import ConfigError
from nl.rpc.h2.limits import Limits
from nl.rpc.options import ServerOptions
from nl.rpc.tls import server_context

BACKLOG = 1024
_IP_FREEBIND = 15  # Linux, ip(7); not in the socket module
_REASONS = {
    errno.EADDRINUSE: "is already in use by another process; choose another port, or stop the other process",
    errno.EADDRNOTAVAIL: "is not an address of this machine",
    errno.EACCES: "needs privileges that this process does not have (ports below 1024 do)",
}


async def bind(listener: HttpListener, *, path: str) -> list[trio.SocketListener]:
    """Listening sockets for the configured address: one for each address that its host name has.

    Raises ConfigError, naming the address and `path`, when that cannot be had.
    """
    host, port = listener.address
    try:
        found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ConfigError(path, f'"{listener.socket_address}" cannot be resolved: {error.strerror or error}') from error
    listeners: list[trio.SocketListener] = []
    try:
        for family, _, _, _, address in dict.fromkeys(found):
            listeners.append(trio.SocketListener(_listen(family, address, freebind=listener.freebind)))
    except OSError as error:
        for each in listeners:
            each.socket.close()
        reason = _REASONS.get(error.errno or 0, error.strerror or str(error))
        raise ConfigError(path, f"Address '{listener.socket_address}' {reason}") from error
    return listeners


def _listen(family: int, address: tuple[Any, ...], *, freebind: bool) -> trio.socket.SocketType:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if freebind:
            sock.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
        sock.setblocking(False)
        sock.bind(address)
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return trio.socket.from_stdlib_socket(sock)


def bound_address(listener: trio.SocketListener) -> str:
    """`host:port` as it really is, for logs and for whoever connects to it."""
    host, port = listener.socket.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def transport_options(listener: HttpListener, *, path: str) -> ServerOptions:
    """What the transport is told. `path` is where the listener stands in the config.

    Raises ConfigError if a file of its TLS section cannot be used.
    """
    options = ServerOptions(max_message_size=int(listener.max_decoding_message_size))
    options = replace(options, limits=_limits(listener.advanced_http))
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
        context = _tls_context(listener.tls, path=f"{path}.tls")
        options = replace(options, tls=context)
    return options


def _tls_context(tls: TlsOptions, *, path: str) -> ssl.SSLContext:
    try:
        return server_context(
            cert_file=tls.cert_file,
            key_file=tls.key_file,
            client_ca_file=tls.client_ca_file,
            client_crl_file=tls.client_crl_file,
        )
    except ConfigError as error:
        raise ConfigError(f"{path}.{error.path}", error.problem) from error


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
