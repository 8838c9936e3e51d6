"""What the options of `grpc` become: defaults, endpoints, a channel, the credentials of each."""

from __future__ import annotations

import ssl
import time
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from nl.config.workers import ClientTlsOptions
from nl.stores.grpc import GrpcEndpoint, GrpcOptions
from nl.stores.grpc.endpoints import Endpoints
from nl.testing import started
from tests.support.grpc_stores import grpc_store

ONE, TWO = GrpcEndpoint(address="grpc://127.0.0.1:1"), GrpcEndpoint(address="grpc://127.0.0.1:2")


def endpoints(*given: GrpcEndpoint, max_message_size: int = 7_000_000, **more: object) -> Endpoints:
    options = GrpcOptions(endpoints=given, store_type="cas", **more)  # type: ignore[arg-type]
    return Endpoints(options, "REMOTE", max_message_size=max_message_size)


def test_what_the_config_does_not_say_is_what_the_reference_says() -> None:
    options = GrpcOptions(endpoints=(ONE,), store_type="cas")
    assert (options.instance_name, options.max_concurrent_requests, options.connections_per_endpoint) == ("", 0, 1)
    assert (options.rpc_timeout_s, options.use_legacy_resource_names) == (120, False)
    assert (options.headers, options.forward_headers) == ({}, ())
    assert not options.experimental_remote_cache_compression
    retry, batching = options.retry, options.experimental_read_batching
    assert (retry.max_retries, retry.delay, retry.jitter) == (5, 0.1, 0.5)
    assert (batching.max_blob_size_bytes, batching.max_batch_bytes) == (128 * 1024, 3 * 1024 * 1024)
    assert (batching.dispatch_slots, batching.max_queued_bytes) == (4, 32 * 1024 * 1024)
    assert (ONE.compression, ONE.concurrency_limit, ONE.connect_timeout_s) == ("none", None, 30)
    assert (ONE.tcp_keepalive_s, ONE.http2_keepalive_interval_s, ONE.http2_keepalive_timeout_s) == (30, 30, 20)


async def test_each_endpoint_is_reached_as_its_options_say() -> None:
    given = GrpcEndpoint(
        address="grpc://127.0.0.1:1", compression="gzip", token=" t0ken \n", concurrency_limit=11, connect_timeout_s=12,
        tcp_keepalive_s=13, http2_keepalive_interval_s=14, http2_keepalive_timeout_s=15,
    )  # fmt: skip
    channel = await endpoints(given, TWO, connections_per_endpoint=6).start()
    one, two = channel._origins
    assert (one.name, one.tls, one.options.send_compression) == ("127.0.0.1:1", None, "gzip")
    assert one.with_credentials([]) == [(b"authorization", b"Bearer t0ken")]
    assert (one.options.max_streams, one.options.connect_timeout, one.options.tcp_keepalive) == (11, 12, 13)
    assert (one.options.keepalive_interval, one.options.keepalive_timeout) == (14, 15)
    assert (two.options.send_compression, two.with_credentials([])) == (None, [])
    options = channel.options
    assert (options.max_message_size, options.connections, options.balancing) == (7_000_000, 6, "round_robin")
    assert options.backoff_max == 5.0
    alone = await endpoints(ONE).start()
    assert (alone.options.connections, alone.options.balancing) == (1, "pick_first")


@pytest.mark.parametrize(("address", "tls", "secure"), [
    ("grpc://127.0.0.1:1", None, False), ("grpc://127.0.0.1:1", ClientTlsOptions(), True),
    ("grpcs://127.0.0.1:1", None, True), ("grpcs://127.0.0.1:1", ClientTlsOptions(use_native_roots=True), True),
])  # fmt: skip
async def test_tls_is_used_where_address_or_config_want_it(
    address: str, tls: ClientTlsOptions | None, secure: bool
) -> None:
    channel = await endpoints(GrpcEndpoint(address=address, tls_config=tls)).start()
    context = channel._origins[0].tls
    assert isinstance(context, ssl.SSLContext) is secure
    if isinstance(context, ssl.SSLContext):
        assert context.verify_mode is ssl.CERT_REQUIRED and context.check_hostname


async def test_a_token_of_a_file_is_its_first_line_and_may_be_long(tmp_path: Path) -> None:
    file = tmp_path / "token"
    for token in ("t0ken", "x" * 16_000):
        file.write_text(f"  {token} \nand more")
        given = endpoints(GrpcEndpoint(address="grpc://127.0.0.1:1", token_file=str(file)), ONE)
        channel = await given.start()
        assert channel._origins[0].with_credentials([]) == [(b"authorization", f"Bearer {token}".encode())]
        assert given.secrets() == [token]


async def test_a_token_that_is_replaced_in_its_file_is_the_one_that_is_sent(tmp_path: Path, mock_clock: Any) -> None:
    other, file = tmp_path / "other", tmp_path / "token"
    other.write_text("another")
    file.write_text("one")
    given = endpoints(*(
        GrpcEndpoint(address=f"grpc://127.0.0.1:{port}", token_file=str(path)) for port, path in ((1, other), (2, file))
    ))
    (_, origin) = (await given.start())._origins
    async with trio.open_nursery() as nursery:
        nursery.start_soon(given.run)
        await wait_all_tasks_blocked()
        file.write_text("the-second")
        until = time.monotonic() + 60
        while origin.with_credentials([]) != [(b"authorization", b"Bearer the-second")]:
            assert time.monotonic() < until
            mock_clock.jump(20)
            await trio.to_thread.run_sync(time.sleep, 0.005)
        nursery.cancel_scope.cancel()


def test_secrets_are_the_tokens_and_what_stands_in_headers_also_word_by_word() -> None:
    given = endpoints(
        GrpcEndpoint(address="grpc://127.0.0.1:1", token="t0ken"), TWO,
        headers={"authorization": "Basic dXNlcg==", "x-key": "key"},
    )  # fmt: skip
    assert set(given.secrets()) == {"t0ken", "Basic dXNlcg==", "Basic", "dXNlcg==", "key"}


@pytest.mark.parametrize(("kind", "size"), [("cas", 4 * 1024 * 1024), ("ac", 16 * 1024 * 1024)])
async def test_messages_are_as_large_as_what_a_peer_sends_by_default_or_an_action_result(kind: str, size: int) -> None:
    async with started(grpc_store(1, kind=kind)) as store:
        channel = store._remote._channel
        assert channel.options.max_message_size == size + 64 * 1024
