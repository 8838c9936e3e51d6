"""Turns of the loop: what all connections together may use of one, and who goes on in the next.

trio runs every task that can run, and only then looks at the sockets again: that is a turn, and whoever calls waits for
the end of one. A bound for each connection does not bound it, since a client may have a thousand. So a turn has a
budget. Until it is used up, everybody does all there is to do; after that everybody still does a little, which is all
that most ever have; who has more than that waits in one line for the turns to come. It does not matter whose
connections they are: addresses tell little behind a proxy, and nothing on a unix socket.
"""

from __future__ import annotations

import time

import trio

TURN_S = 0.004
"""How long a turn may take before those with much to do wait for the next one."""
LITTLE_S = 0.0005
"""What a connection may always do in a turn: half a dozen small requests, and certainly one."""
AT_ONCE = 4
"""How many of those who wait may go on in one turn: the first does in any case, the others if it leaves them time."""


class Turns(trio.abc.Instrument):
    """The turns of one `trio.run`. Light work costs a look at `until`, and no task is needed to keep this going."""

    def __init__(self) -> None:
        self.until = 0.0
        """When the budget of this turn is used up, by `time.perf_counter`."""
        self._went = False
        """Whether one that had waited has gone on in this turn."""
        self._due = 0
        """Tasks that go on as soon as a turn has time for them. While some stand in line, these are AT_ONCE."""
        self._line: dict[trio.lowlevel.Task, None] = {}

    def after_io_wait(self, timeout: float) -> None:
        """trio's: a turn begins."""
        self.until = time.perf_counter() + TURN_S
        self._went = False

    async def wait(self) -> None:
        """Until the caller may go on: in the next turn, or with those who have waited longer.

        *Cancellation*: gives up the place for the next one.
        """
        must_yield = self._due < AT_ONCE
        if must_yield:
            self._due += 1
        else:
            await self._stand_in_line()
        try:
            while must_yield or (self._went and time.perf_counter() > self.until):
                must_yield = False
                await trio.lowlevel.checkpoint()
            self._went = True
        finally:
            self._begin()

    async def _stand_in_line(self) -> None:
        task = trio.lowlevel.current_task()

        def abort(_: object) -> trio.lowlevel.Abort:
            del self._line[task]
            return trio.lowlevel.Abort.SUCCEEDED

        self._line[task] = None
        await trio.lowlevel.wait_task_rescheduled(abort)

    def _begin(self) -> None:
        """One of those who were due goes on, or does not want to any more."""
        self._due -= 1
        if self._line:
            task = next(iter(self._line))
            del self._line[task]
            self._due += 1
            trio.lowlevel.reschedule(task)


_of_this_run: trio.lowlevel.RunVar[Turns] = trio.lowlevel.RunVar("nl.rpc.turns")


def turns_of_this_run() -> Turns:
    """The one that all servers of this loop share; it watches the loop from the first time on that it is asked for."""
    try:
        return _of_this_run.get()
    except LookupError:
        turns = Turns()
        trio.lowlevel.add_instrument(turns)
        _of_this_run.set(turns)
        return turns
