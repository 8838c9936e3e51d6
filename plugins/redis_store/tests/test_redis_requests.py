"""Which commands a store sends for what it is asked, and what becomes of the answers: over a server in memory."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from redis_peer import SILENCE, Peer

from nl.plugin import (
    MAX_WHOLE,
    ActionKey,
    BlobNotFoundError,
    BlobSizeLimit,
    ConfigError,
    Deletes,
    Digest,
    ExhaustedError,
    Removals,
    RetryOptions,
    Scans,
    TooLargeError,
    Traits,
    TransientError,
    UnavailableError,
    UploadMismatchError,
    digest_of,
    key_text,
)
from nl.testing import BareContext, PartsReader, read, started
from nl_redis_store import RedisStore, RedisStoreOptions, topology
from nl_redis_store.addresses import Address
from nl_redis_store.connection import Command, Connection

MIB = 1024 * 1024
ONE, TWO = digest_of(b"one"), digest_of(b"two")
NEVER, ONCE = RetryOptions(), RetryOptions(max_retries=1)


class Redis(Peer):
    """Knows the commands for values that fit into one trip. `refusals` are given by the command of that name."""

    def __init__(self, nursery: trio.Nursery) -> None:
        super().__init__(nursery, answer=self._answer)
        self.values: dict[bytes, bytes] = {}
        self.info = b"redis_mode:standalone\r\nmaxmemory_policy:noeviction\r\n"
        self.refusals: dict[bytes, list[object]] = {}
        self.away = False
        self.timeouts: set[float] = set()
        """That connections had to be made in."""

    async def dial(self, address: Address, *, timeout_s: float, tls: object) -> Connection:
        assert (tls is not None) >= address.tls
        self.timeouts.add(timeout_s)
        if self.away:
            raise TransientError("away")
        return await self.connect()

    def _answer(self, command: Command) -> object:
        name, *arguments = map(bytes, command)
        if self.refusals.get(name):
            return self.refusals[name].pop(0)
        value = self.values.get(arguments[0]) if arguments else None
        if name == b"SET":
            self.values[arguments[0]] = arguments[1]
            return b"OK"
        if name == b"UNLINK":
            return int(self.values.pop(arguments[0], None) is not None)
        if name == b"GETRANGE":
            return (value or b"")[int(arguments[1]) : int(arguments[2]) + 1]
        numbers = {b"STRLEN": len(value or b""), b"EXISTS": int(value is not None), b"EXPIRE": int(value is not None)}
        others = {b"PING": b"PONG", b"INFO": self.info, b"EXEC": []}
        return numbers[name] if name in numbers else others.get(name, b"OK")

    def lines(self) -> list[list[str]]:
        """The commands of each trip since the last time, without values; `cas/` left out, as keys are known by it."""
        trips = [[b" ".join(map(bytes, command[:2] if command[0] == b"SET" else command)).decode() for command in trip]
                 for trip in self.trips]
        self.trips.clear()
        return [[line.replace("cas/", "") for line in trip] for trip in trips]


@pytest.fixture
def redis(nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch) -> Redis:
    server = Redis(nursery)
    monkeypatch.setattr(topology, "dial", server.dial)
    return server


def options(**more: object) -> RedisStoreOptions:
    made = RedisStoreOptions(**{"addresses": ("redis://peer",), "key_prefix": "cas/", "retry": NEVER, **more})
    made.check()
    return made


@asynccontextmanager
async def running(redis: Redis, **more: object) -> AsyncIterator[RedisStore]:
    async with started(RedisStore(options(**more), BareContext("CAS"))) as store:
        redis.trips.clear()
        yield store  # type: ignore[misc]


def counted(store: RedisStore) -> dict[str, object]:
    fixed = {"servers", "connections", "trips"}
    return {name: value for name, value in store.statistics().items() if value and name not in fixed}


# --- looking


async def test_a_lookup_is_one_trip_in_which_each_key_is_asked_for_once(redis: Redis) -> None:
    action = ActionKey(*ONE)
    async with running(redis) as store:
        redis.values[b"cas/" + key_text(ONE).encode()] = b"one"
        redis.values[b"cas/~name"] = b""
        asked = [ONE, TWO, digest_of(b""), "name", ONE, action]
        assert await store.has(asked) == [3, None, 0, 0, 3, None]
        assert redis.lines() == [[
            f"STRLEN {ONE}", f"STRLEN {TWO}", "STRLEN ~name", "EXISTS ~name", f"STRLEN {key_text(action)}",
            f"EXISTS {key_text(action)}",
        ]]
        assert counted(store) == {"lookups": 4}
        assert await store.has([digest_of(b"")]) == [0]
        assert redis.lines() == []


async def test_where_values_expire_each_look_and_each_read_makes_them_live_as_long_again(redis: Redis) -> None:
    async with running(redis, key_ttl_s=90) as store:
        assert store.traits.tracks_use
        await store.put(ONE, b"one")
        await store.put("name", b"value")
        assert redis.trips == [[(b"SET", b"cas/" + str(ONE).encode(), b"one", b"EX", b"90")],
                               [(b"SET", b"cas/~name", b"value", b"EX", b"90")]]
        redis.trips.clear()
        await store.has([ONE, "name"])
        assert await store.get(ONE) == b"one"
        assert await store.get("name") == b"value"
        assert await read(store, ONE, offset=1) == b"ne"
        assert await read(store, ONE, offset=3) == b""
        use = f"EXPIRE {ONE} 90"
        assert redis.lines() == [
            [f"STRLEN {ONE}", use, "STRLEN ~name", "EXISTS ~name", "EXPIRE ~name 90"],
            [f"GETRANGE {ONE} 0 3", use],
            [f"GETRANGE ~name 0 {MAX_WHOLE}", "EXISTS ~name", "EXPIRE ~name 90"],
            [f"GETRANGE {ONE} 1 2", f"STRLEN {ONE}", use],
            [f"STRLEN {ONE}", use],
        ]


async def test_a_value_of_another_size_is_told_once_a_minute_and_one_that_is_missing_is_not(
    redis: Redis, autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(redis) as store:
        assert await store.has([TWO]) == [None]
        assert caplog.records == []
        redis.values[b"cas/" + str(ONE).encode()] = b"on"
        for seconds, lines in ((0, 1), (59, 1), (2, 2)):
            await trio.sleep(seconds)
            assert await store.has([ONE]) == [None]
            with pytest.raises(BlobNotFoundError, match="CAS"):
                await store.get(ONE)
            assert len(caplog.records) == lines
        assert f"{ONE} has 2 bytes: it counts as missing" in caplog.text


# --- reading


async def test_many_values_are_one_trip_and_what_may_not_be_had_whole_is_not_asked_for(redis: Redis) -> None:
    large = Digest("ab" * 32, MAX_WHOLE + 1)
    async with running(redis) as store:
        redis.values[b"cas/" + str(ONE).encode()] = b"one"
        redis.values[b"cas/~exact"] = bytes(MAX_WHOLE)
        redis.values[b"cas/~large"] = bytes(MAX_WHOLE + 1)
        one, two, twice, nothing, too_large = await store.get_many([ONE, TWO, ONE, digest_of(b""), large])
        assert (one, twice, nothing) == (b"one", b"one", b"")
        assert isinstance(two, BlobNotFoundError)
        assert isinstance(too_large, TooLargeError)
        assert redis.lines() == [[f"GETRANGE {ONE} 0 3", f"GETRANGE {TWO} 0 3"]]
        assert await store.get("exact") == bytes(MAX_WHOLE)
        with pytest.raises(TooLargeError, match=str(MAX_WHOLE + 1)):
            await store.get("large")
        assert counted(store) == {"downloads": 4}
        redis.lines()
        names = [ActionKey(f"{number:064x}", 1) for number in range(64)]
        await store.get_many(names)
        assert list(map(len, redis.lines())) == [128], "as many as have room if they are as small as most are"


async def test_a_reader_asks_for_a_mebibyte_at_first_and_then_for_chunks(redis: Redis) -> None:
    data = bytes(range(256)) * 12 * 1024
    digest = digest_of(data)
    async with running(redis, read_chunk_size=512 * 1024) as store:
        redis.values[b"cas/" + str(digest).encode()] = data
        assert await read(store, digest) == data
        halves = [f"GETRANGE {digest} {at} {at + MIB // 2 - 1}" for at in range(MIB, 3 * MIB, MIB // 2)]
        assert redis.lines() == [[f"GETRANGE {digest} 0 {MIB - 1}", f"STRLEN {digest}"], *([each] for each in halves)]
        assert await read(store, digest, offset=MIB, length=MIB + 5) == data[MIB : 2 * MIB + 5]
        assert redis.lines() == [
            [f"GETRANGE {digest} {MIB} {2 * MIB - 1}", f"STRLEN {digest}"],
            [f"GETRANGE {digest} {2 * MIB} {2 * MIB + 4}"],
        ]
        redis.values[b"cas/~name"] = data[:MIB]
        assert await read(store, "name", offset=5, length=7) == data[5:12]
        assert redis.lines() == [[f"GETRANGE ~name 0 {MIB}", "EXISTS ~name"]]
        assert counted(store) == {"downloads": 3}


async def test_a_value_that_gets_shorter_while_it_is_read_ends_its_reader(redis: Redis) -> None:
    digest = digest_of(data := bytes(3 * MIB))
    async with running(redis, read_chunk_size=512 * 1024) as store:
        redis.values[b"cas/" + str(digest).encode()] = data
        async with store.open(digest) as reader:
            redis.values[b"cas/" + str(digest).encode()] = data[: MIB + 1000]
            assert sum(map(len, await reader.receive_parts(MIB))) == MIB
            with pytest.raises(UnavailableError, match=f"{digest} left the server while it was being read"):
                await reader.receive_parts()


# --- writing


async def test_uploads_of_up_to_a_mebibyte_are_one_command_and_many_are_one_trip(redis: Redis) -> None:
    blobs = [(digest_of(data), data) for data in (b"one", bytes(MIB), b"two")]
    wrong = Digest("ab" * 32, 4)
    async with running(redis) as store:
        one, nothing, failed, two = await store.put_many([blobs[0], (digest_of(b""), b""), (wrong, b"one"), blobs[2]])
        assert (one, nothing, two) == (None, None, None)
        assert isinstance(failed, UploadMismatchError)
        await store.put(*blobs[1])
        assert redis.lines() == [[f"SET {ONE}", f"SET {TWO}"], [f"SET {blobs[1][0]}"]]
        assert counted(store) == {"uploads": 3, "bytes_uploaded": MIB + 6}
        redis.refusals[b"SET"] = [Exception("OOM"), Exception("NOPERM")]
        for retryable in (None, False):
            with pytest.raises(Exception, match="store CAS: peer:6379 says") as caught:
                await store.put(ONE, b"one")
            assert retryable is None or caught.value.retryable is retryable  # type: ignore[attr-defined]
        assert counted(store)["uploads"] == 3
        assert counted(store)["failed"] == 2


async def test_an_upload_of_the_wrong_size_is_refused_before_it_is_read(redis: Redis) -> None:
    async with running(redis) as store:
        reader = PartsReader([b"one"])
        with pytest.raises(UploadMismatchError, match="the upload has 3 bytes, its digest says 4"):
            await store.write(Digest("ab" * 32, 4), reader)
        assert reader.calls == 0
        await store.write(ONE, PartsReader([b"one"], size=-1))
        await store.write("name", PartsReader([b"value"], size=-1))
        await store.write(digest_of(b""), PartsReader([]))
        with pytest.raises(UploadMismatchError):
            await store.write(digest_of(b""), PartsReader([b"x"], size=-1))
        assert redis.lines() == [[f"SET {ONE}"], ["SET ~name"]]
        assert counted(store) == {"uploads": 2, "bytes_uploaded": 8}


@pytest.mark.parametrize("size", [3, 3 * MIB])
async def test_a_cancelled_upload_or_deletion_waits_for_the_end_of_its_request(
    redis: Redis, size: int, autojump_clock: object
) -> None:
    """What its caller does next comes after it."""
    key = digest_of(data := bytes(size))
    async with running(redis) as store, trio.open_nursery() as nursery:
        for change in (
            lambda: store.put(key, data), lambda: store.write(key, PartsReader([data])), lambda: store.delete([key])
        ):
            redis.held = trio.Event()
            began = trio.current_time()
            with trio.move_on_after(1) as scope:
                nursery.start_soon(_after, 4, redis.held)
                await change()
            assert scope.cancelled_caught
            assert trio.current_time() - began == pytest.approx(4)


async def test_an_upload_that_is_given_up_is_deleted_when_its_last_chunk_has_ended_and_not_before(redis: Redis) -> None:
    """Over another connection the deletion could overtake it."""
    data = bytes(3 * MIB)
    async with running(redis) as store:
        redis.held = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.write, digest_of(data), PartsReader([data]))
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await trio.testing.wait_all_tasks_blocked()
            assert [trip[0][0] for trip in redis.trips] == [b"MULTI"]
            redis.held.set()
        assert [trip[0][0] for trip in redis.trips] == [b"MULTI", b"UNLINK"]
        assert len(redis.trips[1][0]) == 3, "the value and its mark"


async def _after(seconds: float, event: trio.Event) -> None:
    await trio.sleep(seconds)
    event.set()


async def test_what_is_deleted_is_one_trip_and_a_failure_is_told(redis: Redis) -> None:
    async with running(redis) as store:
        await store.delete([ONE, "name", ONE, digest_of(b"")])
        assert redis.lines() == [[f"UNLINK {ONE}", "UNLINK ~name"]]
        redis.refusals[b"UNLINK"] = [Exception("NOPERM this user")]
        with pytest.raises(UnavailableError, match=r"store CAS: .*NOPERM"):
            await store.delete([ONE, TWO])
        assert store.capability(Deletes) is store.capability(BlobSizeLimit) is store
        assert store.capability(Scans) is store.capability(Removals) is None


async def test_of_two_values_for_one_key_in_a_batch_only_the_last_is_sent_and_both_are_told_of_it(redis: Redis) -> None:
    action = ActionKey("ab" * 32, 5)
    batch = [(action, b"older"), (ONE, b"one"), (action, b"newer")]
    async with running(redis) as store:
        assert await store.put_many(batch) == [None, None, None]
        assert redis.lines() == [[f"SET {key_text(action)}", f"SET {ONE}"]]
        assert await store.get(action) == b"newer"
        assert counted(store) == {"uploads": 2, "bytes_uploaded": 8, "downloads": 1}
        redis.refusals[b"SET"] = [Exception("OOM")]
        first, one, last = await store.put_many(batch)
        assert isinstance(first, ExhaustedError)
        assert (one, last) == (None, first)


# --- the server


async def test_a_server_that_is_away_is_looked_for_every_five_seconds_until_it_is_there(
    redis: Redis, autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    redis.away = True
    redis.info = redis.info.replace(b"noeviction", b"allkeys-lru")
    async with running(redis) as store:
        assert "the store CAS starts without its server: away" in caplog.text
        assert not store.traits.tracks_use
        for _ in range(3):
            looked = int(store.statistics()["failed"])
            await trio.sleep(5)
            assert looked == 0
        redis.away = False
        assert redis.trips == []
        await trio.sleep(5)
        assert redis.lines() == [["PING"], ["INFO"]]
        assert "the store CAS has reached its server" in caplog.text
        assert store.traits.tracks_use, "it has been asked what it is"
        await trio.sleep(100)
        assert redis.lines() == []


async def test_a_server_that_turns_out_to_refuse_us_is_told_once(
    redis: Redis, autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    redis.away = True
    async with running(redis):
        redis.away = False
        redis.refusals[b"PING"] = [Exception("NOAUTH Authentication required.")]
        await trio.sleep(11)
        assert redis.lines() == [["PING"]]
        assert "the store CAS can be reached, and cannot be used: peer:6379 says: NOAUTH" in caplog.text


async def test_a_server_that_turns_out_to_be_of_the_wrong_kind_is_told_once(
    redis: Redis, autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    redis.away = True
    redis.info = b"redis_mode:cluster\r\n"
    async with running(redis):
        redis.away = False
        await trio.sleep(11)
        assert redis.lines() == [["PING"], ["INFO"]]
        assert 'cannot be used: the server is part of a cluster; expected mode "cluster"' in caplog.text


@pytest.mark.parametrize(("mode", "refused"), [("standalone", ""), ("cluster", "cluster"), ("sentinel", "sentinel")])
async def test_the_start_finds_out_what_the_server_is(redis: Redis, mode: str, refused: str) -> None:
    redis.info = b"# Server\r\nredis_mode:%b\r\n\r\n# Memory\r\nmaxmemory_policy:allkeys-lru\r\n" % mode.encode()
    if not refused:
        async with running(redis) as store:
            assert store.traits.tracks_use
        return
    problem = f'the server is part of a {mode}; expected mode "{mode}"'
    with pytest.raises(ConfigError, match=problem) as caught, trio.fail_after(30):
        await RedisStore(options(), BareContext()).run()
    assert caught.value.path == "mode"


@pytest.mark.parametrize("tracked", [True, False])
async def test_use_is_tracked_where_all_servers_of_a_cluster_evict_by_it(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch, tracked: bool
) -> None:
    slots = [[0, 8000, [b"a", 1, b"id"]], [8001, 16383, [b"b", 2, b"id"]]]
    servers = {"a": Redis(nursery), "b": Redis(nursery)}
    for name, server in servers.items():
        server.refusals[b"CLUSTER"] = [slots] * 9
        policy = "allkeys-lru" if tracked or name == "a" else "volatile-lru"
        server.info = f"redis_mode:cluster\r\nmaxmemory_policy:{policy}\r\n".encode()

    async def dial(address: Address, **how: Any) -> Connection:
        if address.host not in servers:
            raise TransientError("nobody is there")
        return await servers[address.host].dial(address, **how)

    monkeypatch.setattr(topology, "dial", dial)
    seeds = ("redis://absent", "rediss://a")
    async with started(RedisStore(options(addresses=seeds, mode="cluster"), BareContext())) as store:
        assert store.traits.tracks_use == tracked


async def test_who_may_not_ask_what_the_server_is_may_use_it(redis: Redis) -> None:
    redis.refusals[b"INFO"] = [Exception("NOPERM this user has no permissions to run the 'info' command")]
    async with running(redis) as store:
        assert store.traits == Traits(authoritative=True, tracks_use=False)
        await store.put(ONE, b"one")


async def test_health_is_one_ping_and_no_answer_in_its_time_is_unavailable(
    redis: Redis, autojump_clock: object
) -> None:
    async with running(redis, health_check_timeout_ms=1500, command_timeout_ms=20_000, retry=ONCE) as store:
        await store.check()
        assert redis.lines() == [["PING"]]
        redis.refusals[b"PING"] = [Exception("LOADING")]
        with pytest.raises(UnavailableError, match=r"store CAS: .*LOADING"):
            await store.check()
        redis.refusals[b"PING"] = [SILENCE]
        began = trio.current_time()
        with pytest.raises(UnavailableError, match=r"store CAS: no answer to PING within 1\.5 s"):
            await store.check()
        assert trio.current_time() - began == pytest.approx(1.5)
        redis.refusals[b"STRLEN"] = [SILENCE, SILENCE]
        await trio.sleep(100)
        began = trio.current_time()
        with pytest.raises(UnavailableError, match="did not answer within 20 s"):
            await store.has([ONE])
        assert trio.current_time() - began == pytest.approx(40), "two attempts"


async def test_connections_and_calls_at_once_are_as_many_as_the_config_says(redis: Redis) -> None:
    for more, connections, waiting in (
        ({}, 3, 0), ({"connection_pool_size": 2, "max_client_permits": 4}, 2, 3),
        ({"connection_pool_size": 0, "max_client_permits": 0}, 3, 0),
    ):
        redis.held.set()
        async with running(redis, connection_timeout_ms=700, **more) as store:
            redis.held = trio.Event()
            async with trio.open_nursery() as nursery:
                for _ in range(7):
                    nursery.start_soon(store.has, [ONE])
                    await trio.testing.wait_all_tasks_blocked()
                statistics = store.statistics()
                assert (statistics["connections"], statistics["calls_waiting"]) == (connections, waiting)
                redis.held.set()
    assert redis.timeouts == {0.7}
