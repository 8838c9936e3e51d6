"""Which connections a channel makes, and when, on a clock that jumps: servers in memory that do as they are told."""

import ssl

import pytest
import trio
from grpclib.const import Cardinality, Status
from grpclib.exceptions import GRPCError
from trio.testing import memory_stream_pair, wait_all_tasks_blocked

from nl.rpc import frames as fr
from nl.rpc import hpack
from nl.rpc.channel import Channel
from nl.rpc.errors import NotProcessed
from nl.rpc.options import ChannelOptions
from nl.rpc.origin import Endpoint
from nl.rpc.pool import AddressStatistics, Pool
from nl.rpc.retry import RetryPolicy
from tests.wire.raw_server import RawConnection, trailers


class Place:
    """Somewhere to connect to. Each attempt does what `plan` says next, the last for ever:

    `refuse` fails at once, `slow` after 0.9 s, `hang` never ends, `serve` answers every call, `once` answers one and is
    gone, `gone` greets and is gone, `goaway` greets and says goodbye, `lose` is gone a second after its first request.
    """

    def __init__(self, nursery, *plan, settings=None):
        self.nursery = nursery
        self.plan = list(plan)
        self.settings = settings
        self.times = []
        self.hanging = 0
        self.calls = 0
        self.born = trio.current_time()

    async def __call__(self):
        self.times.append(trio.current_time() - self.born)
        what = self.plan.pop(0) if len(self.plan) > 1 else self.plan[0]
        if what == "slow":
            await trio.sleep(0.9)
        if what in {"refuse", "slow"}:
            raise ConnectionRefusedError(111, "refused")
        if what == "hang":
            self.hanging += 1
            try:
                await trio.sleep_forever()
            finally:
                self.hanging -= 1
        ours, theirs = memory_stream_pair()
        self.nursery.start_soon(self._serve, RawConnection(theirs, len(self.times)), what)
        return ours

    async def _serve(self, connection, what):
        try:
            await connection.greet(self.settings)
            if what == "goaway":
                await connection.send(fr.goaway(0, 0))
            if what == "lose":
                await connection.request()
                await trio.sleep(1)
            while what in {"serve", "once", "goaway"} and (sid := await connection.request()) is not None:
                self.calls += 1
                block = fr.header_frames(hpack.RESPONSE, sid, end_stream=False, max_frame=16384)
                await connection.send(block, fr.frame(fr.DATA, 0, sid, b"\0\0\0\0\2ok"), trailers(sid, 0))
                if what == "once":
                    break
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        await trio.aclose_forcefully(connection.stream)


async def call(channel, **kwargs):
    async with channel.request("/t.S/M", Cardinality.UNARY_UNARY, bytes, bytes, **kwargs) as stream:
        await stream.send_message(b"", end=True)
        return await stream.recv_message()


async def answered(channel):
    """Calls until a server answers: a call that had left when its connection was lost fails, waiting or not."""
    with trio.fail_after(100):
        while True:
            try:
                return await call(channel, wait_for_ready=True)
            except GRPCError as exc:
                assert exc.status is Status.UNAVAILABLE


def options(**kwargs):
    return ChannelOptions(**{"backoff_initial": 1, "backoff_max": 60, "backoff_jitter": 0, **kwargs})


def channel_to(*places, **kwargs):
    return Channel([Endpoint(each) for each in places], options=options(**kwargs))


def gaps(times):
    return [round(after - before) for before, after in zip(times, times[1:], strict=False)]


async def test_pauses_grow_until_a_connection_was_of_use_and_then_begin_anew(autojump_clock, nursery):
    place = Place(nursery, "refuse", "refuse", "refuse", "once", "refuse", "refuse", "serve")
    async with channel_to(place) as channel:
        assert await call(channel, wait_for_ready=True) == b"ok"
        await wait_all_tasks_blocked()
        assert await call(channel, wait_for_ready=True) == b"ok"
    assert gaps(place.times) == [1, 2, 4, 0, 1, 2]


async def test_connections_that_end_before_they_were_of_use_are_failures_that_add_up(autojump_clock, nursery):
    place = Place(nursery, "gone", "gone", "gone", "gone", "serve")
    async with channel_to(place) as channel:
        assert await answered(channel) == b"ok"
    assert gaps(place.times) == [0, 1, 2, 4]  # the first is forgiven: servers restart


async def test_what_was_of_use_has_the_next_loss_forgiven_again(autojump_clock, nursery):
    place = Place(nursery, "gone", "once", "gone", "serve")
    async with channel_to(place) as channel:
        for _ in range(2):
            assert await answered(channel) == b"ok"
            await wait_all_tasks_blocked()
    assert gaps(place.times) == [0, 0, 0]


async def test_a_server_that_greets_and_says_goodbye_is_not_asked_again_at_once(autojump_clock, nursery):
    place = Place(nursery, "goaway")
    async with channel_to(place) as channel:
        with pytest.raises(GRPCError) as caught:
            await call(channel, wait_for_ready=True, timeout=20)
        assert caught.value.status is Status.DEADLINE_EXCEEDED
    assert gaps(place.times) in ([1, 2, 4, 8], [0, 1, 2, 4, 8])


async def test_ten_calls_share_one_attempt_and_its_connection(autojump_clock, nursery):
    place = Place(nursery, "serve")
    async with channel_to(place) as channel, trio.open_nursery() as calls:
        for _ in range(10):
            calls.start_soon(call, channel)
    assert (len(place.times), place.calls) == (1, 10)


async def test_a_call_within_the_pause_fails_with_the_reason_and_without_an_attempt(autojump_clock, nursery):
    place = Place(nursery, "refuse")
    async with channel_to(place) as channel:
        for _ in range(3):
            with pytest.raises(NotProcessed, match="Connection refused"):
                await call(channel)
        assert len(place.times) == 1
        await trio.sleep(1)
        with pytest.raises(NotProcessed):
            await call(channel)
        assert len(place.times) == 2


async def test_an_attempt_ends_when_the_last_call_that_waits_for_it_leaves(autojump_clock, nursery):
    place = Place(nursery, "hang")
    async with channel_to(place) as channel:
        scopes = []

        async def impatient():
            with trio.CancelScope() as scope:
                scopes.append(scope)
                await call(channel)

        nursery.start_soon(impatient)
        nursery.start_soon(impatient)
        await wait_all_tasks_blocked()
        scopes[0].cancel()
        await wait_all_tasks_blocked()
        assert place.hanging == 1
        scopes[1].cancel()
        await wait_all_tasks_blocked()
        assert place.hanging == 0
        assert channel.statistics().waiting == 0


async def test_a_call_fails_once_every_address_has_failed_since_it_came(autojump_clock, nursery):
    hole, dead = Place(nursery, "hang"), Place(nursery, "refuse")
    async with channel_to(hole, dead, balancing="round_robin", connect_timeout=20) as channel:
        began = trio.current_time()
        with pytest.raises(NotProcessed) as caught:
            await call(channel)
        assert trio.current_time() - began == pytest.approx(20, abs=0.1)
        assert "no answer within 20 s" in caught.value.message
        assert "refused" in caught.value.message


async def test_a_call_does_not_wait_for_attempts_that_follow_each_other_without_end(autojump_clock, nursery):
    """One address is always being tried again when the other one fails: each has had its chance all the same."""
    hole, slow = Place(nursery, "hang"), Place(nursery, "slow")
    pauses = {"backoff_initial": 0.05, "backoff_max": 0.05}
    async with channel_to(hole, slow, balancing="round_robin", connect_timeout=20, **pauses) as channel:
        began = trio.current_time()
        with pytest.raises(NotProcessed):
            await call(channel, timeout=100)
        assert trio.current_time() - began == pytest.approx(20, abs=1)


async def test_round_robin_uses_what_answers_while_another_address_hangs(autojump_clock, nursery):
    hole, alive = Place(nursery, "hang"), Place(nursery, "serve")
    async with channel_to(hole, alive, balancing="round_robin") as channel:
        began = trio.current_time()
        assert [await call(channel) for _ in range(5)] == [b"ok"] * 5
        assert trio.current_time() == began
        assert hole.hanging == 1  # still tried, for the calls to come


async def test_a_failed_address_is_tried_again_while_others_answer(autojump_clock, nursery):
    back, alive = Place(nursery, "refuse", "refuse", "serve"), Place(nursery, "serve")
    async with channel_to(back, alive, balancing="round_robin") as channel:
        for _ in range(10):
            assert await call(channel) == b"ok"
            await trio.sleep(0.5)
        assert gaps(back.times) == [1, 2]
        assert back.calls >= 1


async def test_round_robin_passes_over_what_has_no_room(autojump_clock, nursery):
    """One stream for each connection: the second call at once goes to the other, whose turn it is not."""
    a, b = Place(nursery, "serve"), Place(nursery, "serve")
    async with channel_to(a, b, balancing="round_robin", max_streams=1) as channel:
        while channel.statistics().connections < 2:
            await call(channel)
            await trio.sleep(1)
        for _ in range(3):
            busy = channel._pool.pick()
            assert await busy.take_slot()
            with trio.fail_after(1):
                for _ in range(3):
                    assert await call(channel) == b"ok"
            busy.release_slot()


@pytest.mark.parametrize("who", ["the server", "the channel"])
async def test_calls_that_wait_for_a_stream_move_on_when_the_connection_is_lost(autojump_clock, nursery, who):
    theirs, ours = ({fr.Setting.MAX_CONCURRENT_STREAMS: 1}, {}) if who == "the server" else ({}, {"max_streams": 1})
    place = Place(nursery, "lose", "serve", settings=theirs)
    ends = []

    async def one():
        try:
            ends.append(await call(channel))
        except GRPCError as exc:
            ends.append(exc.status)

    async with channel_to(place, **ours) as channel:
        with trio.fail_after(100):
            async with trio.open_nursery() as calls:
                calls.start_soon(one)
                await wait_all_tasks_blocked()
                for _ in range(3):
                    calls.start_soon(one)
    assert ends == [Status.UNAVAILABLE, b"ok", b"ok", b"ok"]
    assert (len(place.times), place.calls) == (2, 3)


async def test_waiting_calls_find_out_that_the_channel_closes(autojump_clock, nursery):
    place = Place(nursery, "hang")
    failed = trio.Event()

    async def waits():
        with pytest.raises(NotProcessed, match="closed"):
            await call(channel)
        failed.set()

    async with channel_to(place) as channel:
        nursery.start_soon(waits)
        await wait_all_tasks_blocked()
    with trio.fail_after(1):
        await failed.wait()


async def test_calls_that_wait_for_the_end_of_a_pause_find_it_out_as_well(autojump_clock, nursery):
    place = Place(nursery, "refuse")
    failed = []

    async def waits():
        with pytest.raises(NotProcessed, match="closed"):
            await call(channel, wait_for_ready=True)
        failed.append(trio.current_time())

    async with channel_to(place, backoff_initial=1000, backoff_max=1000) as channel:
        nursery.start_soon(waits)
        await trio.sleep(5)
    await trio.sleep(1)
    assert len(failed) == 1


async def test_the_mistake_of_a_function_that_opens_streams_costs_one_attempt(autojump_clock):
    async def broken():
        raise KeyError("oops")

    async with Channel(broken) as channel:
        for _ in range(2):
            with pytest.raises(NotProcessed, match="KeyError"):
                await call(channel)
            await trio.sleep(10)


async def test_a_channel_as_a_task(autojump_clock, nursery):
    place = Place(nursery, "serve")
    channel = channel_to(place)
    async with trio.open_nursery() as tasks:
        await tasks.start(channel.run)
        assert await call(channel) == b"ok"
        tasks.cancel_scope.cancel()
    with pytest.raises(RuntimeError, match="once"):
        async with channel:
            pass


async def test_statistics_tell_what_happened(autojump_clock, nursery):
    place = Place(nursery, "refuse", "serve")
    async with channel_to(place) as channel:
        with pytest.raises(NotProcessed):
            await call(channel)
        await trio.sleep(2)
        for _ in range(3):
            await call(channel)
        told = channel.statistics()
        (counts,) = told.addresses.values()
        assert (counts.attempts, counts.failures, counts.connections, counts.calls) == (2, 1, 1, 3)
        assert (told.connections, told.draining, told.waiting, told.retries) == (1, 0, 0, 0)


async def test_statistics_count_the_calls_of_connections_that_have_ended(autojump_clock, nursery):
    place = Place(nursery, "once", "once", "serve")
    async with channel_to(place) as channel:
        for _ in range(4):
            assert await answered(channel) == b"ok"
            await wait_all_tasks_blocked()
        (counts,) = channel.statistics().addresses.values()
        assert (counts.attempts, counts.failures, counts.connections) == (3, 0, 1)
        assert counts.calls >= 4  # one that had left when its connection was lost counts as well, and came again


async def test_of_addresses_that_are_gone_those_without_a_connection_are_forgotten_beyond_a_bound(nursery):
    pool = Pool([], options(), nursery)
    for number in range(300):
        pool._counts[str(number)] = AddressStatistics(connections=number % 2)
    pool._forget_counts({"0", "2"})
    assert set(pool.statistics().addresses) == {"0", "2"} | {str(each) for each in range(300) if each >= 92 or each % 2}
    assert len(pool.statistics().addresses) == 256


def test_tls_is_never_left_out_in_silence():
    async def connect():
        raise AssertionError

    with pytest.raises(ValueError, match="TLS itself"):
        Channel(connect, tls=ssl.create_default_context())


def test_a_channel_to_nowhere_is_refused():
    with pytest.raises(ValueError, match="endpoint"):
        Channel([])
    with pytest.raises(ValueError, match="no port"):
        Channel("nonsense")
    with pytest.raises(ValueError, match="authority"):
        Channel("h:1", options=ChannelOptions(authority="a b"))


async def test_of_several_connections_to_one_address_the_least_busy_gets_the_call_and_of_equal_ones_the_first(
    autojump_clock, nursery
):
    place = Place(nursery, "serve")
    async with channel_to(place, connections=3) as channel:
        while channel.statistics().connections < 3:
            await call(channel)
            await wait_all_tasks_blocked()
        pool = channel._pool
        first, second, third = (each.connection for each in pool._subchannels)
        for taken, expected in (((0, 0, 0), first), ((1, 0, 0), second), ((1, 1, 0), third), ((1, 0, 1), second),
                                ((2, 2, 2), first)):  # fmt: skip
            first.taken, second.taken, third.taken = taken
            assert pool.pick() is expected
        first.taken = second.taken = third.taken = 0


async def test_addresses_that_are_gone_lose_their_connections_and_others_keep_theirs(autojump_clock, nursery):
    stays, goes, hangs = Place(nursery, "serve"), Place(nursery, "serve"), Place(nursery, "hang")
    async with channel_to(stays, goes, hangs, balancing="round_robin") as channel:
        for _ in range(4):
            await call(channel)
            await wait_all_tasks_blocked()
        pool = channel._pool
        assert (channel.statistics().connections, hangs.hanging) == (2, 1)
        kept = pool._subchannels[0]
        busy = pool._subchannels[1].connection
        assert await busy.take_slot()
        pool._one_for_each_of([kept.addresses[0]])
        await wait_all_tasks_blocked()
        assert pool._subchannels == [kept]
        assert hangs.hanging == 0, "nobody wants that connection any more"
        assert (channel.statistics().connections, channel.statistics().draining) == (2, 1)
        assert (kept.connection.retired, busy.retired) == (False, True)
        busy.release_slot()
        await wait_all_tasks_blocked()
        assert (channel.statistics().connections, channel.statistics().draining) == (1, 0)
        assert [await call(channel) for _ in range(3)] == [b"ok"] * 3


async def test_a_connection_to_an_address_that_is_still_there_is_kept_when_others_come_and_go(autojump_clock, nursery):
    one, other = Place(nursery, "serve"), Place(nursery, "serve")
    async with channel_to(one, other) as channel:
        await call(channel)
        pool = channel._pool
        [subchannel] = pool._subchannels
        here, there = subchannel.addresses
        connection = subchannel.connection
        pool._all_to([there, here])
        assert not connection.retired
        pool._all_to([there])
        assert connection.retired
        await wait_all_tasks_blocked()
        assert channel.statistics().connections == 0
        await call(channel)
        assert (len(one.times), len(other.times)) == (1, 1)
        pool._all_to([here])
        await wait_all_tasks_blocked()
        pool._all_to([there])  # with no connection that could be retired
        await call(channel)
        assert (len(one.times), len(other.times)) == (1, 2)


@pytest.mark.parametrize(("lived", "of_use"), [(9.9, False), (10, True), (10.1, True)])
async def test_a_connection_that_has_lived_for_the_longest_pause_was_of_use(autojump_clock, nursery, lived, of_use):
    place = Place(nursery, "serve")
    async with channel_to(place, backoff_max=10) as channel:
        assert await call(channel) == b"ok"
        [subchannel] = channel._pool._subchannels
        for forgiven in (True, False):
            connection = subchannel.connection
            connection.answered = False
            connection.born = trio.current_time() - lived
            subchannel._lost(connection)
            assert subchannel.attempts.failures == (0 if of_use or forgiven else 1)
            subchannel.connection = connection
        connection.answered = True


async def test_a_lost_connection_has_names_looked_up_again_but_not_all_the_time(autojump_clock, nursery):
    place = Place(nursery, "once", "once", "once", "serve")
    async with channel_to(place, resolve_interval=None) as channel:
        pool = channel._pool
        for wait, runs in ((0, 1), (1, 1), (6, 2), (6, 3)):
            await trio.sleep(wait)
            await answered(channel)
            await wait_all_tasks_blocked()
            assert pool._names.runs == runs
        await trio.sleep(100)
        await call(channel)
        assert pool._names.runs == 3, "nothing was lost since"


@pytest.mark.parametrize(("interval", "runs"), [(None, 1), (30, 4)])
async def test_names_are_looked_up_again_while_there_are_connections(autojump_clock, nursery, interval, runs):
    place = Place(nursery, "serve")
    async with channel_to(place, resolve_interval=interval) as channel:
        await trio.sleep(100)
        assert channel._pool._names.runs == 0
        await call(channel)
        await trio.sleep(100)
        assert channel._pool._names.runs == runs


@pytest.mark.parametrize("own", [(3, 7), (7, 3)])
async def test_an_attempt_over_several_addresses_has_the_longest_of_their_times(autojump_clock, nursery, own):
    places = [Endpoint(Place(nursery, "hang"), connect_timeout=each) for each in own]
    async with Channel(places, options=options()) as channel:
        began = trio.current_time()
        with pytest.raises(NotProcessed, match="any of 2 addresses: no answer within 7 s"):
            await call(channel)
        assert trio.current_time() - began == pytest.approx(7)
    async with channel_to(Place(nursery, "hang"), connect_timeout=5) as channel:
        with pytest.raises(NotProcessed, match="cannot connect to the server: the server: no answer within 5 s"):
            await call(channel)


async def test_an_error_tells_four_different_problems_and_how_many_more_there_are(autojump_clock):
    def refusing(text):
        async def connect():
            raise OSError(text)

        return Endpoint(connect)

    for count, more in ((4, None), (5, "1 more"), (7, "3 more")):
        texts = [f"problem {number}" for number in range(count)]
        places = [refusing(text) for text in [*texts, *texts]]
        async with Channel(places, options=options(balancing="round_robin")) as channel:
            with pytest.raises(NotProcessed) as caught:
                await call(channel)
        said = caught.value.message.partition(": ")[2].split("; ")
        assert said == texts[:4] + ([more] if more else [])


async def test_who_waits_is_there_for_the_earliest_attempt_that_is_due(autojump_clock, nursery):
    slow, soon = Place(nursery, "refuse"), Place(nursery, "refuse", "serve")
    async with channel_to(slow, soon, balancing="round_robin") as channel:
        with pytest.raises(NotProcessed):
            await call(channel)
        pool = channel._pool
        pool._subchannels[0].attempts._not_before += 50
        began = trio.current_time()
        assert await call(channel, wait_for_ready=True) == b"ok"
        assert trio.current_time() - began == pytest.approx(1)


async def test_waiting_calls_are_counted_while_they_wait(autojump_clock, nursery):
    place = Place(nursery, "hang")
    async with channel_to(place) as channel:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as calls:
                for _ in range(3):
                    calls.start_soon(call, channel)
                await wait_all_tasks_blocked()
                assert (channel.statistics().waiting, place.hanging) == (3, 1)
                scope.cancel()
        await wait_all_tasks_blocked()
        assert (channel.statistics().waiting, place.hanging) == (0, 0)


@pytest.mark.parametrize("code", [fr.ErrorCode.NO_ERROR, fr.ErrorCode.ENHANCE_YOUR_CALM])
async def test_a_server_that_asks_for_calm_is_pinged_half_as_often_from_then_on(autojump_clock, nursery, code):
    """The clock starts with the last thing that it has said."""
    pings = []

    async def serve(connection):
        await connection.greet()
        if not pings:
            await connection.send(fr.goaway(0, code))
            pings.append(0)
            await connection.to_the_end()  # closing at once might take its own words back
            return
        await connection.request()
        began = trio.current_time()
        while (frame := await connection.frame()) is not None:
            if frame[0] == fr.PING and not frame[1]:
                pings.append(trio.current_time() - began)
                await connection.send(fr.ping(frame[3], ack=True))

    async def connect():
        ours, theirs = memory_stream_pair()
        nursery.start_soon(serve_to_the_end, RawConnection(theirs, 1))
        return ours

    async def serve_to_the_end(connection):
        try:
            await serve(connection)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        await trio.aclose_forcefully(connection.stream)

    patient = options(keepalive_interval=30, wait_for_ready=True, retry=RetryPolicy())  # the call may come too early
    async with Channel(connect, options=patient) as channel:
        with trio.move_on_after(70):
            await call(channel)
    interval = 60 if code else 30
    assert len(pings) == (2 if code else 3)
    assert interval <= pings[1] <= interval + 2


async def test_round_robin_goes_in_turns_also_where_nobody_is_busy(autojump_clock, nursery):
    places = [Place(nursery, "serve") for _ in range(3)]
    async with channel_to(*places, balancing="round_robin") as channel:
        while channel.statistics().connections < 3:
            await call(channel)
            await wait_all_tasks_blocked()
        before = [each.calls for each in places]
        for _ in range(9):
            await call(channel)
        assert [each.calls - earlier for each, earlier in zip(places, before, strict=True)] == [3, 3, 3]
