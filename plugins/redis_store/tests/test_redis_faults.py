"""Servers that go away, lose what they had, are full, refuse: nothing acknowledged is lost, nothing wrong is served."""

from __future__ import annotations

import logging
import resource
from collections.abc import Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
from redis_support import (  # noqa: F401
    PERSISTENT,
    RedisServer,
    cluster,
    new_prefix,
    options_for,
    redis,
    redis_cluster,
    redis_server,
)

from nl.plugin import (
    CHUNK,
    ActionKey,
    BlobNotFoundError,
    BlobSizeLimit,
    BytesReader,
    ConfigError,
    Digest,
    ExhaustedError,
    Reader,
    RetryOptions,
    SecretText,
    Store,
    TooLargeError,
    UnavailableError,
    digest_of,
    key_text,
)
from nl.testing import BareContext, BlockingReader, HalfwayReader, PartsReader, drain, make_blob, read, split, started
from nl_redis_store import RedisStore

MIB = 1024 * 1024
PATIENT = RetryOptions(max_retries=11, delay=0.02, jitter=0.5)
"""80 s in all; pauses double."""
NEVER = RetryOptions()


@asynccontextmanager
async def running(*urls: str, **options: object):
    async with started(RedisStore(options_for(*urls, **options), context := BareContext()), context) as store:
        yield store


@pytest.fixture
def own(tmp_path: Path) -> Iterator[RedisServer]:
    """A server of the test's own, that forgets nothing it has acknowledged."""
    with redis_server(tmp_path / "redis", *PERSISTENT) as server:
        yield server


def restart(server: RedisServer) -> None:
    server.kill()
    server.start()


# ------------------------------------------------------------------------------------------------ killed and restarted


async def test_an_upload_goes_on_after_a_restart_of_a_server_that_keeps_what_it_has(own: RedisServer) -> None:
    digest = digest_of(data := make_blob(5 * MIB))
    async with running(own.url, retry=PATIENT) as store:
        await store.write(digest, HalfwayReader(data, partial(restart, own), piece=100_000, once=True))
        assert await read(store, digest) == data
    assert set(own.all_keys()) == {key_text(digest), *(key for key in own.all_keys() if key.endswith(":mark"))}


async def test_an_upload_begins_again_when_the_server_has_forgotten_it(tmp_path: Path) -> None:
    digest = digest_of(data := make_blob(5 * MIB))
    with redis_server(tmp_path / "redis") as server:
        async with running(server.url, retry=PATIENT) as store:
            reader = HalfwayReader(data, partial(restart, server), piece=100_000)
            await store.write(digest, reader)
            assert reader.rewound == 1
            assert await read(store, digest) == data


async def test_an_upload_that_cannot_begin_again_fails_and_is_not_there_with_a_hole(tmp_path: Path) -> None:
    digest, action = digest_of(data := make_blob(5 * MIB)), ActionKey("ab" * 32, 5)
    with redis_server(tmp_path / "redis") as server:
        async with running(server.url, retry=PATIENT) as store:
            for key in (digest, action):
                for size in (-1, len(data)) if key is action else (len(data),):
                    reader = HalfwayReader(data, partial(restart, server), piece=100_000, once=True)
                    reader.size = size
                    with pytest.raises(UnavailableError, match="lost") as caught:
                        await store.write(key, reader)
                    assert caught.value.retryable
                    assert await store.has([key]) == [None]
                    assert not server.all_keys()


@pytest.mark.parametrize("what", ["value", "mark", "both"])
async def test_an_upload_of_which_redis_evicts_something_is_never_seen(redis: RedisServer, what: str) -> None:  # noqa: F811
    digest = digest_of(data := make_blob(5 * MIB))
    prefix = new_prefix()

    def evict() -> None:
        for key in redis.all_keys():
            if key.startswith(prefix) and (what == "both" or key.endswith(":mark") == (what == "mark")):
                redis.cli("DEL", key)

    async with running(redis.url, key_prefix=prefix) as store:
        with pytest.raises(UnavailableError, match="lost"):
            await store.write(digest, HalfwayReader(data, evict, piece=100_000, once=True))
        assert await store.has([digest]) == [None]
        reader = HalfwayReader(data, evict, piece=100_000)
        await store.write(digest, reader)
        assert reader.rewound == 1
        assert await read(store, digest) == data


async def test_a_download_goes_on_after_a_restart(own: RedisServer) -> None:
    digest = digest_of(data := make_blob(5 * MIB))
    async with running(own.url, retry=PATIENT) as store:
        await store.write(digest, BytesReader(data))
        async with store.open(digest, offset=5) as reader:
            first = b"".join(map(bytes, await reader.receive_parts(1000)))
            restart(own)
            assert first + await drain(reader, taken=len(first)) == data[5:]


async def test_a_download_of_what_leaves_the_server_ends_with_an_error(redis: RedisServer) -> None:  # noqa: F811
    digest = digest_of(data := make_blob(5 * MIB))
    async with running(redis.url, key_prefix=new_prefix()) as store:
        await store.write(digest, BytesReader(data))
        async with store.open(digest) as reader:
            await reader.receive_parts(1000)
            await store.delete([digest])
            with pytest.raises(UnavailableError, match="left the server"):
                await drain(reader, taken=1000)


async def test_nothing_acknowledged_is_lost_while_a_server_is_killed_again_and_again(own: RedisServer) -> None:
    blobs = {digest_of(data): data for number in range(60) for data in [make_blob(3000 + number * 40_000)]}
    there: list[Digest] = []
    async with running(own.url, retry=PATIENT) as store:

        async def upload(mine: list[Digest]) -> None:
            for digest in mine:
                await store.write(digest, BytesReader(blobs[digest]))
                there.append(digest)
                for other in there[-2:]:
                    assert await read(store, other) == blobs[other]

        async with trio.open_nursery() as nursery:
            digests = list(blobs)
            for number in range(4):
                nursery.start_soon(upload, digests[number::4])
            for count in (8, 20, 32, 44):
                while len(there) < count:  # noqa: ASYNC110  the server is killed while uploads go on
                    await trio.sleep(0.005)
                own.kill()
                await trio.sleep(0.05)
                own.start()
        assert await store.has(digests) == [digest.size for digest in digests]
        for digest, data in blobs.items():
            assert await read(store, digest) == data
        assert int(store.statistics()["retries"]) > 0


async def test_an_idle_connection_that_the_server_has_ended_costs_no_retry(redis: RedisServer) -> None:  # noqa: F811
    digest = digest_of(b"here")
    async with running(redis.url, key_prefix=new_prefix(), retry=NEVER, connection_pool_size=1) as store:
        await store.put(digest, b"here")
        redis.cli("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        assert await store.get(digest) == b"here"


async def test_a_server_that_is_away_is_unavailable_until_it_is_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    digest = digest_of(b"here")
    with redis_server(tmp_path / "redis") as server:
        server.kill()
        async with running(server.url, retry=RetryOptions(max_retries=2, delay=0.01)) as store:
            assert "starts without its server" in caplog.text
            for ask in (lambda: store.has([digest]), lambda: store.get(digest), lambda: store.put(digest, b"here"),
                        store.check, lambda: read(store, digest), lambda: store.write(digest, BytesReader(b"here"))):
                with pytest.raises(UnavailableError, match="Connection refused") as caught:
                    await ask()
                assert caught.value.retryable
            assert isinstance((await store.get_many([digest]))[0], UnavailableError)
            assert isinstance((await store.put_many([(digest, b"here")]))[0], UnavailableError)
            server.start()
            await store.put(digest, b"here")
            assert await store.get(digest) == b"here"
            await store.check()


async def test_a_server_that_does_not_answer_is_unavailable_and_harms_nothing(own: RedisServer) -> None:
    digest = digest_of(b"here")
    async with running(own.url, retry=NEVER, command_timeout_ms=200, health_check_timeout_ms=200) as store:
        await store.put(digest, b"here")
        with stopped(own):
            with pytest.raises(UnavailableError, match="did not answer within"):
                await store.get(digest)
            with pytest.raises(UnavailableError):
                await store.check()
        assert await store.get(digest) == b"here"


class stopped:
    """The process does nothing while the block lasts."""

    def __init__(self, server: RedisServer) -> None:
        self._server = server

    def __enter__(self) -> None:
        self._server.signal("STOP")

    def __exit__(self, *_: object) -> None:
        self._server.signal("CONT")


# -------------------------------------------------------------------------------------------------------- cancellation


async def test_cancelled_readers_neither_break_connections_nor_mix_up_replies(redis: RedisServer) -> None:  # noqa: F811
    blobs = [make_blob(1000 + number) for number in range(50)]
    async with running(redis.url, key_prefix=new_prefix(), connection_pool_size=1, retry=NEVER) as store:
        await store.put_many([(digest_of(blob), blob) for blob in blobs])
        for number in range(200):
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(store.get, digest_of(blobs[number % 50]))
                    for _ in range(number % 4):
                        await trio.lowlevel.checkpoint()
                    scope.cancel()
            blob = blobs[(number * 7) % 50]
            assert await store.get(digest_of(blob)) == blob
        assert redis.cli("INFO", "clients")
        assert store.statistics()["connections"] == 1


async def test_a_cancelled_put_stores_what_it_was_given_or_nothing(redis: RedisServer) -> None:  # noqa: F811
    async with running(redis.url, key_prefix=new_prefix()) as store:
        for number in range(30):
            data = make_blob(900_000, seed=number)
            digest = digest_of(data)
            buffer = bytearray(data)
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(store.put, digest, buffer)
                    for _ in range(number % 6):
                        await trio.lowlevel.checkpoint()
                    scope.cancel()
            buffer[:] = bytes(len(buffer))
            (size,) = await store.has([digest])
            assert size in (None, len(data))
            if size is not None:
                assert await store.get(digest) == data


async def test_what_a_crash_leaves_expires(own: RedisServer) -> None:
    digest = digest_of(data := make_blob(5 * MIB))
    context = BareContext()
    store = RedisStore(options_for(own.url, retry=NEVER), context)
    async with started(store, context):
        reader = BlockingReader(split(data[: 4 * MIB], 100_000), rest=data[4 * MIB :])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.write, digest, reader)
            await reader.blocked.wait()
            left = own.all_keys()
            own.kill()
            nursery.cancel_scope.cancel()
        own.start()
        assert own.all_keys() == left
        assert len(left) == 2
        for key in left:
            assert 0 < int(own.cli("TTL", key)) <= 3600
            assert key_text(digest) in key


# ------------------------------------------------------------------------------------------------- what is refused


async def test_a_full_server_is_exhausted_and_keeps_what_it_has(tmp_path: Path) -> None:
    with redis_server(tmp_path / "redis", "--maxmemory", "12mb", "--maxmemory-policy", "noeviction") as server:
        async with running(server.url) as store:
            first = digest_of(data := make_blob(MIB))
            await store.put(first, data)
            for size in (900_000, 3 * MIB):
                with pytest.raises(ExhaustedError) as caught:
                    await fill(store, size)
                assert not isinstance(caught.value, TooLargeError)
                assert not [key for key in server.all_keys() if ":temp:" in key and not key.endswith(":mark")]
            (failed,) = await store.put_many([(digest_of(blob := make_blob(MIB, seed=99)), blob)])
            assert isinstance(failed, ExhaustedError)
            assert await store.get(first) == data
            await store.delete([first])


async def fill(store: Store, size: int) -> None:
    """Uploads more than 12 MiB."""
    for number in range(30):
        blob = make_blob(size, seed=number)
        await store.write(digest_of(blob), PartsReader(split(blob, 100_000)))


async def test_what_is_larger_than_a_value_may_be_is_refused_before_it_is_sent(redis: RedisServer) -> None:  # noqa: F811
    async with running(redis.url, key_prefix=(prefix := new_prefix()), max_blob_bytes=3 * MIB) as store:
        limit = store.capability(BlobSizeLimit)
        assert limit is not None
        assert limit.max_blob_bytes() == 3 * MIB
        for key, size in ((digest_of(make_blob(4 * MIB)), None), ("name", None), ("name", -1)):
            with pytest.raises(TooLargeError):
                await store.write(key, PartsReader(split(make_blob(4 * MIB), 100_000), size=size))
        with pytest.raises(TooLargeError):
            await store.put("name", make_blob(4 * MIB))
        assert not [key for key in redis.all_keys() if key.startswith(prefix)]


async def test_what_the_server_finds_too_large_is_too_large(tmp_path: Path) -> None:
    with redis_server(tmp_path / "redis", "--proto-max-bulk-len", "2mb") as server:
        async with running(server.url) as store:
            digest = digest_of(data := make_blob(5 * MIB))
            with pytest.raises(TooLargeError):
                await store.write(digest, PartsReader(split(data, 100_000)))
            assert await store.has([digest]) == [None]


SECRET = "hunter2-is-secret"


@pytest.mark.parametrize("url", ["redis://:wrong-{}@{}", "redis://someone:{}@{}", "redis://{1}"], ids=str)
async def test_a_wrong_password_ends_the_start_in_one_line_and_is_nowhere_told(
    tmp_path: Path, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with redis_server(tmp_path / "redis", "--requirepass", SECRET) as server:
        options = options_for(SecretText(url.format(SECRET, f"127.0.0.1:{server.port}")))
        with pytest.raises(ConfigError) as caught:
            await fail_to_start(options)
    assert caught.value.path == "addresses"
    assert f"127.0.0.1:{server.port}" in str(caught.value)
    for text in (str(caught.value), caplog.text, repr(options), repr(options.servers())):
        assert SECRET not in text
        assert "\n" not in str(caught.value)


async def test_the_right_password_opens_and_one_that_changes_is_told_without_a_retry(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    digest = digest_of(b"here")
    with redis_server(tmp_path / "redis", "--requirepass", SECRET) as server:
        async with running(f"redis://default:{SECRET}@127.0.0.1:{server.port}/2", retry=PATIENT) as store:
            await store.put(digest, b"here")
            assert server.cli("-n", "2", "STRLEN", key_text(digest), login=("-a", SECRET, "--no-auth-warning")) == "4"
            server.cli("CONFIG", "SET", "requirepass", "another", login=("-a", SECRET, "--no-auth-warning"))
            server.cli("CLIENT", "KILL", "TYPE", "normal", login=("-a", "another", "--no-auth-warning"))
            with pytest.raises(UnavailableError, match="WRONGPASS") as caught:
                await store.get(digest)
            assert not caught.value.retryable
            assert store.statistics()["retries"] == 0
    assert "WRONGPASS" in caplog.text
    assert SECRET not in caplog.text


async def fail_to_start(options: object) -> None:
    """Runs a store without the nursery that would wrap its error."""
    with trio.fail_after(30):
        await RedisStore(options, BareContext()).run()  # type: ignore[arg-type]


@pytest.mark.parametrize(("url", "path", "said"), [
    ("redis://127.0.0.1:{}/99", "addresses", "DB index is out of range"),
    ("redis+sentinel://127.0.0.1:{}", "mode", "SENTINEL"),
])
async def test_the_wrong_kind_of_server_ends_the_start_in_one_line(
    redis: RedisServer, url: str, path: str, said: str  # noqa: F811
) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        await fail_to_start(options_for(url.format(redis.port)))
    assert caught.value.path == path


async def test_a_cluster_is_told_from_a_single_server(redis: RedisServer, cluster) -> None:  # noqa: F811
    with pytest.raises(ConfigError, match='expected mode "cluster"') as caught:
        await fail_to_start(options_for(cluster.urls[0]))
    assert caught.value.path == "mode"
    with pytest.raises(ConfigError, match="cluster support disabled") as caught:
        await fail_to_start(options_for(redis.url, mode="cluster"))
    assert caught.value.path == "mode"


async def test_a_host_without_a_name_does_not_keep_the_store_from_starting(caplog: pytest.LogCaptureFixture) -> None:
    async with running("redis://nobody.invalid", retry=NEVER) as store:
        with pytest.raises(UnavailableError, match=r"cannot connect to nobody\.invalid:6379"):
            await store.has([digest_of(b"x")])
    assert "starts without its server" in caplog.text


# --------------------------------------------------------------------------------------------------- sizes and sharing


class Endless(Reader):
    """`size` bytes that take no memory, as often as asked."""

    def __init__(self, size: int) -> None:
        self.size = self._left = size
        self._piece = make_blob(CHUNK)

    async def receive_parts(self, max_bytes: int = CHUNK):
        count = min(self._left, max_bytes, CHUNK)
        self._left -= count
        return [memoryview(self._piece)[:count]] if count else ()


async def test_values_of_64_mib_pass_in_bounded_memory(redis: RedisServer) -> None:  # noqa: F811
    size = 64 * MIB
    key, name = Digest("ab" * 32, size), "large"
    async with running(redis.url, key_prefix=(prefix := new_prefix())) as store:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for each in (key, name):
            await store.write(each, Endless(size))
            assert await store.has([each]) == [size]
            for offset in (0, 33 * MIB + 17):
                left, piece = size - offset, make_blob(CHUNK)
                async with store.open(each, offset=offset) as reader:
                    assert reader.size == left
                    while parts := await reader.receive_parts():
                        for part in parts:
                            at = (size - left) % CHUNK
                            assert bytes(part) == (piece + piece)[at : at + len(part)]
                            left -= len(part)
                assert left == 0
            await store.delete([each])
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
        assert grown < 24, f"{grown} MiB"
    assert not [key for key in redis.all_keys() if key.startswith(prefix) and not key.endswith(":mark")]


async def test_a_large_value_that_is_replaced_is_read_as_it_was(redis: RedisServer) -> None:  # noqa: F811
    old, new = make_blob(3 * MIB, seed=1), make_blob(3 * MIB, seed=2)
    async with running(redis.url, key_prefix=new_prefix()) as store:
        await store.put("name", old)
        async with store.open("name", offset=7) as reader:
            first = b"".join(map(bytes, await reader.receive_parts(1000)))
            await store.put("name", new)
            assert first + await drain(reader, taken=len(first)) == old[7:]
        assert await read(store, "name") == new
        assert await store.get("name") == new


async def test_two_stores_share_a_server_and_two_prefixes_do_not(redis: RedisServer) -> None:  # noqa: F811
    digest = digest_of(data := make_blob(2 * MIB))
    prefix = new_prefix()
    async with running(redis.url, key_prefix=prefix) as one, running(redis.url, key_prefix=prefix) as other:
        await one.write(digest, PartsReader(split(data, 100_000)))
        assert await other.has([digest]) == [len(data)]
        assert await read(other, digest) == data
        await other.delete([digest])
        assert await one.has([digest]) == [None]
        await one.put(digest, data)
        async with running(redis.url, key_prefix=new_prefix()) as stranger:
            with pytest.raises(BlobNotFoundError):
                await stranger.get(digest)


async def test_a_value_as_nativelink_has_written_it_is_found(redis: RedisServer) -> None:  # noqa: F811
    digest, prefix = digest_of(b"theirs"), new_prefix()
    redis.cli("SET", f"{prefix}{digest.hash}-{digest.size}", "theirs")
    async with running(redis.url, key_prefix=prefix) as store:
        assert await store.get(digest) == b"theirs"


async def test_a_value_of_the_wrong_size_counts_as_missing_and_an_upload_mends_it(redis: RedisServer) -> None:  # noqa: F811
    digest, prefix = digest_of(b"right"), new_prefix()
    async with running(redis.url, key_prefix=prefix) as store:
        for wrong in ("rig", "right and more"):
            redis.cli("SET", prefix + key_text(digest), wrong)
            assert await store.has([digest]) == [None]
            for ask in (store.get(digest), read(store, digest), read(store, digest, offset=5)):
                with pytest.raises(BlobNotFoundError):
                    await ask
        await store.put(digest, b"right")
        assert await read(store, digest) == b"right"


# --------------------------------------------------------------------------------------------------------------- use


USES: dict[str, Callable[[Store, Digest], object]] = {
    "has": lambda store, digest: store.has([digest]),
    "touch": lambda store, digest: store.touch([digest]),
    "get": lambda store, digest: store.get(digest),
    "open": lambda store, digest: read(store, digest, length=3),
    "put": lambda store, digest: store.put(digest, make_blob(digest.size)),
    "write": lambda store, digest: store.write(digest, PartsReader(split(make_blob(digest.size), 100_000))),
}


@pytest.mark.parametrize(("older", "newer"), [(9, 5), (2 * MIB, 5), (5, 2 * MIB), (3 * MIB, 2 * MIB)])
async def test_of_two_values_for_one_key_the_last_is_there(redis: RedisServer, older: int, newer: int) -> None:  # noqa: F811
    key = ActionKey("ab" * 32, 5)
    async with running(redis.url, key_prefix=new_prefix()) as store:
        assert await store.put_many([(key, make_blob(older, seed=1)), (key, make_blob(newer, seed=2))]) == [None, None]
        assert await store.get(key) == make_blob(newer, seed=2)


@pytest.mark.parametrize("use", USES)
async def test_a_use_makes_a_value_live_longer(redis: RedisServer, use: str) -> None:  # noqa: F811
    async with running(redis.url, key_prefix=(prefix := new_prefix()), key_ttl_s=1000) as store:
        assert store.traits.tracks_use
        for size in (1000, 3 * MIB):
            digest = digest_of(data := make_blob(size))
            await store.write(digest, PartsReader(split(data, 100_000)))
            name = prefix + key_text(digest)
            assert 990 <= int(redis.cli("TTL", name)) <= 1000
            redis.cli("EXPIRE", name, "100")
            if use == "get" and size > MIB:
                continue
            await USES[use](store, digest)  # type: ignore[misc]
            assert 990 <= int(redis.cli("TTL", name)) <= 1000


@pytest.mark.parametrize(("policy", "tracked"), [("allkeys-lru", True), ("volatile-lru", False), ("noeviction", False)])
async def test_use_is_tracked_where_the_server_says_that_it_evicts_by_it(
    tmp_path: Path, policy: str, tracked: bool
) -> None:
    with redis_server(tmp_path / "redis", "--maxmemory-policy", policy) as server:
        async with running(server.url) as store:
            assert store.traits.tracks_use == tracked
            await store.put(digest_of(b"lives"), b"lives")
            assert server.cli("TTL", key_text(digest_of(b"lives"))) == "-1"
