"""The connected workers, what of them is free, and an index so that nobody scans. Pure.

Actions with equal requirements form a *shape*. The pool keeps for every shape the executions that wait, the workers
that could ever take it, and those that have a free slot now, in order of use.

Rules for this file:

1. A lease is in `worker.leases` from `reserve` until the worker reports its end, killed or not.
2. `free[name]` is what the worker offers minus what its leases have reserved: it never exceeds the offer.
3. `shape.ready` holds exactly those candidates whose `has_slot` is true, the least recently used first.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from nl.scheduler.matching import Offer, Requirements
from nl.scheduler.options import AllocationStrategy
from nl.scheduler.queue import WaitingQueue
from nl.scheduler.state import Lease

MAX_IDLE_SHAPES = 256
"""Bound on shapes kept although nothing of that shape waits."""


@dataclass(slots=True, eq=False)
class Worker:
    """One connected worker and what of it is in use."""

    id: str
    offer: Offer
    max_inflight: int
    """0: unlimited."""
    last_seen: float
    leases: dict[str, Lease] = field(default_factory=dict)
    free: dict[str, int] = field(default_factory=dict)
    draining: bool = False
    """Finishes what it has and gets nothing more."""
    leaving: bool = False
    """It said so itself: what it leaves behind costs no attempt."""
    paused_until: float | None = None
    refusals: int = 0
    """How often in a row it said that it is out of resources."""
    shapes: dict[Shape, None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.free = dict(self.offer.amounts)

    @property
    def has_slot(self) -> bool:
        if self.draining or self.paused_until is not None:
            return False
        return not self.max_inflight or len(self.leases) < self.max_inflight

    def fits(self, needs: Requirements) -> bool:
        """Whether enough is free now. That the worker could ever take it has been checked."""
        return all(self.free[name] >= amount for name, amount in needs.at_least)

    def reserve(self, lease: Lease, needs: Requirements) -> None:
        lease.reserved = needs.at_least
        for name, amount in needs.at_least:
            self.free[name] -= amount
        self.leases[lease.id] = lease

    def give_back(self, lease: Lease) -> None:
        """Returns what the lease had reserved; a second time is a no-op."""
        for name, amount in lease.reserved:
            self.free[name] += amount
        lease.reserved = ()

    def __repr__(self) -> str:
        slots = f"{len(self.leases)}/{self.max_inflight or 'unlimited'}"
        state = "draining " if self.draining else "paused " if self.paused_until is not None else ""
        return f"<Worker {self.id} {state}{slots} free={self.free}>"


class Shape:
    """All actions with one set of requirements: who waits, who could take them, who has a slot now."""

    __slots__ = ("candidates", "head", "needs", "queue", "ready", "unmatched_since")

    def __init__(self, needs: Requirements, *, now: float) -> None:
        self.needs = needs
        self.queue = WaitingQueue()
        self.head: tuple[int, int] | None = None
        """The rank under which `WaitingShapes` has it; None if nothing waits."""
        self.candidates: dict[Worker, None] = {}
        self.ready: OrderedDict[Worker, None] = OrderedDict()
        self.unmatched_since: float = now
        """Since when there has been no candidate; meaningless while there is one."""


class WaitingShapes:
    """The shapes in which something waits, by the rank of their first execution. `update` after each queue change."""

    def __init__(self) -> None:
        self._ranks: list[tuple[int, int]] = []  # sorted; no two are equal, as no two executions have one rank
        self._shapes: dict[tuple[int, int], Shape] = {}

    def update(self, shape: Shape) -> None:
        """Puts the shape where its queue now belongs."""
        head = shape.queue.peek().rank if shape.queue else None
        if head == shape.head:
            return
        if shape.head is not None:
            del self._ranks[bisect_left(self._ranks, shape.head)]
            del self._shapes[shape.head]
        if head is not None:
            insort(self._ranks, head)
            self._shapes[head] = shape
        shape.head = head

    def at(self, index: int) -> Shape | None:
        """The shape at this place in the order, or None behind the last."""
        return self._shapes[self._ranks[index]] if index < len(self._ranks) else None

    def __iter__(self) -> Iterator[Shape]:
        return iter(list(self._shapes.values()))

    def __len__(self) -> int:
        return len(self._ranks)


class Pool:
    """The connected workers, indexed by shape, in order of use (the least recently used first)."""

    def __init__(self, strategy: AllocationStrategy) -> None:
        self.workers: OrderedDict[str, Worker] = OrderedDict()
        self.shapes: OrderedDict[Requirements, Shape] = OrderedDict()
        self._most_recent_first = strategy == "most_recently_used"

    def shape(self, needs: Requirements, *, now: float) -> Shape:
        """The shape of these requirements, built from all workers on first use."""
        shape = self.shapes.get(needs)
        if shape is not None:
            self.shapes.move_to_end(needs)
            return shape
        if len(self.shapes) >= MAX_IDLE_SHAPES:
            self._forget_idle_shape()
        shape = self.shapes[needs] = Shape(needs, now=now)
        for worker in self.workers.values():
            self._index(worker, shape)
        return shape

    def add(self, worker: Worker) -> None:
        self.workers[worker.id] = worker
        for shape in self.shapes.values():
            self._index(worker, shape)

    def remove(self, worker: Worker, *, now: float) -> None:
        del self.workers[worker.id]
        for shape in worker.shapes:
            shape.ready.pop(worker, None)
            del shape.candidates[worker]
            if not shape.candidates:
                shape.unmatched_since = now
        worker.shapes.clear()

    def refresh(self, worker: Worker) -> None:
        """To be called whenever `worker.has_slot` may have changed."""
        if worker.has_slot:
            for shape in worker.shapes:
                shape.ready.setdefault(worker)
        else:
            for shape in worker.shapes:
                shape.ready.pop(worker, None)

    def touch(self, worker: Worker) -> None:
        """Makes it the most recently used."""
        self.workers.move_to_end(worker.id)
        for shape in worker.shapes:
            if worker in shape.ready:
                shape.ready.move_to_end(worker)

    def pick(self, shape: Shape) -> Worker | None:
        """A worker with room for one more action of this shape, by the allocation strategy."""
        order: Iterable[Worker] = reversed(shape.ready) if self._most_recent_first else shape.ready
        needs = shape.needs
        for worker in order:
            if worker.fits(needs):
                return worker
        return None

    def why_not(self, shape: Shape) -> str:
        """Why nothing of this shape can start now, for a log line."""
        if not self.workers:
            return "no worker is connected"
        if not shape.candidates:
            return f"no worker with {self.missing(shape.needs)}"
        if not shape.ready:
            return f"all {len(shape.candidates)} matching workers are full, paused or draining"
        return f"not enough free for {shape.needs} on {len(shape.ready)} matching workers"

    def missing(self, needs: Requirements) -> str:
        """The requirements that no worker meets; if each is met by some worker, all of them together."""
        offers: Sequence[Offer] = [worker.offer for worker in self.workers.values()]
        parts = [Requirements(equal=(item,)) for item in needs.equal]
        parts += [Requirements(at_least=(bound,)) for bound in needs.at_least]
        parts += [Requirements(present=(name,)) for name in needs.present]
        unmet = [str(part) for part in parts if all(offer.lacks(part) for offer in offers)]
        return ", ".join(unmet) or f"{needs} together"

    def _index(self, worker: Worker, shape: Shape) -> None:
        if worker.offer.lacks(shape.needs) is None:
            shape.candidates[worker] = None
            worker.shapes[shape] = None
            if worker.has_slot:
                shape.ready[worker] = None

    def _forget_idle_shape(self) -> None:
        """Drops the longest unused shape nobody waits in, if one of the few oldest is such; the others get old anew."""
        for needs in list(islice(self.shapes, 8)):
            shape = self.shapes[needs]
            if shape.queue:
                self.shapes.move_to_end(needs)
                continue
            for worker in shape.candidates:
                del worker.shapes[shape]
            del self.shapes[needs]
            return
