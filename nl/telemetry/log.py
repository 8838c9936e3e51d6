"""Log set-up: standard `logging`, written by a thread of its own so that a slow terminal or pipe never stalls the loop.

Called once, by the commands that serve. Modules just use `logging.getLogger(__name__)`. Environment, as NativeLink's:
`NL_LOG` is `pretty` (default), `compact` or `json`; `RUST_LOG` or `NL_LOG_LEVEL` is the level (default info).
"""

from __future__ import annotations

import atexit
import json
import logging
import logging.handlers
import os
import queue
import sys
import time
from collections.abc import Mapping

MAX_QUEUED = 10_000
"""Records waiting for the writer; beyond that new ones are dropped and counted rather than memory or time spent."""

_LEVELS = {"trace": 10, "debug": 10, "info": 20, "warn": 30, "warning": 30, "error": 40, "off": 100}


class TextFormatter(logging.Formatter):
    """One line a record: time, level, where, message. `compact` leaves out date and milliseconds."""

    def __init__(self, *, compact: bool = False) -> None:
        super().__init__()
        self._compact = compact

    def format(self, record: logging.LogRecord) -> str:
        clock = time.localtime(record.created)
        if self._compact:
            stamp = time.strftime("%H:%M:%S", clock)
        else:
            stamp = time.strftime("%Y-%m-%dT%H:%M:%S", clock) + f".{int(record.msecs):03d}"
        line = f"{stamp} {record.levelname:<7} {record.name}: {record.getMessage()}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


class JsonFormatter(logging.Formatter):
    """One JSON object a line, for log collectors."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "timestamp": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "target": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)


class _DroppingHandler(logging.handlers.QueueHandler):
    """Queues records; when the writer cannot keep up, drops and counts them, and says so with the next that fits."""

    dropped = 0

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        return record  # same process: nothing has to be made picklable

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            self.queue.put_nowait(record)
        except queue.Full:
            self.dropped += 1
            return
        if self.dropped:
            lost, self.dropped = self.dropped, 0
            note = logging.LogRecord(
                __name__, logging.WARNING, __file__, 0,
                "%d log records were dropped: the log's reader is too slow", (lost,), None,
            )
            try:
                self.queue.put_nowait(note)
            except queue.Full:
                self.dropped = lost


def level_from(environment: Mapping[str, str]) -> int:
    """The root level. RUST_LOG may be a filter list (`info,h2=off`): its first plain level counts."""
    for name in ("NL_LOG_LEVEL", "RUST_LOG"):
        for part in environment.get(name, "").split(","):
            level = _LEVELS.get(part.strip().lower())
            if level is not None:
                return level
    return logging.INFO


def formatter_from(environment: Mapping[str, str]) -> logging.Formatter:
    """The formatter that NL_LOG asks for."""
    style = environment.get("NL_LOG", "pretty").strip().lower()
    if style == "json":
        return JsonFormatter()
    return TextFormatter(compact=style == "compact")


def set_up_logging() -> None:
    """Sends every log record to standard error through a bounded queue, and flushes it when the process exits."""
    writer = logging.StreamHandler(sys.stderr)
    writer.setFormatter(formatter_from(os.environ))
    waiting: queue.Queue[logging.LogRecord] = queue.Queue(MAX_QUEUED)
    listener = logging.handlers.QueueListener(waiting, writer)
    root = logging.getLogger()
    root.setLevel(level_from(os.environ))
    root.handlers[:] = [_DroppingHandler(waiting)]
    listener.start()
    atexit.register(listener.stop)
