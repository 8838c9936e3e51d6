"""Log lines: how they look, which are written, and what becomes of those that nobody takes in time."""

import json
import logging
import queue
import subprocess
import sys
import time

import pytest

from nl.telemetry import log as module
from nl.telemetry.log import MAX_QUEUED, JsonFormatter, TextFormatter, formatter_from, level_from


def record(message="it is %s", arguments=("so",), level=logging.WARNING, error=None):
    made = logging.LogRecord("nl.here", level, __file__, 1, message, arguments,
                             (type(error), error, None) if error is not None else None)  # fmt: skip
    made.created, made.msecs = 1_700_000_000.007, 7.0
    return made


@pytest.fixture
def utc(monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def test_a_line_has_time_level_place_and_message(utc):
    assert TextFormatter().format(record()) == "2023-11-14T22:13:20.007 WARNING nl.here: it is so"
    assert TextFormatter(compact=True).format(record(level=20)) == "22:13:20 INFO    nl.here: it is so"
    lines = TextFormatter().format(record(error=ValueError("why"))).splitlines()
    assert lines == ["2023-11-14T22:13:20.007 WARNING nl.here: it is so", "ValueError: why"]


def test_an_object_has_the_same_for_programs():
    line = JsonFormatter().format(record("caf\u00e9\n%s"))
    assert "\n" not in line
    assert "caf\u00e9" in line
    assert json.loads(line) == {
        "timestamp": "2023-11-14T22:13:20.007Z", "level": "warning", "target": "nl.here", "message": "caf\u00e9\nso"
    }  # fmt: skip
    assert json.loads(JsonFormatter().format(record(error=ValueError("why"))))["exception"] == "ValueError: why"


@pytest.mark.parametrize(
    ("environment", "level"),
    [
        ({}, 20), ({"RUST_LOG": "debug"}, 10), ({"RUST_LOG": "trace"}, 10), ({"NL_LOG_LEVEL": "error"}, 40),
        ({"NL_LOG_LEVEL": "warn", "RUST_LOG": "debug"}, 30), ({"RUST_LOG": "warning"}, 30), ({"RUST_LOG": "off"}, 100),
        ({"RUST_LOG": "h2=off, Info ,x"}, 20), ({"RUST_LOG": "h2=off"}, 20), ({"NL_LOG_LEVEL": "loud"}, 20),
        ({"NL_LOG_LEVEL": "loud", "RUST_LOG": "error"}, 40), ({"NL_LOG_LEVEL": ""}, 20),
    ],
)  # fmt: skip
def test_which_lines_are_written(environment, level):
    assert level_from(environment) == level


@pytest.mark.parametrize(
    ("style", "kind", "compact"),
    [(None, TextFormatter, False), ("pretty", TextFormatter, False), ("compact", TextFormatter, True),
     (" JSON ", JsonFormatter, None), ("Compact", TextFormatter, True), ("other", TextFormatter, False)],
)  # fmt: skip
def test_how_they_look(style, kind, compact):
    found = formatter_from({} if style is None else {"NL_LOG": style})
    assert type(found) is kind
    assert getattr(found, "_compact", None) is compact


def test_lines_that_nobody_takes_are_dropped_and_counted():
    waiting = queue.Queue(2)
    handler = module._DroppingHandler(waiting)

    def said():
        return [waiting.get_nowait().getMessage() for _ in range(waiting.qsize())]

    for number in range(5):
        handler.enqueue(record("%d", (number,)))
    assert said() == ["0", "1"]
    handler.enqueue(record("%d", (5,)))
    assert said() == ["5", "3 log records were dropped: the log's reader is too slow"]
    handler.enqueue(record("%d", (6,)))
    assert said() == ["6"], "said once"


def test_what_was_dropped_is_still_counted_when_there_is_no_room_to_say_so():
    waiting = queue.Queue(1)
    handler = module._DroppingHandler(waiting)
    for number in range(3):
        handler.enqueue(record("%d", (number,)))
    waiting.get_nowait()
    handler.enqueue(record("next", ()))
    assert (waiting.get_nowait().getMessage(), handler.dropped) == ("next", 2)


def test_a_line_is_handed_over_as_it_is():
    handler = module._DroppingHandler(queue.Queue())
    made = record()
    assert handler.prepare(made) is made


_PROGRAM = """
import logging
from nl.telemetry.log import set_up_logging
set_up_logging()
logging.getLogger("nl.here").info("told")
logging.getLogger("nl.here").debug("not told")
print(len(logging.getLogger().handlers), type(logging.getLogger().handlers[0]).__name__)
"""


def test_all_that_was_logged_is_on_standard_error_when_the_process_has_ended():
    ran = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=True,
                         env={"NL_LOG": "json", "PATH": ""})  # fmt: skip
    [line] = ran.stderr.splitlines()
    assert json.loads(line)["message"] == "told"
    assert ran.stdout == "1 _DroppingHandler\n"


def test_so_many_lines_wait_for_the_writer():
    assert MAX_QUEUED == 10_000
