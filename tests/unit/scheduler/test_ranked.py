"""Against lists that are looked through from the start."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nl.scheduler import ranked
from nl.scheduler.ranked import RankedDemands, RankedSupplies

AMOUNTS = st.dictionaries(st.sampled_from(["cpu", "memory"]), st.integers(0, 5), max_size=2)
STEPS = st.lists(st.tuples(st.integers(0, 300), AMOUNTS), max_size=120)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(ranked, "_LOAD", 2)


def meets(supply, demand):
    return all(supply.get(name, -1) >= amount for name, amount in demand.items())


@given(STEPS, AMOUNTS, st.integers(0, 300))
def test_the_first_that_asks_for_no_more_is_found_wherever_it_stands(steps, supply, upto):
    it, plain = RankedDemands(lambda item: item[1]), {}
    for number, amounts in steps:
        if (number,) in plain:
            it.remove((number,))
            del plain[number,]
        else:
            plain[number,] = (number, amounts)
            it.add((number,), (number, amounts))
    fitting = [key for key in sorted(plain) if meets(supply, plain[key][1])]
    found = it.search(supply, lambda item: meets(supply, item[1]))
    assert (found and found[0]) == (fitting[0] if fitting else None)
    early = it.search(supply, lambda item: meets(supply, item[1]), upto=(upto,))
    assert (early and early[0]) == (fitting[0] if fitting and fitting[0] <= (upto,) else None)
    assert [item[0] for item in it.upto((upto,))] == [key[0] for key in sorted(plain) if key <= (upto,)]
    assert [item[0] for item in it] == [key[0] for key in sorted(plain)]
    assert len(it) == len(plain) and bool(it) == bool(plain)


@given(STEPS, AMOUNTS)
def test_the_first_that_has_enough_is_found_also_when_it_has_got_more(steps, demand):
    it, plain = RankedSupplies(lambda item: item), {}
    for number, amounts in steps:
        if (number,) in plain:
            it.remove((number,))
        plain[number,] = amounts
        it.add((number,), amounts)
    fitting = [key for key in sorted(plain) if meets(plain[key], demand)]
    found = it.search(demand, lambda item: meets(item, demand))
    assert (found and found[0]) == (fitting[0] if fitting else None)


def test_what_is_not_there_cannot_be_removed():
    it = RankedDemands(lambda item: {})
    with pytest.raises(KeyError):
        it.remove((1,))
    it.add((1,), "one")
    for key in ((0,), (2,)):
        with pytest.raises(KeyError):
            it.remove(key)


def test_a_search_looks_at_few_of_many():
    it = RankedDemands(lambda item: item)
    for number in range(1000):
        it.add((number,), {"cpu": 1000 - number})
    for _ in range(2):  # bounds are exact after a search in vain
        looks = []
        it.search({"cpu": 1}, lambda item: bool(looks.append(item)) or item["cpu"] <= 1)
    assert len(looks) <= 2 * ranked._LOAD
