"""Making a connection: sockets, TLS, and several addresses tried with a head start for the first (RFC 8305).

An address counts as reached when its server has sent SETTINGS: a port that takes connections and says nothing loses
against one that answers. Not here: when to try again (connecting.py), and who waits (pool.py).
"""

from __future__ import annotations

import logging
import os
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import TypeVar

import trio

from nl.rpc.contract import TransportLost
from nl.rpc.options import ChannelOptions
from nl.rpc.resolver import Address
from nl.rpc.tls_transport import TlsTransport
from nl.rpc.transport import SocketTransport, StreamTransport, Transport

log = logging.getLogger(__name__)
T = TypeVar("T")
_KEEPALIVE_PROBES = 3


class CannotConnect(Exception):
    """An address that could not be reached, with a reason for people."""


async def open_transport(address: Address) -> Transport:
    """Connects, with TLS if the origin has it. CannotConnect if that fails."""
    origin = address.origin
    if origin.connect is not None:
        return StreamTransport(await _opened_by(origin.connect), peer=address.text)
    unsent_max = origin.options.max_send_buffer
    try:
        sock = await _connected(address, origin.options)
        if origin.tls is None:
            return SocketTransport(sock, unsent_max=unsent_max)
        secure = TlsTransport(sock, origin.tls, unsent_max=unsent_max, server_hostname=origin.server_hostname)
    except (OSError, ValueError) as exc:  # ValueError: what ssl, or an address's family, does not like
        raise CannotConnect(_reason(exc)) from exc
    await _secured(secure)
    return secure


async def _opened_by(connect: Callable[[], Awaitable[trio.abc.Stream]]) -> trio.abc.Stream:
    try:
        return await connect()
    except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as exc:
        raise CannotConnect(_reason(exc)) from exc
    except Exception as exc:  # not our code: its mistake is one attempt's failure, not the channel's end
        log.exception("the function that opens a channel's streams failed")
        raise CannotConnect(repr(exc)) from exc


async def _secured(transport: TlsTransport) -> None:
    try:
        await transport.handshake()
        if transport.alpn not in {"h2", None}:  # None: a context without ALPN, or a server that knows none
            raise CannotConnect(f"the server speaks {transport.alpn}, not h2")
    except TransportLost as exc:
        transport.close()
        raise CannotConnect(_reason(exc.__cause__ or exc)) from exc
    except BaseException:
        transport.close()
        raise


async def _connected(address: Address, options: ChannelOptions) -> socket.socket:
    sock = trio.socket.socket(address.family, socket.SOCK_STREAM)
    try:
        if address.family != socket.AF_UNIX and options.tcp_keepalive is not None:
            _keep_alive(sock, max(1, round(options.tcp_keepalive)))
        await sock.connect(address.sockaddr)
    except BaseException:
        sock.close()
        raise
    return socket.socket(fileno=sock.detach())


def _keep_alive(sock: trio.socket.SocketType, seconds: int) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    with suppress(OSError, AttributeError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, seconds)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, seconds)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _KEEPALIVE_PROBES)


def _reason(exc: BaseException) -> str:
    """What is worth telling: the innermost cause, in the words of the system or of OpenSSL."""
    if isinstance(exc, ssl.SSLCertVerificationError):
        return f"certificate not accepted: {exc.verify_message}"
    if isinstance(exc, ssl.SSLError):
        return exc.reason or str(exc)
    if isinstance(exc, OSError) and exc.errno:  # trio's text repeats the address
        return os.strerror(exc.errno)
    return str(exc) or type(exc).__name__


async def race(
    addresses: Sequence[Address],
    attempt: Callable[[Address], Awaitable[T]],
    *,
    head_start: float,
    discard: Callable[[T], None],
) -> T:
    """The first that succeeds; each next one begins `head_start` seconds after the last, or as soon as that has failed.

    So an address that swallows packets costs `head_start`, not the time limit. What comes in second is given to
    `discard`. CannotConnect names every address that failed.
    """
    winners: list[T] = []
    problems: dict[Address, str] = {}

    async def one(address: Address, over: trio.Event) -> None:
        try:
            made = await attempt(address)
        except CannotConnect as exc:
            problems[address] = str(exc)
            over.set()
            return
        if winners:
            discard(made)
            return
        winners.append(made)
        nursery.cancel_scope.cancel()

    try:
        async with trio.open_nursery() as nursery:
            for address in addresses:
                over = trio.Event()
                nursery.start_soon(one, address, over)
                with trio.move_on_after(head_start):
                    await over.wait()
    except BaseException:
        for made in winners:
            discard(made)
        raise
    if winners:
        return winners[0]
    raise CannotConnect("; ".join(_said(address, problems[address]) for address in addresses if address in problems))


def _said(address: Address, problem: str) -> str:
    return f"{address.text}: {problem}" if address.sockaddr is not None else problem
