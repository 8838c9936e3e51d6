"""Where servers are: sentinels and clusters that fail over, slots that move, TLS, socket files."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import trio
import trustme
from redis_support import (  # noqa: F401
    RedisCluster,
    RedisServer,
    cluster,
    new_prefix,
    options_for,
    redis_cluster,
    redis_server,
)

from nl.plugin import ActionKey, BytesReader, ConfigError, Digest, RetryOptions, UnavailableError, digest_of, key_text
from nl.testing import BareContext, find, make_blob, read, started
from nl_redis_store import RedisStore
from nl_redis_store.addresses import slot_of

MIB = 1024 * 1024
PATIENT = RetryOptions(max_retries=11, delay=0.02, jitter=0.5, retry_on_errors=None)


def store_on(*urls: str, **options: object):
    context = BareContext()
    return started(RedisStore(options_for(*urls, **{"retry": PATIENT, **options}), context), context)


def wait_until(true: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not true():
        assert time.monotonic() < until
        time.sleep(0.1)


# ----------------------------------------------------------------------------------------------------------- sentinels


@contextmanager
def sentinel(folder: Path, master: RedisServer) -> Iterator[RedisServer]:
    folder.mkdir()
    config = folder / "sentinel.conf"
    config.write_text(
        f"sentinel monitor builds 127.0.0.1 {master.port} 1\nsentinel down-after-milliseconds builds 500\n"
        "sentinel failover-timeout builds 2000\n"
    )
    server = RedisServer(folder, "--sentinel", command=("redis-server", str(config)))
    server.start()
    try:
        yield server
    finally:
        server.kill()


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[tuple[RedisServer, RedisServer, RedisServer]]:
    """A master, its replica, and a sentinel that knows both as "builds"."""
    with ExitStack() as stack:
        master = stack.enter_context(redis_server(tmp_path / "master"))
        replica = stack.enter_context(redis_server(tmp_path / "replica", "--replicaof", f"127.0.0.1 {master.port}"))
        watcher = stack.enter_context(sentinel(tmp_path / "sentinel", master))
        wait_until(lambda: "slaves=1" in watcher.cli("INFO", "sentinel"))
        wait_until(lambda: "master_link_status:up" in replica.cli("INFO", "replication"))
        yield master, replica, watcher


async def test_a_store_follows_the_master_that_sentinels_name(
    watched: tuple[RedisServer, RedisServer, RedisServer]
) -> None:
    master, replica, watcher = watched
    digest, other = digest_of(data := make_blob(3 * MIB)), digest_of(b"after")
    silent = "redis+sentinel://127.0.0.1:1/0?sentinelServiceName=builds"
    url = f"redis+sentinel://127.0.0.1:{watcher.port}/0?sentinelServiceName=builds"
    async with store_on(silent, url, mode="sentinel") as store:
        await store.write(digest, BytesReader(data))
        wait_until(lambda: replica.cli("EXISTS", key_text(digest)) == "1")
        master.kill()
        await store.put(other, b"after")
        assert await read(store, digest) == data
        await store.check()
        assert replica.cli("GET", key_text(other)) == "after"


async def test_a_master_that_is_demoted_is_left(watched: tuple[RedisServer, RedisServer, RedisServer]) -> None:
    master, replica, watcher = watched
    url = f"redis+sentinel://127.0.0.1:{watcher.port}/0?sentinelServiceName=builds"
    async with store_on(url) as store:
        await store.put("first", b"1")
        wait_until(lambda: replica.cli("EXISTS", key_text("first")) == "1")
        wait_until(lambda: watcher.cli("SENTINEL", "FAILOVER", "builds") == "OK")  # once it knows the replica
        wait_until(lambda: "role:slave" in master.cli("INFO", "replication"))
        await store.put("second", b"2")
        assert await find(store, "first") == b"1"
        assert replica.cli("GET", key_text("second")) == "2"


async def test_a_master_that_no_sentinel_knows_ends_the_start(
    watched: tuple[RedisServer, RedisServer, RedisServer]
) -> None:
    url = f"redis+sentinel://127.0.0.1:{watched[2].port}"
    with pytest.raises(ConfigError, match='knows no master called "master"'), trio.fail_after(30):
        await RedisStore(options_for(url, mode="sentinel"), BareContext()).run()


# ------------------------------------------------------------------------------------------------------------- cluster


async def test_keys_are_on_all_masters_and_many_are_a_trip_to_each(cluster: RedisCluster) -> None:  # noqa: F811
    blobs = [(digest_of(data), data) for number in range(300) for data in [b"%d" % number]]
    prefix = new_prefix()
    async with store_on(*cluster.urls, mode="cluster", key_prefix=prefix) as store:
        before = int(store.statistics()["trips"])
        assert await store.put_many(blobs) == [None] * 300
        assert await store.has([digest for digest, _ in blobs]) == [digest.size for digest, _ in blobs]
        assert await store.get_many([digest for digest, _ in blobs]) == [data for _, data in blobs]
        assert int(store.statistics()["trips"]) - before == 9
        for server in cluster.servers:
            assert 50 < sum(prefix in key for key in server.cli("--scan").splitlines()) < 150
        await store.check()


@pytest.mark.parametrize("prefix", ["{cas}:", "a{b}c/"])
async def test_a_prefix_with_a_hash_tag_keeps_everything_in_one_slot(cluster: RedisCluster, prefix: str) -> None:  # noqa: F811
    digest = digest_of(data := make_blob(3 * MIB))
    async with store_on(*cluster.urls, mode="cluster", key_prefix=prefix) as store:
        await store.write(digest, BytesReader(data))
        await store.put("name", data)
        assert await read(store, digest) == await read(store, "name") == data
        holding = [server for server in cluster.servers if any(prefix in key for key in server.cli("--scan").split())]
        assert len(holding) == 1
        await store.delete([digest, "name"])


def test_slots_are_those_of_the_servers(cluster: RedisCluster) -> None:  # noqa: F811
    for key in ("", "123456789", "{user1000}.following", "foo{}{bar}", "foo{{bar}}zap", "foo{bar}{zap}", "a{b"):
        assert slot_of(key.encode()) == int(cluster.servers[0].cli("CLUSTER", "KEYSLOT", key)), key


def node_ids(servers: list[RedisServer]) -> dict[RedisServer, str]:
    return {server: server.cli("CLUSTER", "MYID") for server in servers}


async def test_a_slot_that_moves_is_followed_while_it_moves_and_afterwards(tmp_path: Path) -> None:
    with redis_cluster(tmp_path / "cluster") as own:
        digest, fresh = digest_of(b"moves"), digest_of(b"arrives meanwhile")
        async with store_on(*own.urls, mode="cluster", key_prefix="{tag}") as store:
            await store.put(digest, b"moves")
            slot = str(slot_of(b"{tag}"))
            ids = node_ids(own.servers)
            source = next(server for server in own.servers if server.cli("--scan"))
            target = next(server for server in own.servers if server is not source)
            target.cli("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[source])
            source.cli("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[target])
            assert await find(store, digest) == b"moves"
            await store.put(fresh, b"arrives meanwhile")
            assert target.cli("--scan") == f"{{tag}}{key_text(fresh)}"
            source.cli("MIGRATE", "127.0.0.1", str(target.port), f"{{tag}}{key_text(digest)}", "0", "5000")
            assert await find(store, digest) == b"moves"
            assert await find(store, fresh) == b"arrives meanwhile"
            for server in own.servers:
                server.cli("CLUSTER", "SETSLOT", slot, "NODE", ids[target])
            assert await store.get_many([digest, fresh]) == [b"moves", b"arrives meanwhile"]
            large = digest_of(data := make_blob(3 * MIB))
            await store.write(large, BytesReader(data))
            assert await read(store, large) == data
            assert store.statistics()["retries"] == 0


async def test_a_cluster_that_fails_over_loses_nothing_that_was_replicated(tmp_path: Path) -> None:
    blobs: dict[Digest, bytes] = {digest_of(data): data for number in range(60) for data in [b"%d" % number]}
    with redis_cluster(tmp_path / "cluster", replicas=1) as own:
        urls = [server.url for server in own.servers]
        async with store_on(*urls, mode="cluster", connection_timeout_ms=500) as store:
            assert await store.put_many(list(blobs.items())) == [None] * 60
            victim = next(server for server in own.servers if "role:master" in server.cli("INFO", "replication"))
            wait_until(lambda: sum(int(server.cli("DBSIZE")) for server in own.servers) == 120)
            victim.kill()
            assert await store.has(list(blobs)) == [digest.size for digest in blobs]
            assert await store.get_many(list(blobs)) == list(blobs.values())
            more = {ActionKey(*digest): data for digest, data in blobs.items()}
            assert await store.put_many(list(more.items())) == [None] * 60
            assert await store.get_many(list(more)) == list(more.values())
            await store.check()


async def test_what_has_no_master_is_unavailable_and_the_rest_is_there(tmp_path: Path) -> None:
    settings = ("--cluster-require-full-coverage", "no")
    blobs = [(digest_of(data), data) for number in range(60) for data in [b"%d" % number]]
    with redis_cluster(tmp_path / "cluster", settings=settings) as own:
        quick = RetryOptions(max_retries=1, delay=0.01)
        async with store_on(*(s.url for s in own.servers), mode="cluster", retry=quick) as store:
            assert await store.put_many(blobs) == [None] * 60
            own.servers[0].kill()
            found = await store.get_many([digest for digest, _ in blobs])
            lost = [each for each in found if isinstance(each, UnavailableError)]
            assert 5 < len(lost) < 40
            assert all(each == data for each, (_, data) in zip(found, blobs, strict=True) if each not in lost)
            with pytest.raises(UnavailableError):
                await store.check()


# --------------------------------------------------------------------------------------------------- ways to a server


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def test_tls_verifies_the_server(tmp_path: Path, authority: trustme.CA) -> None:
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    certificate.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "stranger.pem"))
    (tmp_path / "empty.pem").write_text("nothing")
    digest = digest_of(data := make_blob(3 * MIB))

    async def use(port: int) -> None:
        url = f"rediss://127.0.0.1:{port}"
        async with store_on(url, root_certificates=str(tmp_path / "ca.pem")) as store:
            await store.write(digest, BytesReader(data))
            assert await read(store, digest) == data
        for file, said in (("stranger.pem", "certificate"), ("absent.pem", "no file"), ("empty.pem", "certificate")):
            with pytest.raises(ConfigError, match=said) as caught, trio.fail_after(30):
                await RedisStore(options_for(url, root_certificates=str(tmp_path / file)), BareContext()).run()
            assert caught.value.path == "root_certificates"

    with redis_server(
        tmp_path / "redis", "--port", "0", "--tls-auth-clients", "no", "--tls-cert-file", str(tmp_path / "cert.pem"),
        "--tls-key-file", str(tmp_path / "key.pem"), "--tls-ca-cert-file", str(tmp_path / "ca.pem"), tls=True,
    ) as server:
        trio.run(use, server.port)


async def test_a_socket_file_is_an_address(tmp_path: Path) -> None:
    digest = digest_of(b"here")
    with redis_server(tmp_path / "redis", "--unixsocket", "s"):
        for url in (f"redis+unix://{tmp_path}/redis/s?db=2", f"unix://{tmp_path}/redis/s?db=2"):
            async with store_on(url) as store:
                await store.put(digest, b"here")
                assert await find(store, digest) == b"here"


async def test_a_certificate_of_another_host_is_refused(tmp_path: Path, authority: trustme.CA) -> None:
    """It is trusted, and says that this is somebody else."""
    certificate = authority.issue_cert("elsewhere.example")
    certificate.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    certificate.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with redis_server(
        tmp_path / "redis", "--port", "0", "--tls-auth-clients", "no", "--tls-cert-file", str(tmp_path / "cert.pem"),
        "--tls-key-file", str(tmp_path / "key.pem"), "--tls-ca-cert-file", str(tmp_path / "ca.pem"), tls=True,
    ) as server:
        options = options_for(f"rediss://127.0.0.1:{server.port}", root_certificates=str(tmp_path / "ca.pem"))
        with pytest.raises(ConfigError, match="certificate") as caught, trio.fail_after(60):
            await RedisStore(options, BareContext()).run()
        assert caught.value.path == "root_certificates"
