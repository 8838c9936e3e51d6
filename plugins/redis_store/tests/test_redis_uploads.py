"""What an upload in chunks leaves at a real server at each step: how it grows, what is lost, what is sent twice."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from redis_support import RedisServer, new_prefix, options_for, redis  # noqa: F401

from nl.plugin import CHUNK, Buffer, RangeError, RetryOptions, TooLargeError, UnavailableError, digest_of, key_text
from nl.testing import BareContext, BlockingReader, PartsReader, make_blob, read, split, started
from nl_redis_store import RedisStore
from nl_redis_store.addresses import parse_address
from nl_redis_store.client import Client
from nl_redis_store.single import Single
from nl_redis_store.topology import Dialer
from nl_redis_store.upload import LostError, Unfinished

KIB, MIB = 1024, 1024 * 1024


@asynccontextmanager
async def running(redis: RedisServer, **options: object) -> AsyncIterator[RedisStore]:  # noqa: F811
    async with started(RedisStore(options_for(redis.url, **options), BareContext())) as store:
        yield store  # type: ignore[misc]


@asynccontextmanager
async def unfinished(redis: RedisServer, name: bytes, size: int) -> AsyncIterator[Unfinished]:  # noqa: F811
    topology = Single(Dialer((parse_address(redis.url, ""),), 5, 30, 1, None))
    async with trio.open_nursery() as nursery:
        await nursery.start(topology.run)
        yield Unfinished(Client(topology, RetryOptions().policy(), permits=10), name, size)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("known", [True, False])
async def test_a_chunk_or_an_end_that_is_sent_again_changes_nothing(redis: RedisServer, known: bool) -> None:  # noqa: F811
    """As where an answer was lost."""
    name, place = new_prefix(), new_prefix()
    async with unfinished(redis, name.encode(), 11 if known else -1) as upload:
        await upload.create(b"abcd")
        assert redis.cli("STRLEN", name) == ("11" if known else "4")
        for _ in range(2):
            await upload.add(4, b"efgh")
        for key in (name, f"{name}:mark"):
            redis.cli("EXPIRE", key, "1000")  # as if it had been the last time for long
        await upload.add(8, b"ijk")
        assert (redis.cli("GET", name), redis.cli("GET", f"{name}:mark")) == ("abcdefghijk", "11")
        for key in (name, f"{name}:mark"):
            assert 3500 < int(redis.cli("TTL", key)) <= 3600
        for _ in range(2):
            await upload.finish(place.encode(), 11, ttl_s=0)
        assert [redis.cli("GET", place), redis.cli("TTL", place)] == ["abcdefghijk", "-1"]
        assert redis.cli("EXISTS", name) == "0"
        assert 50 < int(redis.cli("TTL", f"{name}:mark")) <= 60
        redis.cli("DEL", place, f"{name}:mark")


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("lost", ["a chunk", "the value", "the mark"])
async def test_a_chunk_that_does_not_follow_on_is_noticed_and_so_is_an_end(
    redis: RedisServer, lost: str, known: bool  # noqa: F811
) -> None:
    for at_the_end in (False, True):
        name = new_prefix()
        async with unfinished(redis, name.encode(), 12 if known else -1) as upload:
            await upload.create(b"abcd")
            if at_the_end:
                await upload.add(4, b"efgh")
            if lost != "a chunk":
                redis.cli("DEL", name if lost == "the value" else f"{name}:mark")
            end = upload.finish(b"never", 12 if lost == "a chunk" else 8, ttl_s=0)
            with pytest.raises(LostError, match="has lost some of"):
                await (end if at_the_end else upload.add(8, b"ijkl"))
            end.close()
            assert redis.cli("EXISTS", "never") == "0"
            await upload.discard()
            assert redis.cli("EXISTS", name, f"{name}:mark") == "0"


class Evicted(PartsReader):
    """Pieces that can be had again and again; when half of them are gone, the server loses something, each time."""

    can_rewind = True

    def __init__(self, data: bytes, evict: Callable[[], None]) -> None:
        super().__init__(split(data, 4 * KIB))
        self._data, self._evict, self.rewound, self._done = data, evict, 0, False

    async def rewind(self) -> None:
        self._parts, self._done, self.rewound = split(self._data, 4 * KIB), False, self.rewound + 1

    async def receive_parts(self, max_bytes: int = CHUNK) -> Sequence[Buffer]:
        if not self._done and sum(map(len, self._parts)) < len(self._data) // 2:
            self._done = True
            self._evict()
        return await super().receive_parts(max_bytes)


async def test_an_upload_that_is_lost_each_time_begins_four_times_anew_and_then_fails(redis: RedisServer) -> None:  # noqa: F811
    digest, prefix = digest_of(data := make_blob(64 * KIB)), new_prefix()

    def evict() -> None:
        redis.cli("DEL", *(key for key in redis.all_keys() if key.startswith(prefix)))

    async with running(redis, key_prefix=prefix, read_chunk_size=8 * KIB) as store:
        reader = Evicted(data, evict)
        with pytest.raises(UnavailableError, match="has lost some of") as caught:
            await store.write(digest, reader)
        assert caught.value.retryable
        assert reader.rewound == 4
        assert not [key for key in redis.all_keys() if key.startswith(prefix)]
        assert store.statistics()["uploads_busy"] == store.statistics()["uploads"] == 0


async def test_uploads_have_together_the_memory_that_the_config_gives_them(redis: RedisServer) -> None:  # noqa: F811
    data = make_blob(40 * KIB)
    async with running(
        redis, key_prefix=new_prefix(), read_chunk_size=16 * KIB, max_upload_memory=32 * KIB
    ) as store, trio.open_nursery() as nursery:
        readers = [BlockingReader([data[: 20 * KIB]], rest=data[20 * KIB :]) for _ in range(3)]
        for number in (0, 1):
            nursery.start_soon(store.write, f"{number}", readers[number])
            await readers[number].blocked.wait()
        nursery.start_soon(store.write, "2", readers[2])
        await trio.testing.wait_all_tasks_blocked()
        assert readers[2].calls == 0
        assert store.statistics()["uploads_busy"] == 2
        for reader in readers:
            reader.go_on.set()
        with trio.fail_after(120):
            while store.statistics()["uploads"] != 3:  # noqa: ASYNC110
                await trio.sleep(0.005)
        assert store.statistics()["bytes_uploaded"] == 3 * len(data)
        for number in range(3):
            assert await store.get(f"{number}") == data


async def test_the_largest_value_there_may_be_is_taken_and_one_byte_more_is_not(redis: RedisServer) -> None:  # noqa: F811
    async with running(
        redis, key_prefix=new_prefix(), read_chunk_size=16 * KIB, max_blob_bytes=50 * KIB
    ) as store:
        for size in (50 * KIB, -1):
            await store.write("name", PartsReader([data := make_blob(50 * KIB)], size=size))
            assert await store.get("name") == data
            reader = PartsReader([data, b"x"], size=size + 1 if size > 0 else -1)
            with pytest.raises(TooLargeError, match="51201 bytes are more than a value may have"):
                await store.write("other", reader)
            assert (reader.calls > 0) == (size < 0), "what is known beforehand is not read"
        await store.put("name", data)
        with pytest.raises(TooLargeError):
            await store.put("other", data + b"x")
        assert await store.has(["other"]) == [None]


async def test_a_copy_that_is_read_lives_on_while_it_is_read_and_goes_with_its_reader(redis: RedisServer) -> None:  # noqa: F811
    prefix, data = new_prefix(), make_blob(3 * MIB)

    def copies() -> list[str]:
        return [key for key in redis.all_keys() if key.startswith(f"{prefix}:temp:") and not key.endswith(":mark")]

    async with running(redis, key_prefix=prefix) as store:
        await store.put("name", data)
        with trio.CancelScope() as scope:
            async with store.open("name") as reader:
                (copy,) = copies()
                assert 3500 < int(redis.cli("TTL", copy)) <= 3600
                redis.cli("EXPIRE", copy, "100")
                await reader.receive_parts()
                assert 3500 < int(redis.cli("TTL", copy)) <= 3600
                scope.cancel()
                await trio.sleep_forever()
        assert copies() == []
        for steps in range(12):
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(read, store, "name")
                    for _ in range(steps):
                        await trio.lowlevel.checkpoint()
                    scope.cancel()
            assert copies() == [], f"after {steps} steps"
        assert redis.cli("TTL", prefix + key_text("name")) == "-1"


async def test_a_range_that_begins_behind_the_end_of_a_large_value_leaves_no_copy_of_it(redis: RedisServer) -> None:  # noqa: F811
    prefix = new_prefix()
    async with running(redis, key_prefix=prefix) as store:
        await store.put("name", make_blob(3 * MIB))
        with pytest.raises(RangeError):
            async with store.open("name", offset=3 * MIB + 1):
                pass
        left = [key for key in redis.all_keys() if key.startswith(prefix) and not key.endswith(":mark")]
        assert left == [prefix + key_text("name")]
