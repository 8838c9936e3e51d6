"""`./dev stress`: several processes on one folder, blobs of 300 MB through 50 MB, one process killed again and again.

Wanted are: no wrong byte; nothing lost that was put or said to be there (by the rule of judge.py); no more bytes than
`max_bytes`, but for what killed processes have not counted. Ends with 1 if not.

Processes are forked from a server that has imported everything (each is one of its own all the same, and dies by
SIGKILL): a victim that has to import first is killed a third as often.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from .filesystem_load import Orders, judge_for, run
from .judge import Judge

BROKEN = ("wrong bytes", "lost after put", "lost after has", "corrupt")
OVER = {"yes": 1.05, "no": 1.10}
"""How much of `max_bytes` there may be at the most, with inotify and without."""
_PATIENCE_S = 300


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


class Running:
    """A process, and the pipe on which it tells what it has seen."""

    def __init__(self, root: Path, options: argparse.Namespace, *, number: int, seed: int, seconds: float) -> None:
        orders = Orders(
            root, options.max_bytes, options.inotify == "yes", options.processes + 1, number, seed, seconds
        )  # fmt: skip
        context = multiprocessing.get_context("forkserver")
        self._log = root / "log"
        self._pipe, theirs = context.Pipe(duplex=False)
        self.process: ForkServerProcess = context.Process(target=run, args=(orders, theirs))
        self.process.start()
        theirs.close()
        self.told()  # that it is ready

    def told(self) -> object:
        """What it tells next."""
        try:
            if self._pipe.poll(_PATIENCE_S):
                return self._pipe.recv()
        except EOFError:
            pass
        self.process.kill()
        sys.exit(f"a process did not do what it should:\n{self._log.read_text()}")

    def kill(self) -> None:
        self.process.kill()
        self.end()

    def end(self) -> None:
        self.process.join()
        self.process.close()
        self._pipe.close()


def kill_again_and_again(root: Path, options: argparse.Namespace, judge: Judge) -> None:
    """One more process, in the midst of whatever it does."""
    for number in range(options.kills):
        victim = Running(root, options, number=options.processes, seed=1000 + number, seconds=3600)
        time.sleep(random.uniform(0.05, 1.0))
        victim.kill()
        judge.bury(options.processes)


def main() -> int:
    parser = argparse.ArgumentParser(prog="./dev stress", description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=2, help="besides the one that is killed")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60, help="without kills; else they decide")
    parser.add_argument("--max-bytes", type=int, default=50_000_000)
    parser.add_argument("--inotify", choices=("yes", "no"), default="yes")
    options = parser.parse_args()
    multiprocessing.get_context("forkserver").set_forkserver_preload(["tests.stress.filesystem_load"])
    root = Path(tempfile.mkdtemp(prefix="nl-stress-"))
    judge = judge_for(root, processes=options.processes + 1)
    watcher, began = Watcher(root), time.monotonic()
    seconds = 3600.0 if options.kills else options.seconds
    try:
        processes = [
            Running(root, options, number=number, seed=number, seconds=seconds) for number in range(options.processes)
        ]
        kill_again_and_again(root, options, judge)
        return report(root, options, processes, watcher, began)
    finally:
        shutil.rmtree(root)


def report(
    root: Path, options: argparse.Namespace, processes: list[Running], watcher: Watcher, began: float
) -> int:
    if options.kills:
        (root / "stop").touch()
    seen: Counter[str] = Counter()
    slowest: dict[str, float] = {}
    for process in processes:
        found = process.told()
        process.end()
        assert isinstance(found, dict)
        for name, took in found["slowest"].items():
            slowest[name] = max(slowest.get(name, 0.0), took)
        seen.update(found["seen"])
    watcher.stop()
    lost = [line for line in (root / "log").read_text().splitlines() if line.startswith(BROKEN)]
    seen.update({name: sum(line.startswith(name) for line in lost) for name in BROKEN})  # by those killed, too
    share = watcher.most / options.max_bytes
    print(f"{options.processes} processes, inotify: {options.inotify}, {options.kills} kills, "
          f"{time.monotonic() - began:.0f} s; most bytes {share:.1%} of max_bytes in {watcher.looks} looks")
    for name, count in sorted(seen.items()):
        print(f"  {count:8}  {name}" + (f" (slowest {slowest[name]:.3f} s)" if name in slowest else ""))
    print(*lost, sep="\n", end="\n" if lost else "")
    return 1 if any(seen[name] for name in BROKEN) or share > OVER[options.inotify] else 0


if __name__ == "__main__":
    sys.exit(main())
