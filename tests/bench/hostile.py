"""`./dev bench hostile`: one hostile client of each kind at full speed; what another client and the server see of it.

The bystander makes unary calls, one at a time; a fiftieth of them has to connect, and is counted apart. Its p99 beside
"nobody" is what the hostile client costs it. RSS in MiB: before, at most, and a second after the hostile one has gone.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.support.bystander import Outcome, beside
from tests.support.hostile import KINDS
from tests.support.processes import ROOT, all_in_one


def show(outcome: Outcome) -> None:
    errors = f"  {outcome.errors[0]}" if outcome.errors else ""
    print(
        f"  {outcome.kind:23} p50 {outcome.p50_ms:7.2f}  p99 {outcome.p99_ms:8.2f}  worst {outcome.worst_ms:7.1f}"
        f"  connecting {outcome.connecting_ms:6.0f} ms"
        f"  RSS {outcome.rss_before:4.0f} {outcome.rss_peak:5.0f} {outcome.rss_after:5.0f} MiB"
        f"  descriptors {outcome.descriptors_peak:5}  connections {outcome.connections:6}  cpu {outcome.cpu_s:5.1f} s"
        f"{errors}",
        flush=True,
    )


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="bench hostile", description=__doc__)
    parser.add_argument("--kinds", default="", help=f"comma separated, of {', '.join(KINDS)}; default all")
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", default=ROOT, help="the server of another checkout")
    parser.add_argument("--json", help="write the figures there, too")
    options = parser.parse_args(arguments)
    outcomes = []
    for kind in (None, *(options.kinds.split(",") if options.kinds else KINDS)):
        with (
            tempfile.TemporaryDirectory(prefix="nl-hostile-") as name,
            all_in_one(Path(name), root=options.against.resolve()) as server,
        ):
            outcomes.append(beside(kind, server, seconds=options.seconds))
        show(outcomes[-1])
    if options.json:
        Path(options.json).write_text(json.dumps([dataclasses.asdict(each) for each in outcomes], indent=1))
    return 0
