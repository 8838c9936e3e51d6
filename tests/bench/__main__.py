"""`./dev bench`: one table. (1) the transport beside grpcio.aio and grpclib; (2) the full stack on memory and
filesystem stores, or any REAPI endpoint with `--endpoint HOST:PORT --pid PID`. Medians of several rounds, and with our
own servers what TLS costs beside.

`--against CHECKOUT` starts the servers of another checkout, too, and compares each row burst by burst (pairs.py).
`./dev bench hostile` measures a well-behaved client beside hostile ones: see hostile.py; `./dev bench stores` what each
store kind costs over what lies below it: see stores.py.

The figure to trust is the server's CPU time per operation; rates move with whatever else the machine does.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from functools import partial
from pathlib import Path

import trio

from tests.bench import hostile, pairs, stores
from tests.bench.pairs import compare
from tests.bench.servers import KINDS, TRANSPORTS, Running, full_stack, transport_server
from tests.bench.workloads import ROWS, TRANSPORT_ROWS
from tests.support.processes import ROOT

COLUMNS = ("per_s", "mib_per_s", "p50_ms", "p99_ms", "server_cpu_us", "rss_mib")
Result = dict[str, object]
Part = tuple[str, list[str], Callable[..., AbstractContextManager[Running]]]
"""Headline, rows, and what starts the server for them, of the checkout `root=`."""


def measure_once(row: str, server: Running, options: argparse.Namespace, *, tls: bool = False) -> Result:
    """One run of one row, by a client process of its own."""
    target = server.tls_target if tls else server.target
    command = [sys.executable, "-m", "tests.bench.load", "--row", row, "--target", str(target),
               "--pid", str(server.pid), "--seconds", str(options.seconds), "--instance", options.instance,
               *(["--ca-file", server.ca_file] if tls else [])]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if run.returncode:
        return {"row": row, "error": run.stderr.strip().splitlines()[-1] if run.stderr else "?", "failed": 1}
    found: Result = json.loads(run.stdout)
    return found


def in_turns(
    row: str, sides: Mapping[str, tuple[Running, bool]], options: argparse.Namespace
) -> dict[str, list[Result]]:
    """Runs of one row on several servers, one after the other: what the machine does meanwhile hits all of them."""
    runs: dict[str, list[Result]] = {side: [] for side in sides}
    order = list(sides.items())
    for _ in range(options.rounds):
        for side, (server, tls) in order:
            runs[side].append(measure_once(row, server, options, tls=tls))
        order.reverse()
    return runs


def merged(row: str, results: Sequence[Result]) -> Result:
    """The median of every figure, and every failure counted."""
    found: Result = {"row": row, "failed": sum(map(failures, results))}
    for column in COLUMNS:
        values = [figure(r, column) for r in results if column in r]
        if values:
            found[column] = statistics.median(values)
    errors = [r["error"] for r in results if "error" in r]
    if errors:
        found["error"] = errors[0]
    return found


def least_cpu(results: Sequence[Result]) -> float:
    """Whatever else runs only adds to it."""
    return min(figure(result, "server_cpu_us") for result in results)


def failures(result: Result) -> int:
    return int(str(result["failed"]))


def figure(result: Result, column: str) -> float:
    value = result.get(column)
    return float(value) if isinstance(value, int | float) else float("nan")


def show(label: str, result: Result) -> None:
    def cell(column: str, form: str) -> str:
        return format(figure(result, column), form) if column in result else "-"

    tls = f"  TLS x {cell('tls_ratio', '.2f')}" if "tls_ratio" in result else ""
    failed = f"  {result['failed']} FAILED: {result.get('error')}" if result["failed"] else ""
    print(
        f"  {result['row']:12} {label:11} {cell('per_s', '9.0f')}/s {cell('mib_per_s', '7.0f'):>7} MiB/s  "
        f"p50 {cell('p50_ms', '8.2f')} ms  p99 {cell('p99_ms', '8.2f')} ms  cpu {cell('server_cpu_us', '9.1f')} us  "
        f"rss {cell('rss_mib', '5.0f')} MiB{tls}{failed}",
        flush=True,
    )


def ratio(one: float, other: float) -> float:
    """The clock ticks a hundred times a second: very short runs may take no time at all."""
    return one / other if other else float("nan")


def run_rows(label: str, server: Running, rows: Sequence[str], options: argparse.Namespace) -> list[Result]:
    results = []
    sides = {"plain": (server, False)}
    if server.tls_target is not None and options.tls:
        sides["tls"] = (server, True)
    for row in rows:
        runs = in_turns(row, sides, options)
        result = {"server": label, **merged(row, runs["plain"])}
        if "tls" in runs:
            secure = merged(row, runs["tls"])
            result["tls"] = secure
            result["tls_ratio"] = ratio(least_cpu(runs["tls"]), least_cpu(runs["plain"]))
            if failures(secure):
                result |= {"failed": failures(result) + failures(secure), "error": f"with TLS: {secure.get('error')}"}
        show(label, result)
        results.append(result)
    return results


def compare_rows(ours: Running, theirs: Running, rows: Sequence[str], options: argparse.Namespace) -> list[Result]:
    """Each row on both servers, with TLS besides where both have it."""
    results = []
    tls = bool(options.tls and ours.tls_target and theirs.tls_target)
    print(f"  {'row':12} {'':5} {'there':>13} {'here':>13}  ratio (quartiles)")
    for row in rows:
        compared, errors = trio.run(partial(
            compare, {**ROWS, **TRANSPORT_ROWS}[row], theirs, ours, rounds=options.rounds, instance=options.instance,
            tls=tls,
        ))  # fmt: skip
        result: Result = {"row": row, "failed": len(errors), **asdict(compared[0])}
        for label, each in zip(("plain", "TLS"), compared, strict=False):
            print(f"  {row:12} {label:5} {each}", flush=True)
        if len(compared) > 1:
            result["tls"] = asdict(compared[1])
            result["tls_ratio"] = compared[1].here / compared[0].here
        if errors:
            result["error"] = errors[0]
            print(f"  {row:12} {len(errors)} FAILED: {errors[0]}", flush=True)
        results.append(result)
    return results


def parts_of(options: argparse.Namespace) -> list[Part]:
    """What is to be measured."""
    chosen = [r for r in options.rows.split(",") if r]

    def rows(known: Sequence[str], *, without: str = "") -> list[str]:
        return [row for row in known if (not chosen or row in chosen) and row != without]

    parts: list[Part] = []
    wanted = options.only or ["transport", *KINDS]
    if "transport" in wanted:
        for label in ["nl"] if options.against else TRANSPORTS:
            parts.append((label, rows(list(TRANSPORT_ROWS)), partial(transport_server, label)))
    for kind in KINDS:
        if kind in wanted:
            known = rows(list(ROWS), without="exec" if kind == "memory" else "")
            parts.append((kind, known, partial(full_stack, kind)))
    return [part for part in parts if part[1]]


def main() -> int:
    if sys.argv[1:2] == ["hostile"]:
        return hostile.main(sys.argv[2:])
    if sys.argv[1:2] == ["stores"]:
        return stores.main(sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["transport", *KINDS], action="append")
    parser.add_argument("--rows", default="", help="comma separated; default all")
    parser.add_argument("--rounds", type=int, help=f"default 3, with --against {pairs.ROUNDS}")
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--no-tls", dest="tls", action="store_false", help="leave out what TLS costs")
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="compare with another checkout")
    parser.add_argument("--endpoint", help="measure this server instead of our own: HOST:PORT")
    parser.add_argument("--pid", default="", help="its process ids, comma separated")
    parser.add_argument("--instance", default="")
    parser.add_argument("--json", default=f"bench-{time.strftime('%Y%m%d-%H%M%S')}.json")
    options = parser.parse_args()
    options.rounds = options.rounds or (pairs.ROUNDS if options.against else 3)
    results: list[Result] = []
    python = f"{platform.python_implementation()} {platform.python_version()}"
    print(f"{os.cpu_count()} cores, {python}, {platform.release()}")
    if options.endpoint:
        rows = [row for row in options.rows.split(",") if row] or list(ROWS)
        results += run_rows(options.endpoint, Running(options.endpoint, options.pid), rows, options)
    else:
        for label, rows, start in parts_of(options):
            print(f"{label}: " + ("the full stack on such stores" if label in KINDS else "the transport alone"))
            if options.against:
                with start(root=options.against.resolve()) as theirs, start(root=ROOT) as ours:
                    results += [{"part": label, **each} for each in compare_rows(ours, theirs, rows, options)]
            else:
                with start(root=ROOT) as server:
                    results += run_rows(label, server, rows, options)
    Path(options.json).write_text(json.dumps({"when": time.time(), "results": results}, indent=1))
    print(f"written to {options.json}")
    return 1 if any(map(failures, results)) else 0


if __name__ == "__main__":
    sys.exit(main())
