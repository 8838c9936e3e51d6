from hypothesis import given
from hypothesis import strategies as st

from nl.model.execution import Stage
from nl.scheduler.matching import PropertyRules, Requirements
from nl.scheduler.pool import MAX_IDLE_SHAPES, Pool, Shape, WaitingShapes, Worker
from nl.scheduler.state import Execution, Lease
from tests.unit.scheduler.support import request

RULES = PropertyRules({"cpu": "minimum", "ISA": "exact", "pool": "priority"}, implied={})


def worker(name, *properties, max_inflight=0):
    return Worker(name, RULES.offer(properties), max_inflight, last_seen=0.0)


def execution(sequence=1, priority=0, needs=Requirements()):
    return Execution(f"e{sequence}", request(sequence), needs, sequence, priority, Stage.QUEUED, 0.0, 0.0)


def lease(name="l"):
    return Lease(name, execution(), "w", 0.0)


def test_what_a_lease_reserved_comes_back_once():
    it = worker("w", ("cpu", "4"))
    one = lease()
    it.reserve(one, Requirements(at_least=(("cpu", 3),)))
    assert it.free == {"cpu": 1}
    assert not it.fits(Requirements(at_least=(("cpu", 2),)))
    it.give_back(one)
    it.give_back(one)
    assert it.free == {"cpu": 4}


def test_a_full_paused_or_draining_worker_has_no_slot():
    it = worker("w", max_inflight=1)
    assert it.has_slot
    it.paused_until = 5.0
    assert not it.has_slot
    assert repr(it) == "<Worker w paused 0/1 free={}>"
    it.paused_until = None
    it.reserve(lease(), Requirements())
    assert not it.has_slot
    it.leases.clear()
    it.draining = True
    assert not it.has_slot


def test_reasons_name_what_is_missing():
    pool = Pool("least_recently_used")
    needs = Requirements(equal=(("ISA", "arm"),), at_least=(("cpu", 4),))
    shape = pool.shape(needs, now=0.0)
    assert pool.why_not(shape) == "no worker is connected"
    small, big = worker("small", ("ISA", "arm"), ("cpu", "2")), worker("big", ("ISA", "x86"), ("cpu", "8"))
    pool.add(small)
    assert pool.why_not(shape) == "no worker with cpu>=4"
    pool.add(big)
    assert pool.why_not(shape) == "no worker with ISA=arm, cpu>=4 together"
    right = worker("right", ("ISA", "arm"), ("cpu", "4"), max_inflight=2)
    pool.add(right)
    assert pool.pick(shape) is right
    right.reserve(lease(), Requirements(at_least=(("cpu", 1),)))
    assert pool.pick(shape) is None
    assert pool.why_not(shape) == "not enough free for ISA=arm, cpu>=4 on 1 matching workers"
    right.draining = True
    pool.refresh(right)
    assert pool.why_not(shape) == "all 1 matching workers are full, paused or draining"


def test_idle_shapes_are_forgotten_and_waiting_ones_are_not():
    pool = Pool("least_recently_used")
    any_isa = worker("w", ("ISA", ""))
    pool.add(any_isa)
    waiting = [pool.shape(Requirements(equal=(("ISA", f"waiting{number}"),)), now=0.0) for number in range(20)]
    for number, shape in enumerate(waiting):
        shape.queue.push(execution(number))
    for number in range(3 * MAX_IDLE_SHAPES):
        pool.shape(Requirements(equal=(("ISA", str(number)),)), now=0.0)
    assert len(pool.shapes) <= MAX_IDLE_SHAPES + len(waiting)
    assert set(waiting) <= set(pool.shapes.values())
    assert set(any_isa.shapes) == set(pool.shapes.values())


STEPS = st.tuples(st.integers(0, 4), st.integers(-2, 2), st.sampled_from(["push", "push", "pop"]))


@given(st.lists(STEPS, max_size=60))
def test_waiting_shapes_stand_in_the_order_of_their_first(steps):
    order = WaitingShapes()
    shapes = [Shape(Requirements(present=(str(number),)), now=0.0) for number in range(5)]
    for sequence, (which, priority, what) in enumerate(steps):
        shape = shapes[which]
        if what == "push":
            shape.queue.push(execution(sequence, priority))
        elif shape.queue:
            shape.queue.pop()
        order.update(shape)
        waiting = sorted((each for each in shapes if each.queue), key=lambda each: each.queue.peek().rank)
        assert [order.at(index) for index in range(len(order) + 1)] == [*waiting, None]
        assert set(order) == set(waiting)
