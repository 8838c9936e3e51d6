"""Allowances: spent, grown back with time, given back, never above what they were."""

from nl.rpc.h2.limits import Budget


def test_what_is_spent_grows_back_with_time_up_to_the_burst():
    budget = Budget(3, 2.0)
    assert [budget.spend(100.0) for _ in range(4)] == [True, True, True, False]
    assert [budget.spend(101.0) for _ in range(2)] == [True, False]
    assert [budget.spend(1000.0) for _ in range(4)] == [True, True, True, False]


def test_it_can_be_spent_to_the_last_and_in_larger_pieces():
    budget = Budget(3, 0.0)
    assert budget.spend(0.0, 2)
    assert not budget.spend(0.0, 2)
    budget = Budget(3, 0.0)
    assert budget.spend(0.0, 3)
    assert not budget.spend(0.0, 0.1)


def test_a_clock_that_goes_back_gives_nothing():
    budget = Budget(1, 1.0)
    assert budget.spend(10.0)
    assert not budget.spend(5.0)
    budget = Budget(3, 1.0)
    assert budget.spend(10.0)
    assert budget.spend(5.0), "nor does it take any"


def test_a_refund_is_worth_what_was_spent_and_not_more_than_the_burst():
    budget = Budget(2, 0.0)
    for _ in range(100):
        assert budget.spend(0.0)
        budget.refund()
    budget.refund(50)
    assert budget.left == 2
    assert [budget.spend(0.0) for _ in range(3)] == [True, True, False]
