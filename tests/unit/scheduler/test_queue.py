import pytest
from hypothesis import given
from hypothesis import strategies as st

from nl.model.execution import Stage
from nl.scheduler.matching import Requirements
from nl.scheduler.queue import InFlightIndex, WaitingQueue
from nl.scheduler.state import Execution, Lease
from tests.unit.scheduler.support import request


def execution(sequence, priority=0, stage=Stage.QUEUED, **more):
    return Execution(f"e{sequence}", request(**more), Requirements(), sequence, priority, stage, 0.0, 0.0)


@given(st.lists(st.tuples(st.integers(-3, 3), st.sampled_from(["stay", "discard", "hurry"]))))
def test_what_is_left_comes_out_by_priority_then_age(entries):
    queue = WaitingQueue()
    kept = []
    for sequence, (priority, fate) in enumerate(entries):
        it = execution(sequence, priority)
        queue.push(it)
        if fate == "discard":
            queue.discard(it)
            queue.discard(it)
            assert it not in queue
            continue
        if fate == "hurry":
            it.priority -= 2
            queue.push(it)
        kept.append(it)
    assert len(queue) == len(kept)
    assert set(queue) == set(kept)
    assert [queue.pop() for _ in kept] == sorted(kept, key=lambda it: it.rank)
    with pytest.raises(IndexError):
        queue.pop()


def test_the_dead_do_not_outnumber_the_living_for_long():
    queue = WaitingQueue()
    survivor = execution(-1)
    queue.push(survivor)
    for sequence in range(10_000):
        it = execution(sequence)
        queue.push(it)
        queue.discard(it)
    assert len(queue._heap) < 40
    assert queue.pop() is survivor


def test_twins_share_and_others_do_not():
    index = InFlightIndex()
    it = execution(1, number=7)
    index.add(it)
    assert index.find(request(7)) is it
    assert index.find(request(8)) is None
    assert index.find(request(7, instance_name="other")) is None
    assert index.find(request(7, do_not_cache=True)) is None
    index.discard(it)
    assert index.find(request(7)) is None


def test_an_action_that_must_not_be_cached_is_never_shared():
    index = InFlightIndex()
    index.add(execution(1, number=7, do_not_cache=True))
    assert index.find(request(7)) is None
    assert len(index) == 0


def test_skipping_the_cache_joins_only_what_cannot_have_been_visible_before():
    index = InFlightIndex()
    it = execution(1, number=7, stage=Stage.CACHE_CHECK)
    index.add(it)
    fresh = request(7, skip_cache_lookup=True)
    assert index.find(fresh) is None
    it.stage = Stage.QUEUED
    assert index.find(fresh) is it
    it.stage = Stage.EXECUTING
    it.lease = Lease("l", it, "w", 0.0)
    assert index.find(fresh) is it
    it.lease.executed = True
    assert index.find(fresh) is None
    assert index.find(request(7)) is it


def test_removing_an_older_twin_leaves_the_newer_one_to_be_found():
    index = InFlightIndex()
    old, new = execution(1, number=7), execution(2, number=7)
    index.add(old)
    index.add(new)
    index.discard(old)
    assert index.find(request(7)) is new
