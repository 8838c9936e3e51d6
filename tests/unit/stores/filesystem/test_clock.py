"""Two clocks: what a wall clock that somebody sets does to ages, and to the times that files get."""

import time

import pytest

from nl.stores.filesystem.clock import Clock


class Times:
    """Both clocks of the machine."""

    monotonic, wall = 1000.0, 500_000.0

    def pass_by(self, seconds):
        self.monotonic += seconds
        self.wall += seconds


@pytest.fixture
def times(monkeypatch):
    times = Times()
    monkeypatch.setattr(time, "monotonic", lambda: times.monotonic)
    monkeypatch.setattr(time, "time", lambda: times.wall)
    return times


def test_times_of_files_are_those_of_the_monotonic_clock_and_back(times):
    clock = Clock()
    assert clock.of_file(499_990.0) == 990.0
    assert clock.for_file(990.0) == 499_990.0
    times.pass_by(100)
    clock.watch()
    assert clock.of_file(499_990.0) == 990.0


def test_nothing_was_used_in_the_future(times):
    clock = Clock()
    assert clock.of_file(500_000.0) == clock.of_file(500_001.0) == clock.of_file(10**12) == 1000.0


@pytest.mark.parametrize("jump", [3600.0, -3600.0, 1.5])
def test_a_clock_that_was_set_is_believed_after_a_minute(times, jump):
    clock = Clock()
    times.wall += jump
    clock.watch()
    for _ in range(60):
        assert clock.for_file(1000.0) == 500_000.0
        times.pass_by(1)
        clock.watch()
    assert clock.for_file(1000.0) == 500_000.0, "a minute is not over yet"
    times.pass_by(0.5)
    clock.watch()
    assert clock.for_file(1000.0) == 500_000.0 + jump


def test_a_clock_that_is_set_again_begins_a_minute_of_its_own(times):
    clock = Clock()
    times.wall += 3600
    for _ in range(59):
        clock.watch()
        times.pass_by(1)
    times.wall += 3600
    for _ in range(60):
        clock.watch()
        times.pass_by(1)
    assert clock.for_file(1000.0) == 500_000.0
    times.pass_by(0.5)
    clock.watch()
    assert clock.for_file(1000.0) == 507_200.0


def test_a_clock_that_is_set_back_in_time_was_never_away(times):
    clock = Clock()
    times.wall += 3600
    for _ in range(50):
        clock.watch()
        times.pass_by(1)
    times.wall -= 3600
    clock.watch()
    times.wall += 3600
    for _ in range(50):
        clock.watch()
        times.pass_by(1)
    assert clock.for_file(1000.0) == 500_000.0, "the second away begins anew"


def test_what_drifts_by_less_than_a_second_is_followed_at_once(times):
    clock = Clock()
    for _ in range(5):
        times.wall += 1.0
        clock.watch()
    assert clock.for_file(1000.0) == 500_005.0
