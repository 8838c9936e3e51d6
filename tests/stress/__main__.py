"""`./dev stress`: several processes on one folder, blobs of 300 MB through 50 MB, one process killed again and again.

Wanted are: no wrong byte; nothing lost that was put or said to be there a moment ago; no more bytes than `max_bytes`,
but for what killed processes have not counted. Ends with 1 if not.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from tests.support.processes import ROOT

BROKEN = ("wrong bytes", "lost after put", "lost after has", "corrupt")
OVER = {"yes": 1.05, "no": 1.10}
"""How much of `max_bytes` there may be at the most, with inotify and without."""


def bytes_in(root: Path) -> int:
    """Bytes in blocks of all that counts."""
    total = 0
    for folder in ("content/d", "content/a", "content/s", "content.exec/d"):
        try:
            for item in os.scandir(root / folder):
                total += -(-item.stat(follow_symlinks=False).st_size // 4096) * 4096
        except FileNotFoundError:
            pass  # not made yet, or evicted meanwhile: the rest of that folder counts at the next look
    return total


class Watcher:
    """Looks how many bytes there are, many times a second."""

    def __init__(self, root: Path) -> None:
        self.most = self.looks = 0
        self._root = root
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._over.wait(0.05):
            self.looks += 1
            self.most = max(self.most, bytes_in(self._root))

    def stop(self) -> None:
        self._over.set()
        self._thread.join()


def start(root: Path, options: argparse.Namespace, seed: int, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.stress.filesystem_load", root, options.max_bytes, seed, seconds,
               options.inotify]
    with (root / "log").open("a") as log:
        process = subprocess.Popen(list(map(str, command)), cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True)
    assert process.stdout is not None
    if process.stdout.readline() != "ready\n":
        sys.exit(f"a process did not start:\n{(root / 'log').read_text()}")
    return process


def kill_again_and_again(root: Path, options: argparse.Namespace) -> None:
    """One more process, in the midst of whatever it does."""
    for number in range(options.kills):
        victim = start(root, options, seed=1000 + number, seconds=3600)
        time.sleep(random.uniform(0.05, 1.0))
        victim.kill()
        victim.wait()


def main() -> int:
    parser = argparse.ArgumentParser(prog="./dev stress", description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=2, help="besides the one that is killed")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60, help="without kills; else they decide")
    parser.add_argument("--max-bytes", type=int, default=50_000_000)
    parser.add_argument("--inotify", choices=("yes", "no"), default="yes")
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="nl-stress-"))
    watcher, began = Watcher(root), time.monotonic()
    seconds = 3600.0 if options.kills else options.seconds
    try:
        processes = [start(root, options, seed, seconds) for seed in range(options.processes)]
        kill_again_and_again(root, options)
        return report(root, options, processes, watcher, began)
    finally:
        shutil.rmtree(root)


def report(
    root: Path, options: argparse.Namespace, processes: list[subprocess.Popen[str]], watcher: Watcher, began: float
) -> int:
    if options.kills:
        (root / "stop").touch()
    seen: Counter[str] = Counter()
    slowest: dict[str, float] = {}
    for process in processes:
        out, _ = process.communicate(timeout=options.seconds + 300)
        if process.returncode:
            sys.exit(f"a process ended with {process.returncode}:\n{(root / 'log').read_text()}")
        found = json.loads(out)
        for name, took in found.pop("slowest").items():
            slowest[name] = max(slowest.get(name, 0.0), took)
        found.pop("state")
        seen.update(found)
    watcher.stop()
    share = watcher.most / options.max_bytes
    print(f"{options.processes} processes, inotify: {options.inotify}, {options.kills} kills, "
          f"{time.monotonic() - began:.0f} s; most bytes {share:.1%} of max_bytes in {watcher.looks} looks")
    for name, count in sorted(seen.items()):
        print(f"  {count:8}  {name}" + (f" (slowest {slowest[name]} s)" if name in slowest else ""))
    return 1 if any(seen[name] for name in BROKEN) or share > OVER[options.inotify] else 0


if __name__ == "__main__":
    sys.exit(main())
