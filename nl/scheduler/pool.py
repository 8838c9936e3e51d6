"""The connected workers, indexed by what they declare, in the order of the allocation strategy. Pure.

A *posting* lists the workers that meet one requirement, and apart those of them that have a free slot, in order. Who
looks for a worker takes the posting of the requirement that the fewest workers meet. Postings are made when they are
first asked for, and there are none for what nobody declares.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping
from itertools import islice

from nl.scheduler.matching import Offer, Requirement, Requirements, alternatives
from nl.scheduler.options import AllocationStrategy
from nl.scheduler.ranked import Key, RankedSupplies
from nl.scheduler.state import Rank
from nl.scheduler.waiting import Shape
from nl.scheduler.worker import Worker

MAX_DEPARTED = 64
"""How many different offers of workers that have left are remembered."""
_SAMPLE = 8

STRATEGIES: Mapping[AllocationStrategy, Callable[[Worker], Key]] = {
    "least_recently_used": lambda worker: (worker.used, worker.serial),
    "most_recently_used": lambda worker: (-worker.used, worker.serial),
    "round_robin": lambda worker: (worker.assigned, worker.serial),
    "least_loaded": lambda worker: (worker.load, worker.used, worker.serial),
}
"""By name: the key by which workers are ordered; the one with the smallest gets the action."""


class _Posting:
    __slots__ = ("all", "ready")

    def __init__(self) -> None:
        self.all: dict[Worker, None] = {}
        self.ready: RankedSupplies[Worker] = RankedSupplies(lambda worker: worker.free)


class Pool:
    """To be told (`refresh`) of whatever changes a worker's slots, amounts or place in the order."""

    def __init__(self, strategy: AllocationStrategy) -> None:
        self.workers: dict[str, Worker] = {}
        self._key = STRATEGIES[strategy]
        self._counts: Counter[Requirement] = Counter()
        self._postings: dict[Requirement, _Posting] = {}
        self._keys: dict[Worker, Key] = {}
        self._departed: OrderedDict[Offer, float] = OrderedDict()
        self._events = 0

    def add(self, worker: Worker) -> None:
        self._events += 1
        worker.serial = worker.used = self._events
        self.workers[worker.id] = worker
        for name in worker.declared:
            self._counts[name] += 1
            if name in self._postings:
                self._postings[name].all[worker] = None
        self.refresh(worker)

    def remove(self, worker: Worker, *, now: float) -> None:
        self._unready(worker)
        del self.workers[worker.id]
        for name in worker.declared:
            self._counts[name] -= 1
            posting = self._postings.get(name)
            if posting is not None:
                del posting.all[worker]
            if not self._counts[name]:
                del self._counts[name]
                self._postings.pop(name, None)
        self._departed[worker.offer] = now
        self._departed.move_to_end(worker.offer)
        if len(self._departed) > MAX_DEPARTED:
            self._departed.popitem(last=False)

    def refresh(self, worker: Worker) -> None:
        """Its slots or its amounts may have changed."""
        self._unready(worker)
        if worker.has_slot:
            key = self._keys[worker] = self._key(worker)
            for posting in self._postings_of(worker):
                posting.ready.add(key, worker)

    def touch(self, worker: Worker, *, assigned: bool = False) -> None:
        """It was used; `refresh` is included."""
        self._events += 1
        worker.used = self._events
        if assigned:
            worker.assigned = self._events
        self.refresh(worker)

    def lane(self, needs: Requirements) -> Requirement:
        """The one of the requirements that the fewest workers meet."""
        return min(needs.one_by_one(), key=self._meeting, default=None)

    def pick(self, shape: Shape, *, rank: Rank) -> Worker | None:
        """A worker with room for one more action of this shape, by the strategy."""

        def takes(worker: Worker) -> bool:
            room = worker.room_for(rank)
            return room is not None and shape.fits(worker, room)

        best: tuple[Key, Worker] | None = None
        for posting in self._asked(self.lane(shape.needs)):
            found = posting.ready.search(shape.demand, takes, upto=best[0] if best else None)
            best = found or best
        return best[1] if best else None

    def able(self, needs: Requirements, avoided: frozenset[str] = frozenset()) -> Iterator[Worker]:
        """Workers that could take it if they had nothing else to do."""
        for posting in self._asked(self.lane(needs)):
            for worker in posting.all:
                if worker.id not in avoided and worker.offer.meets(needs):
                    yield worker

    def virtual(self, lane: Requirement) -> float:
        """The virtual time of the workers of that lane (order.py), as far as a few of them know."""
        known = (worker.virtual for posting in self._asked(lane) for worker in islice(posting.all, _SAMPLE))
        return max(known, default=0.0)

    def last_departure(self, needs: Requirements) -> float | None:
        """When a worker has left that could have taken this, if that is remembered."""
        return max((at for offer, at in self._departed.items() if offer.meets(needs)), default=None)

    def forget_departures(self, *, before: float) -> None:
        while self._departed and next(iter(self._departed.values())) < before:
            self._departed.popitem(last=False)

    def why_not(self, shape: Shape) -> str:
        """Why nothing of this shape can start now, for a log line."""
        if not self.workers:
            return "no worker is connected"
        able = list(self.able(shape.needs))
        if not able:
            return f"no worker with {self.missing(shape.needs)}"
        matching = f"{len(able)} matching workers"
        ready = [worker for worker in able if worker.has_slot]
        if not ready:
            return f"all {matching} are full, paused or draining"
        if all(worker.id in shape.avoided for worker in ready):
            return f"other workers than those that have failed it are full, paused or draining ({matching})"
        if any(worker.held_for is not None for worker in ready):
            return f"not enough free for {shape.needs} on {len(ready)} matching workers, some kept for wider actions"
        return f"not enough free for {shape.needs} on {len(ready)} matching workers"

    def missing(self, needs: Requirements) -> str:
        """The requirements that no worker meets; if each is met by some worker, all of them together."""
        offers = dict.fromkeys(worker.offer for worker in self.workers.values())
        unmet = [str(part) for part in needs.parts() if not any(offer.meets(part) for offer in offers)]
        return ", ".join(unmet) or f"{needs} together"

    def _meeting(self, name: Requirement) -> int:
        counts = self._counts
        return sum(counts[each] for each in alternatives(name))

    def _asked(self, name: Requirement) -> Iterator[_Posting]:
        for each in alternatives(name):
            posting = self._postings.get(each)
            if posting is None and self._counts[each]:
                posting = self._postings[each] = _Posting()
                for worker in self.workers.values():
                    if each in worker.declared:
                        posting.all[worker] = None
                        if worker in self._keys:
                            posting.ready.add(self._keys[worker], worker)
            if posting is not None:
                yield posting

    def _postings_of(self, worker: Worker) -> list[_Posting]:
        postings, declared = self._postings, worker.declared
        if len(postings) < len(declared):
            return [posting for name, posting in postings.items() if name in declared]
        return [postings[name] for name in declared if name in postings]

    def _unready(self, worker: Worker) -> None:
        key = self._keys.pop(worker, None)
        if key is not None:
            for posting in self._postings_of(worker):
                posting.ready.remove(key)

