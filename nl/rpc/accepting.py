"""Accepting connections: one loop for each listening socket, which no error of one connection ends.

Not here: how many there may be (slots.py), what is done with them (server.py).
"""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from typing import NoReturn

import trio

from nl.rpc.slots import Slots
from nl.telemetry.limited import LimitedLog

log = logging.getLogger(__name__)
_PAUSE_S = 0.1
_OUT_OF = {
    errno.EMFILE: "this process may have no more open files; raise its limit (ulimit -n) or lower max_connections",
    errno.ENFILE: "this machine may have no more open files; raise fs.file-max or lower max_connections",
    errno.ENOBUFS: "the kernel has no memory for more connections",
    errno.ENOMEM: "the kernel has no memory for more connections",
}
"""What keeps all connections from being accepted, until somebody gives some back."""
_THEIR_LOSS = frozenset(
    {errno.ECONNABORTED, errno.EPERM, errno.ENETDOWN, errno.EPROTO, errno.ENOPROTOOPT, errno.EHOSTDOWN, errno.ENONET,
     errno.EHOSTUNREACH, errno.EOPNOTSUPP, errno.ENETUNREACH}
)  # fmt: skip
"""What has become of the one connection that was next (accept(2), "Error handling"), or what a firewall says to it."""


async def accept_forever(
    listener: trio.SocketListener,
    slots: Slots,
    nursery: trio.Nursery,
    serve: Callable[[socket.socket], Awaitable[None]],
) -> NoReturn:
    """Gives each new connection a task of `nursery` that runs `serve`, with a slot taken for it to release.

    *Cancellation*: loses no connection that was accepted, and closes the listener.
    """
    limited = LimitedLog(log)
    async with listener:
        while True:
            await trio.lowlevel.wait_readable(listener.socket)  # nobody makes room for a client that is not there
            await slots.wait_free()
            try:
                accepted, _ = await listener.socket.accept()
            except OSError as exc:
                if exc.errno in _OUT_OF:
                    limited.warn("cannot accept: %s (%s)", _OUT_OF[exc.errno], os.strerror(exc.errno))
                    await trio.sleep(_PAUSE_S)
                elif exc.errno not in _THEIR_LOSS:
                    raise
                continue
            slots.take()
            nursery.start_soon(serve, socket.socket(fileno=accepted.detach()))
