"""`./dev bench`: one table. (1) the transport beside grpcio.aio and grpclib; (2) the full stack on memory and
filesystem stores, or any REAPI endpoint with `--endpoint HOST:PORT --pid PID`. Medians of several rounds.

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
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.bench.workloads import ROWS, TRANSPORT_ROWS
from tests.support.processes import ROOT, free_port, rss_mib, serving

TRANSPORTS = {
    "nl": "tests.bench.transport_nl",
    "grpcio.aio": "tests.bench.transport_grpcio",
    "grpclib": "tests.bench.transport_grpclib",
}
COLUMNS = ("per_s", "mib_per_s", "p50_ms", "p99_ms", "server_cpu_us", "rss_mib")


@contextmanager
def transport_server(module: str) -> Iterator[tuple[str, int]]:
    """One of the twins of the trivial service in its own process: (target, pid)."""
    port = free_port()
    process = subprocess.Popen([sys.executable, "-m", module, str(port)], cwd=ROOT)
    try:
        wait_until_listening(port)
        yield f"127.0.0.1:{port}", process.pid
    finally:
        process.terminate()
        process.wait(10)


def wait_until_listening(port: int) -> None:
    import socket

    for _ in range(500):
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.02)
    raise SystemExit(f"nothing listens on port {port}")


def config_for(kind: str, directory: Path, port: int) -> str:
    """The full stack on one kind of store, as a config: CAS, action cache, scheduler, one worker."""
    policy = {"max_bytes": "20gb"}

    def store(name: str) -> dict[str, object]:
        if kind == "memory":
            return {"memory": {"eviction_policy": policy}}
        return {
            "filesystem": {
                "content_path": str(directory / name), "temp_path": str(directory / f"{name}-temp"),
                "eviction_policy": policy,
            }
        }

    return json.dumps(
        {
            "stores": [{"name": "CAS", **store("cas")}, {"name": "AC", **store("ac")}],
            "servers": [
                {
                    "listener": {"http": {"socket_address": f"127.0.0.1:{port}"}},
                    "services": {
                        "cas": [{"cas_store": "CAS"}],
                        "ac": [{"ac_store": "AC"}],
                        "bytestream": [{"cas_store": "CAS"}],
                        "capabilities": [{}],
                        "health": {},
                    },
                }
            ],
        }
    )


@contextmanager
def full_stack(kind: str) -> Iterator[tuple[str, int]]:
    """`nl serve` on memory or filesystem stores: (target, pid). The filesystem one also executes."""
    with tempfile.TemporaryDirectory(prefix="nl-bench-") as name:
        directory, port = Path(name), free_port()
        if kind == "filesystem":
            arguments = ["serve", "--port", str(port), "--data-dir", str(directory / "data")]
        else:
            file = directory / "bench.json5"
            file.write_text(config_for(kind, directory, port))
            arguments = ["serve", str(file)]
        environment = {"NL_LOG_LEVEL": "warn"}
        with serving(arguments, port=port, log=directory / "server.log", env=environment) as server:
            print(f"  ready after {server.ready_after_s:.2f} s, idle RSS {rss_mib(server.pid):.0f} MiB")
            yield server.target, server.pid


def measure(
    row: str, target: str, pid: int | str, *, seconds: float, rounds: int, instance: str = ""
) -> dict[str, object]:
    """Several rounds of one row; the median of every figure, and every failure counted."""
    results = []
    for _ in range(rounds):
        command = [sys.executable, "-m", "tests.bench.load", "--row", row, "--target", target, "--pid", str(pid),
                   "--seconds", str(seconds), "--instance", instance]
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if run.returncode:
            return {"row": row, "error": run.stderr.strip().splitlines()[-1] if run.stderr else "?", "failed": 1}
        results.append(json.loads(run.stdout))
    merged: dict[str, object] = {"row": row, "failed": sum(r["failed"] for r in results)}
    for column in COLUMNS:
        values = [r[column] for r in results if column in r]
        if values:
            merged[column] = statistics.median(values)
    errors = [r["error"] for r in results if "error" in r]
    if errors:
        merged["error"] = errors[0]
    return merged


def show(label: str, result: dict[str, object]) -> None:
    def cell(column: str, form: str) -> str:
        value = result.get(column)
        return format(value, form) if isinstance(value, float) else "-"

    failed = f"  {result['failed']} FAILED: {result.get('error')}" if result["failed"] else ""
    print(
        f"  {result['row']:12} {label:11} {cell('per_s', '9.0f')}/s {cell('mib_per_s', '7.0f'):>7} MiB/s  "
        f"p50 {cell('p50_ms', '8.2f')} ms  p99 {cell('p99_ms', '8.2f')} ms  cpu {cell('server_cpu_us', '9.1f')} us  "
        f"rss {cell('rss_mib', '5.0f')} MiB{failed}",
        flush=True,
    )


def run_rows(
    label: str, target: str, pid: int | str, rows: Sequence[str], options: argparse.Namespace
) -> list[dict[str, object]]:
    results = []
    for row in rows:
        result = {
            "server": label,
            **measure(row, target, pid, seconds=options.seconds, rounds=options.rounds, instance=options.instance),
        }
        show(label, result)
        results.append(result)
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["transport", "memory", "filesystem"], action="append")
    parser.add_argument("--rows", default="", help="comma separated; default all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--endpoint", help="measure this server instead of our own: HOST:PORT")
    parser.add_argument("--pid", default="", help="its process ids, comma separated")
    parser.add_argument("--instance", default="")
    parser.add_argument("--json", default=f"bench-{time.strftime('%Y%m%d-%H%M%S')}.json")
    options = parser.parse_args()
    chosen = [r for r in options.rows.split(",") if r]
    results: list[dict[str, object]] = []
    python = f"{platform.python_implementation()} {platform.python_version()}"
    print(f"{os.cpu_count()} cores, {python}, {platform.release()}")
    if options.endpoint:
        results += run_rows(options.endpoint, options.endpoint, options.pid, chosen or list(ROWS), options)
    else:
        parts = options.only or ["transport", "memory", "filesystem"]
        if "transport" in parts:
            print("transport: a trivial service")
            for label, module in TRANSPORTS.items():
                with transport_server(module) as (target, pid):
                    rows = [r for r in TRANSPORT_ROWS if not chosen or r in chosen]
                    results += run_rows(label, target, pid, rows, options)
        for kind in ("memory", "filesystem"):
            if kind in parts:
                print(f"full stack: {kind} stores")
                rows = [r for r in ROWS if (not chosen or r in chosen) and (kind == "filesystem" or r != "exec")]
                with full_stack(kind) as (target, pid):
                    results += run_rows(kind, target, pid, rows, options)
    Path(options.json).write_text(json.dumps({"when": time.time(), "results": results}, indent=1))
    print(f"written to {options.json}")
    return 1 if any(r["failed"] for r in results) else 0


if __name__ == "__main__":
    sys.exit(main())
