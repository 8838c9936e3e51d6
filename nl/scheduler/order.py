"""Who goes first among those who wait. Pure.

A rank is (level, tag, sequence), the smallest first. The level is the priority. Within a level shares are fair by
start-time fair queueing (Goyal, Vin, Cheng 1996): whoever begins to wait gets a tag once, and it does not change
afterwards, so nobody has to be sorted again. The tag is the virtual time of the workers concerned (the latest tag that
they have taken), or, if that is later, one share behind the last tag of the same invocation. So an invocation's 10,000
actions stand one behind the other, and another's ten, which come later, stand between the next ten of them.

An invocation of a user who has n of them waiting advances n times as fast: users have equal shares, however many builds
they start (and the earliest of a user's builds the most of his). Without users all invocations are equal.

Who waits longer than `ageing_s` is moved to the most urgent level that waits then, where all that have been moved share
as one invocation: so no priority makes anybody wait for ever, however many actions come with it.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from nl.model.execution import ActionRequest
from nl.scheduler.state import Execution, Rank

Flow = tuple[str, str, Hashable]
"""User, invocation, and the kind of worker that is waited for: virtual times of different workers say nothing."""


@dataclass(slots=True)
class _Waiting:
    flow: Flow
    level: int


class QueueOrder:
    """Gives ranks. `ageing_s`: 0 means that a priority goes before the next one for ever."""

    def __init__(self, *, ageing_s: float) -> None:
        self._ageing_s = ageing_s
        self._waiting: dict[Execution, _Waiting] = {}
        self._young: OrderedDict[Execution, float] = OrderedDict()
        self._last: dict[Flow, float] = {}
        self._sizes: Counter[Flow] = Counter()
        self._invocations: dict[str, Counter[str]] = {}
        self._levels: Counter[int] = Counter()
        self._aged: dict[Hashable, float] = {}

    def enter(self, execution: Execution, *, lane: Hashable, virtual: float, now: float) -> None:
        """It begins to wait, for workers of that lane, whose virtual time it is. Sets its rank."""
        request = execution.request
        waiting = self._waiting[execution] = _Waiting((request.user, request.invocation, lane), execution.priority)
        self._count(waiting)
        self._young[execution] = now
        execution.rank = (waiting.level, self._tag(waiting.flow, virtual, charge=True), execution.sequence)

    def leave(self, execution: Execution) -> None:
        """It does not wait any more."""
        waiting = self._waiting.pop(execution)
        self._young.pop(execution, None)
        self._levels[waiting.level] -= 1
        if not self._levels[waiting.level]:
            del self._levels[waiting.level]
        flow = waiting.flow
        user, invocation, _ = flow
        invocations = self._invocations[user]
        invocations[invocation] -= 1
        if not invocations[invocation]:
            del invocations[invocation]
            if not invocations:
                del self._invocations[user]
        self._sizes[flow] -= 1
        if not self._sizes[flow]:
            del self._sizes[flow]
            self._last.pop(flow, None)
        if not self._waiting:
            self._aged.clear()

    def joined(self, execution: Execution, request: ActionRequest, *, virtual: float) -> Rank:
        """The rank of one that waits, once `request` waits for it, too: the better of the two."""
        waiting = self._waiting[execution]
        flow = (request.user, request.invocation, waiting.flow[2])
        tag = min(execution.rank[1], self._tag(flow, virtual, charge=False))
        return (min(waiting.level, request.priority), tag, execution.sequence)

    def aged(self, virtual: Callable[[Execution], float], *, now: float) -> list[tuple[Execution, Rank]]:
        """Those that have waited for `ageing_s`, each once, with the rank that they have from now on."""
        moved = []
        while self._ageing_s and self._young:
            execution, since = next(iter(self._young.items()))
            if now - since < self._ageing_s:
                break
            del self._young[execution]
            level = min(self._levels)
            if level < execution.rank[0]:
                lane = self._waiting[execution].flow[2]
                tag = self._aged[lane] = max(virtual(execution), self._aged.get(lane, 0.0) + 1)
                moved.append((execution, (level, tag, execution.sequence)))
        return moved

    def move(self, execution: Execution, rank: Rank) -> None:
        """Its rank is this from now on."""
        waiting = self._waiting[execution]
        self._levels[waiting.level] -= 1
        if not self._levels[waiting.level]:
            del self._levels[waiting.level]
        waiting.level = rank[0]
        self._levels[waiting.level] += 1
        execution.rank = rank

    def __len__(self) -> int:
        return len(self._waiting)

    def _count(self, waiting: _Waiting) -> None:
        user, invocation, _ = waiting.flow
        self._sizes[waiting.flow] += 1
        self._invocations.setdefault(user, Counter())[invocation] += 1
        self._levels[waiting.level] += 1

    def _tag(self, flow: Flow, virtual: float, *, charge: bool) -> float:
        user, invocation, _ = flow
        last = self._last.get(flow)
        known = self._invocations.get(user, ())
        share = len(known) + (invocation not in known) if user else 1
        tag = virtual if last is None else max(virtual, last + share)
        if charge:
            self._last[flow] = tag
        return tag
