"""`retry` as configs have it: how long the pauses are, and what is not tried again."""

from typing import NamedTuple

import pytest

from nl.errors import ConfigError
from nl.storage.retrying import MAX_PAUSE_S, RetryOptions, RetryPauses


class Failed(NamedTuple):
    code: str = "Unavailable"


def test_pauses_double_from_twice_the_delay_and_are_spread():
    for chance, factor in ((0.0, 0.75), (0.5, 1.0), (0.999999, 1.25)):
        pauses = RetryPauses(5, delay=0.1, jitter=0.5, chance=lambda chance=chance: chance)
        got = [pauses.pause(retry, Failed()) for retry in range(1, 7)]
        assert got == [pytest.approx(each * factor, rel=1e-4) for each in (0.2, 0.4, 0.8, 1.6, 3.2)] + [None]


def test_no_pause_is_longer_than_a_minute_however_many_there_were():
    pauses = RetryPauses(10_000, delay=0.3, jitter=0)
    assert pauses.pause(30, Failed()) == pauses.pause(9_999, Failed()) == MAX_PAUSE_S == 60


def test_the_config_says_after_which_errors():
    usual, chosen = (
        RetryOptions(max_retries=1, delay=1, retry_on_errors=errors).policy(RetryPauses)
        for errors in (None, ("NotFound",))
    )
    assert [usual.pause(1, Failed(code)) for code in ("Unavailable", "NotFound")] == [2.0, None]
    assert [chosen.pause(1, Failed(code)) for code in ("Unavailable", "NotFound")] == [None, 2.0]


@pytest.mark.parametrize("name", ["delay", "jitter"])
def test_negative_times_are_refused(name):
    with pytest.raises(ConfigError, match=f"{name}: -1 is negative"):
        RetryOptions(**{name: -1}).check()
