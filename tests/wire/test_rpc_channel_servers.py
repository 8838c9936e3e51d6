"""Our channel against grpcio's servers: several, killed and started again, silent, draining, behind TLS."""
# ruff: noqa: SIM117  # nested blocks say which ends first

import socket
import ssl
import subprocess
import sys
from concurrent import futures
from contextlib import asynccontextmanager, contextmanager

import grpc
import pytest
import trio
import trustme
from grpclib.const import Cardinality, Status
from grpclib.exceptions import GRPCError

from nl.rpc.call_context import calling
from nl.rpc.channel import Channel
from nl.rpc.errors import NotProcessed
from nl.rpc.options import ChannelOptions
from nl.rpc.origin import Endpoint
from nl.rpc.retry import RetryPolicy
from nl.rpc.tls import client_context
from tests.support.names import Names
from tests.support.processes import ROOT, free_port
from tests.wire.grpcio_server import build

SAFE = frozenset({"/t.S/Who", "/t.S/Slow", "/t.S/Flaky"})


async def call(channel, name="Who", message=b"", **kwargs):
    async with channel.request(f"/t.S/{name}", Cardinality.UNARY_UNARY, bytes, bytes, **kwargs) as stream:
        await stream.send_message(message, end=True)
        return await stream.recv_message()


class Process:
    """A grpcio server that can be killed and started again on its port."""

    def __init__(self, name, host="127.0.0.1", port=0):
        self.name, self.host, self.port = name, host, port
        self.process = None

    def start(self):
        command = [sys.executable, "-m", "tests.wire.grpcio_server", self.name, str(self.port), self.host]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
        self.port = int(self.process.stdout.readline())

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture
def process():
    every = []

    def make(name, *args, **kwargs):
        one = Process(name, *args, **kwargs)
        one.start()
        every.append(one)
        return one

    yield make
    for each in every:
        if each.process.poll() is None:
            each.kill()


@contextmanager
def in_process(handlers, *, secure=None, address="127.0.0.1:0", **kwargs):
    """A grpcio server in this process; its port."""
    pool = futures.ThreadPoolExecutor(8)
    server = grpc.server(pool, **kwargs)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.S", handlers),))
    port = server.add_secure_port(address, secure) if secure else server.add_insecure_port(address)
    server.start()
    try:
        yield port
    finally:
        server.stop(None).wait()
        pool.shutdown()


def unary(function):
    return grpc.unary_unary_rpc_method_handler(function)


@pytest.fixture
async def two_addresses():
    """`both.example` is 127.0.0.2 and 127.0.0.1, in this order; `one.example` is 127.0.0.2."""
    trio.socket.set_custom_hostname_resolver(
        Names(both_example=["127.0.0.2", "127.0.0.1"], one_example=["127.0.0.2"])
    )


@asynccontextmanager
async def black_hole(host, port):
    """An address that answers no SYN: a listener whose queue is full."""
    with socket.socket() as listener:
        listener.bind((host, port))
        listener.listen(0)
        fillers = []
        try:
            for _ in range(8):
                filler = socket.socket()
                filler.setblocking(False)
                filler.connect_ex((host, listener.getsockname()[1]))
                fillers.append(filler)
            await trio.sleep(0.05)
            yield listener.getsockname()[1]
        finally:
            for filler in fillers:
                filler.close()


# -- one server ----------------------------------------------------------------------------------------------------


async def test_a_server_killed_and_started_again_under_load_costs_safe_calls_nothing(process):
    server = process("a")
    policy = RetryPolicy(max_retries=200, delay=0.1, max_delay=0.5, methods=SAFE)  # starting takes Python its time
    options = ChannelOptions(retry=policy, backoff_max=0.5)
    answers = []

    async def load(channel):
        while not over:
            answers.append(await call(channel, "Slow", timeout=120))

    over = False
    async with Channel(f"127.0.0.1:{server.port}", options=options) as channel:
        with trio.fail_after(240):
            async with trio.open_nursery() as nursery:
                for _ in range(20):
                    nursery.start_soon(load, channel)
                while len(answers) < 40:
                    await trio.sleep(0.05)
                for _ in range(2):
                    await trio.to_thread.run_sync(server.kill)
                    await trio.to_thread.run_sync(server.start)
                    enough = len(answers) + 40
                    while len(answers) < enough:
                        await trio.sleep(0.05)
                over = True
        assert set(answers) == {b"a"}
        assert channel.statistics().retries >= 20


async def test_calls_that_may_not_run_twice_fail_with_their_connection_and_are_not_sent_again(process):
    server = process("a")
    options = ChannelOptions(retry=RetryPolicy(max_retries=8, delay=0.1))
    async with Channel(f"127.0.0.1:{server.port}", options=options) as channel:
        assert await call(channel) == b"a"
        with pytest.raises(GRPCError) as caught:
            async with channel.request("/t.S/Slow", Cardinality.UNARY_UNARY, bytes, bytes) as stream:
                await stream.send_message(b"", end=True)
                await trio.sleep(0.05)
                await trio.to_thread.run_sync(server.kill)
                await stream.recv_message()
        assert caught.value.status is Status.UNAVAILABLE
        assert not isinstance(caught.value, NotProcessed)
        assert channel.statistics().retries == 0


async def test_a_call_waits_for_a_server_that_comes_later(process):
    port = free_port()
    async with Channel(f"127.0.0.1:{port}", options=ChannelOptions(backoff_max=0.3)) as channel:
        with pytest.raises(NotProcessed):
            await call(channel)
        got = []
        async with trio.open_nursery() as nursery:

            async def patient():
                got.append(await call(channel, wait_for_ready=True, timeout=120))

            for _ in range(3):
                nursery.start_soon(patient)
            await trio.sleep(0.3)
            assert not got
            await trio.to_thread.run_sync(lambda: process("late", port=port))
        assert got == [b"late"] * 3


async def test_waiting_for_a_server_ends_with_the_deadline():
    async with Channel(f"127.0.0.1:{free_port()}", options=ChannelOptions(wait_for_ready=True)) as channel:
        with trio.fail_after(10), pytest.raises(GRPCError) as caught:
            await call(channel, timeout=0.4)
    assert caught.value.status is Status.DEADLINE_EXCEEDED


async def test_connections_that_a_server_ends_for_their_age_cost_no_call():
    age = [("grpc.max_connection_age_ms", 150), ("grpc.max_connection_age_grace_ms", 5000)]
    options = ChannelOptions(retry=RetryPolicy(max_retries=3, delay=0.01))  # only what was not processed
    with in_process({"Who": unary(lambda request, context: b"aged")}, options=age) as port:
        async with Channel(f"127.0.0.1:{port}", options=options) as channel:
            with trio.move_on_after(1.5):
                while True:
                    assert await call(channel) == b"aged"
            assert channel.statistics().addresses[f"127.0.0.1:{port}"].attempts >= 4


async def test_a_unix_socket(tmp_path):
    path = tmp_path / "s"
    with in_process({"Who": unary(lambda request, context: context.peer().encode())}, address=f"unix:{path}"):
        async with Channel(f"unix:{path}") as channel:
            assert (await call(channel)).startswith(b"unix:")
            assert channel.statistics().addresses[f"unix:{path}"].calls == 1


@pytest.mark.skipif(not socket.has_ipv6, reason="needs IPv6")
@pytest.mark.parametrize("form", ["[::1]:{}", "grpc://[::1]:{}", "dns:[::1]:{}"])
async def test_ipv6(form):
    with in_process({"Who": unary(lambda request, context: b"six")}, address="[::1]:0") as port:
        async with Channel(form.format(port)) as channel:
            assert await call(channel) == b"six"


# -- several addresses ---------------------------------------------------------------------------------------------


async def test_a_black_holed_first_address_costs_a_bounded_delay(process, two_addresses):
    server = process("alive")
    async with black_hole("127.0.0.2", server.port):
        options = ChannelOptions(head_start=0.2)
        async with Channel(f"both.example:{server.port}", options=options) as channel:
            began = trio.current_time()
            assert await call(channel) == b"alive"
            assert trio.current_time() - began < 3  # the kernel alone would try for two minutes
            addresses = channel.statistics().addresses
            assert {text: each.connections for text, each in addresses.items()} == {
                f"127.0.0.2:{server.port}": 0,
                f"127.0.0.1:{server.port}": 1,
            }


async def test_a_first_address_that_takes_connections_and_says_nothing_is_passed_over(process, two_addresses):
    server = process("alive")
    with socket.socket() as silent:
        silent.bind(("127.0.0.2", server.port))
        silent.listen(100)
        async with Channel(f"both.example:{server.port}", options=ChannelOptions(head_start=0.2)) as channel:
            with trio.fail_after(5):
                assert await call(channel) == b"alive"


async def test_a_black_hole_alone_is_given_up_after_the_time_limit(two_addresses):
    async with black_hole("127.0.0.2", 0) as port:
        async with Channel(f"one.example:{port}", options=ChannelOptions(connect_timeout=0.4)) as channel:
            with trio.fail_after(5), pytest.raises(NotProcessed, match="no answer within 0.4 s"):
                await call(channel)


async def test_pick_first_moves_to_the_second_address_when_the_first_one_dies(process, two_addresses):
    second = process("second")
    first = process("first", "127.0.0.2", second.port)
    async with Channel(f"both.example:{second.port}") as channel:
        assert [await call(channel) for _ in range(4)] == [b"first"] * 4
        await trio.to_thread.run_sync(first.kill)
        with trio.fail_after(10):
            while True:
                try:
                    assert await call(channel) == b"second"
                    break
                except GRPCError as exc:
                    assert exc.status is Status.UNAVAILABLE


async def test_round_robin_takes_all_that_answer_in_turns(process):
    a, b = process("a"), process("b")
    dead = free_port()
    endpoints = [Endpoint(f"127.0.0.1:{port}") for port in (a.port, b.port, dead)]
    options = ChannelOptions(balancing="round_robin", backoff_max=0.5, wait_for_ready=True)
    async with Channel(endpoints, options=options) as channel:
        with trio.fail_after(20):
            while channel.statistics().connections < 2:
                await call(channel)
        answers = [await call(channel) for _ in range(20)]
        assert answers.count(b"a") == answers.count(b"b") == 10
        await trio.to_thread.run_sync(a.kill)
        while channel.statistics().connections > 1:
            await trio.sleep(0.01)
        assert [await call(channel) for _ in range(10)] == [b"b"] * 10
        await trio.to_thread.run_sync(a.start)
        with trio.fail_after(20):
            while await call(channel) != b"a":
                await trio.sleep(0.01)
        assert channel.statistics().addresses[f"127.0.0.1:{dead}"].failures >= 1


async def test_round_robin_fails_only_when_every_address_has(process):
    ports = [free_port(), free_port()]
    endpoints = [Endpoint(f"127.0.0.1:{port}") for port in ports]
    async with Channel(endpoints, options=ChannelOptions(balancing="round_robin")) as channel:
        with pytest.raises(NotProcessed) as caught:
            await call(channel)
        assert all(f"127.0.0.1:{port}: Connection refused" in caught.value.message for port in ports)


async def test_a_name_that_moves_is_followed(process, two_addresses):
    new = process("new")
    old = process("old", "127.0.0.2", new.port)
    names = Names(moving_example=["127.0.0.2"])
    trio.socket.set_custom_hostname_resolver(names)
    options = ChannelOptions(balancing="round_robin", resolve_interval=0.1)
    async with Channel(f"moving.example:{new.port}", options=options) as channel:
        assert await call(channel) == b"old"
        names.names["moving.example"] = ["127.0.0.1"]
        with trio.fail_after(20):
            while await call(channel) != b"new":
                await trio.sleep(0.05)
            while channel.statistics().connections > 1:  # the old one is left when its calls are over
                await trio.sleep(0.05)
        assert old.process.poll() is None


@pytest.mark.parametrize("first", ["is lost", "never answered"])
async def test_names_are_looked_up_again_when_connections_fail(process, two_addresses, monkeypatch, first):
    monkeypatch.setattr("nl.rpc.pool._MIN_RESOLVE_S", 0.1)
    new = process("new")
    names = Names(moving_example=["127.0.0.2"])
    trio.socket.set_custom_hostname_resolver(names)
    options = ChannelOptions(resolve_interval=None, backoff_max=0.2)
    async with Channel(f"moving.example:{new.port}", options=options) as channel:
        if first == "is lost":
            old = process("old", "127.0.0.2", new.port)
            assert await call(channel) == b"old"
            await trio.to_thread.run_sync(old.kill)
        else:
            with pytest.raises(NotProcessed):
                await call(channel)
        names.names["moving.example"] = ["127.0.0.1"]
        with trio.fail_after(20):
            while channel.statistics().connections:
                await trio.sleep(0.01)
            assert await call(channel, wait_for_ready=True) == b"new"


async def test_several_connections_share_the_calls(process):
    server = process("a")
    async with Channel(f"127.0.0.1:{server.port}", options=ChannelOptions(connections=3)) as channel:
        while channel.statistics().connections < 3:
            await call(channel)
        async with trio.open_nursery() as nursery:
            for _ in range(9):
                nursery.start_soon(call, channel, "Slow")
            await trio.sleep(0.1)
            busy = sorted(connection.taken for connection in channel._pool.connections)
        assert busy == [3, 3, 3]


# -- calls ---------------------------------------------------------------------------------------------------------


class Flaky:
    """Fails `times` times with `code`, then answers with what it was told about earlier attempts."""

    def __init__(self, times, code=grpc.StatusCode.UNAVAILABLE, pushback=None):
        self.times, self.code, self.pushback = times, code, pushback
        self.calls = []

    def __call__(self, request, context):
        self.calls.append(dict(context.invocation_metadata()).get("grpc-previous-rpc-attempts"))
        if len(self.calls) <= self.times:
            if self.pushback is not None:
                context.set_trailing_metadata([("grpc-retry-pushback-ms", self.pushback)])
            context.abort(self.code, f"not yet {len(self.calls)}")
        return request


@pytest.mark.parametrize(
    ("flaky", "policy", "calls", "ends"),
    [
        (Flaky(2), RetryPolicy(max_retries=3, delay=0.01, methods=SAFE), 3, None),
        (Flaky(9), RetryPolicy(max_retries=3, delay=0.01, methods=SAFE), 4, Status.UNAVAILABLE),
        (Flaky(2), RetryPolicy(max_retries=3, delay=0.01), 1, Status.UNAVAILABLE),
        (Flaky(2, grpc.StatusCode.INTERNAL), RetryPolicy(max_retries=3, delay=0.01, methods=SAFE), 1, Status.INTERNAL),
        (Flaky(1, pushback="-1"), RetryPolicy(max_retries=3, delay=0.01, methods=SAFE), 1, Status.UNAVAILABLE),
        (Flaky(1, pushback="10"), RetryPolicy(max_retries=3, delay=99, methods=SAFE), 2, None),
        (Flaky(9), RetryPolicy(max_retries=9, delay=60, methods=SAFE), 1, Status.UNAVAILABLE),  # beyond the deadline
        (Flaky(9), None, 1, Status.UNAVAILABLE),
    ],
)
async def test_the_server_counts_the_retries(flaky, policy, calls, ends):
    flaky = Flaky(flaky.times, flaky.code, flaky.pushback)
    with in_process({"Flaky": unary(flaky)}) as port:
        async with Channel(f"127.0.0.1:{port}", options=ChannelOptions(retry=policy)) as channel:
            with trio.fail_after(15):
                if ends is None:
                    assert await call(channel, "Flaky", b"x" * 100_000, timeout=10) == b"x" * 100_000
                else:
                    with pytest.raises(GRPCError) as caught:
                        await call(channel, "Flaky", b"x", timeout=10)
                    assert caught.value.status is ends
                    assert caught.value.message == f"not yet {calls}"
    assert flaky.calls == [None, *map(str, range(1, calls))]


async def test_an_answer_that_has_begun_is_never_asked_for_again():
    calls = []

    def repeat(request, context):
        calls.append(request)
        yield b"one"
        context.abort(grpc.StatusCode.UNAVAILABLE, "in the middle")

    policy = RetryPolicy(max_retries=3, delay=0.01, methods=frozenset({"/t.S/Repeat"}))
    with in_process({"Repeat": grpc.unary_stream_rpc_method_handler(repeat)}) as port:
        async with Channel(f"127.0.0.1:{port}", options=ChannelOptions(retry=policy)) as channel:
            got = []
            with pytest.raises(GRPCError, match="in the middle"):
                async with channel.request("/t.S/Repeat", Cardinality.UNARY_STREAM, bytes, bytes) as stream:
                    await stream.send_message(b"", end=True)
                    async for message in stream:
                        got.append(message)
    assert (got, len(calls)) == ([b"one"], 1)


async def test_a_stream_of_requests_is_not_sent_again_but_waits_for_a_connection():
    calls = []

    def total(requests, context):
        calls.append(list(requests))
        context.abort(grpc.StatusCode.UNAVAILABLE, "no")

    policy = RetryPolicy(max_retries=3, delay=0.01, methods=frozenset({"/t.S/Total"}))
    with in_process({"Total": grpc.stream_unary_rpc_method_handler(total)}) as port:
        async with Channel(f"127.0.0.1:{port}", options=ChannelOptions(retry=policy)) as channel:
            with pytest.raises(GRPCError):
                async with channel.request("/t.S/Total", Cardinality.STREAM_UNARY, bytes, bytes) as stream:
                    await stream.send_message(b"a")
                    await stream.send_message(b"b", end=True)
                    await stream.recv_message()
    assert calls == [[b"a", b"b"]]


async def test_deadlines_of_the_call_of_the_options_and_of_the_context():
    def left(request, context):
        return b"%d" % round(context.time_remaining()) if context.time_remaining() < 1e6 else b"none"

    with in_process({"Left": unary(left)}) as port:
        async with Channel(f"127.0.0.1:{port}", options=ChannelOptions(call_timeout=50)) as channel:
            assert await call(channel, "Left") == b"50"
            assert await call(channel, "Left", timeout=100) == b"100"
            with calling(timeout=20):
                assert await call(channel, "Left", timeout=100) == b"20"
                assert await call(channel, "Left", timeout=10) == b"10"
        async with Channel(f"127.0.0.1:{port}") as channel:
            assert await call(channel, "Left") == b"none"


async def test_the_context_goes_along():
    def told(request, context):
        return repr(sorted(tuple(each) for each in context.invocation_metadata() if each[0] != "user-agent")).encode()

    with in_process({"Told": unary(told)}) as port:
        async with Channel(f"127.0.0.1:{port}") as channel:
            with calling(headers={"x-a": "1", "x-b-bin": b"\xff"}, token="secret", trace="00-1-2-01"):
                got = await call(channel, "Told", metadata={"x-a": "own"})
    expected = [
        ("authorization", "Bearer secret"), ("traceparent", "00-1-2-01"), ("x-a", "own"), ("x-b-bin", b"\xff")
    ]
    assert got == repr(expected).encode()


@pytest.mark.parametrize("size", [0, 10, 100_000, 3_000_000])
async def test_gzip_in_both_directions(size):
    server = build(b"a", compression=grpc.Compression.Gzip)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        async with Channel([Endpoint(f"127.0.0.1:{port}", compression="gzip")]) as channel:
            assert await call(channel, "Echo", b"z" * size) == b"z" * size
    finally:
        await trio.to_thread.run_sync(lambda: server.stop(None).wait())


# -- TLS -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    folder = tmp_path_factory.mktemp("certificates")
    ca = trustme.CA()
    ca.cert_pem.write_to_path(folder / "ca.pem")
    for name, identity in (("server", "cas.example.com"), ("client", "worker@example.com")):
        cert = ca.issue_cert(identity)
        cert.private_key_pem.write_to_path(folder / f"{name}.key")
        (folder / f"{name}.pem").write_bytes(b"".join(blob.bytes() for blob in cert.cert_chain_pems))
    return folder


@contextmanager
def tls_server(folder):
    read = lambda name: (folder / name).read_bytes()  # noqa: E731
    pair = ((read("server.key"), read("server.pem")),)
    secure = grpc.ssl_server_credentials(pair, root_certificates=read("ca.pem"), require_client_auth=True)

    def who(request, context):
        return b" ".join(context.auth_context()["x509_subject_alternative_name"])

    with in_process({"Who": unary(who)}, secure=secure) as port:
        yield port


def tls(folder, *, client=True):
    return client_context(
        ca_file=str(folder / "ca.pem"),
        cert_file=str(folder / "client.pem") if client else None,
        key_file=str(folder / "client.key") if client else None,
    )


@pytest.mark.parametrize("authority", ["cas.example.com", "cas.example.com:443"])
async def test_a_server_sees_the_clients_certificate_whatever_form_the_authority_has(certificates, authority):
    with tls_server(certificates) as port:
        options = ChannelOptions(authority=authority)
        async with Channel(f"grpcs://127.0.0.1:{port}", tls=tls(certificates), options=options) as channel:
            assert await call(channel) == b"worker@example.com"


async def test_a_client_without_a_certificate_is_turned_away(certificates):
    with tls_server(certificates) as port:
        endpoint = Endpoint(f"127.0.0.1:{port}", tls(certificates, client=False), authority="cas.example.com")
        async with Channel([endpoint]) as channel:
            with trio.fail_after(10), pytest.raises(GRPCError) as caught:
                await call(channel)
    assert caught.value.status is Status.UNAVAILABLE


async def test_a_certificate_for_another_name_is_not_accepted_and_told_so(certificates):
    with tls_server(certificates) as port:
        options = ChannelOptions(authority="other.example.com")
        async with Channel(f"127.0.0.1:{port}", tls=tls(certificates), options=options) as channel:
            with pytest.raises(NotProcessed, match="certificate not accepted"):
                await call(channel)


@pytest.mark.parametrize("authority", [".example.com", "a..b", "x" * 64 + ".example"])
def test_a_name_that_no_certificate_can_have_is_refused_before_anything_is_opened(certificates, authority):
    with pytest.raises(ValueError, match="cannot be the name of a server"):
        Channel("127.0.0.1:1", tls=tls(certificates), options=ChannelOptions(authority=authority))


async def test_grpcs_alone_means_tls_with_the_systems_authorities(certificates):
    with tls_server(certificates) as port:
        async with Channel(f"grpcs://localhost:{port}") as channel:
            with pytest.raises(NotProcessed, match="certificate not accepted"):
                await call(channel)


async def test_a_server_that_speaks_no_h2_is_named_as_such(certificates):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "server.pem", certificates / "server.key")
    context.set_alpn_protocols(["http/1.1"])
    ours = tls(certificates)
    ours.set_alpn_protocols(["h2", "http/1.1"])

    async def handle(stream):
        with pytest.raises((trio.BrokenResourceError, trio.ClosedResourceError)):
            while True:
                await stream.receive_some(100)

    async with trio.open_nursery() as nursery:
        [listener] = await trio.open_ssl_over_tcp_listeners(0, context, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, handle, [listener])
        port = listener.transport_listener.socket.getsockname()[1]
        options = ChannelOptions(authority="cas.example.com")
        async with Channel(f"127.0.0.1:{port}", tls=ours, options=options) as channel:
            with pytest.raises(NotProcessed, match="http/1.1"):
                await call(channel)
        nursery.cancel_scope.cancel()
