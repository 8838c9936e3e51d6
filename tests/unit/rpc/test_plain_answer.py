"""The answer to what is not gRPC: when it goes, in which pieces, and that nothing of it is left."""

import pytest

from nl.rpc import frames as fr
from nl.rpc.frames import ErrorCode, Setting
from nl.rpc.hpack import HeaderDecoder
from nl.rpc.plain_answer import PATIENCE, PlainAnswer
from tests.unit.rpc.h2.side import Side

TEXT = b"no such thing\n"


class Answering(Side):
    def __init__(self, *, head_only=False, status=405, **kwargs):
        super().__init__(**kwargs)
        self.head_only = head_only
        self.status = status
        self.over = []

    def on_request(self, sid, fields, *, ended):
        return PlainAnswer(
            self.h2, sid, status=self.status, text="no such thing", head_only=self.head_only,
            on_over=lambda: self.over.append(sid),
        )  # fmt: skip

    def answer(self):
        """(fields, DATA frames, codes of resets) since the last time."""
        fields, data, resets = {}, [], []
        for kind, _, payload in self.frames():
            if kind == fr.HEADERS:
                fields = {name.decode(): value for name, value, _, _ in HeaderDecoder().decode(payload)}
            elif kind == fr.DATA:
                data.append(payload)
            elif kind == fr.RST_STREAM:
                resets.append(ErrorCode(fr.U32.unpack(payload)[0]))
        return fields, data, resets


@pytest.mark.parametrize("status", [405, 415])
@pytest.mark.parametrize("head_only", [False, True])
def test_it_goes_with_the_requests_end_and_says_how_long_it_is(head_only, status):
    side = Answering(head_only=head_only, status=status)
    side.open(1, end=True)
    fields, data, resets = side.answer()
    assert fields == {
        ":status": b"%d" % status, "content-type": b"text/plain; charset=utf-8", "content-length": b"14",
        **({"allow": b"POST"} if status == 405 else {}),
    }  # fmt: skip
    assert (data, resets) == ([] if head_only else [TEXT], [])
    assert (side.over, side.h2.streams) == ([1], {})


@pytest.mark.parametrize("over", [0, 1])
def test_a_long_request_is_answered_before_its_end_and_reset(over):
    side = Answering()
    side.open(1)
    left = PATIENCE + over
    while left:
        side.feed(fr.frame(fr.DATA, 0, 1, bytes(min(left, 16_384))))
        left -= min(left, 16_384)
    fields, data, resets = side.answer()
    if over:
        assert (fields[":status"], data, resets, side.over) == (b"405", [TEXT], [ErrorCode.NO_ERROR], [1])
    else:
        assert (fields, data, resets, side.over) == ({}, [], [], [])
        side.feed(fr.frame(fr.DATA, fr.END_STREAM, 1))
        assert side.answer()[1:] == ([TEXT], [])
    assert not side.h2.streams
    window = side.h2.recv_window
    assert window.left + window.owed == window.size, "nothing of the request is kept"


def test_it_goes_in_pieces_as_the_windows_allow_and_leaves_the_rest_to_others():
    side = Answering(settings={Setting.INITIAL_WINDOW_SIZE: 5})
    side.open(1, 3, end=True)
    assert [payload for kind, sid, payload in side.frames() if (kind, sid) == (fr.DATA, 1)] == [TEXT[:5]]
    side.h2.send_window = 0
    side.feed(fr.window_update(1, 100))
    assert side.answer()[1] == []
    side.feed(fr.window_update(0, 4))
    assert side.answer()[1] == [TEXT[5:9]]
    side.feed(fr.window_update(3, 100), fr.window_update(0, 300))
    assert sorted(side.over) == [1, 3]
    assert side.h2.send_window == 300 - 5 - 9
    assert not (side.h2.streams or side.h2.blocked)


@pytest.mark.parametrize("waits", [False, True])
def test_a_client_that_gives_up_ends_it_and_lets_others_have_the_window(waits):
    side = Answering(settings={Setting.INITIAL_WINDOW_SIZE: 100})
    side.h2.send_window = 0
    side.open(1, 3, end=waits)
    side.feed(fr.rst_stream(1, ErrorCode.CANCEL))
    assert side.over == [1]
    side.feed(fr.window_update(0, 300), fr.frame(fr.DATA, fr.END_STREAM, 3) if not waits else b"")
    assert side.over == [1, 3]
    assert side.h2.send_window == 300 - len(TEXT)


def test_one_that_can_go_no_further_for_its_own_window_leaves_the_connections_to_the_next():
    side = Answering(settings={Setting.INITIAL_WINDOW_SIZE: 5})
    side.h2.send_window = 0
    side.open(1, 3, end=True)
    side.feed(fr.window_update(3, 1000))
    side.frames()
    side.feed(fr.window_update(0, 300))
    sent = [(sid, payload) for kind, sid, payload in side.frames() if kind == fr.DATA]
    assert sent == [(1, TEXT[:5]), (3, TEXT)]
