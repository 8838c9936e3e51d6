"""A backend that is far away: what callers are told, what the log is told, and how a store starts without it."""

import logging

import pytest
import trio

from nl.errors import ConfigError, ExhaustedError, TooLargeError, UnavailableError
from nl.storage.backend import Backend, BackendError, FullError, RefusedError, TransientError, ValueTooLargeError

LOG = logging.getLogger("nl.stores.far")


def backend():
    return Backend("CAS", LOG, what="bucket")


@pytest.mark.parametrize(("error", "kind", "retryable"), [
    (BackendError("x"), UnavailableError, True), (TransientError("x"), UnavailableError, True),
    (TransientError("x", code="DataLoss"), UnavailableError, True), (RefusedError("x"), UnavailableError, False),
    (FullError("x"), ExhaustedError, False), (ValueTooLargeError("x"), TooLargeError, False),
])  # fmt: skip
async def test_each_error_has_the_contracts_name_with_the_stores_and_counts(error, kind, retryable):
    known = backend()
    told = known.translated(error)
    assert type(told) is kind and "store CAS: x" in told.message
    assert told.retryable is retryable
    known.translated(error)
    assert known.failed == 2


async def test_what_somebody_must_mend_is_one_line_a_minute_whatever_it_is_about(caplog, autojump_clock):
    known = backend()
    for seconds, lines in ((0, 1), (1, 1), (58, 1), (1, 2), (59, 2), (1, 3)):
        await trio.sleep(seconds)
        known.translated(RefusedError("no permission"))
        known.complain("a value is broken")
        assert len(caplog.records) == lines
    assert {record.getMessage() for record in caplog.records} == {"store CAS: no permission"}
    assert {record.levelno for record in caplog.records} == {logging.ERROR}


async def test_what_may_pass_is_no_line_for_anybody(caplog, autojump_clock):
    known = backend()
    for error in (TransientError("down"), FullError("full"), ValueTooLargeError("large"), BackendError("strange")):
        known.translated(error)
    assert not caplog.records


class Probe:
    """Raises these in turn, then nothing; knows when it was asked."""

    def __init__(self, *errors):
        self.errors = list(errors)
        self.at = []

    async def __call__(self):
        self.at.append(trio.current_time())
        await trio.sleep(0)
        if self.errors:
            raise self.errors.pop(0)


async def reach(probe, nursery):
    """Returns when the store has started; its further looks are the nursery's."""

    async def run(*, task_status):
        await backend().reach(probe, every_s=5, task_status=task_status)

    await nursery.start(run)


async def test_a_backend_that_answers_is_asked_once(caplog, autojump_clock):
    caplog.set_level(logging.INFO)
    probe = Probe()
    async with trio.open_nursery() as nursery:
        await reach(probe, nursery)
        assert len(probe.at) == 1
    assert len(probe.at) == 1 and not caplog.records


async def test_a_store_starts_without_a_backend_that_is_away_and_looks_until_it_is_there(caplog, autojump_clock):
    caplog.set_level(logging.INFO)
    probe = Probe(*[TransientError("down")] * 3)
    async with trio.open_nursery() as nursery:
        await reach(probe, nursery)
        assert len(probe.at) == 1, "it has started at once"
    assert [round(at - probe.at[0], 6) for at in probe.at] == [0, 5, 10, 15]
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (logging.WARNING, "the store CAS starts without its bucket: down"),
        (logging.INFO, "the store CAS has reached its bucket"),
    ]


async def test_a_backend_that_refuses_at_first_ends_the_start(autojump_clock):
    with pytest.raises(ConfigError, match="secret: no such user") as caught:
        await backend().reach(
            Probe(RefusedError("no such user", option="secret")), every_s=5, task_status=trio.TASK_STATUS_IGNORED
        )
    assert caught.value.path == "secret"


async def test_one_that_refuses_later_is_an_error_in_the_log_and_asked_no_more(caplog, autojump_clock):
    caplog.set_level(logging.INFO)
    probe = Probe(TransientError("down"), RefusedError("no such user", option="secret"))
    async with trio.open_nursery() as nursery:
        await reach(probe, nursery)
    assert len(probe.at) == 2
    assert caplog.records[-1].levelno == logging.ERROR
    assert caplog.records[-1].getMessage() == "the store CAS can be reached, and cannot be used: no such user"
