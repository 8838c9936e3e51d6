"""Who says whether a blob that has gone was lost, by what the store promises: it evicts what was used the longest ago,
by whichever process. So a blob must not be gone while one is still there that nobody has used since.

Every process writes down which blobs it is using and when it has last ended doing so, in memory that all share; the
store's own notes are not asked.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


class Judge:
    """In the eyes of the process number `own`: each has a row of cells that nobody else writes. `path` is made by the
    first. `names` are the files of the blobs.
    """

    def __init__(self, path: Path, folder: Path, names: Sequence[str], *, processes: int, own: int = 0) -> None:
        size = processes * len(names) * 16
        if not path.exists():
            path.write_bytes(bytes(size))
        with path.open("r+b") as file:
            memory = memoryview(mmap.mmap(file.fileno(), size))
        self._running = memory[: size // 2].cast("Q")
        """How often each process is using each blob at this moment."""
        self._ended = memory[size // 2 :].cast("d")
        """When each process has used each blob last."""
        self._numbers = {name: number for number, name in enumerate(names)}
        self._folder = folder
        self._row = own * len(names)
        self._width = len(names)

    @contextmanager
    def use(self, *numbers: int) -> Iterator[None]:
        """Blobs are put or used in the block, at some moment."""
        self.begin(*numbers)
        try:
            yield
        finally:
            for number in numbers:
                self._ended[self._row + number] = time.monotonic()
                self._running[self._row + number] -= 1

    def begin(self, *numbers: int) -> None:
        """From now on, blobs are being used, perhaps for ever: the process may be killed."""
        for number in numbers:
            self._running[self._row + number] += 1

    def older(self, when: float) -> str | None:
        """A blob that is there and that nobody has used since then; None if there is none."""
        for name in os.listdir(self._folder):
            number = self._numbers[name]
            if not any(self._running[number :: self._width]) and max(self._ended[number :: self._width]) < when:
                return name
        return None

    def bury(self, own: int) -> None:
        """Ends the uses of a process that has been killed."""
        for cell in range(own * self._width, (own + 1) * self._width):
            if self._running[cell]:
                self._ended[cell], self._running[cell] = time.monotonic(), 0
