"""Operations of several schedulers, found and listed as if they were of one."""

from contextlib import asynccontextmanager

import pytest

from nl.errors import NotFoundError
from nl.model.access import EVERYONE, Grant, Identity, Right
from nl.services.operation_finder import OperationFinder
from tests.unit.services.execution_support import house


@asynccontextmanager
async def houses():
    """Two schedulers, the first with two instances, and a finder over both."""
    async with house(instance={"names": ("a", "c")}) as one, house(instance={"names": ("b",)}) as two:
        at = {"a": one, "c": one, "b": two}
        yield at, OperationFinder({name: each.scheduler for name, each in at.items()})


async def submitted(at, name, salt, **more):
    async with at[name].executing(await at[name].action(name=name, salt=salt), **more) as stream:
        return (await stream.receive()).name


async def test_operations_of_several_schedulers_are_listed_in_the_order_in_which_they_were_made():
    async with houses() as (at, finder):
        order = ["b", "a", "b", "c", "a", "b"]
        names = [await submitted(at, name, bytes([number])) for number, name in enumerate(order)]
        assert [each.name for each in finder.listed(EVERYONE, None)] == names
        for asked in "abc":
            expected = [name for name, instance in zip(names, order, strict=True) if instance == asked]
            assert [each.name for each in finder.listed(EVERYONE, asked)] == expected
        assert list(finder.listed(EVERYONE, "d")) == []


async def test_an_operation_is_found_with_the_scheduler_that_has_it_and_under_no_other_instance():
    async with houses() as (at, finder):
        for number, instance in enumerate("abc"):
            name = await submitted(at, instance, bytes([number]))
            scheduler, operation = finder.find(EVERYONE, name)
            assert (scheduler, operation.name) == (at[instance].scheduler, name)
            other = name.replace(f"{instance}/", "b/" if instance != "b" else "a/", 1)
            with pytest.raises(NotFoundError, match="not found"):
                finder.find(EVERYONE, other)


async def test_of_several_schedulers_one_sees_ones_own_and_what_one_administers():
    one = Identity("one", [Grant(("a", "b"), Right.EXECUTE)])
    admin = Identity("admin", [Grant(("b",), Right.ADMINISTER), Grant(("a",), Right.EXECUTE)])
    async with houses() as (at, finder):
        names = [await submitted(at, name, bytes([at_]), identity=one) for at_, name in enumerate("baba")]
        own = await submitted(at, "a", b"own", identity=admin)
        assert [each.name for each in finder.listed(one, None)] == names
        assert [each.name for each in finder.listed(admin, None)] == [names[0], names[2], own]
        with pytest.raises(NotFoundError):
            finder.find(admin, names[1])
        assert finder.find(admin, names[0])[1].owner == "one"
