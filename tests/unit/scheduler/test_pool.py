from nl.model.execution import Stage
from nl.scheduler.matching import PropertyRules, Requirements
from nl.scheduler.pool import MAX_DEPARTED, Pool
from nl.scheduler.state import Execution, Lease
from nl.scheduler.waiting import Shape
from nl.scheduler.worker import Worker
from tests.unit.scheduler.support import request

RULES = PropertyRules({"cpu": "minimum", "ISA": "exact", "pool": "priority"}, implied={})
FIRST = (0, 0.0, 0)


def worker(name, *properties, max_inflight=0):
    return Worker(name, RULES.offer(properties), max_inflight, last_seen=0.0)


def execution(sequence=1, priority=0, needs=Requirements()):
    return Execution(f"e{sequence}", request(sequence), needs, sequence, priority, Stage.QUEUED, 0.0, 0.0)


def shape(pool, **needs):
    it = Requirements(**needs)
    return Shape(it, avoided=frozenset(), lane=pool.lane(it))


def lease(name="l"):
    return Lease(name, execution(), "w", 0.0)


def test_what_a_lease_reserved_comes_back_once():
    it = worker("w", ("cpu", "4"))
    one = lease()
    it.reserve(one, Requirements(at_least=(("cpu", 3),)))
    assert it.free == {"cpu": 1}
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


def test_the_load_is_that_of_what_is_least_left_of():
    it = worker("w", ("cpu", "4"), ("pool", "x"), max_inflight=10)
    assert it.load == 0
    it.reserve(lease(), Requirements(at_least=(("cpu", 3),)))
    assert it.load == 0.75
    unlimited = worker("u")
    assert unlimited.load == 0
    loads = []
    for number in range(3):
        unlimited.reserve(lease(str(number)), Requirements())
        loads.append(unlimited.load)
    assert loads == sorted(set(loads)) and loads[-1] < 1


def test_reasons_name_what_is_missing():
    pool = Pool("least_recently_used")
    it = shape(pool, equal=(("ISA", "arm"),), at_least=(("cpu", 4),))
    assert pool.why_not(it) == "no worker is connected"
    small, big = worker("small", ("ISA", "arm"), ("cpu", "2")), worker("big", ("ISA", "x86"), ("cpu", "8"))
    pool.add(small)
    assert pool.why_not(it) == "no worker with cpu>=4"
    pool.add(big)
    assert pool.why_not(it) == "no worker with ISA=arm, cpu>=4 together"
    right = worker("right", ("ISA", "arm"), ("cpu", "4"), max_inflight=2)
    pool.add(right)
    assert pool.pick(it, rank=FIRST) is right
    right.reserve(lease(), Requirements(at_least=(("cpu", 1),)))
    pool.refresh(right)
    assert pool.pick(it, rank=FIRST) is None
    assert pool.why_not(it) == "not enough free for ISA=arm, cpu>=4 on 1 matching workers"
    right.held_for = execution()
    assert pool.why_not(it).endswith("some kept for wider actions")
    it.avoided = frozenset({"right"})
    assert pool.why_not(it).startswith("other workers than those that have failed it are full")
    right.draining = True
    pool.refresh(right)
    assert pool.why_not(it) == "all 1 matching workers are full, paused or draining"


def test_a_worker_is_found_by_its_rarest_requirement():
    pool = Pool("least_recently_used")
    for number in range(10):
        pool.add(worker(f"w{number}", ("ISA", "x86"), ("host", f"h{number}"), ("cpu", "1")))
    asked = Requirements(equal=(("ISA", "x86"), ("host", "h7")), at_least=(("cpu", 1),))
    assert pool.lane(asked) == ("host", "h7")
    assert pool.pick(shape(pool, equal=asked.equal, at_least=asked.at_least), rank=FIRST).id == "w7"
    assert pool.lane(Requirements(equal=(("ISA", "x86"), ("host", "nobody's")))) == ("host", "nobody's")
    assert pool.lane(Requirements()) is None


def test_a_value_is_met_by_who_takes_any_and_the_order_of_use_holds_over_both():
    pool = Pool("least_recently_used")
    named, anything = worker("named", ("ISA", "arm")), worker("anything", ("ISA", ""))
    pool.add(named)
    pool.add(anything)
    it = shape(pool, equal=(("ISA", "arm"),))
    assert pool.pick(it, rank=FIRST) is named
    pool.touch(named)
    assert pool.pick(it, rank=FIRST) is anything
    pool.touch(anything)
    assert pool.pick(it, rank=FIRST) is named


def test_offers_that_have_left_are_remembered_within_bounds():
    pool = Pool("least_recently_used")
    asked = Requirements(equal=(("ISA", "arm"),))
    assert pool.last_departure(asked) is None
    for number in range(2 * MAX_DEPARTED):
        it = worker(f"w{number}", ("ISA", f"x{number}"))
        pool.add(it)
        pool.remove(it, now=float(number))
    arm = worker("arm", ("ISA", "arm"))
    pool.add(arm)
    pool.remove(arm, now=500.0)
    assert pool.last_departure(asked) == 500.0
    assert len(pool._departed) == MAX_DEPARTED
    pool.forget_departures(before=501.0)
    assert pool.last_departure(asked) is None
    assert not pool._postings
