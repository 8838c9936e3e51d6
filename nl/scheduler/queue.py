"""Who goes first, and who shares: the order of waiting executions and the index of those in flight. Pure.

Not here: which worker takes what (matching.py).
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from nl.model.digest import Digest, DigestFunction
from nl.model.execution import ActionRequest, Stage
from nl.scheduler.state import Execution, Rank

MergeKey = tuple[str, DigestFunction, Digest]


class WaitingQueue:
    """Executions by rank, the smallest first. `discard` is amortised O(log n).

    A heap in which removed entries stay as dead weight until they surface or outnumber the living.
    """

    __slots__ = ("_entries", "_heap")

    def __init__(self) -> None:
        self._heap: list[tuple[Rank, Execution]] = []
        self._entries: dict[Execution, Rank] = {}

    def push(self, execution: Execution) -> None:
        """Adds it at its present rank; if it is there already, moves it."""
        rank = execution.rank
        self._entries[execution] = rank
        heapq.heappush(self._heap, (rank, execution))

    def discard(self, execution: Execution) -> None:
        """Removes it if it is there."""
        if self._entries.pop(execution, None) is not None and len(self._heap) > 2 * len(self._entries) + 16:
            self._heap = [(rank, entry) for entry, rank in self._entries.items()]
            heapq.heapify(self._heap)

    def peek(self) -> Execution:
        """The first one. Raises IndexError if there is none."""
        heap, entries = self._heap, self._entries
        while entries.get(heap[0][1]) != heap[0][0]:
            heapq.heappop(heap)
        return heap[0][1]

    def pop(self) -> Execution:
        """Removes and returns the first one. Raises IndexError if there is none."""
        execution = self.peek()
        heapq.heappop(self._heap)
        del self._entries[execution]
        return execution

    def __contains__(self, execution: Execution) -> bool:
        return execution in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Execution]:
        """In no particular order."""
        return iter(self._entries)


class InFlightIndex:
    """Unfinished executions that a later request for the same action may share (REAPI A.7 rule 16)."""

    __slots__ = ("_by_key",)

    def __init__(self) -> None:
        self._by_key: dict[MergeKey, Execution] = {}

    @staticmethod
    def key(request: ActionRequest) -> MergeKey:
        return (request.instance_name, request.digest_function, request.action_digest)

    def find(self, request: ActionRequest) -> Execution | None:
        """An execution whose result the request may be served with, or None.

        `do_not_cache` actions share with nobody. A request that skips the cache lookup must not see a result that was
        visible before it came: it does not join while the cache is being asked, nor after the process has ended, when
        the worker may already have published the result.
        """
        if request.do_not_cache:
            return None
        execution = self._by_key.get(self.key(request))
        if execution is None or not request.skip_cache_lookup:
            return execution
        if execution.stage is Stage.CACHE_CHECK or (execution.lease is not None and execution.lease.executed):
            return None
        return execution

    def add(self, execution: Execution) -> None:
        """Makes it the one that later requests join. The latest wins: it is the one that more requests may join."""
        if not execution.request.do_not_cache:
            self._by_key[self.key(execution.request)] = execution

    def discard(self, execution: Execution) -> None:
        key = self.key(execution.request)
        if self._by_key.get(key) is execution:
            del self._by_key[key]

    def __len__(self) -> int:
        return len(self._by_key)
