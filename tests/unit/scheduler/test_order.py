"""Who goes first: shares of builds and users, priorities, and what waiting is worth."""

import itertools

import pytest

from nl.model.execution import Stage
from nl.scheduler.matching import Requirements
from nl.scheduler.order import QueueOrder
from nl.scheduler.state import Execution
from tests.unit.scheduler.support import request

COUNT = itertools.count(1)


def execution(build="", user="", priority=0):
    number = next(COUNT)
    asked = request(number, invocation=build, user=user, priority=priority)
    return Execution(f"e{number}", asked, Requirements(), number, priority, Stage.QUEUED, 0.0, 0.0)


def entered(order, *made, virtual=0.0, now=0.0, lane=None):
    for each in made:
        order.enter(each, lane=lane, virtual=virtual, now=now)
    return list(made)


def served(order, count):
    """The builds of the next ones, as a single worker would take them; and its virtual time."""
    waiting = sorted(order._waiting, key=lambda each: each.rank)[:count]
    for each in waiting:
        order.leave(each)
    return [each.request.invocation for each in waiting], max((each.rank[1] for each in waiting), default=0.0)


def test_within_a_build_the_older_one_goes_first():
    order = QueueOrder(ageing_s=0)
    made = entered(order, *(execution("a") for _ in range(5)))
    assert sorted(made, key=lambda each: each.rank) == made


def test_a_build_that_comes_later_stands_between_those_of_the_one_before():
    order = QueueOrder(ageing_s=0)
    entered(order, *(execution("large") for _ in range(100)))
    _, virtual = served(order, 40)
    entered(order, *(execution("small") for _ in range(3)), virtual=virtual)
    builds, _ = served(order, 8)
    assert builds.count("small") == 3
    assert "small" in builds[:2]


def test_a_build_cannot_save_up_what_it_did_not_use():
    order = QueueOrder(ageing_s=0)
    entered(order, execution("idle"))
    served(order, 1)
    entered(order, *(execution("busy") for _ in range(50)))
    _, virtual = served(order, 30)
    entered(order, *(execution("idle") for _ in range(20)), virtual=virtual)
    builds, _ = served(order, 20)
    assert 9 <= builds.count("idle") <= 11


@pytest.mark.parametrize("builds", [1, 4, 10])
def test_users_have_equal_shares_however_many_builds_they_have(builds):
    order = QueueOrder(ageing_s=0)
    for number in range(200):
        entered(order, execution(f"many{number % builds}", user="many"), execution("one", user="one"))
    taken, _ = served(order, 80)
    assert 36 <= taken.count("one") <= 44


def test_other_workers_have_other_shares():
    order = QueueOrder(ageing_s=0)
    entered(order, *(execution("a") for _ in range(50)), lane=("os", "linux"))
    (mac,) = entered(order, execution("a"), lane=("os", "mac"))
    assert mac.rank[1] == 0


def test_a_priority_goes_before_the_next_until_it_has_waited_long_enough():
    order = QueueOrder(ageing_s=600)
    (patient,) = entered(order, execution("a", priority=5), now=0.0)
    (urgent,) = entered(order, execution("b", priority=-5), now=500.0)
    assert urgent.rank < patient.rank
    assert order.aged(lambda _: 7.0, now=599.0) == []
    [(moved, rank)] = order.aged(lambda _: 7.0, now=600.0)
    assert moved is patient and rank[:2] == (-5, 7.0)
    order.move(patient, rank)
    assert order.aged(lambda _: 7.0, now=1099.0) == [], "each once"
    entered(order, execution("b", priority=-9), now=1100.0)
    order.leave(patient)
    order.leave(urgent)
    assert len(order) == 1


def test_those_that_have_waited_share_as_one_build_and_do_not_stand_before_everybody():
    order = QueueOrder(ageing_s=600)
    old = entered(order, *(execution("a", priority=5) for _ in range(10)), now=0.0)
    entered(order, execution("b", priority=0), now=600.0)
    ranks = [rank for _, rank in order.aged(lambda _: 3.0, now=600.0)]
    assert [rank[1] for rank in ranks] == [float(tag) for tag in range(3, 13)]
    assert len(ranks) == len(old)


def test_a_twin_brings_the_better_place_of_the_two():
    order = QueueOrder(ageing_s=0)
    entered(order, *(execution("large") for _ in range(20)))
    (last,) = entered(order, execution("large"))
    assert order.joined(last, request(1, invocation="small"), virtual=2.0) == (0, 2.0, last.sequence)
    assert order.joined(last, request(1, invocation="large"), virtual=2.0)[1] == last.rank[1]
    assert order.joined(last, request(1, invocation="large", priority=-1), virtual=2.0)[0] == -1


def test_nothing_is_kept_of_builds_that_do_not_wait():
    order = QueueOrder(ageing_s=600)
    made = entered(order, *(execution(f"b{number % 7}", user=f"u{number % 3}", priority=number % 2)
                            for number in range(50)))  # fmt: skip
    for each, rank in order.aged(lambda _: 0.0, now=700.0):
        order.move(each, rank)
    for each in made:
        order.leave(each)
    assert not (order._waiting or order._young or order._last or order._sizes or order._invocations)
    assert not (order._levels or order._aged)
