"""`retry` as configs have it: how long the pauses are, and what is not tried again."""

from typing import NamedTuple, get_args

import pytest

from nl.errors import ConfigError
from nl.storage.retrying import MAX_PAUSE_S, ErrorName, RetryOptions, RetryPauses


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


def test_what_may_pass_is_tried_again_by_default_and_what_is_a_word_of_the_server_is_not():
    pauses = RetryOptions(max_retries=1, delay=1).policy(RetryPauses)
    again = {name for name in get_args(ErrorName) if pauses.pause(1, Failed(name)) is not None}
    assert again == {
        "Cancelled", "Unknown", "DeadlineExceeded", "ResourceExhausted", "Aborted", "Internal", "Unavailable",
        "DataLoss",
    }  # fmt: skip
    assert set(get_args(ErrorName)) - again == {
        "InvalidArgument", "NotFound", "AlreadyExists", "PermissionDenied", "FailedPrecondition", "OutOfRange",
        "Unimplemented", "Unauthenticated",
    }  # fmt: skip


def test_a_policy_is_of_the_kind_that_was_asked_for_with_all_that_the_config_says():
    class Own(RetryPauses):
        pass

    policy = RetryOptions(max_retries=2, delay=0.5, jitter=1.0).policy(Own)
    assert type(policy) is Own
    assert 0.5 <= policy.pause(1, Failed()) < 1.5 and 1 <= policy.pause(2, Failed()) < 3
    assert policy.pause(3, Failed()) is None
    assert RetryOptions().policy(RetryPauses).pause(1, Failed()) is None, "none unless a config says so"
    assert len({policy.pause(1, Failed()) for _ in range(50)}) > 10, "so that clients do not come back at once"


def test_clients_do_not_come_back_at_once_either_when_pauses_are_as_long_as_they_get():
    pauses = [RetryPauses(99, delay=10, jitter=0.5, chance=lambda chance=chance: chance) for chance in (0.1, 0.5, 0.9)]
    assert [each.pause(50, Failed()) for each in pauses] == [pytest.approx(each) for each in (48, 60, 72)]


def test_who_says_that_nothing_is_to_be_tried_again_has_nothing_tried_again():
    pauses = RetryOptions(max_retries=1, delay=1, retry_on_errors=()).policy(RetryPauses)
    assert [pauses.pause(1, Failed(name)) for name in get_args(ErrorName)] == [None] * 16
