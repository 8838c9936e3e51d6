"""Who waits for credit is served in order and once; what a stream is to us; what GOAWAY promises. See tests/fuzz for
whole conversations."""

import pytest

from nl.rpc import frames as fr
from nl.rpc import hpack
from nl.rpc.frames import ConnectionFault, ErrorCode, Setting
from nl.rpc.h2.limits import Limits
from nl.rpc.h2.protocol import H2Connection, NoRole, Status
from nl.rpc.h2.reader import FrameReader
from nl.rpc.h2.stream import Stream

BLOCK = hpack.METHOD_POST + hpack.SCHEME_HTTP + hpack.encode_path(b"/t.S/M")


class Sender(Stream):
    """Has bytes to send; takes what credit there is, and passes on what is left."""

    def __init__(self, h2, sid, *, needs=0, passes_on=True):
        super().__init__(h2, sid)
        self.needs = needs
        self.passes_on = passes_on
        self.woken = 0

    def on_window(self):
        self.woken += 1
        self.try_to_send()

    def try_to_send(self):
        size = max(0, min(self.send_credit, self.needs))
        self.charge(size)
        self.needs -= size
        if self.needs:
            self.h2.wait_for_credit(self)
        elif self.passes_on:
            self.h2.wake_next()


class Server(NoRole):
    def __init__(self, **limits):
        self.sent = []
        self.h2 = H2Connection(Limits(**limits), self, emit=self.sent.append)
        self.reader = FrameReader(self.h2)
        self.opened = []
        self.receive(fr.settings({}))

    def receive(self, *frames):
        data = b"".join(frames)
        done = self.reader.receive(memoryview(data), start=0, end=len(data))
        assert done == len(data)

    def on_request(self, sid, fields, *, ended):
        self.opened.append(sid)
        return Sender(self.h2, sid)

    def senders(self, *needs):
        """Streams that all need credit which the connection does not have."""
        self.h2.send_window = 0
        found = []
        for number, need in enumerate(needs):
            self.receive(request(2 * number + 1))
            sender = self.h2.streams[2 * number + 1]
            sender.needs = need
            sender.try_to_send()
            found.append(sender)
        return found

    def frames(self):
        """What was sent since the last time, as (type, stream, code or last stream)."""
        found = []
        for each in self.sent:
            _, _, kind, _, sid = fr.HEADER.unpack_from(each)
            found.append((kind, sid, *(fr.U32.unpack_from(each, 9) if len(each) >= 13 else ())))
        self.sent.clear()
        return found


def request(sid, *, end=False):
    return fr.frame(fr.HEADERS, fr.END_HEADERS | (fr.END_STREAM if end else 0), sid, BLOCK)


# -- credit ------------------------------------------------------------------------------------------------------------


def test_credit_goes_to_as_many_as_it_serves_in_the_order_in_which_they_wait():
    server = Server()
    one, two, three, four = server.senders(100, 100, 100, 100)
    server.receive(fr.window_update(0, 250))
    assert [each.needs for each in (one, two, three, four)] == [0, 0, 50, 100]
    assert [each.woken for each in (one, two, three, four)] == [1, 1, 1, 0]
    server.receive(fr.window_update(0, 1000))
    assert [each.needs for each in (three, four)] == [0, 0]
    assert server.h2.send_window == 850


def test_a_thousand_waiters_cost_one_call_when_one_takes_it_all():
    server = Server()
    senders = server.senders(*[10_000] * 500)
    server.receive(fr.window_update(0, 5000))
    assert sum(each.woken for each in senders) == 1


def test_a_thousand_waiters_are_served_without_recursion():
    server = Server()
    senders = server.senders(*[1] * 1000)
    server.receive(fr.window_update(0, 5000))
    assert not any(each.needs for each in senders)


def test_whoever_is_reset_while_it_waits_is_not_called_and_stands_in_nobodys_way():
    server = Server()
    one, two = server.senders(100, 100)
    server.receive(fr.rst_stream(1, ErrorCode.CANCEL), fr.window_update(0, 100))
    assert (one.woken, two.needs) == (0, 0)
    assert one.send_window == fr.DEFAULT_WINDOW


def test_one_that_does_not_pass_on_what_it_leaves_keeps_the_next_waiting_until_it_does():
    server = Server()
    one, two = server.senders(100, 100)
    one.passes_on = False
    server.receive(fr.window_update(0, 200))
    assert (one.needs, two.needs) == (0, 100)
    server.h2.wake_next()
    assert two.needs == 0


def test_a_streams_own_window_wakes_it_and_only_it():
    server = Server()
    server.receive(fr.settings({Setting.INITIAL_WINDOW_SIZE: 0}), request(1), request(3))
    one, two = server.h2.streams.values()
    for each in (one, two):
        each.needs = 10
        each.try_to_send()
    server.receive(fr.window_update(3, 100))
    assert (one.woken, two.woken, two.needs) == (0, 1, 0)
    server.receive(fr.settings({Setting.INITIAL_WINDOW_SIZE: 10}))
    assert (one.woken, one.needs, two.woken) == (1, 0, 1)


def test_settings_that_make_windows_smaller_may_make_them_negative():
    server = Server()
    server.receive(request(1))
    [stream] = server.h2.streams.values()
    stream.charge(60_000)
    server.receive(fr.settings({Setting.INITIAL_WINDOW_SIZE: 1000}))
    assert stream.send_window == 1000 - 60_000
    server.receive(fr.window_update(1, 59_001))
    assert stream.send_window == 1


def test_settings_that_overflow_one_streams_window_are_an_error():
    server = Server()
    server.receive(request(1), fr.window_update(1, 10))
    server.receive(fr.settings({Setting.INITIAL_WINDOW_SIZE: fr.MAX_WINDOW - 10}))
    with pytest.raises(ConnectionFault) as caught:
        server.receive(fr.settings({Setting.INITIAL_WINDOW_SIZE: fr.MAX_WINDOW - 9}))
    assert caught.value.code is ErrorCode.FLOW_CONTROL_ERROR


def test_a_window_that_was_large_on_a_stream_that_is_gone_overflows_nothing():
    server = Server()
    server.receive(request(1), fr.window_update(1, 1000), fr.rst_stream(1, ErrorCode.CANCEL))
    server.receive(fr.settings({Setting.INITIAL_WINDOW_SIZE: fr.MAX_WINDOW}))


# -- streams ----------------------------------------------------------------------------------------------------------


def test_every_stream_has_one_status():
    server = Server()
    server.receive(request(1), request(3, end=True), request(9))
    h2 = server.h2
    h2.reset_stream(1, ErrorCode.CANCEL)
    h2.streams[3].send_closed = True
    h2.close_if_done(h2.streams[3])
    h2.goaway(ErrorCode.NO_ERROR)
    found = {sid: h2.status_of(sid).name for sid in (1, 2, 3, 4, 5, 7, 9, 11)}
    assert found == {
        1: "RESET_BY_US", 2: "IDLE", 3: "CLOSED", 4: "IDLE", 5: "IDLE", 7: "IDLE", 9: "LIVE", 11: "REFUSED",
    }  # fmt: skip
    assert len(Status) == 5


def test_a_client_knows_the_streams_that_it_has_opened():
    h2 = H2Connection(Limits(), NoRole(), emit=lambda data: None, client=True)
    assert [h2.take_sid(), h2.take_sid()] == [1, 3]
    h2.streams[3] = Stream(h2, 3)
    assert [h2.status_of(sid).name for sid in (1, 2, 3, 5)] == ["CLOSED", "IDLE", "LIVE", "IDLE"]


def test_late_data_of_a_stream_that_we_have_reset_is_paid_for_and_no_fault():
    server = Server(connection_window=65_535)
    server.receive(request(1))
    server.h2.reset_stream(1, ErrorCode.NO_ERROR)
    server.frames()
    server.receive(*[fr.frame(fr.DATA, 0, 1, bytes(16_383))] * 4)
    assert {frame[:2] for frame in server.frames()} == {(fr.WINDOW_UPDATE, 0)}
    window = server.h2.recv_window
    assert window.left + window.owed == window.size


@pytest.mark.parametrize(("frame", "code"), [
    (fr.frame(fr.DATA, 0, 5, b"x"), ErrorCode.PROTOCOL_ERROR), (fr.rst_stream(5, 0), ErrorCode.PROTOCOL_ERROR),
    (fr.window_update(5, 1000), ErrorCode.PROTOCOL_ERROR), (request(2), ErrorCode.PROTOCOL_ERROR),
    (request(1), ErrorCode.STREAM_CLOSED),
])  # fmt: skip
def test_frames_of_streams_that_are_not_open_end_the_connection(frame, code):
    server = Server()
    server.receive(request(1), fr.rst_stream(1, 0))
    with pytest.raises(ConnectionFault) as caught:
        server.receive(frame)
    assert caught.value.code is code


def test_streams_that_wind_down_count_as_concurrent():
    server = Server(max_concurrent_streams=2)
    server.h2.winding_down = 1
    server.receive(request(1), request(3))
    assert server.opened == [1]
    assert server.frames()[-1] == (fr.RST_STREAM, 3, ErrorCode.REFUSED_STREAM)


def test_what_goaway_has_promised_never_grows():
    server = Server()
    server.receive(request(1), request(3))
    server.h2.goaway(ErrorCode.NO_ERROR, last_sid=fr.MAX_STREAM_ID)
    server.receive(request(5))
    server.h2.goaway(ErrorCode.NO_ERROR)
    server.receive(request(7))
    server.h2.goaway(ErrorCode.INTERNAL_ERROR)
    assert [last for kind, _, last in filter(lambda each: each[0] == fr.GOAWAY, server.frames())] == [
        fr.MAX_STREAM_ID, 5, 5,
    ]  # fmt: skip
    assert server.opened == [1, 3, 5]


# -- what costs -------------------------------------------------------------------------------------------------------


def spend(server, *frames):
    """How often the frames may come before the connection is ended."""
    for count in range(100_000):
        try:
            server.receive(*frames)
        except ConnectionFault as fault:
            assert fault.code is ErrorCode.ENHANCE_YOUR_CALM
            return count
    raise AssertionError("for ever")


@pytest.mark.parametrize("frame", [
    fr.ping(bytes(8)), fr.ping(bytes(8), ack=True), fr.settings({}), fr.SETTINGS_ACK, fr.frame(fr.DATA, 0, 1),
    fr.frame(fr.PRIORITY, 0, 1, b"\0\0\0\0\0"), fr.frame(0x55, 0, 1, b"x"), fr.window_update(0, 1),
    fr.window_update(1, 255), fr.goaway(0, 0), fr.frame(fr.DATA, fr.PADDED, 1, b"\1\0"),
])  # fmt: skip
def test_what_moves_nothing_may_come_so_often(frame):
    server = Server(control_burst=20, control_per_s=0)
    server.receive(request(1))
    assert spend(server, frame) == 19  # the first SETTINGS were one


def test_messages_that_we_send_pay_for_some():
    server = Server(control_burst=20, control_per_s=0)
    server.h2.call_answered()
    assert spend(server, fr.ping(bytes(8))) == 19 + 4


def test_settings_cost_by_their_entries():
    server = Server(control_burst=20, control_per_s=0)
    many = fr.frame(fr.SETTINGS, 0, 0, fr.SETTING.pack(Setting.INITIAL_WINDOW_SIZE, 1) * 320)
    assert spend(server, many) == 1


def test_calls_that_are_reset_before_anything_is_answered_may_be_so_many():
    server = Server(reset_burst=10, reset_per_s=0, control_burst=10_000)
    sids = iter(range(1, 10_000, 2))

    def storm():
        sid = next(sids)
        server.receive(request(sid), fr.rst_stream(sid, ErrorCode.CANCEL))

    for _ in range(10):
        storm()
    server.h2.call_answered()
    storm()
    with pytest.raises(ConnectionFault):
        storm()


def test_a_call_that_was_answered_in_part_may_be_given_up():
    server = Server(reset_burst=0, reset_per_s=0)
    server.receive(request(1))
    server.h2.streams[1].headers_sent = True
    server.receive(fr.rst_stream(1, ErrorCode.CANCEL))


def test_time_gives_back_what_control_frames_cost():
    server = Server(control_burst=20, control_per_s=5)
    assert spend(server, fr.ping(bytes(8))) == 19
    server.h2.now = 2.5
    assert spend(server, fr.ping(bytes(8))) == 11  # and the one that was over the limit


def test_the_end_keeps_nothing_alive():
    server = Server()
    one, _ = server.senders(100, 100)
    server.h2.end()
    assert not server.h2.streams
    assert server.h2.role is not server
    server.h2.send_window = 1000
    server.h2.wake_next()
    assert one.woken == 0
