"""Log lines that peers can cause at will: one a minute."""

import logging

from nl.telemetry.limited import LimitedLog


def test_the_first_line_is_written_at_once_and_the_next_a_minute_later_with_the_number_left_out(caplog):
    now = [0.0]
    limited = LimitedLog(logging.getLogger("here"), clock=lambda: now[0])
    for _ in range(500):
        limited.warn("full: %d", 7)
        now[0] += 0.1
    assert caplog.messages == ["full: 7"]
    now[0] = 60.0
    limited.warn("full: %d", 8)
    assert caplog.messages[1:] == ["full: 8 (and 499 times more since the last such line)"]
    now[0] = 120.0
    limited.warn("full")
    assert caplog.messages[2:] == ["full"]


def test_a_line_is_due_again_at_the_end_of_the_period_and_not_before(caplog):
    now = [1000.0]
    limited = LimitedLog(logging.getLogger("here"), period_s=5.0, clock=lambda: now[0])
    for later in (0.0, 4.9, 5.0, 9.9, 10.0):
        now[0] = 1000.0 + later
        limited.warn("at %g", later)
    assert caplog.messages == [
        "at 0", "at 5 (and 1 times more since the last such line)", "at 10 (and 1 times more since the last such line)"
    ]  # fmt: skip
    assert LimitedLog(logging.getLogger("here"))._period_s == 60.0
