"""A worker in a process of its own, which listens nowhere: it is ready when its log says that a scheduler has it."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from types import TracebackType

from tests.support.processes import ROOT, nl_command

REGISTERED = "Worker registered with scheduler"


class WorkerProcess:
    """`nl serve CONFIG`, for the length of a block."""

    def __init__(self, config: Path, *, log: Path) -> None:
        self._config = config
        self.log = log
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> WorkerProcess:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*nl_command(), "serve", str(self._config)], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=ROOT
            )
        until = time.monotonic() + 30
        while REGISTERED not in self.log_text():
            if self.process.poll() is not None or time.monotonic() > until:
                self.process.kill()
                self.process.wait()
                raise AssertionError(f"the worker did not come up:\n{self.log_text()[-4000:]}")
            time.sleep(0.02)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self.process is not None
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def log_text(self) -> str:
        return self.log.read_text(errors="replace")
