"""Many clients and unreliable workers at once: everybody gets an answer that is his, and nothing is left behind."""

import random

import pytest
import trio

from nl.errors import Code, ExhaustedError, InternalError
from nl.scheduler.session import Disconnect, KillOperation, StartAction
from tests.unit.scheduler.support import request, running

ACTIONS = 25
CLIENTS = 40
ROUNDS = 6
PLATFORMS = [(), (("cpu", "1"),), (("cpu", "2"),), (("ISA", "x86"),), (("ISA", "arm"), ("cpu", "1"))]


async def unreliable_worker(scheduler, dice, cpu=None, isa=None):
    """Works, fails, stalls, leaves and comes back, until cancelled."""
    properties = [("cpu", cpu or str(dice.randint(1, 4))), ("ISA", isa or dice.choice(["x86", "arm", ""]))]
    while True:
        with scheduler.attach_worker(properties, max_inflight=dice.randint(0, 3)) as session:
            async with trio.open_nursery() as nursery:
                killed = {}
                nursery.start_soon(keep_alive, session, dice, nursery.cancel_scope)
                while not isinstance(update := await session.next_update(), Disconnect):
                    if isinstance(update, StartAction):
                        killed[update.operation_id] = trio.Event()
                        nursery.start_soon(run_action, session, update, killed[update.operation_id], dice)
                    elif isinstance(update, KillOperation):
                        killed[update.operation_id].set()
                nursery.cancel_scope.cancel()
        await trio.sleep(dice.random() * 5)


async def keep_alive(session, dice, scope):
    for _ in range(dice.randint(3, 60)):
        await trio.sleep(2)
        session.keep_alive()
    if dice.random() < 0.3:
        await trio.sleep_forever()  # silent from now on: the scheduler has to notice
    if dice.random() < 0.5:
        session.going_away()
        await trio.sleep(3)
    scope.cancel()


async def run_action(session, start, killed, dice):
    with trio.move_on_after(dice.random() * 8):
        await killed.wait()
        await trio.sleep(dice.random())
    if session._evicted.is_set():
        return
    fate = dice.random()
    if fate < 0.15:
        session.fail(start.operation_id, InternalError("a worker's trouble"))
    elif fate < 0.25:
        session.fail(start.operation_id, ExhaustedError("not now"))
    else:
        session.executed(start.operation_id)
        await trio.sleep(dice.random())
        if not session._evicted.is_set():
            session.complete(start.operation_id, start.request.action_digest.hash.encode())


async def client(scheduler, dice, answers):
    for _ in range(ROUNDS):
        number = dice.randrange(ACTIONS)
        platform = dice.choice(PLATFORMS)
        asked = request(
            number,
            *platform,
            priority=dice.randint(-2, 2),
            do_not_cache=dice.random() < 0.2,
            skip_cache_lookup=dice.random() < 0.2,
        )
        operation = await scheduler.submit(asked)
        patience = dice.choice([0.0, 3.0, 1e6])
        with trio.move_on_after(patience), operation.watched():
            state = operation.state
            while not state.done:
                state = await operation.wait_changed(state.version)
        if not operation.done and dice.random() < 0.5:
            await scheduler.cancel(operation.name)
        answers.append((asked, operation))
        await trio.sleep(dice.random())


async def lookup(asked):
    await trio.sleep(int(asked.action_digest.hash, 16) % 3)
    return b"cached " + asked.action_digest.hash.encode() if int(asked.action_digest.hash, 16) % 7 == 0 else None


@pytest.mark.parametrize("seed", range(12))
async def test_everybody_is_answered_and_nothing_is_left(seed, autojump_clock):
    dice = random.Random(seed)
    answers = []
    options = {"supported_platform_properties": {"cpu": "minimum", "ISA": "exact"}, "worker_timeout_s": 5}
    async with running(lookup, **options, max_action_executing_timeout_s=20) as scheduler:
        async with trio.open_nursery() as workers:
            for isa in ("x86", "arm"):  # somebody could run anything, or it would be told so after a while
                workers.start_soon(unreliable_worker, scheduler, dice, "4", isa)
            for _ in range(4):
                workers.start_soon(unreliable_worker, scheduler, dice)
            async with trio.open_nursery() as clients:
                for _ in range(CLIENTS):
                    clients.start_soon(client, scheduler, dice, answers)
            await trio.sleep(400)
            statistics = scheduler.statistics()
            assert statistics["queued"] == statistics["executing"] == statistics["cache_check"] == 0
            for worker in scheduler._core.pool.workers.values():
                assert worker.free == dict(worker.offer.amounts) or worker.leases
            workers.cancel_scope.cancel()
        await trio.sleep(100)
        statistics = scheduler.statistics()
        for level in ("workers", "operations", "unfinished_operations", "retained_bytes", "being_killed"):
            assert statistics[level] == 0, level
        assert not scheduler._core.executions
        assert len(scheduler._core._in_flight) == 0
        assert len(scheduler._operations.interest) == 0
    assert len(answers) == CLIENTS * ROUNDS
    endings = set()
    for asked, operation in answers:
        outcome = operation.state.outcome
        if outcome.error is not None:
            assert outcome.error.code in (Code.CANCELLED, Code.DEADLINE_EXCEEDED, Code.INTERNAL), outcome
        else:
            assert outcome.response.removeprefix(b"cached ") == asked.action_digest.hash.encode()
            assert not outcome.cached or not (asked.do_not_cache or asked.skip_cache_lookup)
        endings.add(outcome.error.code if outcome.error else "cached" if outcome.cached else "executed")
    assert endings >= {"executed", "cached", Code.CANCELLED}
