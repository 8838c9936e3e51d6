"""Work whose time grows with a message: done in place as long as that is short, in a thread when it is not.

Decoding 16 MiB of digests or output files takes about a second. In a thread it shares the interpreter with the event
loop, a few milliseconds each in turn, instead of keeping every other call waiting until it is done.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar, TypeVarTuple

import trio

from nl.blob.reader import Buffer

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
IN_PLACE_BYTES: Final = 1024 * 1024
"""Up to here a thread costs more than it spares: decoding takes about 10 ms, and nearly all messages are smaller."""
MANY: Final = 1000
"""As many messages inside of one: each takes about 10 us, however small it is."""


async def off_loop_if_large(work: Callable[[Buffer], T], data: Buffer) -> T:
    """`work(data)`, which must be pure. *Cancellation*: the thread's result is dropped."""
    if len(data) <= IN_PLACE_BYTES:
        return work(data)
    return await trio.to_thread.run_sync(work, data, abandon_on_cancel=True)


async def off_loop_if(takes_long: bool, work: Callable[[*Ts], T], *args: *Ts) -> T:
    """`work(*args)`, which must be pure. *Cancellation*: the thread's result is dropped."""
    return await trio.to_thread.run_sync(work, *args, abandon_on_cancel=True) if takes_long else work(*args)
