"""One connection: commands go out as RESP, hiredis reads the replies. One pipeline at a time.

RESP2 is what every server speaks. Arguments that are large leave as they are, without being copied into a packet.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Sequence
from typing import Any

import hiredis
import trio

from nl.plugin import Buffer, RefusedError, TransientError
from nl_redis_store.addresses import Address
from nl_redis_store.errors import ReplyError, meaning

Command = tuple[Buffer, ...]
"""Its name and arguments."""
Reply = Any
"""bytes, int, None, a list of replies, or a ReplyError."""

RECV = 256 * 1024
LARGE = 16 * 1024
"""Arguments from this many bytes on are sent by themselves."""
_MORE = object()


def packed(commands: Iterable[Command]) -> list[Buffer]:
    """What goes over the wire, in as few buffers as large arguments allow."""
    buffers: list[Buffer] = []
    small: list[Buffer] = []
    for command in commands:
        small.append(b"*%d\r\n" % len(command))
        for argument in command:
            size = len(argument)
            if size < LARGE:
                small.append(b"$%d\r\n%b\r\n" % (size, bytes(argument)))
            else:
                small.append(b"$%d\r\n" % size)
                buffers += (b"".join(small), argument)
                small = [b"\r\n"]
    buffers.append(b"".join(small))
    return buffers


class Connection:
    """A stream to a server that has let us in."""

    def __init__(self, stream: trio.abc.Stream, address: Address) -> None:
        self._stream = stream
        self._reader = hiredis.Reader(replyError=ReplyError, notEnoughData=_MORE)
        self.address = address

    async def exchange(self, commands: Sequence[Command]) -> list[Reply]:
        """Sends all, then reads a reply for each. Error replies are among them.

        Raises TransientError when the connection breaks. After any exception, a cancellation included, it is of no use.
        """
        try:
            for buffer in packed(commands):
                await self._stream.send_all(buffer)
            return await self._replies(len(commands))
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError, hiredis.ProtocolError) as error:
            raise TransientError(f"the connection to {self.address} broke: {said(error)}") from error

    async def _replies(self, count: int) -> list[Reply]:
        replies: list[Reply] = []
        gets, feed = self._reader.gets, self._reader.feed
        while len(replies) < count:
            reply = gets()
            if reply is not _MORE:
                replies.append(reply)
                continue
            data = await self._stream.receive_some(RECV)
            if not data:
                raise TransientError(f"{self.address} has closed the connection")
            feed(bytes(data))
        return replies

    async def ask(self, *command: Buffer) -> Reply:
        """One command. Raises what an error reply means."""
        (reply,) = await self.exchange([command])
        if isinstance(reply, ReplyError):
            raise meaning(reply, str(self.address))
        return reply

    async def aclose(self) -> None:
        """Ends it at once: there is nothing to be flushed."""
        await trio.aclose_forcefully(self._stream)


async def dial(address: Address, *, timeout_s: float, tls: ssl.SSLContext | None, sentinel: bool = False) -> Connection:
    """A connection that has logged in and is in the right database, within `timeout_s`.

    Raises TransientError if there is none to be had, RefusedError if the server does not let us in.
    """
    try:
        with trio.fail_after(timeout_s):
            stream = await _connected(address, tls)
            try:
                connection = Connection(stream, address)
                await _log_in(connection, sentinel=sentinel)
                return connection
            except BaseException:
                await trio.aclose_forcefully(stream)
                raise
    except (OSError, trio.BrokenResourceError) as error:
        text = f"cannot connect to {address}: {said(error)}"
        if isinstance(error.__cause__, ssl.SSLCertVerificationError):
            raise RefusedError(text, option="root_certificates") from error
        raise TransientError(text) from error
    except trio.TooSlowError:
        text = f"{address} did not answer within {timeout_s:g} s"
        raise TransientError(text, code="DeadlineExceeded") from None


async def _connected(address: Address, tls: ssl.SSLContext | None) -> trio.abc.Stream:
    if address.path:
        return await trio.open_unix_socket(address.path)
    stream = await trio.open_tcp_stream(address.host, address.port)
    if not address.tls:
        return stream
    assert tls is not None
    secured = trio.SSLStream(stream, tls, server_hostname=address.host, https_compatible=True)
    try:
        await secured.do_handshake()
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return secured


async def _log_in(connection: Connection, *, sentinel: bool) -> None:
    address = connection.address
    username, password = address.username, address.password
    if sentinel:
        username, password = address.sentinel_username, address.sentinel_password
    if password:
        login = (username, password) if username else (password,)
        await connection.ask(b"AUTH", *(each.encode() for each in login))
    if sentinel:
        return
    if address.db:
        await connection.ask(b"SELECT", b"%d" % address.db)


def said(error: BaseException) -> str:
    """The cause in one line."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    cause = error.__cause__ or error
    if isinstance(cause, BaseExceptionGroup):
        return said(cause)
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"certificate verify failed: {cause.verify_message}"
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    text = str(cause).splitlines()
    return text[0] if text else type(cause).__name__
