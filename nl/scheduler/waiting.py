"""What waits, so indexed that a worker finds what it can take without looking at the rest. Pure.

Executions with equal requirements, and equal workers to avoid, form a *shape*. Each shape lies in the bin of one of its
requirements, the one that the fewest workers meet: a worker looks only into the bins of what it declares. Amounts are
no part of that; in each bin shapes are ordered by their most urgent execution, in blocks that tell what the least is
that they ask for (ranked.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice

from nl.scheduler.matching import Requirement, Requirements, alternatives
from nl.scheduler.queue import WaitingQueue
from nl.scheduler.ranked import RankedDemands
from nl.scheduler.state import Execution, Rank
from nl.scheduler.worker import Worker

MAX_LOOKS = 8
"""How many of those that are more urgent are asked whether the worker should be kept for them."""


class Shape:
    """All waiting executions with one set of requirements and the same workers to avoid."""

    __slots__ = ("avoided", "demand", "head", "lane", "needs", "queue")

    def __init__(self, needs: Requirements, *, avoided: frozenset[str], lane: Requirement) -> None:
        self.needs = needs
        self.avoided = avoided
        """Ids of workers that get none of these, as they have failed them."""
        self.demand: Mapping[str, int] = dict(needs.at_least)
        self.lane = lane
        """The requirement by which it is found."""
        self.queue = WaitingQueue()
        self.head: Rank | None = None
        """The rank under which the index has it; None if nothing waits."""

    def fits(self, worker: Worker, room: Mapping[str, int]) -> bool:
        """Whether the worker could take one with so much room."""
        return all(room.get(name, -1) >= amount for name, amount in self.demand.items()) and self.suits(worker)

    def suits(self, worker: Worker) -> bool:
        """Whether the worker could take one if it had nothing else to do."""
        return worker.id not in self.avoided and worker.offer.meets(self.needs)


class WaitingIndex:
    """The shapes in which something waits. `update` after each change of a queue."""

    def __init__(self) -> None:
        self._shapes: dict[tuple[Requirements, frozenset[str]], Shape] = {}
        self._bins: dict[Requirement, RankedDemands[Shape]] = {}
        self._next_look: list[Shape] = []

    def find(self, needs: Requirements, avoided: frozenset[str]) -> Shape | None:
        """The shape, if something of it waits."""
        return self._shapes.get((needs, avoided))

    def update(self, shape: Shape) -> None:
        """Puts the shape where its queue now belongs; forgets it when nothing of it waits."""
        head = shape.queue.peek().rank if shape.queue else None
        if head == shape.head:
            return
        key = (shape.needs, shape.avoided)
        if shape.head is None:
            self._shapes[key] = shape
        for name in alternatives(shape.lane):
            bin = self._bins.get(name)
            if bin is None:
                bin = self._bins[name] = RankedDemands(_demand)
            if shape.head is not None:
                bin.remove(shape.head)
            if head is not None:
                bin.add(head, shape)
            elif not bin:
                del self._bins[name]
        if head is None:
            del self._shapes[key]
        shape.head = head

    def best_for(self, worker: Worker, room: Mapping[str, int], *, upto: Rank | None = None) -> Shape | None:
        """The shape with the most urgent execution that fits into the worker's `room`, no later than `upto`."""
        best: Shape | None = None
        for bin in self._bins_for(worker):
            found = bin.search(room, lambda shape: shape.fits(worker, room), upto=upto)
            if found is not None:
                upto, best = found
        return best

    def wider_for(self, worker: Worker, *, upto: Rank) -> Iterator[Execution]:
        """Executions before `upto` that the worker could take but has no room for now, the first few of each bin."""
        for bin in self._bins_for(worker):
            for shape in islice(bin.upto(upto), MAX_LOOKS):
                if not shape.fits(worker, worker.free) and shape.suits(worker):
                    yield shape.queue.peek()

    def some(self, limit: int) -> list[Shape]:
        """Up to `limit` shapes; repeated calls come around to all of them."""
        if not self._next_look:
            self._next_look = list(self._shapes.values())
        some = self._next_look[-limit:]
        del self._next_look[-limit:]
        return [shape for shape in some if shape.queue]

    def __iter__(self) -> Iterator[Shape]:
        return iter(self._shapes.values())

    def __len__(self) -> int:
        return len(self._shapes)

    def _bins_for(self, worker: Worker) -> list[RankedDemands[Shape]]:
        bins = self._bins
        if len(bins) < len(worker.declared):
            return [bin for name, bin in bins.items() if name in worker.declared]
        return [bins[name] for name in worker.declared if name in bins]


def _demand(shape: Shape) -> Mapping[str, int]:
    return shape.demand

