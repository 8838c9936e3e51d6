"""`retry` as configs have it: how long the pauses are, what is not tried again, and what an attempt comes to."""

from typing import get_args

import pytest
import trio

from nl.errors import ConfigError, InternalError
from nl.storage.backend import RefusedError, TransientError
from nl.storage.retrying import MAX_PAUSE_S, ErrorName, RetryOptions, RetryPolicy


def failed(code="Unavailable"):
    return TransientError("away", code=code)


def test_pauses_double_from_twice_the_delay_and_are_spread():
    for chance, factor in ((0.0, 0.75), (0.5, 1.0), (0.999999, 1.25)):
        pauses = RetryPolicy(5, delay=0.1, jitter=0.5, chance=lambda chance=chance: chance)
        got = [pauses.pause(retry, failed()) for retry in range(1, 7)]
        assert got == [pytest.approx(each * factor, rel=1e-4) for each in (0.2, 0.4, 0.8, 1.6, 3.2)] + [None]


def test_no_pause_is_longer_than_a_minute_however_many_there_were():
    pauses = RetryPolicy(10_000, delay=0.3, jitter=0)
    assert pauses.pause(30, failed()) == pauses.pause(9_999, failed()) == MAX_PAUSE_S == 60


def test_the_config_says_after_which_errors():
    usual, chosen = (
        RetryOptions(max_retries=1, delay=1, retry_on_errors=errors).policy()
        for errors in (None, ("NotFound",))
    )
    assert [usual.pause(1, failed(code)) for code in ("Unavailable", "NotFound")] == [2.0, None]
    assert [chosen.pause(1, failed(code)) for code in ("Unavailable", "NotFound")] == [None, 2.0]


@pytest.mark.parametrize("name", ["delay", "jitter"])
def test_negative_times_are_refused(name):
    with pytest.raises(ConfigError, match=f"{name}: -1 is negative"):
        RetryOptions(**{name: -1}).check()


def test_what_may_pass_is_tried_again_by_default_and_what_is_a_word_of_the_server_is_not():
    pauses = RetryOptions(max_retries=1, delay=1).policy()
    again = {name for name in get_args(ErrorName) if pauses.pause(1, failed(name)) is not None}
    assert again == {
        "Cancelled", "Unknown", "DeadlineExceeded", "ResourceExhausted", "Aborted", "Internal", "Unavailable",
        "DataLoss",
    }  # fmt: skip
    assert set(get_args(ErrorName)) - again == {
        "InvalidArgument", "NotFound", "AlreadyExists", "PermissionDenied", "FailedPrecondition", "OutOfRange",
        "Unimplemented", "Unauthenticated",
    }  # fmt: skip


def test_a_policy_has_all_that_the_config_says():
    policy = RetryOptions(max_retries=2, delay=0.5, jitter=1.0).policy()
    assert 0.5 <= policy.pause(1, failed()) < 1.5 and 1 <= policy.pause(2, failed()) < 3
    assert policy.pause(3, failed()) is None
    assert RetryOptions().policy().pause(1, failed()) is None, "none unless a config says so"
    assert len({policy.pause(1, failed()) for _ in range(50)}) > 10, "so that clients do not come back at once"


def test_clients_do_not_come_back_at_once_either_when_pauses_are_as_long_as_they_get():
    pauses = [RetryPolicy(99, delay=10, jitter=0.5, chance=lambda chance=chance: chance) for chance in (0.1, 0.5, 0.9)]
    assert [each.pause(50, failed()) for each in pauses] == [pytest.approx(each) for each in (48, 60, 72)]


def test_who_says_that_nothing_is_to_be_tried_again_has_nothing_tried_again():
    pauses = RetryOptions(max_retries=1, delay=1, retry_on_errors=()).policy()
    assert [pauses.pause(1, failed(name)) for name in get_args(ErrorName)] == [None] * 16

# ----------------------------------------------------------------------------------------------------------- attempts


class Attempts:
    """Fails with each of these in turn, then succeeds; knows when it was made."""

    def __init__(self, *errors):
        self.errors = list(errors)
        self.at = []

    async def __call__(self):
        self.at.append(trio.current_time())
        if self.errors:
            raise self.errors.pop(0)
        return "done"


async def test_an_attempt_that_succeeds_is_the_last_and_each_pause_before_it_is_longer(autojump_clock):
    policy = RetryOptions(max_retries=3, delay=1).policy()
    attempts = Attempts(failed(), failed("Aborted"), failed("DeadlineExceeded"))
    start = trio.current_time()
    assert await policy.run(attempts) == "done"
    assert [round(at - start, 6) for at in attempts.at] == [0, 2, 6, 14]
    assert policy.retries == 3


async def test_after_the_last_attempt_its_own_error_is_raised_and_no_pause_is_made(autojump_clock):
    policy = RetryOptions(max_retries=2, delay=1).policy()
    errors = [failed(), failed(), failed()]
    attempts = Attempts(*errors)
    with pytest.raises(TransientError) as caught:
        await policy.run(attempts)
    assert caught.value is errors[2] and len(attempts.at) == 3
    assert trio.current_time() == attempts.at[-1], "it tells at once"
    assert policy.retries == 2, "those that were made"


async def test_what_will_not_pass_ends_the_attempts_whenever_it_comes(autojump_clock):
    policy = RetryOptions(max_retries=5, delay=1).policy()
    attempts = Attempts(failed(), RefusedError("no permission"), failed())
    with pytest.raises(RefusedError):
        await policy.run(attempts)
    assert (len(attempts.at), policy.retries) == (2, 1)


async def test_each_request_has_all_its_retries_and_they_are_counted_together(autojump_clock):
    policy = RetryOptions(max_retries=2, delay=1).policy()
    for _ in range(2):
        attempts = Attempts(failed(), failed())
        assert await policy.run(attempts) == "done"
        assert attempts.at[1] - attempts.at[0] == pytest.approx(2), "the pauses begin anew, too"
    assert policy.retries == 4


async def test_what_is_no_error_of_the_backend_is_never_tried_again(autojump_clock):
    attempts = Attempts(InternalError("a fault of ours"))
    with pytest.raises(InternalError):
        await RetryOptions(max_retries=5, delay=1).policy().run(attempts)
    assert len(attempts.at) == 1


async def test_who_is_cancelled_makes_no_further_attempt(autojump_clock):
    attempts = Attempts(failed())
    with trio.move_on_after(1):
        await RetryOptions(max_retries=5, delay=1).policy().run(attempts)
    assert len(attempts.at) == 1
