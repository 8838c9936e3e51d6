"""Work whose time grows with a message: done in place as long as that is short, in a thread when it is not.

Decoding 16 MiB of digests or output files takes about a second. In a thread it shares the interpreter with the event
loop, a few milliseconds each in turn, instead of keeping every other call waiting until it is done.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar, TypeVarTuple

from nl.blob.off_loop import off_loop
from nl.blob.reader import Buffer

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
IN_PLACE_BYTES: Final = 64 * 1024
"""Decoding so many bytes takes half a millisecond, and nearly all messages are smaller; but of bytes that somebody has
made for that, it takes ten: fields can be two bytes long."""
READ_IN_PLACE_BYTES: Final = 1024 * 1024
"""The same for what goes through bytes at the speed of C, whatever they are."""
MANY: Final = 1000
"""As many messages inside of one: each takes about 10 us, however small it is."""


async def off_loop_if_large(work: Callable[[Buffer], T], data: Buffer) -> T:
    """`work(data)`, which must be pure. *Cancellation*: the thread's result is dropped."""
    if len(data) <= IN_PLACE_BYTES:
        return work(data)
    return await off_loop(work, data)


async def off_loop_if(takes_long: bool, work: Callable[[*Ts], T], *args: *Ts) -> T:
    """`work(*args)`, which must be pure. *Cancellation*: the thread's result is dropped."""
    return await off_loop(work, *args) if takes_long else work(*args)
