"""The order of use, exact and cheap: which of millions of files was used the longest ago. Pure: no files, no clock.

A use only writes down what and when, at the end of a log; the time is kept with the file, too (`used`). A line of the
log whose time is not that of its file any more is stale: the file was used again later, and stands further on. Stale
lines are dropped when they come to the front, and by sweeping when there are more of them than files. Marking 10,000
files as used costs three steps of C and a loop, where moving them in a linked list cost three times as much.

The log is a number of sorted runs, since a scan finds files in any order: runs of what it found, and the end of the
log that grows. A heap knows which of them begins with the oldest line.
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Iterator, Sequence

RUN = 4096
"""Lines in a run. What is swept in one go takes a third of a millisecond."""
_MOST_STALE = 1024
"""Stale lines that are dropped in one go: two milliseconds."""
_SLACK = 8 * RUN
"""Stale lines that are left alone however few files there are."""


class _Run:
    """Lines from `start` on are left, sorted by time."""

    __slots__ = ("slots", "start", "times")

    def __init__(self, times: array[float], slots: array[int]) -> None:
        self.times = times
        self.slots = slots
        self.start = 0

    def __len__(self) -> int:
        return len(self.times) - self.start

    @property
    def first(self) -> float:
        return self.times[self.start]


class UseOrder:
    """Orders slots by time. `used` is the owner's array: when each slot was last used, NaN for one that is free."""

    def __init__(self, used: array[float]) -> None:
        self._used = used
        self._runs: list[tuple[float, int, _Run]] = []
        """A heap by the time of the first line; the number says which was pushed, and so swept, the longest ago."""
        self._tail = _Run(array("d"), array("I"))
        """The run that grows; it is not in the heap."""
        self._moved: list[tuple[float, int]] = []
        """Lines to be added when enough have come together, or when the first of them is next. A heap: they are learned
        of in any order."""
        self._number = 0
        self._cleared = 0
        """How often all was forgotten."""
        self.lines = 0

    def note(self, slot: int, when: float) -> None:
        """A use. `used[slot]` is `when` already. Times must not decrease from call to call."""
        tail = self._tail
        tail.times.append(when)
        tail.slots.append(slot)
        self.lines += 1
        if len(tail.times) >= RUN:
            self._close_tail()

    def note_all(self, slots: Sequence[int], when: float) -> None:
        """Uses at the same time."""
        for start in range(0, len(slots), RUN):
            part = array("I", slots[start : start + RUN])
            self._tail.slots.extend(part)
            self._tail.times.extend(array("d", (when,)) * len(part))
            self.lines += len(part)
            if len(self._tail.times) >= RUN:
                self._close_tail()

    def add_found(self, found: list[tuple[float, int]]) -> None:
        """Slots that were used at any earlier time, in any order: at most a few thousand."""
        if not found:
            return
        found.sort()
        self._push(_made_of(found))
        self.lines += len(found)

    def move(self, slot: int, when: float) -> None:
        """A use that is learned of late. `used[slot]` is `when` already."""
        heapq.heappush(self._moved, (when, slot))
        if len(self._moved) >= RUN:
            self._add_moved()

    def oldest(self) -> int | None:
        """The slot that was used the longest ago; None if there is none, or none was found among many stale lines.

        `is_empty` tells the two cases apart.
        """
        used = self._used
        for _ in range(_MOST_STALE):
            run = self._front()
            if self._moved and (run is None or run.first >= self._moved[0][0]):
                self._add_moved()
                continue
            if run is None:
                return None
            slot = run.slots[run.start]
            if used[slot] == run.times[run.start]:
                return slot
            self._drop_first(run)
        return None

    @property
    def is_empty(self) -> bool:
        """Whether there are no lines, stale ones included."""
        return not self.lines and not self._moved

    def used_since(self, when: float) -> Iterator[list[int]]:
        """Slots that were used later than `when`, in groups, the latest first. The caller may wait between groups.

        What is cleared meanwhile ends it: the slots are nobody's then.
        """
        cleared = self._cleared
        runs = [self._tail, *(run for _, _, run in sorted(self._runs, key=lambda item: item[0], reverse=True))]
        used = self._used
        for run in runs:
            if self._cleared != cleared:
                return
            if not len(run) or run.times[-1] <= when:
                continue
            lines = zip(run.times[run.start :], run.slots[run.start :], strict=True)
            yield [slot for time, slot in lines if time > when and used[slot] == time]

    def sweep(self, live: int) -> None:
        """Drops stale lines of two runs where there are too many for `live` files. Call it after uses."""
        if self.lines <= 2 * live + _SLACK or len(self._runs) < 2:
            return
        swept = heapq.nsmallest(2, self._runs, key=_number_of)
        first, second = (self._live_lines(run) for _, _, run in swept)
        self._runs = [item for item in self._runs if item not in swept]
        heapq.heapify(self._runs)
        if len(first) + len(second) <= RUN:
            first, second = sorted(first + second), []
        for lines in (first, second):
            if lines:
                self._push(_made_of(lines))

    def _live_lines(self, run: _Run) -> list[tuple[float, int]]:
        used = self._used
        lines = zip(run.times[run.start :], run.slots[run.start :], strict=True)
        live = [(time, slot) for time, slot in lines if used[slot] == time]
        self.lines -= len(run) - len(live)
        return live

    def clear(self) -> None:
        """Forgets all."""
        self._cleared += 1
        self._runs.clear()
        self._moved.clear()
        self._tail = _Run(array("d"), array("I"))
        self.lines = 0

    def _add_moved(self) -> None:
        moved, self._moved = self._moved, []
        self.add_found(moved)

    def _front(self) -> _Run | None:
        """The run with the oldest line."""
        tail = self._tail
        if not self._runs:
            return tail if len(tail) else None
        first = self._runs[0][2]
        return tail if len(tail) and tail.first < first.first else first

    def _drop_first(self, run: _Run) -> None:
        run.start += 1
        self.lines -= 1
        if run is self._tail:
            if not len(run):
                self._tail = _Run(array("d"), array("I"))
            return
        if len(run):
            heapq.heapreplace(self._runs, (run.first, self._runs[0][1], run))
        else:
            heapq.heappop(self._runs)

    def _close_tail(self) -> None:
        self._push(self._tail)
        self._tail = _Run(array("d"), array("I"))

    def _push(self, run: _Run) -> None:
        self._number += 1
        heapq.heappush(self._runs, (run.first, self._number, run))


def _number_of(item: tuple[float, int, _Run]) -> int:
    return item[1]


def _made_of(lines: list[tuple[float, int]]) -> _Run:
    return _Run(array("d", [time for time, _ in lines]), array("I", [slot for _, slot in lines]))
