"""Pure work that would keep the loop busy: done in threads of its own limiter, few, since they share the interpreter.

Not here: files (trio's own limiter), and coders (`nl.blob.coding`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar, TypeVarTuple

import trio

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
THREADS: Final = 2
"""At once, over everything: each one more makes the loop wait longer for its turn. Who comes beyond waits in line."""
_limiter: trio.lowlevel.RunVar[trio.CapacityLimiter] = trio.lowlevel.RunVar("nl.blob.off_loop")


async def off_loop(work: Callable[[*Ts], T], *args: *Ts) -> T:
    """`work(*args)`, which must be pure. *Cancellation*: the thread's result is dropped."""
    return await trio.to_thread.run_sync(work, *args, abandon_on_cancel=True, limiter=threads())


def threads() -> trio.CapacityLimiter:
    """The limiter of this run."""
    try:
        return _limiter.get()
    except LookupError:
        limiter = trio.CapacityLimiter(THREADS)
        _limiter.set(limiter)
        return limiter
