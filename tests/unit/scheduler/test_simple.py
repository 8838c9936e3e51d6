"""The scheduler as services use it. Time is trio's autojump clock: exact, and free."""

import contextlib
import logging

import pytest
import trio
import trio.testing

from nl.errors import (
    Code,
    ExhaustedError,
    InternalError,
    InvalidRequestError,
    NlError,
    NotFoundError,
    PreconditionError,
    UnavailableError,
    Violation,
)
from nl.model.execution import Stage
from nl.scheduler.options import SimpleSchedulerOptions
from nl.scheduler.session import Disconnect, KillOperation, StartAction
from nl.scheduler.simple import SimpleScheduler
from tests.unit.scheduler.support import finished, request, running


async def test_an_action_goes_to_a_worker_and_its_response_to_the_client():
    async with running() as scheduler:
        operation = await scheduler.submit(request(1))
        assert operation.name.startswith("main/")
        assert operation.state.stage is Stage.QUEUED
        with scheduler.attach_worker([], prefix="w-") as session:
            assert session.worker_id.startswith("w-")
            start = await session.next_update()
            assert isinstance(start, StartAction)
            assert start.request == request(1)
            assert operation.state.stage is Stage.EXECUTING
            assert operation.state.worker_id == session.worker_id
            session.executed(start.operation_id)
            assert session.complete(start.operation_id, b"response")
        state = await finished(operation)
    assert state.stage is Stage.COMPLETED
    assert state.outcome.response == b"response"
    assert not state.outcome.cached


async def test_the_empty_instance_has_names_without_a_slash():
    async with running() as scheduler:
        operation = await scheduler.submit(request(1, instance_name=""))
        assert "/" not in operation.name
        assert scheduler.operation(operation.name) is operation


async def test_lower_priority_numbers_go_first_then_older_ones():
    async with running() as scheduler:
        names = {}
        for number, priority in enumerate([5, 0, -3, 0, 5, -3]):
            names[number] = await scheduler.submit(request(number, priority=priority))
        order = []
        with scheduler.attach_worker([], max_inflight=1) as session:
            for _ in names:
                start = await session.next_update()
                order.append(int(start.request.action_digest.hash, 16))
                session.complete(start.operation_id, b"")
    assert order == [2, 5, 1, 3, 0, 4]


async def test_twins_in_flight_share_one_execution_but_not_their_names():
    async with running() as scheduler:
        one = await scheduler.submit(request(1))
        two = await scheduler.submit(request(1, priority=-9))
        other = await scheduler.submit(request(2, priority=-1))
        assert one.name != two.name
        with scheduler.attach_worker([], max_inflight=1) as session:
            start = await session.next_update()
            assert start.request.action_digest == request(1).action_digest, "the joiner's urgency counts"
            session.complete(start.operation_id, b"shared")
            assert (await finished(one)).outcome.response == b"shared"
            assert (await finished(two)).outcome.response == b"shared"
            session.complete((await session.next_update()).operation_id, b"")
            assert session.next_update_nowait() is None
        assert other.done
        again = await scheduler.submit(request(1))
        assert not again.done, "a finished execution is not served to a later request"


async def test_do_not_cache_never_merges():
    async with running() as scheduler:
        for _ in range(3):
            await scheduler.submit(request(1, do_not_cache=True))
        await scheduler.submit(request(1))
        assert scheduler.statistics()["queued"] == 4


async def test_a_cached_result_is_served_without_a_worker_and_looked_up_once_for_twins():
    asked = []
    answer = trio.Event()

    async def lookup(asking):
        asked.append(asking)
        await answer.wait()
        return b"from the cache"

    async with running(lookup) as scheduler:
        operations = [await scheduler.submit(request(1)) for _ in range(5)]
        assert operations[0].state.stage is Stage.CACHE_CHECK
        fresh = await scheduler.submit(request(1, skip_cache_lookup=True))
        private = await scheduler.submit(request(1, do_not_cache=True))
        answer.set()
        for operation in operations:
            state = await finished(operation)
            assert state.outcome.cached
            assert state.outcome.response == b"from the cache"
        assert len(asked) == 1
        assert fresh.state.stage is Stage.QUEUED
        assert private.state.stage is Stage.QUEUED


@pytest.mark.parametrize("how", ["miss", "error", "bug"])
async def test_a_lookup_that_gives_nothing_leads_to_execution(how, caplog):
    async def lookup(asking):
        if how == "error":
            raise UnavailableError("the action cache is away")
        if how == "bug":
            raise ZeroDivisionError
        return None

    async with running(lookup) as scheduler:
        operation = await scheduler.submit(request(1))
        state = await operation.wait_changed(operation.state.version)
        assert state.stage is Stage.QUEUED
    assert ("failed, executing it" in caplog.text) == (how != "miss")


async def test_minimum_properties_are_reserved_until_the_process_has_ended():
    async with running(supported_platform_properties={"cpu": "minimum"}) as scheduler:
        for number, cpu in enumerate(["3", "2", "1"]):
            await scheduler.submit(request(number, ("cpu", cpu)))
        with scheduler.attach_worker([("cpu", "4")]) as session:
            first, third = await session.next_update(), await session.next_update()
            assert [each.request.platform[0][1] for each in (first, third)] == ["3", "1"]
            assert session.next_update_nowait() is None
            session.executed(first.operation_id)
            second = await session.next_update()
            assert second.request.platform == (("cpu", "2"),)
            session.complete(first.operation_id, b"")
            assert session.worker.free == {"cpu": 1}
            session.complete(second.operation_id, b"")
            session.complete(third.operation_id, b"")
            assert session.worker.free == {"cpu": 4}


@pytest.mark.parametrize(("strategy", "expected"), [
    ("least_recently_used", "abab"), ("most_recently_used", "bbbb"), ("round_robin", "abab"), ("least_loaded", "abab"),
])
async def test_allocation_strategies(strategy, expected):
    async with running(allocation_strategy=strategy) as scheduler:
        with scheduler.attach_worker([], prefix="a") as a, scheduler.attach_worker([], prefix="b") as b:
            used = ""
            for number in range(4):
                await scheduler.submit(request(number))
                for session in (a, b):
                    start = session.next_update_nowait()
                    if start is not None:
                        used += session.worker_id[0]
                        session.complete(start.operation_id, b"")
    assert used == expected


async def test_cancelling_a_queued_operation_ends_it_as_cancelled():
    async with running() as scheduler:
        operation = await scheduler.submit(request(1))
        await scheduler.cancel(operation.name)
        assert operation.state.outcome.error.code is Code.CANCELLED
        assert scheduler.statistics()["queued"] == 0
        await scheduler.cancel(operation.name)
        with scheduler.attach_worker([]) as session:
            assert session.next_update_nowait() is None
        with pytest.raises(NotFoundError):
            await scheduler.cancel("main/nobody")


async def test_cancelling_a_running_operation_kills_it_and_the_worker_keeps_its_place_until_it_reports():
    async with running() as scheduler:
        operation = await scheduler.submit(request(1))
        with scheduler.attach_worker([], max_inflight=1) as session:
            start = await session.next_update()
            await scheduler.cancel(operation.name)
            assert await session.next_update() == KillOperation(start.operation_id)
            assert operation.state.outcome.error.code is Code.CANCELLED
            waiting = await scheduler.submit(request(2))
            assert waiting.state.stage is Stage.QUEUED
            assert session.complete(start.operation_id, b"too late") is False
            assert waiting.state.stage is Stage.EXECUTING
            assert operation.state.outcome.error.code is Code.CANCELLED


async def test_cancelling_for_one_client_leaves_the_others_alone():
    async with running() as scheduler:
        one, two = await scheduler.submit(request(1)), await scheduler.submit(request(1))
        with scheduler.attach_worker([]) as session:
            start = await session.next_update()
            await scheduler.cancel(one.name)
            assert one.done
            assert session.next_update_nowait() is None
            session.complete(start.operation_id, b"for two")
        assert (await finished(two)).outcome.response == b"for two"
        assert one.state.outcome.error.code is Code.CANCELLED


async def test_a_waiter_wakes_when_its_operation_is_cancelled():
    async with running() as scheduler, trio.open_nursery() as nursery:
        operation = await scheduler.submit(request(1))
        seen = []

        async def wait():
            seen.append(await finished(operation))

        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        await scheduler.cancel(operation.name)
        await trio.testing.wait_all_tasks_blocked()
        assert seen[0].outcome.error.code is Code.CANCELLED


async def test_with_nobody_listening_an_operation_ends_after_a_while(autojump_clock):
    async with running(client_action_timeout_s=60, unmatched_grace_s=0) as scheduler:
        operation = await scheduler.submit(request(1))
        kept = await scheduler.submit(request(2))
        with kept.watched():
            with operation.watched():
                await trio.sleep(1000)
            await trio.sleep(58)
            assert not operation.done
            await trio.sleep(4)
            assert operation.state.outcome.error.code is Code.DEADLINE_EXCEEDED
            assert "no more clients listening" in operation.state.outcome.error.message
            assert not kept.done


async def test_asking_after_an_operation_keeps_it_going(autojump_clock):
    async with running(client_action_timeout_s=60, unmatched_grace_s=0) as scheduler:
        operation = await scheduler.submit(request(1))
        for _ in range(10):
            await trio.sleep(50)
            assert not scheduler.operation(operation.name).done


async def test_finished_operations_are_kept_for_a_while_and_then_forgotten(autojump_clock):
    async with running(retain_completed_for_s=60) as scheduler:
        operation = await scheduler.submit(request(1))
        with scheduler.attach_worker([]) as session:
            session.complete((await session.next_update()).operation_id, b"x")
        await trio.sleep(58)
        assert scheduler.operation(operation.name).state.outcome.response == b"x"
        await trio.sleep(4)
        with pytest.raises(NotFoundError, match=operation.name):
            scheduler.operation(operation.name)
        assert scheduler.statistics()["operations"] == 0
        assert scheduler.statistics()["retained_bytes"] == 0


async def test_retained_responses_are_bounded_in_bytes():
    async with running(max_retained_bytes=10_000) as scheduler:
        with scheduler.attach_worker([]) as session:
            for number in range(10):
                await scheduler.submit(request(number))
                session.complete((await session.next_update()).operation_id, bytes(3000))
        statistics = scheduler.statistics()
        assert statistics["operations"] == 2
        assert statistics["retained_bytes"] <= 10_000


async def test_a_finished_operation_can_be_forgotten_early_and_a_running_one_not():
    async with running() as scheduler:
        operation = await scheduler.submit(request(1))
        with pytest.raises(PreconditionError):
            scheduler.forget(operation.name)
        await scheduler.cancel(operation.name)
        scheduler.forget(operation.name)
        with pytest.raises(NotFoundError):
            scheduler.operation(operation.name)


async def test_what_a_lost_worker_had_is_tried_again_until_the_attempts_run_out():
    async with running(max_job_retries=3, max_lost_workers=0) as scheduler:
        operation = await scheduler.submit(request(1))
        ids = set()
        for _ in range(4):
            with scheduler.attach_worker([]) as session:
                ids.add((await session.next_update()).operation_id)
        assert len(ids) == 4, "each attempt has an id of its own"
        error = operation.state.outcome.error
        assert "attempted to execute too many times 4 > 3 times" in error.message
        assert "disconnected" in error.message
        assert error.code is Code.INTERNAL, "not UNAVAILABLE: clients would send it to its next victims"
        assert repr(scheduler) == "<SimpleScheduler test idle>"


async def test_an_action_that_ends_three_workers_in_a_row_fails_and_says_so():
    async with running(max_job_retries=10) as scheduler:
        operation = await scheduler.submit(request(1))
        for _ in range(2):
            with scheduler.attach_worker([], prefix="victim"):
                pass
        with scheduler.attach_worker([]) as session:
            session.fail((await session.next_update()).operation_id, InternalError("it did not end this one"))
        for number in (1, 2):
            assert not operation.done
            with scheduler.attach_worker([], prefix=f"victim{number}"):
                pass
        error = operation.state.outcome.error
        assert error.code is Code.INTERNAL
        assert "3 workers in a row were lost while they executed this action (" in error.message


async def test_missing_inputs_go_back_to_the_client_at_once():
    async with running(max_job_retries=3) as scheduler:
        operation = await scheduler.submit(request(1))
        with scheduler.attach_worker([]) as session:
            start = await session.next_update()
            missing = PreconditionError("inputs", details=(Violation("MISSING", "blobs/aa/1"),))
            session.fail(start.operation_id, missing)
            assert operation.state.outcome.error is missing
            assert session.next_update_nowait() is None


async def test_a_failed_attempt_prefers_another_worker():
    async with running() as scheduler:
        with scheduler.attach_worker([]) as bad, scheduler.attach_worker([]) as good:
            await scheduler.submit(request(1))
            start = await bad.next_update()
            bad.fail(start.operation_id, InternalError("broken disk"))
            again = await good.next_update()
            assert again.request == start.request
            assert again.operation_id != start.operation_id


async def test_a_failed_attempt_waits_for_a_busy_worker_rather_than_going_back():
    async with running() as scheduler:
        with scheduler.attach_worker([], max_inflight=1) as good:
            await scheduler.submit(request(1))
            busy = await good.next_update()
            with scheduler.attach_worker([]) as bad:
                operation = await scheduler.submit(request(2))
                bad.fail((await bad.next_update()).operation_id, InternalError("broken disk"))
                await scheduler.submit(request(3))
                assert (await bad.next_update()).request == request(3), "others are not kept from it"
                assert operation.state.stage is Stage.QUEUED
                good.complete(busy.operation_id, b"")
                assert (await good.next_update()).request == request(2)


async def test_a_worker_gets_back_what_it_has_failed_once_no_other_is_there(autojump_clock):
    async with running() as scheduler:
        with scheduler.attach_worker([]) as bad:
            with scheduler.attach_worker([], max_inflight=1) as other:
                await scheduler.submit(request(1))
                start = await bad.next_update()
                await scheduler.submit(request(2))
                assert (await other.next_update()).request == request(2)
                bad.fail(start.operation_id, InternalError("broken disk"))
                await trio.sleep(3)
                assert bad.next_update_nowait() is None
            while (start := await bad.next_update()).request != request(1):
                pass


async def test_a_worker_that_fails_everything_is_paused_and_that_is_logged(autojump_clock, caplog):
    async with running() as scheduler:
        with scheduler.attach_worker([], prefix="broken") as bad, scheduler.attach_worker([]) as good:
            for number in range(3):
                await scheduler.submit(request(number))
                bad_start, good_start = bad.next_update_nowait(), good.next_update_nowait()
                if bad_start is None:  # the turns of the two
                    good.complete(good_start.operation_id, b"")
                    await scheduler.submit(request(100 + number))
                    bad_start = await bad.next_update()
                bad.fail(bad_start.operation_id, InternalError("no space on /tmp"))
                good.complete((await good.next_update()).operation_id, b"")
            paused, _ = scheduler.workers()
            assert (paused.state, paused.why_paused) == ("paused", "no space on /tmp")
            text = f"worker {bad.worker_id} has failed 3 actions in a row and gets none for 1 s"
            assert f"{text}; the last failure: no space on /tmp" in caplog.text
            await trio.sleep(3)
            assert scheduler.workers()[0].state == "idle"


async def test_one_action_that_fails_again_and_again_is_not_the_workers_fault():
    async with running(max_job_retries=5) as scheduler:
        operation = await scheduler.submit(request(1))
        with scheduler.attach_worker([]) as session:
            for _ in range(6):
                session.fail((await session.next_update()).operation_id, InternalError("it cannot be run"))
            assert scheduler.workers()[0].state == "idle"
        assert "too many times 6 > 5 times; last failure: it cannot be run" in operation.state.outcome.error.message


async def test_a_wide_action_is_not_passed_by_narrow_ones_for_ever():
    async with running(supported_platform_properties={"cpu": "minimum"}) as scheduler:
        with scheduler.attach_worker([("cpu", "2")]) as session:
            for number in range(2):
                await scheduler.submit(request(number, ("cpu", "1")))
            first, second = await session.next_update(), await session.next_update()
            wide = await scheduler.submit(request(50, ("cpu", "2")))
            for number in range(10, 20):
                await scheduler.submit(request(number, ("cpu", "1")))
            session.complete(first.operation_id, b"")
            assert session.next_update_nowait() is None, "the worker is kept for the wide one"
            assert scheduler.workers()[0].kept_for == wide.name.rpartition("/")[2]
            urgent = await scheduler.submit(request(60, ("cpu", "1"), priority=-1))
            assert urgent.state.stage is Stage.EXECUTING, "but not from what is more urgent"
            session.complete((await session.next_update()).operation_id, b"")
            session.complete(second.operation_id, b"")
            assert wide.state.stage is Stage.EXECUTING


async def test_a_worker_that_is_kept_goes_on_with_what_does_not_delay_the_wide_action():
    async with running(supported_platform_properties={"cpu": "minimum"}) as scheduler:
        with scheduler.attach_worker([("cpu", "4")]) as session:
            await scheduler.submit(request(1, ("cpu", "3")))
            wide = await scheduler.submit(request(2, ("cpu", "3")))
            beside = await scheduler.submit(request(3, ("cpu", "1")))
            also = await scheduler.submit(request(4, ("cpu", "1")))
            assert beside.state.stage is Stage.EXECUTING
            assert also.state.stage is Stage.QUEUED
            session.complete((await session.next_update()).operation_id, b"")
            assert wide.state.stage is Stage.EXECUTING


async def test_a_wide_action_that_waits_long_has_more_workers_kept_for_it(autojump_clock):
    async with running(supported_platform_properties={"cpu": "minimum"}) as scheduler:
        with contextlib.ExitStack() as stack:
            sessions = [stack.enter_context(scheduler.attach_worker([("cpu", "2")])) for _ in range(4)]
            starts = []
            for number in range(8):
                await scheduler.submit(request(number, ("cpu", "1")))
            for session in sessions:
                starts.append([await session.next_update(), await session.next_update()])
            wide = await scheduler.submit(request(50, ("cpu", "2")))
            with wide.watched():
                for number in range(100, 104):
                    await scheduler.submit(request(number, ("cpu", "1")))
                sessions[0].complete(starts[0][0].operation_id, b"")  # its other one goes on and on
                sessions[1].complete(starts[1][0].operation_id, b"")
                assert sessions[0].next_update_nowait() is None
                assert sessions[1].next_update_nowait() is not None
                await trio.sleep(12)
                sessions[2].complete(starts[2][0].operation_id, b"")
                assert sessions[2].next_update_nowait() is None, "a second one is kept"
                sessions[2].complete(starts[2][1].operation_id, b"")
                assert wide.state.stage is Stage.EXECUTING
                assert wide.state.worker_id == sessions[2].worker_id
                assert sessions[0].next_update_nowait() is not None, "what was kept is free again"


async def test_builds_that_wait_have_fair_shares():
    async with running() as scheduler:
        for number in range(1000):
            await scheduler.submit(request(number, invocation="large", user="one"))
        order = ""
        with scheduler.attach_worker([], max_inflight=1) as session:
            for _ in range(50):
                session.complete((await session.next_update()).operation_id, b"")
            for number in range(10):
                await scheduler.submit(request(5000 + number, invocation="small", user="two"))
            for _ in range(25):
                start = await session.next_update()
                order += start.request.invocation[0]
                session.complete(start.operation_id, b"")
        assert order.count("s") == 10
        assert "llll" not in order[: order.rindex("s")], "each second one is of the small build"


async def test_a_user_has_one_share_however_many_builds_he_starts():
    async with running() as scheduler:
        for number in range(300):
            await scheduler.submit(request(number, invocation=f"build{number % 10}", user="many"))
        for number in range(30):
            await scheduler.submit(request(1000 + number, invocation="build", user="single"))
        users = []
        with scheduler.attach_worker([], max_inflight=1) as session:
            for _ in range(60):
                start = await session.next_update()
                users.append(start.request.user)
                session.complete(start.operation_id, b"")
        assert 25 <= users.count("single") <= 30


async def test_a_low_priority_does_not_wait_for_ever(autojump_clock):
    async with running(priority_ageing_s=600, client_action_timeout_s=1e6) as scheduler:
        with scheduler.attach_worker([], max_inflight=1) as session:
            await scheduler.submit(request(1, priority=-5))
            await scheduler.submit(request(2, priority=9))
            seen = []
            for number in range(100, 115):
                await scheduler.submit(request(number, priority=-5))
                await trio.sleep(100)
                start = await session.next_update()
                seen.append(start.request.priority)
                session.complete(start.operation_id, b"")
            assert seen.index(9) in (6, 7), "after 600 s it goes with those of the highest priority"


async def test_the_end_of_the_connection_counts_as_a_sign_of_life_for_a_while(autojump_clock):
    async with running(worker_timeout_s=5) as scheduler:
        with scheduler.attach_worker([]) as session:
            for _ in range(50):
                await trio.sleep(1)
                session.reachable(trio.current_time())
                assert scheduler.statistics()["workers"] == 1
            for _ in range(15):
                await trio.sleep(1)
                session.reachable(trio.current_time())
            assert scheduler.statistics()["workers"] == 0, "a worker that says nothing at all is none"


async def test_a_time_limit_goes_to_a_worker_that_allows_it_and_is_refused_if_there_is_none():
    async with running() as scheduler:
        with scheduler.attach_worker([], max_timeout_s=60) as short:
            with pytest.raises(InvalidRequestError, match="600 s is above what the workers allow: at most 60 s"):
                await scheduler.submit(request(0, timeout_s=600.0))
            with scheduler.attach_worker([], max_timeout_s=7200) as long:
                for number in range(1, 5):
                    await scheduler.submit(request(number, timeout_s=600.0))
                    assert (await long.next_update()).request == request(number, timeout_s=600.0)
                for number in range(5, 7):
                    await scheduler.submit(request(number, timeout_s=60.0))
                assert short.next_update_nowait() is not None
            waits = await scheduler.submit(request(9, timeout_s=600.0))
            assert waits.state.stage is Stage.QUEUED, "there was one that may come back"


async def test_a_time_limit_is_accepted_before_there_is_a_worker_and_by_one_that_says_nothing_about_it():
    async with running() as scheduler:
        operation = await scheduler.submit(request(1, timeout_s=1e6))
        with scheduler.attach_worker([]) as session:
            assert (await session.next_update()).request.timeout_s == 1e6
            assert operation.state.stage is Stage.EXECUTING


async def test_a_late_report_about_an_earlier_attempt_is_not_taken_for_the_current_one():
    async with running(max_action_executing_timeout_s=10) as scheduler:
        operation = await scheduler.submit(request(1))
        with scheduler.attach_worker([]) as first:
            old = await first.next_update()
            first.fail(old.operation_id, InternalError("no"))
            new = await first.next_update()
            with pytest.raises(NlError, match="Worker ids do not match") as got:
                first.complete(old.operation_id, b"stale")
            assert got.value.code is Code.ABORTED
            first.complete(new.operation_id, b"fresh")
        assert operation.state.outcome.response == b"fresh"


async def test_a_worker_out_of_resources_is_paused_and_the_action_loses_no_attempt(autojump_clock):
    async with running(max_job_retries=0) as scheduler:
        operation = await scheduler.submit(request(1))
        with scheduler.attach_worker([]) as session, operation.watched():
            times = []
            for _ in range(4):
                start = await session.next_update()
                times.append(trio.current_time())
                session.fail(start.operation_id, ExhaustedError("preconditions not met"))
                assert operation.state.stage is Stage.QUEUED
            gaps = [later - earlier for earlier, later in zip(times, times[1:])]
            assert all(gap >= 2**number for number, gap in enumerate(gaps)), "each pause is longer than the last"
            session.complete((await session.next_update()).operation_id, b"at last")
        assert operation.state.outcome.response == b"at last"


async def test_a_paused_worker_goes_on_when_another_of_its_actions_completes():
    async with running() as scheduler:
        with scheduler.attach_worker([]) as session:
            await scheduler.submit(request(1))
            await scheduler.submit(request(2))
            one, two = await session.next_update(), await session.next_update()
            session.fail(two.operation_id, ExhaustedError("full"))
            assert session.next_update_nowait() is None
            session.complete(one.operation_id, b"")
            assert (await session.next_update()).request == two.request


async def test_a_silent_worker_is_removed_and_its_action_goes_elsewhere(autojump_clock):
    async with running(worker_timeout_s=5) as scheduler:
        operation = await scheduler.submit(request(1))
        with scheduler.attach_worker([]) as silent:
            start = await silent.next_update()
            with operation.watched():
                for _ in range(10):
                    await trio.sleep(4)
                    silent.keep_alive()
                assert operation.state.stage is Stage.EXECUTING
                update = await silent.next_update()
                assert isinstance(update, Disconnect)
                await silent.wait_evicted()
                assert operation.state.stage is Stage.QUEUED
                with pytest.raises(NlError) as got:
                    silent.complete(start.operation_id, b"from the dead")
                assert got.value.code is Code.ABORTED
                with scheduler.attach_worker([]) as other:
                    other.complete((await other.next_update()).operation_id, b"alive")
        assert operation.state.outcome.response == b"alive"
        assert scheduler.statistics()["workers_evicted_total"] == 1


async def test_a_scheduler_that_stood_still_does_not_blame_its_workers(autojump_clock, caplog):
    stood_still_s = 0.0
    async with running(clock=lambda: trio.current_time() + stood_still_s, worker_timeout_s=5) as scheduler:
        with scheduler.attach_worker([]):
            await trio.sleep(3.5)
            stood_still_s = 60.0
            await trio.sleep(1)
            assert scheduler.statistics()["workers"] == 1
            assert "stood still for 60.0 s" in caplog.text
            await trio.sleep(3)
            assert scheduler.statistics()["workers"] == 0, "silence counts on from where it was"


async def test_a_kill_that_is_not_acknowledged_costs_the_worker_its_place(autojump_clock):
    async with running(unacknowledged_kill_timeout_s=60) as scheduler:
        operation = await scheduler.submit(request(1))
        with scheduler.attach_worker([]) as session:
            await session.next_update()
            await scheduler.cancel(operation.name)
            assert isinstance(await session.next_update(), KillOperation)
            began = trio.current_time()
            update = await session.next_update()
            assert isinstance(update, Disconnect)
            assert "not acknowledged" in update.reason
            assert 60 <= trio.current_time() - began <= 62


async def test_an_action_that_executes_too_long_is_killed_tried_again_and_finally_fails(autojump_clock):
    async with running(max_action_executing_timeout_s=10, max_job_retries=1) as scheduler:
        operation = await scheduler.submit(request(1))
        with scheduler.attach_worker([]) as session, operation.watched():
            first = await session.next_update()
            assert await session.next_update() == KillOperation(first.operation_id)
            second = await session.next_update()
            assert second.operation_id != first.operation_id
            session.complete(first.operation_id, b"ignored")
            assert operation.state.stage is Stage.EXECUTING
            assert await session.next_update() == KillOperation(second.operation_id)
        assert operation.state.outcome.error.code is Code.DEADLINE_EXCEEDED
        assert "timed out after 10 seconds" in operation.state.outcome.error.message


async def test_a_worker_that_goes_away_finishes_its_work_and_what_it_leaves_costs_no_attempt():
    async with running(max_job_retries=0) as scheduler:
        done, left = await scheduler.submit(request(1)), await scheduler.submit(request(2))
        with scheduler.attach_worker([]) as session:
            one, _two = await session.next_update(), await session.next_update()
            session.going_away()
            late = await scheduler.submit(request(3))
            session.complete(one.operation_id, b"")
        assert done.done
        assert left.state.stage is Stage.QUEUED
        assert late.state.stage is Stage.QUEUED


async def test_what_a_worker_runs_since_before_comes_to_it_again():
    digest = request(1).action_digest
    running_there = [(digest.hash, digest.size), ("f" * 64, 1)]
    async with running() as scheduler:
        with scheduler.attach_worker([]) as idle, scheduler.attach_worker([], running=running_there) as back:
            await scheduler.submit(request(1, priority=9))
            assert back.next_update_nowait().request.action_digest == digest
            await scheduler.submit(request(1, skip_cache_lookup=True, do_not_cache=True))
            assert idle.next_update_nowait() is not None, "once"


async def test_what_waits_is_given_to_the_worker_that_runs_it_when_that_is_back():
    digest = request(1).action_digest
    async with running() as scheduler:
        with scheduler.attach_worker([], max_inflight=1) as busy:
            await scheduler.submit(request(0))
            await busy.next_update()
            for number in (5, 6, 1):
                await scheduler.submit(request(number))
            with scheduler.attach_worker([], max_inflight=1, running=[(digest.hash, digest.size)]) as back:
                assert back.next_update_nowait().request == request(1)


async def test_nobody_waits_for_an_action_that_was_not_asked_for_again_in_time(autojump_clock):
    digest = request(1).action_digest
    async with running() as scheduler:
        with scheduler.attach_worker([]) as idle, scheduler.attach_worker([], running=[(digest.hash, digest.size)]):
            await trio.sleep(16)
            await scheduler.submit(request(1))
            assert idle.next_update_nowait() is not None
            assert len(scheduler._core._claims) == 0


async def test_what_a_worker_ran_that_has_gone_again_is_forgotten():
    digest = request(1).action_digest
    async with running() as scheduler:
        with scheduler.attach_worker([]) as idle:
            with scheduler.attach_worker([], running=[(digest.hash, digest.size)]):
                pass
            await scheduler.submit(request(1))
            assert idle.next_update_nowait() is not None


async def test_a_drained_worker_gets_nothing_new():
    async with running() as scheduler:
        with scheduler.attach_worker([]) as session:
            scheduler.drain(session.worker_id)
            await scheduler.submit(request(1))
            assert session.next_update_nowait() is None
        with pytest.raises(NotFoundError):
            scheduler.drain(session.worker_id)


async def test_workers_can_be_listed(autojump_clock):
    async with running(supported_platform_properties={"cpu": "minimum"}) as scheduler:
        with (
            scheduler.attach_worker([("cpu", "4")], prefix="a") as busy,
            scheduler.attach_worker([], prefix="b", max_inflight=2) as other,
        ):
            await scheduler.submit(request(1, ("cpu", "3")))
            scheduler.drain(other.worker_id)
            await trio.sleep(2)
            one, two = scheduler.workers()
        assert (one.worker_id, one.state, one.running, one.free) == (busy.worker_id, "working", 1, {"cpu": 1})
        assert one.properties["cpu"] == {"4"}
        assert (two.worker_id, two.state, two.max_inflight, two.silent_s) == (other.worker_id, "draining", 2, 2.0)
        assert scheduler.workers() == []


@pytest.mark.parametrize("prefix", ["x" * 257, "a/b", "a\nb"])
async def test_a_prefix_that_is_no_name_is_refused(prefix):
    async with running() as scheduler:
        with pytest.raises(InvalidRequestError, match="prefix"), scheduler.attach_worker([], prefix=prefix):
            pass


async def test_an_action_no_worker_could_ever_run_fails_after_the_grace_period_naming_why(autojump_clock):
    async with running(supported_platform_properties={"ISA": "exact"}, unmatched_grace_s=300) as scheduler:
        with scheduler.attach_worker([("ISA", "x86")]):
            operation = await scheduler.submit(request(1, ("ISA", "arm")))
            with operation.watched():
                await trio.sleep(299)
                assert not operation.done
                await trio.sleep(3)
        error = operation.state.outcome.error
        assert error.code is Code.FAILED_PRECONDITION
        assert "ISA=arm" in error.message
        assert "x86" not in error.message, "the fleet is nobody's business"
        assert error.details == (), "no violation: uploading something would not help"


async def test_a_busy_worker_that_matches_is_waited_for_without_limit(autojump_clock):
    async with running(unmatched_grace_s=300) as scheduler:
        with scheduler.attach_worker([], max_inflight=1):
            first, second = await scheduler.submit(request(1)), await scheduler.submit(request(2))
            with first.watched(), second.watched():
                await trio.sleep(5000)
                assert second.state.stage is Stage.QUEUED


async def test_without_any_worker_it_ends_as_unavailable(autojump_clock):
    async with running(unmatched_grace_s=300) as scheduler:
        operation = await scheduler.submit(request(1))
        state = await finished(operation)
        assert state.outcome.error.code is Code.UNAVAILABLE


async def test_reasons_for_waiting_are_logged(autojump_clock, caplog):
    caplog.set_level(logging.INFO, logger="nl.scheduler")
    async with running(supported_platform_properties={"ISA": "exact"}) as scheduler:
        with scheduler.attach_worker([("ISA", "x86")], max_inflight=1):
            for number in range(3):
                operation = await scheduler.submit(request(number, ("ISA", "arm")))
            with operation.watched():
                await trio.sleep(11)
                assert "test: 3 queued, oldest 10 s: no worker with ISA=arm" in caplog.text
                await scheduler.submit(request(10))
                await scheduler.submit(request(11))
                await trio.sleep(10)
                assert "1 queued, oldest 9 s: all 1 matching workers are full, paused or draining" in caplog.text


async def test_the_log_says_when_a_place_is_expected_by_what_such_actions_have_taken(autojump_clock, caplog):
    caplog.set_level(logging.INFO, logger="nl.scheduler")
    async with running(worker_match_logging_interval_s=10) as scheduler:
        with scheduler.attach_worker([], max_inflight=1) as session:
            await scheduler.submit(request(1, mnemonic="Test"))
            start = await session.next_update()
            await trio.sleep(45)
            session.complete(start.operation_id, b"")
            await scheduler.submit(request(2, mnemonic="Test"))
            waits = await scheduler.submit(request(3, mnemonic="Cpp"))
            with waits.watched():
                await trio.sleep(10)
        assert "the next place is expected in about 40 s" in caplog.text


async def test_the_queue_is_bounded():
    async with running(max_operations=3) as scheduler:
        for number in (1, 2, 2):
            await scheduler.submit(request(number))
        with pytest.raises(ExhaustedError):
            await scheduler.submit(request(1))
        with pytest.raises(ExhaustedError, match="3 unfinished operations"):
            await scheduler.submit(request(9))
        with scheduler.attach_worker([]) as session:
            session.complete((await session.next_update()).operation_id, b"")
        await scheduler.submit(request(9))


async def test_bad_properties_are_refused_on_both_sides():
    async with running(supported_platform_properties={"cpu": "minimum"}) as scheduler:
        with pytest.raises(InvalidRequestError, match="'cpu'"), scheduler.attach_worker([("cpu", "many")]):
            pass
        with pytest.raises(InvalidRequestError, match="'cpu'"):
            await scheduler.submit(request(1, ("cpu", "some")))
        with scheduler.attach_worker([]), pytest.raises(InvalidRequestError, match="'typo'"):
            await scheduler.submit(request(1, ("typo", "x")))
        assert scheduler.statistics()["operations"] == 0


async def test_a_shutdown_refuses_newcomers_and_lets_the_rest_finish():
    async with running() as scheduler:
        operation = await scheduler.submit(request(1))
        with scheduler.attach_worker([]) as session:
            scheduler.stop_admission()
            with pytest.raises(UnavailableError):
                await scheduler.submit(request(2))
            with pytest.raises(UnavailableError), scheduler.attach_worker([]):
                pass
            session.complete((await session.next_update()).operation_id, b"done")
        assert operation.state.outcome.response == b"done"


async def test_a_shutdown_waits_for_what_runs_and_starts_nothing_else(autojump_clock):
    async with running(shutdown_grace_s=30) as scheduler, trio.open_nursery() as nursery:
        runs, waits = await scheduler.submit(request(1)), await scheduler.submit(request(2))
        with scheduler.attach_worker([], max_inflight=1) as session:
            start = await session.next_update()
            scheduler.stop_admission()
            began = trio.current_time()

            async def complete_later():
                await trio.sleep(20)
                session.complete(start.operation_id, b"done")

            nursery.start_soon(complete_later)
            await scheduler.finish()
            assert trio.current_time() - began == 20
            assert runs.state.outcome.response == b"done"
            assert session.next_update_nowait() is None
            scheduler.shut_down()
            assert waits.state.outcome.error.code is Code.UNAVAILABLE, "its client asks the next one"


async def test_a_shutdown_does_not_wait_for_ever_nor_where_nothing_runs(autojump_clock):
    async with running(shutdown_grace_s=30) as scheduler:
        await scheduler.submit(request(1))
        with scheduler.attach_worker([]):
            scheduler.stop_admission()
            began = trio.current_time()
            await scheduler.finish()
            assert trio.current_time() - began == 30
    async with running() as idle:
        idle.stop_admission()
        began = trio.current_time()
        await idle.finish()
        assert trio.current_time() == began


async def test_what_a_lost_worker_had_during_a_shutdown_is_waited_for_by_nobody(autojump_clock):
    async with running(shutdown_grace_s=1000) as scheduler:
        operation = await scheduler.submit(request(1))
        with scheduler.attach_worker([]):
            scheduler.stop_admission()
        await scheduler.finish()
        assert trio.current_time() < 100
        scheduler.shut_down()
        assert operation.state.outcome.error.code is Code.UNAVAILABLE


async def test_a_drained_worker_gets_work_again_when_it_is_undrained():
    async with running() as scheduler:
        with scheduler.attach_worker([]) as session:
            scheduler.drain(session.worker_id)
            await scheduler.submit(request(1))
            scheduler.undrain(session.worker_id)
            assert session.next_update_nowait() is not None
            session.going_away()
            scheduler.undrain(session.worker_id)
            await scheduler.submit(request(2))
            assert session.next_update_nowait() is None, "it has said that it goes"
        with pytest.raises(NotFoundError):
            scheduler.undrain(session.worker_id)


async def test_the_end_of_a_shutdown_answers_everybody():
    async with running() as scheduler:
        running_one, waiting = await scheduler.submit(request(1)), await scheduler.submit(request(2))
        with scheduler.attach_worker([], max_inflight=1) as session:
            await session.next_update()
            scheduler.shut_down()
            assert running_one.state.outcome.error.code is Code.UNAVAILABLE
            assert waiting.state.outcome.error.code is Code.UNAVAILABLE
            assert isinstance(await session.next_update(), Disconnect)
        assert scheduler.statistics()["workers"] == 0
        assert not scheduler._core.executions


async def test_nothing_can_be_submitted_before_it_runs():
    scheduler = SimpleScheduler(SimpleSchedulerOptions())
    with pytest.raises(InternalError):
        await scheduler.submit(request(1))


async def test_statistics_add_up():
    async with running() as scheduler:
        with scheduler.attach_worker([], max_inflight=2) as session:
            operations = [await scheduler.submit(request(number)) for number in range(5)]
            await scheduler.submit(request(0))
            session.complete((await session.next_update()).operation_id, b"")
            await scheduler.cancel(operations[4].name)
            statistics = scheduler.statistics()
    assert statistics["workers"] == 1
    assert statistics["queued"] == 1
    assert statistics["executing"] == 2
    assert statistics["submitted_total"] == 6
    assert statistics["merged_total"] == 1
    assert statistics["executed_total"] == 1
    assert statistics["cancelled_total"] == 1
