"""An endpoint and a channel's options, put together: whose word counts, and what is the same for every request."""

import ssl

import pytest
import trio

from nl.rpc.hpack import HeaderDecoder
from nl.rpc.options import ChannelOptions
from nl.rpc.origin import Endpoint, Origin

COMMON = [(b"te", b"trailers"), (b"content-type", b"application/grpc")]


def head(endpoint, **options):
    origin = Origin(endpoint, ChannelOptions(**options))
    return [(name, value) for name, value, _, _ in HeaderDecoder().decode(origin.head("/t.S/M"))]


async def connect():
    return trio.testing.memory_stream_pair()[0]


def test_a_request_begins_with_what_all_of_its_origin_have():
    assert head(Endpoint("cache.example:1"), user_agent="me/1") == [
        (b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/t.S/M"), (b":authority", b"cache.example:1"),
        *COMMON, (b"user-agent", b"me/1"), (b"grpc-accept-encoding", b"identity,gzip"),
    ]  # fmt: skip


@pytest.mark.parametrize("endpoint", [None, "gzip"])
@pytest.mark.parametrize("channel", [None, "gzip"])
def test_requests_are_packed_if_either_the_endpoint_or_the_channel_says_so(endpoint, channel):
    fields = head(Endpoint("a:1", compression=endpoint), send_compression=channel)
    assert ((b"grpc-encoding", b"gzip") in fields) == (endpoint is not None or channel is not None)
    origin = Origin(Endpoint("a:1", compression=endpoint), ChannelOptions(send_compression=channel))
    assert origin.options.send_compression == (endpoint or channel)


@pytest.mark.parametrize(
    ("target", "own", "channel", "authority"),
    [
        ("a:1", None, None, "a:1"), ("a:1", "b", None, "b"), ("a:1", None, "c:2", "c:2"), ("a:1", "b:3", "c:2", "b:3"),
        ("unix:/x", None, None, "localhost"), ("[::1]:5", None, None, "[::1]:5"), (connect, None, None, "localhost"),
    ],
)  # fmt: skip
def test_the_authority_is_what_the_endpoint_says_or_the_channel_or_the_target(target, own, channel, authority):
    origin = Origin(Endpoint(target, authority=own), ChannelOptions(authority=channel))
    assert origin.authority == origin.options.authority == authority
    assert origin.server_hostname == authority.rpartition(":")[0].strip("[]") or origin.server_hostname == authority


def test_what_an_endpoint_says_for_itself_counts_for_it():
    own = {"max_streams": 3, "connect_timeout": 4.0, "tcp_keepalive": 5.0, "keepalive_interval": 6.0}
    own["keepalive_timeout"] = 7.0
    plain, special = (Origin(Endpoint("a:1", **each), ChannelOptions(stall_timeout=8)).options for each in ({}, own))
    assert {name: getattr(special, name) for name in own} == own
    assert {name: getattr(plain, name) for name in own} == {name: getattr(ChannelOptions(), name) for name in own}
    assert special.stall_timeout == plain.stall_timeout == 8


def test_tls_is_as_the_target_or_the_endpoint_says():
    context = ssl.create_default_context()
    assert Origin(Endpoint("a:1"), ChannelOptions()).tls is None
    assert Origin(Endpoint("a:1", context), ChannelOptions()).tls is context
    assert Origin(Endpoint("grpcs://a", context), ChannelOptions()).tls is context
    secure = Origin(Endpoint("grpcs://a"), ChannelOptions())
    assert secure.tls is not None
    assert (b":scheme", b"https") in head(Endpoint("grpcs://a"))
    assert (secure.name, secure.server_hostname) == ("a:443", "a")
    assert Origin(Endpoint(connect), ChannelOptions()).name == "the server"
    with pytest.raises(ValueError, match="speaks TLS itself"):
        Origin(Endpoint(connect, context), ChannelOptions())
    with pytest.raises(ValueError, match="cannot be the name of a server"):
        Origin(Endpoint("a:1", context, authority="x" * 64), ChannelOptions())
    Origin(Endpoint("a:1", authority="x" * 64), ChannelOptions())


@pytest.mark.parametrize("token", [None, "Bearer x"])
def test_an_endpoints_credentials_go_to_calls_that_bring_none(token):
    origin = Origin(Endpoint("a:1", authorization=lambda: token), ChannelOptions())
    own = [(b"x", b"1"), (b"authorization", b"mine")]
    assert origin.with_credentials(own) == own
    expected = [(b"x", b"1")] if token is None else [(b"x", b"1"), (b"authorization", b"Bearer x")]
    assert origin.with_credentials([(b"x", b"1")]) == expected
    assert Origin(Endpoint("a:1"), ChannelOptions()).with_credentials(own[:1]) == own[:1]
