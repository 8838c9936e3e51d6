"""The benchmarks run once in every test run, as short as they can be, so that they cannot rot."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.bench.pairs import compared, cpu_ns
from tests.support.processes import ROOT

SHORT = ["--rounds", "1", "--seconds", "0.1"]


def bench(tmp_path: Path, *arguments: str) -> tuple[list[dict[str, Any]], str]:
    """What it has written, and what it has printed."""
    written = tmp_path / "bench.json"
    command = [sys.executable, "-m", "tests.bench", *SHORT, *arguments, "--json", str(written)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    return json.loads(written.read_text())["results"], run.stdout


def test_every_kind_of_server_is_measured_and_ours_with_tls_besides(tmp_path: Path) -> None:
    results, printed = bench(tmp_path, "--rows", "unary,read4k")
    assert [each["server"] for each in results] == ["nl", "grpcio.aio", "grpclib", "memory", "filesystem"]
    assert all(each["per_s"] > 0 and not each["failed"] for each in results), printed
    assert [each["server"] for each in results if "tls" in each] == ["nl", "memory", "filesystem"]
    assert printed.count("TLS x") == 3


def test_a_checkout_is_compared_with_another(tmp_path: Path) -> None:
    results, printed = bench(tmp_path, "--rows", "fmb1,write4k", "--only", "memory", "--against", str(ROOT))
    assert [(each["part"], each["row"], each["failed"]) for each in results] == [
        ("memory", "fmb1", 0), ("memory", "write4k", 0),
    ]  # fmt: skip
    for each in results:
        assert each["there"] > 0 and each["here"] > 0 and each["ratio"] > 0
        assert each["tls"]["ratio"] > 0 and each["tls_ratio"] > 0
    assert "ratio" in printed and printed.count("TLS") == 2


def test_bursts_are_compared_pair_by_pair_so_that_a_machine_that_slows_down_changes_no_ratio() -> None:
    there = [float(time) for time in range(10, 110)]
    found = compared(there, [1.5 * time for time in there])
    assert (found.ratio, *found.spread) == pytest.approx((1.5, 1.5, 1.5))
    assert (found.there, found.here) == (35.0, 52.5), "the lower quartile of each"
    assert "slower" in str(found) and "slower" not in str(compared(there, there))


def test_the_clock_of_a_process_is_that_of_all_its_threads() -> None:
    before, own = cpu_ns(os.getpid()), time.process_time_ns()
    sum(range(200_000))
    assert time.process_time_ns() - own <= cpu_ns(os.getpid()) - before


def test_a_bystander_is_measured_beside_a_hostile_client(tmp_path: Path) -> None:
    written = tmp_path / "hostile.json"
    command = [sys.executable, "-m", "tests.bench", "hostile", "--kinds", "ping_flood", "--seconds", "0.5"]
    subprocess.run([*command, "--json", str(written)], cwd=ROOT, capture_output=True, timeout=600, check=True)
    nobody, flood = json.loads(written.read_text())
    assert (nobody["kind"], nobody["connections"], nobody["errors"]) == ("nobody", 0, [])
    assert (flood["kind"], flood["errors"]) == ("ping_flood", [])
    assert flood["connections"] > 1, "it is cut off, and comes again"


def test_every_store_kind_is_measured_beside_what_lies_below_it() -> None:
    command = [sys.executable, "-m", "tests.bench", "stores", "--rounds", "1"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    rows = [line for line in run.stdout.splitlines() if "MiB" in line]
    for kind in ("cache_metrics", "existence_cache", "fast_slow", "shard", "size_partitioning", "verify", "lz4", "zstd",
                 "dedup", "S3"):
        assert any(f"{kind}: " in row for row in rows), run.stdout
