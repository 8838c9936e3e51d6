"""Several addresses at once: who begins when, who wins, and what becomes of the others. On a clock that jumps."""

import pytest
import trio

from nl.rpc.dial import CannotConnect, race
from nl.rpc.options import ChannelOptions
from nl.rpc.origin import Endpoint, Origin
from nl.rpc.resolver import Address

ORIGIN = Origin(Endpoint("cache.example:1"), ChannelOptions())
A, B, C = (Address(ORIGIN, 2, (f"192.0.2.{number}", 1)) for number in (1, 2, 3))
NEVER = object()


class Net:
    """What each address does: (seconds, result); an exception is raised, NEVER does not end."""

    def __init__(self, **does):
        self.does = does
        self.begun = {}
        self.discarded = []
        self.names = {A: "a", B: "b", C: "c"}

    async def attempt(self, address):
        name = self.names[address]
        self.begun[name] = trio.current_time() - self.start
        seconds, result = self.does[name]
        if result is NEVER:
            await trio.sleep_forever()
        await trio.sleep(seconds)
        if isinstance(result, Exception):
            raise result
        return result

    async def race(self, *addresses):
        self.start = trio.current_time()
        got = await race(addresses, self.attempt, head_start=0.25, discard=self.discarded.append)
        self.took = trio.current_time() - self.start
        return got


async def test_the_first_address_is_alone_while_it_may_still_answer(autojump_clock):
    net = Net(a=(0.2, "A"), b=(0, "B"))
    assert await net.race(A, B) == "A"
    assert net.begun == {"a": 0}


async def test_a_silent_address_costs_its_head_start(autojump_clock):
    net = Net(a=(0, NEVER), b=(0, NEVER), c=(0.1, "C"))
    assert await net.race(A, B, C) == "C"
    assert net.begun == pytest.approx({"a": 0, "b": 0.25, "c": 0.5})
    assert net.took == pytest.approx(0.6)


async def test_an_address_that_fails_makes_way_at_once(autojump_clock):
    net = Net(a=(0.1, CannotConnect("refused")), b=(0, "B"))
    assert await net.race(A, B) == "B"
    assert net.begun["b"] == pytest.approx(0.1)


async def test_a_slow_first_address_may_still_win(autojump_clock):
    net = Net(a=(0.4, "A"), b=(1, "B"))
    assert await net.race(A, B) == "A"
    assert net.took == pytest.approx(0.4)


async def test_who_comes_second_is_discarded(autojump_clock):
    class Stubborn(Net):
        async def attempt(self, address):
            with trio.CancelScope(shield=True):
                return await super().attempt(address)

    net = Stubborn(a=(0.5, "A"), b=(0.25, "B"))
    assert {await net.race(A, B), *net.discarded} == {"A", "B"}
    assert len(net.discarded) == 1


async def test_when_all_fail_each_is_named(autojump_clock):
    net = Net(a=(0, CannotConnect("refused")), b=(1, CannotConnect("unreachable")))
    with pytest.raises(CannotConnect) as caught:
        await net.race(A, B)
    assert str(caught.value) == "192.0.2.1:1: refused; 192.0.2.2:1: unreachable"


async def test_a_time_limit_leaves_nothing_behind(autojump_clock):
    net = Net(a=(0, NEVER), b=(0, NEVER))
    with pytest.raises(trio.TooSlowError):
        with trio.fail_after(3):
            await net.race(A, B)
    assert net.discarded == []
