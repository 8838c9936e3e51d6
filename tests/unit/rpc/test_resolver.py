"""Names to addresses."""

import socket

import pytest
import trio

from nl.rpc.errors import NotProcessed
from nl.rpc.options import ChannelOptions
from nl.rpc.origin import Endpoint, Origin
from nl.rpc.resolver import MAX_ADDRESSES, Address, interleaved, resolve
from tests.support.names import Names


@pytest.fixture
def names():
    def use(**names):
        trio.socket.set_custom_hostname_resolver(Names(**names))

    return use


def origin(target, **kwargs):
    return Origin(Endpoint(target, **kwargs), ChannelOptions())


async def texts(*targets, timeout=5):
    return [each.text for each in await resolve([origin(target) for target in targets], timeout=timeout)]


async def test_literal_addresses_need_no_look_up():
    assert await texts("127.0.0.1:1", "[::1]:2", "unix:/run/nl") == ["127.0.0.1:1", "[::1]:2", "unix:/run/nl"]


async def test_families_take_turns_and_the_systems_first_choice_begins(names):
    names(x_y=["2001:db8::1", "2001:db8::2", "2001:db8::3", "192.0.2.1", "192.0.2.2"])
    got = await texts("x.y:1")
    assert got == ["[2001:db8::1]:1", "192.0.2.1:1", "[2001:db8::2]:1", "192.0.2.2:1", "[2001:db8::3]:1"]


async def test_no_address_comes_twice(names):
    names(x_y=["192.0.2.1", "192.0.2.1", "192.0.2.2"])
    assert await texts("x.y:1") == ["192.0.2.1:1", "192.0.2.2:1"]


async def test_a_name_with_a_thousand_addresses_is_cut(names):
    names(x_y=[f"10.0.{number // 256}.{number % 256}" for number in range(1000)])
    assert len(await texts("x.y:1")) == MAX_ADDRESSES


async def test_one_name_that_fails_leaves_the_others(names):
    names(x_y=socket.gaierror(socket.EAI_NONAME, "Name or service not known"), a_b=["192.0.2.1"])
    assert await texts("x.y:1", "a.b:1") == ["192.0.2.1:1"]


async def test_when_no_name_is_known_each_problem_is_told(names, autojump_clock):
    names(x_y=socket.gaierror(socket.EAI_NONAME, "Name or service not known"), a_b=None)
    with pytest.raises(NotProcessed) as caught:
        await texts("x.y:1", "a.b:1", timeout=5)
    assert "x.y:1: Name or service not known" in caught.value.message
    assert "a.b:1: no answer within 5 s" in caught.value.message


@pytest.mark.parametrize("name", ["a..b", "x" * 64 + ".example"])
async def test_a_name_that_cannot_be_one_is_a_failure_like_others(name):
    with pytest.raises(NotProcessed, match="cannot resolve"):
        await texts(f"{name}:1")


def test_interleaving_nothing_is_nothing():
    assert interleaved([]) == []


def test_equal_addresses_of_the_same_origin_are_the_same():
    one, other = origin("h:1"), origin("h:1")
    assert Address(one, 2, ("h", 1)) == Address(one, 2, ("h", 1))
    assert Address(one, 2, ("h", 1)) != Address(other, 2, ("h", 1))


async def test_what_is_wrong_with_a_name_is_told_with_it(names, autojump_clock):
    names(x_y=OSError("its own text"), a_b=socket.gaierror(socket.EAI_AGAIN, "try again"), c_d=None)
    with pytest.raises(NotProcessed) as caught:
        await texts("x.y:1", "a.b:2", "c.d:3", timeout=5)
    said = set(caught.value.message.removeprefix("cannot resolve ").split("; "))
    assert said == {"x.y:1: its own text", "a.b:2: try again", "c.d:3: no answer within 5 s"}
    assert trio.current_time() == pytest.approx(5)
    with pytest.raises(NotProcessed, match="cannot resolve any address"):
        await resolve([], timeout=5)
