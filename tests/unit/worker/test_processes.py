"""The supervisor's own start and end; what it does in between is tested with real actions (integration)."""

from __future__ import annotations

import pytest
import trio

from nl.worker.processes import Supervisor


class _CancelAfter(trio.abc.Instrument):
    """Cancels `scope` when the task that keeps the reaper has run so many times."""

    def __init__(self, steps: int, scope: trio.CancelScope) -> None:
        self._steps = steps
        self._scope = scope

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if task.name.endswith("_keep_reaper"):
            if self._steps == 0:
                self._scope.cancel()
            self._steps -= 1


@pytest.mark.parametrize("steps", range(5))
async def test_a_start_that_is_cancelled_at_any_time_ends(steps):
    supervisor = Supervisor()
    with trio.CancelScope() as scope:
        instrument = _CancelAfter(steps, scope)
        trio.lowlevel.add_instrument(instrument)
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(supervisor.serve)
                nursery.cancel_scope.cancel()
        finally:
            trio.lowlevel.remove_instrument(instrument)
