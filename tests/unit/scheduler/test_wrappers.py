"""Schedulers in front of another one: what they change of an action, and what they leave alone."""

import json

import pytest
import trio

from nl.scheduler.cache_lookup import CacheLookupScheduler
from nl.scheduler.historical_resource import Hints, HistoricalResourceScheduler, raised
from nl.scheduler.property_modifier import Add, PropertyModifierScheduler, Remove, Replace
from tests.unit.scheduler.support import finished, request, running


def modified(*modifications, platform):
    return PropertyModifierScheduler(None, modifications).modified(platform)


@pytest.mark.parametrize(
    ("modifications", "before", "after"),
    [
        ([Add("pool", "big")], (), (("pool", "big"),)),
        ([Add("pool", "big")], (("a", "1"), ("pool", "x"), ("pool", "y")), (("a", "1"), ("pool", "big"))),
        ([Remove("pool")], (("pool", "x"), ("zoo", "1")), (("zoo", "1"),)),
        ([Remove("pool")], (), ()),
        ([Replace("a", "b")], (("a", "1"), ("a", "2"), ("b", "3")), (("b", "1"), ("b", "2"))),
        ([Replace("a", "b")], (("b", "3"),), (("b", "3"),)),
        ([Replace("a", "b", value="2")], (("a", "1"), ("a", "2")), (("a", "1"), ("b", "2"))),
        ([Replace("a", "a", value="1", new_value="9")], (("a", "1"), ("a", "2")), (("a", "9"),)),
        ([Replace("a", "b", new_value="9")], (("a", "1"), ("a", "2")), (("b", "9"),)),
        ([Remove("a"), Add("a", "1"), Replace("a", "z")], (("a", "5"),), (("z", "1"),)),
    ],
)
def test_properties_are_modified_in_order(modifications, before, after):
    assert modified(*modifications, platform=before) == after


async def test_a_modified_property_decides_who_gets_the_action_and_reaches_the_worker():
    async with running(supported_platform_properties={"pool": "exact"}) as inner:
        scheduler = PropertyModifierScheduler(inner, [Remove("gone"), Replace("Pool", "pool"), Add("note", "x")])
        with inner.attach_worker([("pool", "a"), ("note", "x")]) as session:
            operation = await scheduler.submit(request(1, ("Pool", "a"), ("gone", "1")))
            start = await session.next_update()
            assert start.platform == (("note", "x"), ("pool", "a"))
            session.complete(start.operation_id, b"done")
        assert (await finished(operation)).outcome.response == b"done"
        assert scheduler.operation(operation.name) is operation
        assert scheduler.worker_pool is inner
        assert scheduler.known_properties() == ["OSFamily", "Pool", "gone", "note", "pool"]


async def test_the_cache_that_is_named_is_asked_once_for_twins_and_not_the_instances_own():
    asked = []

    async def never(asking):
        raise AssertionError("the instance's own cache was asked")

    async def lookup(asking):
        asked.append(asking)
        await trio.lowlevel.checkpoint()
        return b"cached"

    async with running(never) as inner:
        scheduler = CacheLookupScheduler(inner, lookup)
        operations = [await scheduler.submit(request(1)) for _ in range(3)]
        for operation in operations:
            outcome = (await finished(operation)).outcome
            assert outcome.cached and outcome.response == b"cached"
        assert len(asked) == 1
        await scheduler.submit(request(2, skip_cache_lookup=True))
        assert len(asked) == 1


def hints(*entries):
    return Hints.parse(json.dumps(entries))


def test_the_closest_hint_counts():
    it = hints(
        {"action_mnemonic": "Cpp", "cpu_count": 1},
        {"target_id": "//a", "cpu_count": 2},
        {"target_id": "//a", "action_mnemonic": "Cpp", "cpu_count": 3, "memory_kb": 7, "memory_mib": 5},
        {"target_id": "//a", "action_mnemonic": "Cpp", "cpu_count": 9},
        {"cpu_count": 100},
    )
    assert len(it) == 3
    assert it.find("//a", "Cpp").cpu_count == 3, "the first of two for the same"
    assert it.find("//a", "Cpp").memory_kb == 7
    assert it.find("//a", "Java").cpu_count == 2
    assert it.find("//b", "Cpp").cpu_count == 1
    assert it.find("//b", "Java") is None
    assert it.find("", "") is None
    assert hints({"target_id": "x", "memory_mib": 2}).find("x", "").memory_kb == 2048
    assert len(Hints.parse('{"hints": [{"target_id": "x"}]}')) == 1


@pytest.mark.parametrize("text", [
    "{}", "3", "[1]", "nonsense", '[{"target_id": 1}]', '[{"target_id": "x", "cpu_count": -1}]',
    '[{"target_id": "x", "memory_kb": true}]',
])
def test_hints_that_make_no_sense_are_errors(text):
    with pytest.raises(ValueError):
        Hints.parse(text)


@pytest.mark.parametrize(
    ("before", "least", "after"),
    [
        ((), 4, (("cpu", "4"),)),
        ((("cpu", "2"),), 4, (("cpu", "4"),)),
        ((("cpu", "8"),), 4, (("cpu", "8"),)),
        ((("cpu", "many"),), 4, (("cpu", "many"),)),
        ((("cpu", "2"),), None, (("cpu", "2"),)),
    ],
)
def test_what_an_action_asks_for_is_raised_and_never_lowered(before, least, after):
    assert raised(before, "cpu", least) == after


def historical(inner, file, refresh_s=30.0):
    return HistoricalResourceScheduler(
        inner, hints_file=str(file), refresh_s=refresh_s, cpu_name="cpu_count", memory_name="memory_kb", name="H"
    )


async def test_hints_reach_the_matching_as_far_as_it_knows_the_names(tmp_path, caplog):
    file = tmp_path / "hints.json"
    file.write_text('[{"target_id": "//a", "cpu_count": 3, "memory_kb": 10}]')
    async with running(supported_platform_properties={"cpu_count": "minimum"}) as inner:
        scheduler = historical(inner, file)
        await scheduler.read()
        with inner.attach_worker([("cpu_count", "4")]) as session:
            await scheduler.submit(request(1, ("cpu_count", "1"), target="//a"))
            assert (await session.next_update()).platform == (("cpu_count", "3"),)
            await scheduler.submit(request(2, ("cpu_count", "1"), target="//b"))
            assert (await session.next_update()).platform == (("cpu_count", "1"),)
        assert "memory_kb" in scheduler.known_properties()
        file.write_text("broken")
        await scheduler.read()
        assert scheduler.statistics()["hints"] == 1, "the hints of before stay"
        assert f"the hints file {file} cannot be used, 1 hints stay" in caplog.text
        file.unlink()
        await scheduler.read()
        assert len(scheduler.hints) == 1


async def test_the_file_is_read_again_while_the_server_runs(tmp_path):
    file = tmp_path / "hints.json"
    file.write_text("[]")
    async with running() as inner:
        scheduler = historical(inner, file, refresh_s=0.01)
        async with trio.open_nursery() as nursery:
            await nursery.start(scheduler.run)
            assert len(scheduler.hints) == 0
            file.write_text('[{"target_id": "//a"}]')
            while not len(scheduler.hints):
                await trio.sleep(0.005)
            nursery.cancel_scope.cancel()
