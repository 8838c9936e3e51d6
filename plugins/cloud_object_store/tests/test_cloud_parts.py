"""The pure parts: pauses of retries, sizes of parts, who may use memory, what is remembered, what a config may say."""

from __future__ import annotations

import pytest
import trio
from cloud_support import options_for
from hypothesis import given
from hypothesis import strategies as st

from nl.plugin import ConfigError, RetryOptions, digest_of
from nl_cloud_object_store import CloudObjectStoreOptions
from nl_cloud_object_store.existence import Remembered
from nl_cloud_object_store.parts import Budget, Buffers, part_size

MIB = 1024 * 1024


@given(st.integers(-1, 5 * 1024**4), st.integers(5 * MIB, 9 * MIB))
def test_parts_are_multiples_of_what_the_provider_wants(size: int, smallest: int) -> None:
    part = part_size(size, smallest=smallest, most=100_000, granule=256 * 1024)
    assert part % (256 * 1024) == 0
    assert part >= smallest
    assert part < max(smallest, size // 100_000 + 1) + 256 * 1024


@given(st.integers(-1, 5 * 1024**4))
def test_parts_are_equal_few_enough_and_not_too_small(size: int) -> None:
    part = part_size(size, smallest=5 * MIB, most=10_000)
    assert part >= 5 * MIB
    assert part <= 5 * 1024**3
    assert -(-size // part) <= 10_000
    assert part == 5 * MIB or part * 10_000 < size + 10_000


async def test_memory_is_given_in_order_of_arrival_and_comes_back(autojump_clock: object) -> None:
    budget, order = Budget(10), []

    async def user(name: str, count: int, seconds: float) -> None:
        held = await budget.reserve(count)
        order.append(name)
        assert budget.used <= 10
        await trio.sleep(seconds)
        held.release()
        held.release()  # once is enough

    async with trio.open_nursery() as nursery:
        for name, count in (("a", 6), ("b", 4), ("c", 9), ("d", 2), ("e", 100)):
            nursery.start_soon(user, name, count, 1)
            await trio.sleep(0.01)
        await trio.sleep(0.1)
        assert order == ["a", "b"], "c does not fit, and d waits behind it"
    assert order == ["a", "b", "c", "d", "e"]
    assert budget.used == 0


async def test_who_gives_up_waiting_for_memory_lets_the_next_one_in(autojump_clock: object) -> None:
    budget = Budget(10)
    held = await budget.reserve(6)
    got = []
    async with trio.open_nursery() as nursery:

        async def patient() -> None:
            await trio.sleep(0.5)
            got.append(await budget.reserve(4))

        nursery.start_soon(patient)
        with trio.move_on_after(1):
            await budget.reserve(10)
    assert len(got) == 1
    assert budget.used == 10
    held.release()
    with trio.CancelScope() as scope:  # cancelled in the very moment in which its turn comes
        async with trio.open_nursery() as nursery:
            nursery.start_soon(budget.reserve, 8)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
            got[0].release()
    assert budget.used == 0


def test_buffers_are_used_again_while_an_upload_lasts_and_go_with_it() -> None:
    buffers = Buffers(2)
    with buffers.in_use():
        taken = [buffers.take(100) for _ in range(4)]
        for each in taken:
            buffers.give_back(each)
        again = [buffers.take(100) for _ in range(3)]
        assert sum(any(one is other for other in taken) for one in again) == 2
        buffers.give_back(again[0])
        assert len(buffers.take(50)) == 50
    assert not buffers._free


def test_what_was_there_is_remembered_for_its_time_the_least_asked_for_first_dropped() -> None:
    now = 100.0
    remembered = Remembered(10, 2, clock=lambda: now)
    one, two, three = (digest_of(b"%d" % number) for number in range(3))
    remembered.add(one)
    remembered.add(two, seconds=5)
    assert [one in remembered, two in remembered] == [True, True]
    now += 5
    assert [one in remembered, two in remembered] == [True, False]
    remembered.add(two)
    assert one in remembered
    remembered.add(three)
    assert [one in remembered, two in remembered, three in remembered] == [True, False, True]
    remembered.add(one)
    remembered.add(two)
    assert [one in remembered, two in remembered, three in remembered] == [True, True, False]
    remembered.add(one)
    remembered.add(three)
    assert [one in remembered, two in remembered, three in remembered] == [True, False, True], "told of is as asked for"
    now += 10
    assert one not in remembered
    since = remembered.forgotten
    remembered.forget([three])
    assert three not in remembered
    remembered.add(three, since=since)
    assert three not in remembered, "it may have been deleted while the answer was under way"
    remembered.add(three, seconds=0)
    assert three not in remembered


@pytest.mark.parametrize(("wrong", "field", "said"), [
    ({"provider": "r2"}, "account_id", "missing; the provider r2 needs it"),
    ({"provider": "oci", "region": "r"}, "namespace", "missing; the provider oci needs it"),
    ({"provider": "ontap", "region": ""}, "vserver_name", "missing; the provider ontap needs it"),
    ({"provider": "ontap", "vserver_name": "v", "region": "r"}, "region", "the provider ontap has no such option"),
    ({"account_id": "x"}, "account_id", "the provider aws has no such option; expected access_key_id, bucket, endp"),
    ({"bucket": ""}, "bucket", "missing"),
    ({"endpoint": "localhost:9000"}, "endpoint", "is no URL; expected https://"),
    ({"insecure_allow_http": False}, "endpoint", "is not encrypted; expected https://, or insecure_allow_http: true"),
    ({"access_key_id": ""}, "access_key_id", "expected both"),
    ({"max_threads": 0}, "max_threads", "expected 1 to 64"),
    ({"max_threads": 65}, "max_threads", "expected 1 to 64"),
    ({"multipart_max_concurrent_uploads": 0}, "multipart_max_concurrent_uploads", "expected 1 or more"),
    ({"max_upload_memory": MIB}, "max_upload_memory", "less than one part"),
    ({"read_timeout_s": 0}, "read_timeout_s", "more than 0"),
])
def test_an_option_that_cannot_be_is_refused_in_one_line(wrong: dict[str, object], field: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        options_for(**{"bucket": "a-bucket", "url": "http://127.0.0.1:1", **wrong})
    assert caught.value.path == field
    assert said in caught.value.problem
    assert "\n" not in caught.value.problem


def test_a_retry_with_negative_times_is_refused() -> None:
    with pytest.raises(ConfigError, match="delay"):
        RetryOptions(delay=-1).check()


def test_defaults_stand() -> None:
    options = CloudObjectStoreOptions(provider="aws", bucket="a-bucket")
    options.check()
    assert (options.part_size, options.parts_at_once) == (5 * MIB, 10)
    nothing = CloudObjectStoreOptions(
        provider="aws", bucket="a-bucket", max_retry_buffer_per_request=None, multipart_max_concurrent_uploads=None
    )
    assert (nothing.part_size, nothing.parts_at_once) == (5 * MIB, 10)
