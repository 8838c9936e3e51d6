"""Drives one row against one endpoint and prints one JSON line: rate, latency, the server's own CPU time per operation.

A process of its own, so that the client's work is not the server's. It can point at any REAPI endpoint:
`python -m tests.bench.load --row read4k --target 127.0.0.1:50051 --pid 4711`.
"""

from __future__ import annotations

import argparse
import json
import time
from contextlib import AsyncExitStack

import trio

from nl.rpc.channel import Channel
from nl.rpc.tls import client_context
from tests.bench.workloads import ROWS, TRANSPORT_ROWS, Client, Operation
from tests.support.processes import cpu_seconds, rss_mib


class Tally:
    """What the drivers of one run share."""

    def __init__(self, operations: int, seconds: float) -> None:
        self.operations = operations
        self.seconds = seconds
        self.began = time.perf_counter()
        self.next = 0
        self.moved = 0
        self.latencies: list[float] = []
        self.errors: list[str] = []

    def take(self) -> int | None:
        """The number of the next operation, or None when it is time to stop."""
        if self.next >= self.operations or time.perf_counter() - self.began > self.seconds:
            return None
        self.next += 1
        return self.next - 1


async def drive(one: Operation, channel: Channel, tally: Tally) -> None:
    while (i := tally.take()) is not None:
        began = time.perf_counter()
        try:
            moved = await one(channel, i)
            tally.moved += moved
        except Exception as error:  # noqa: BLE001 - any failure is a result of the measurement, and is reported
            tally.errors.append(f"{type(error).__name__}: {error}")
        tally.latencies.append(time.perf_counter() - began)


async def run(arguments: argparse.Namespace) -> dict[str, object]:
    row = {**ROWS, **TRANSPORT_ROWS}[arguments.row]
    client = Client(row, arguments.instance)
    pids = [int(p) for p in arguments.pid.split(",") if p]
    async with AsyncExitStack() as stack:
        tls = client_context(ca_file=arguments.ca_file) if arguments.ca_file else None
        channels = [await stack.enter_async_context(Channel(arguments.target, tls=tls)) for _ in range(row.connections)]
        one = await client.prepare(channels[0])
        if row.kind not in ("write", "batchupdate", "exec"):  # a short warm-up where the operation repeats
            for i in range(4):
                await one(channels[i % len(channels)], i)
        cpu = sum(map(cpu_seconds, pids))
        tally = Tally(row.operations, arguments.seconds)
        async with trio.open_nursery() as nursery:
            for k in range(row.in_flight):
                nursery.start_soon(drive, one, channels[k % len(channels)], tally)
        wall = time.perf_counter() - tally.began
        cpu = sum(map(cpu_seconds, pids)) - cpu
    done = sorted(tally.latencies)
    result: dict[str, object] = {
        "row": row.name,
        "operations": len(done),
        "failed": len(tally.errors),
        "per_s": len(done) / wall,
        "p50_ms": done[len(done) // 2] * 1e3,
        "p99_ms": done[len(done) * 99 // 100] * 1e3,
        "server_cpu_us": cpu * 1e6 / len(done),
        "rss_mib": sum(map(rss_mib, pids)),
    }
    if tally.moved:
        result["mib_per_s"] = tally.moved / wall / (1 << 20)
    if tally.errors:
        result["error"] = tally.errors[0]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--row", required=True, choices=[*ROWS, *TRANSPORT_ROWS])
    parser.add_argument("--target", default="127.0.0.1:50051")
    parser.add_argument("--instance", default="")
    parser.add_argument("--pid", default="", help="server process ids, comma separated: CPU and memory from /proc")
    parser.add_argument("--ca-file", default="", help="speak TLS, and trust this authority")
    parser.add_argument("--seconds", type=float, default=4, help="stop after that long, even if operations are left")
    print(json.dumps(trio.run(run, parser.parse_args())))


if __name__ == "__main__":
    main()
