"""Two checkouts beside each other: short bursts on each server in turns, compared pair by pair.

A machine that does other things besides is slower now and faster then, by more than what is looked for. Bursts of some
ten milliseconds that follow each other meet the same machine, so the ratio of each pair is believed, and the median of
those; the quartiles tell how much it moves. Time is the CPU-time clock of the server's whole process.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

import trio

from nl.rpc.channel import Channel
from nl.rpc.tls import client_context
from tests.bench.servers import Running
from tests.bench.workloads import Client, Operation, Row

ROUNDS = 30
_BURSTS = 60
"""A burst is such a part of the operations of a row, but each driver has one operation at least."""
_SETTLE_S = 0.003
"""For what a server does after its last answer."""
_NEW_EACH_TIME = ("write", "batchupdate", "exec")
_SLOWER = 1.05


@dataclass(frozen=True)
class Comparison:
    """CPU time in microseconds per operation, of two servers: the lower quartile of each, and their ratio."""

    there: float
    here: float
    ratio: float
    """The median over all pairs of bursts."""
    spread: tuple[float, float]
    """Its quartiles."""

    def __str__(self) -> str:
        low, high = self.spread
        mark = "  slower" if self.ratio > _SLOWER else ""
        return f"{self.there:10.1f} us {self.here:10.1f} us  {self.ratio:5.2f} ({low:.2f} to {high:.2f}){mark}"


class Side:
    """One server as one client sees it: its connections, and how far the work has got."""

    def __init__(self, server: Running, channels: Sequence[Channel], one: Operation, row: Row) -> None:
        self._pid = int(server.pid)
        self._channels = channels
        self._one = one
        self._row = row
        self._next = 0
        self.errors: list[str] = []

    async def burst(self, count: int) -> float:
        """Does the next `count` operations; the server's CPU time for one, in microseconds."""
        await trio.sleep(_SETTLE_S)
        began = cpu_ns(self._pid)
        numbers = iter(range(self._next, self._next + count))
        self._next += count

        async def drive(channel: Channel) -> None:
            for number in numbers:
                try:
                    await self._one(channel, number)
                except Exception as error:  # noqa: BLE001 - any failure is a result of the measurement, and is reported
                    self.errors.append(f"{type(error).__name__}: {error}")

        async with trio.open_nursery() as nursery:
            for driver in range(self._row.in_flight):
                nursery.start_soon(drive, self._channels[driver % len(self._channels)])
        await trio.sleep(_SETTLE_S)
        return (cpu_ns(self._pid) - began) / count / 1e3


def cpu_ns(pid: int) -> int:
    """The CPU time of all threads that a process has, and had, in nanoseconds: see clock_getcpuclockid(3)."""
    return time.clock_gettime_ns(~pid << 3 | 2)


async def compare(
    row: Row, there: Running, here: Running, *, rounds: int, instance: str = "", tls: bool = False
) -> tuple[list[Comparison], list[str]]:
    """The row on both servers, plain and, if wanted, with TLS; and what failed."""
    count = max(row.in_flight, row.operations // _BURSTS)
    if row.kind in _NEW_EACH_TIME:
        row = replace(row, operations=count * (rounds + 1))
    async with AsyncExitStack() as stack:
        pairs = [
            [await _side(stack, row, server, instance=instance, tls=each) for server in (there, here)]
            for each in ((False, True) if tls else (False,))
        ]
        sides = [side for pair in pairs for side in pair]
        for side in sides:  # what is done once, and what is loaded then, is not measured
            await side.burst(count)
        taken: dict[Side, list[float]] = {side: [] for side in sides}
        for _ in range(rounds):
            for side in sides:
                taken[side].append(await side.burst(count))
            sides.reverse()
    errors = [error for side in sides for error in side.errors]
    return [compared(taken[first], taken[second]) for first, second in pairs], errors


async def _side(stack: AsyncExitStack, row: Row, server: Running, *, instance: str, tls: bool) -> Side:
    target = str(server.tls_target) if tls else server.target
    context = client_context(ca_file=server.ca_file) if tls else None
    channels = [await stack.enter_async_context(Channel(target, tls=context)) for _ in range(row.connections)]
    return Side(server, channels, await Client(row, instance).prepare(channels[0]), row)


def compared(there: Sequence[float], here: Sequence[float]) -> Comparison:
    """What pairs of bursts, each a time for one operation, say of two servers."""
    ratios = sorted(ours / theirs for theirs, ours in zip(there, here, strict=True))
    return Comparison(
        _quartile(sorted(there), 1), _quartile(sorted(here), 1), statistics.median(ratios),
        (_quartile(ratios, 1), _quartile(ratios, 3)),
    )  # fmt: skip


def _quartile(ordered: Sequence[float], number: int) -> float:
    return ordered[len(ordered) * number // 4]
