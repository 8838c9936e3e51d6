"""Stubs of generated services: what a call is opened with, and what ends it."""

from contextlib import asynccontextmanager

import pytest
from grpclib.const import Cardinality

from nl.errors import LocalProtocolError
from nl.pb.service import ServiceBase, ServiceStub


class Stream:
    """A call that replies with what it was given."""

    def __init__(self, replies):
        self.replies, self.sent, self.ended = list(replies), [], 0

    async def send_message(self, message, *, end=False):
        self.sent.append(message)
        self.ended += end

    async def end(self):
        self.ended += 1

    async def recv_message(self):
        assert self.ended == 1, "whoever has more to send has no reply yet"
        return self.replies.pop(0) if self.replies else None


class Channel:
    def __init__(self, *replies):
        self.replies, self.opened = replies, []

    @asynccontextmanager
    async def request(self, *args, **settings):
        self.stream = Stream(self.replies)
        self.opened.append((args, settings))
        yield self.stream


async def test_a_call_has_its_own_settings_or_those_of_its_stub():
    channel = Channel("reply")
    stub = ServiceStub(channel, timeout=7.0, metadata={"a": "b"})
    given = {"timeout": None, "deadline": None, "metadata": None}
    assert await stub._unary_unary("/r", "request", bytes, **given) == "reply"
    await stub._unary_unary("/r", "request", bytes, **{**given, "timeout": 0.0, "deadline": 3})
    assert [args for args, _ in channel.opened] == [("/r", Cardinality.UNARY_UNARY, str, bytes)] * 2
    assert [settings for _, settings in channel.opened] == [
        {"timeout": 7.0, "deadline": None, "metadata": {"a": "b"}},
        {"timeout": 0.0, "deadline": 3, "metadata": {"a": "b"}},
    ]


async def several():
    for each in "ab":
        yield each


@pytest.mark.parametrize("requests", [["a", "b"], several()], ids=["list", "generator"])
async def test_requests_may_come_from_any_kind_of_iterator(requests):
    channel = Channel("reply")
    assert await ServiceStub(channel)._stream_unary("/r", requests, str, bytes) == "reply"
    assert (channel.stream.sent, channel.stream.ended) == (["a", "b"], 1)
    assert channel.opened == [(("/r", Cardinality.STREAM_UNARY, str, bytes), {})]


async def test_a_call_that_ends_without_a_reply_is_an_error_that_names_it():
    with pytest.raises(LocalProtocolError, match="^/r: the call ended well and without a reply$"):
        await ServiceStub(Channel())._unary_unary("/r", "request", bytes)


def test_streams_of_replies_are_opened_in_another_way():
    for method in (ServiceStub(None)._unary_stream, ServiceStub(None)._stream_stream):
        with pytest.raises(LocalProtocolError, match="/r replies with a stream"):
            method("/r", "request", bytes)


async def test_a_handler_is_closed_when_its_call_ends_however_it_ends():
    ends = []

    async def handler(request):
        try:
            yield request
            yield request
        finally:
            ends.append(request)

    class Broken:
        async def send_message(self, reply):
            raise OSError

    stream = Stream([])
    await ServiceBase()._call_rpc_handler_server_stream(handler, stream, "x")
    assert (stream.sent, ends) == (["x", "x"], ["x"])
    with pytest.raises(OSError):  # noqa: PT011
        await ServiceBase()._call_rpc_handler_server_stream(handler, Broken(), "y")
    assert ends == ["x", "y"]
