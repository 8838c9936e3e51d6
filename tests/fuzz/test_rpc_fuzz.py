"""Any bytes either parse or end in a protocol error, and split anywhere they parse the same.

The core is driven without any I/O; the `h2` and `hpack` packages are the oracles of what bytes mean.
"""

import h2.config
import h2.connection
import h2.events
import hpack as other_hpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nl.errors import NlError
from nl.rpc import frames as fr
from nl.rpc import hpack, metadata
from nl.rpc.frames import ConnectionFault
from nl.rpc.h2.limits import Limits
from nl.rpc.h2.protocol import H2Connection, NoRole
from nl.rpc.h2.reader import FrameReader
from nl.rpc.h2.stream import Stream

LIMITS = Limits(stream_window=70_000, connection_window=100_000, max_concurrent_streams=20, max_header_list_size=4096)


class Recorder(NoRole):
    """A server's side of a connection that writes down what it is told."""

    def __init__(self, limits=LIMITS):
        self.out = []
        self.h2 = H2Connection(limits, self, emit=self.out.append)
        self.reader = FrameReader(self.h2)
        self.events = []

    def note(self, *event):
        """DATA arrives in other pieces when it is split elsewhere: neighbours count as one."""
        if event[0] == "data" and self.events and self.events[-1][:2] == event[:2]:
            event = (*event[:2], self.events.pop()[2] + event[2])
        self.events.append(event)

    def on_request(self, sid, fields, *, ended):
        if any(kind == hpack.BAD for _, _, kind, _ in fields):
            self.h2.fault_stream(sid, fr.ErrorCode.PROTOCOL_ERROR)
            return None
        self.note("open", sid, [field[:2] for field in fields], ended)
        return Recorded(self, sid)

    def on_goaway(self, last_sid, code):
        self.note("goaway", last_sid, code)

    def on_ping_ack(self, payload):
        self.note("ping ack", payload)


class Recorded(Stream):
    """A stream that reports and consumes at once."""

    def __init__(self, recorder, sid):
        super().__init__(recorder.h2, sid)
        self.recorder = recorder

    def on_headers(self, fields):
        self.recorder.note("trailers", self.sid, [field[:2] for field in fields])

    def on_data(self):
        data = b"".join(bytes(view) for view, _ in self.chunks)
        self.discard()
        if data:
            self.recorder.note("data", self.sid, data)
        if self.recv_closed:
            self.recorder.note("end", self.sid)

    def on_reset(self, code):
        self.recorder.note("reset", self.sid, code)


def feed(pieces, limits=LIMITS):
    """What the core makes of bytes that come in these pieces: events, what it sends, the error."""
    core = Recorder(limits)
    buffer = bytearray()
    error = None
    try:
        for piece in pieces:
            buffer += piece
            view = memoryview(bytes(buffer))
            done = core.reader.receive(view, start=0, end=len(view))
            del buffer[:done]
    except ConnectionFault as exc:
        error = (exc.code, exc.reason)
    sent = b"".join(core.out)
    return core.events, without_window_updates(sent), error


def without_window_updates(data):
    """Credit returns in other portions when DATA comes in other pieces."""
    kept, pos = [], 0
    while pos < len(data):
        stop = pos + 9 + int.from_bytes(data[pos : pos + 3], "big")
        if data[pos + 3] != fr.WINDOW_UPDATE:
            kept.append(data[pos:stop])
        pos = stop
    return kept


def header_block():
    names = st.sampled_from([b"x", b"content-type", b"te", b":path", b"Upper", b"x-bin", b"connection"])
    fields = st.lists(st.tuples(names, st.binary(max_size=20)), max_size=5)
    return st.one_of(
        fields.map(hpack.encode),
        fields.map(lambda pairs: other_hpack.Encoder().encode(pairs)),
        st.binary(max_size=30),
    )


FRAME = st.builds(
    lambda kind, flags, sid, payload, lie: fr.header(max(0, len(payload) + lie), kind, flags, sid) + payload,
    st.one_of(st.sampled_from([fr.DATA, fr.HEADERS, fr.CONTINUATION]), st.integers(0, 12)),
    st.one_of(st.sampled_from([0, 1, 4, 5, 8, 9, 0x2C]), st.integers(0, 255)),
    st.one_of(st.sampled_from([0, 1, 3, 5]), st.integers(0, 2**31 - 1)),
    st.one_of(st.binary(max_size=40), header_block(), st.sampled_from([b"\0\0\0\1", bytes(8), bytes(5), bytes(3000)])),
    st.sampled_from([0] * 20 + [1, -1, 20_000]),
)
GOOD_HEADERS = st.builds(
    lambda sid, end, block: fr.frame(fr.HEADERS, 4 | end, sid, block),
    st.integers(0, 8).map(lambda n: 2 * n + 1),
    st.sampled_from([0, 1]),
    header_block(),
)
GOOD_DATA = st.builds(
    lambda sid, end, data: fr.frame(fr.DATA, end, sid, data),
    st.integers(0, 8).map(lambda n: 2 * n + 1),
    st.sampled_from([0, 0, 0, 1]),
    st.binary(min_size=1, max_size=300),
)
TRAFFIC = st.lists(st.one_of(FRAME, GOOD_HEADERS, GOOD_DATA), max_size=25).map(b"".join)
WIRE = st.one_of(st.binary(max_size=300), TRAFFIC, TRAFFIC.map(lambda data: fr.settings({}) + data))
unhurried = [HealthCheck.too_slow, HealthCheck.data_too_large]
relaxed = settings(deadline=None, max_examples=400, suppress_health_check=unhurried)


@relaxed
@given(WIRE, st.lists(st.integers(0, 3000), max_size=8))
def test_any_bytes_parse_or_end_in_a_protocol_error_wherever_they_are_split(data, cuts):
    whole = feed([data])
    assert feed([data[i : i + 1] for i in range(len(data))]) == whole
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    assert feed([data[a:b] for a, b in zip(edges, edges[1:], strict=False)]) == whole


@relaxed
@given(
    st.lists(
        st.tuples(st.sampled_from([1, 3]), st.sampled_from([4095, 4096, 16_384]), st.integers(1, 6)), max_size=6
    ),
    st.one_of(FRAME, GOOD_DATA, st.just(b"")),
    st.lists(st.integers(0, 400_000), max_size=6),
)
def test_runs_of_equal_frames_parse_the_same_wherever_they_are_split(runs, odd, cuts):
    opened = [fr.frame(fr.HEADERS, 4, sid, hpack.encode([(b"x", b"y")])) for sid in (1, 3)]
    blocks = [fr.frame(fr.DATA, 0, sid, bytes([size % 251]) * size) * count for sid, size, count in runs]
    data = b"".join([fr.settings({}), *opened, *blocks, odd])
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    whole = feed([data])
    assert feed([data[a:b] for a, b in zip(edges, edges[1:], strict=False)]) == whole
    frames = [0]
    while frames[-1] < len(data):
        frames.append(frames[-1] + 9 + int.from_bytes(data[frames[-1] : frames[-1] + 3], "big"))
    assert feed([data[a:b] for a, b in zip(frames, frames[1:], strict=False)]) == whole


@relaxed
@given(WIRE)
def test_windows_and_held_bytes_never_go_astray(data):
    core = Recorder()
    try:
        core.reader.receive(memoryview(fr.settings({}) + data), start=0, end=len(data) + 9)
    except ConnectionFault:
        return
    window = core.h2.recv_window
    assert 0 <= window.left <= window.left + window.owed + core.reader._left <= window.size
    if not core.reader._left:  # everything that has arrived is consumed here: nothing may be missing
        assert window.left + window.owed == window.size
    assert all(stream.held == 0 for stream in core.h2.streams.values())


@relaxed
@given(st.lists(st.binary(max_size=200), max_size=6))
def test_the_decoder_agrees_with_hpack_or_is_stricter(blocks):
    ours, theirs = hpack.HeaderDecoder(), other_hpack.Decoder()
    for block in blocks:
        try:
            got = [field[:2] for field in ours.decode(block)]
        except (ConnectionFault, hpack.HeadersTooLarge):
            return
        assert got == [(bytes(name), bytes(value)) for name, value in theirs.decode(block, raw=True)]


@relaxed
@given(
    st.lists(
        st.lists(
            st.tuples(
                st.sampled_from([b"grpc-timeout", b"x-one", b":path", b"user-agent", b"requestmetadata-bin"]),
                st.binary(max_size=300),
            ),
            max_size=8,
        ),
        max_size=10,
    ),
    st.sampled_from([0, 64, 4096]),
)
def test_what_hpack_encodes_is_decoded_block_after_block(messages, table_size):
    encoder, decoder = other_hpack.Encoder(), hpack.HeaderDecoder(max_list_size=1 << 20)
    encoder.header_table_size = table_size
    for pairs in messages:
        assert [field[:2] for field in decoder.decode(encoder.encode(pairs))] == pairs
        assert decoder._size == sum(field[3] for field in decoder._table) <= 4096


@relaxed
@given(st.binary(max_size=60))
def test_huffman_strings_mean_what_the_python_decoder_says(raw):
    literal = b"\x00\x01a" + bytes([0x80 | len(raw)]) + raw
    try:
        expected = hpack._huffman_in_python(b"\0" + raw, 1)
    except ConnectionFault:
        with pytest.raises(ConnectionFault):
            hpack.HeaderDecoder().decode(literal)
        return
    try:
        assert hpack.HeaderDecoder().decode(literal)[0][1] == expected
    except ConnectionFault:  # stricter about padding than hpack: allowed only if the padding is wrong
        bits = sum(hpack._CODE_BITS[byte] for byte in expected)
        assert 8 * len(raw) - bits > 7


@relaxed
@given(
    st.lists(st.tuples(st.sampled_from(["request", "data", "end", "ping", "reset", "update"]), st.integers(0, 5),
                       st.binary(max_size=500)), max_size=30)
)  # fmt: skip
def test_what_h2_sends_is_understood(steps):
    client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding=None))
    client.initiate_connection()
    expected, open_streams = [], []
    for what, index, data in steps:
        if what == "request":
            sid = client.get_next_available_stream_id()
            fields = [(b":method", b"POST"), (b":scheme", b"http"), (b":authority", b"x"), (b":path", b"/x")]
            fields.append((b"x-bin", data.hex().encode()))
            client.send_headers(sid, fields)
            open_streams.append(sid)
            expected.append(("open", sid, fields, False))
        elif what == "ping":
            client.ping(b"12345678")
        elif open_streams:
            sid = open_streams[index % len(open_streams)]
            if what == "data" and data:
                client.send_data(sid, data)
                expected.append(("data", sid, data))
            elif what == "end":
                client.end_stream(sid)
                open_streams.remove(sid)
                expected.append(("end", sid))
            elif what == "reset":
                client.reset_stream(sid)
                open_streams.remove(sid)
                expected.append(("reset", sid, 0))
            elif what == "update":
                client.increment_flow_control_window(1000, sid)
    wire = client.data_to_send()
    assert wire.startswith(fr.PREFACE)
    events, _, error = feed([wire[len(fr.PREFACE) :]], Limits())
    assert error is None
    reference = Recorder()
    for event in expected:
        reference.note(*event)
    assert events == reference.events


@relaxed
@given(st.dictionaries(st.sampled_from(["x-a", "b", "c-bin", "d.e_f-bin"]), st.binary(max_size=50), max_size=4))
def test_metadata_survives_the_wire(pairs):
    sent = {key: value if key.endswith("-bin") else value.hex() for key, value in pairs.items()}
    fields = hpack.HeaderDecoder().decode(hpack.encode(metadata.encode_fields(sent)))
    assert dict(metadata.decode_fields(fields)) == sent


@relaxed
@given(st.text(max_size=200))
def test_status_messages_survive_the_wire(text):
    assert metadata.decode_message(b"x" + metadata.encode_message("y" + text + "y") + b"x") == "xy" + text.encode(
        "utf-8", "replace").decode() + "yx"  # fmt: skip


@relaxed
@given(st.binary(max_size=12))
def test_any_timeout_is_a_number_or_an_error(value):
    try:
        assert metadata.decode_timeout(value) >= 0
    except NlError:
        pass


@relaxed
@given(st.one_of(st.floats(0, 1e9), st.floats(0, 2), st.integers(0, 10**6).map(float)))
def test_a_timeout_is_never_shortened(seconds):
    """Eight digits and units a thousand apart: by a hundred-thousandth at most, by an hour beyond 10^8 s."""
    decoded = metadata.decode_timeout(metadata.encode_timeout(seconds))
    assert seconds <= decoded * (1 + 1e-15)
    assert decoded - seconds <= (max(seconds * 1.001e-5, 2e-9) if seconds < 1e8 - 1 else 3600)
