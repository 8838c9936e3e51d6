"""Workers kept for executions that need more room than any has now, lest narrow ones pass them for ever. Pure.

A worker is kept when something less urgent would otherwise start on it. From then on it gets what is less urgent only
if there is room for that beside the execution, once those that run now have ended: so they alone are waited for, until
the execution has started somewhere. Each kind of requirements may keep one worker, and one more for each
`MORE_AFTER_S` that its execution has waited: whatever runs for long on the first one does not hold it up. All together
keep half of the workers at most, so the others go on with what fits.
"""

from __future__ import annotations

from nl.scheduler.state import Execution
from nl.scheduler.worker import Worker

MORE_AFTER_S = 10.0

Kind = tuple[tuple[tuple[str, str], ...], tuple[str, ...]]


class Reservations:
    """Which worker is kept for whom: `Worker.held_for`, and the way back."""

    def __init__(self) -> None:
        self._held: dict[Execution, dict[Worker, None]] = {}
        self._by_kind: dict[Kind, int] = {}
        self._total = 0

    def may_hold(self, worker: Worker, execution: Execution, *, workers: int, now: float) -> bool:
        """Whether the worker, one of so many, may be kept for the execution, which it has no room for now."""
        held_for = worker.held_for
        if held_for is not None and held_for.rank <= execution.rank:
            return False
        if held_for is None and self._total >= max(1, workers // 2):
            return False
        allowed = 1 + (now - execution.waiting_since) // MORE_AFTER_S
        return self._by_kind.get(_kind(execution), 0) < allowed

    def hold(self, worker: Worker, execution: Execution) -> None:
        """Keeps the worker for the execution, and for nobody else."""
        self.let_go(worker)
        worker.held_for = execution
        for lease in worker.leases.values():
            lease.beside = False
        self._held.setdefault(execution, {})[worker] = None
        kind = _kind(execution)
        self._by_kind[kind] = self._by_kind.get(kind, 0) + 1
        self._total += 1

    def let_go(self, worker: Worker) -> None:
        """The worker is kept for nobody any more."""
        execution = worker.held_for
        if execution is None:
            return
        worker.held_for = None
        held = self._held[execution]
        del held[worker]
        if not held:
            del self._held[execution]
        kind = _kind(execution)
        self._by_kind[kind] -= 1
        if not self._by_kind[kind]:
            del self._by_kind[kind]
        self._total -= 1

    def release(self, execution: Execution) -> list[Worker]:
        """It does not wait any more. Returns the workers that were kept for it."""
        workers = list(self._held.get(execution, ()))
        for worker in workers:
            self.let_go(worker)
        return workers

    def __len__(self) -> int:
        return self._total


def _kind(execution: Execution) -> Kind:
    return (execution.needs.equal, execution.needs.present)
