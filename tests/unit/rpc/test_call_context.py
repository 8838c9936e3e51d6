"""What calls inherit."""

import pytest
import trio
from grpclib.metadata import Deadline
from multidict import MultiDict

from nl.rpc.call_context import calling, current, forwarded


async def test_nothing_holds_outside_of_a_block():
    assert current() is None
    with calling(headers={"x-a": "1"}):
        assert current() is not None
    assert current() is None


async def test_blocks_add_up_and_the_inner_one_replaces_the_same_name():
    with calling(headers={"x-a": "1", "x-b": "2"}), calling(headers={"x-b": "3"}):
        assert sorted(current().fields) == [(b"x-a", b"1"), (b"x-b", b"3")]


async def test_a_calls_own_headers_come_first_and_are_not_doubled():
    with calling(headers=[("x-a", "1"), ("x-a", "2"), ("x-b", "3")]):
        assert current().headers_for([(b"x-b", b"own")]) == [(b"x-b", b"own"), (b"x-a", b"1"), (b"x-a", b"2")]
        assert len(current().headers_for([])) == 3


async def test_the_earliest_deadline_counts(autojump_clock):
    start = trio.current_time()
    with calling(timeout=10):
        assert current().expires == pytest.approx(start + 10)
        with calling(timeout=20):
            assert current().expires == pytest.approx(start + 10)
        with calling(timeout=20, deadline=Deadline.from_timeout(5)):
            assert current().expires == pytest.approx(start + 5, abs=0.5)


async def test_trace_and_token_have_their_headers():
    with calling(headers={"authorization": "Basic eA=="}, trace="00-ab-cd-01", token="abc"):
        assert dict(current().fields) == {b"traceparent": b"00-ab-cd-01", b"authorization": b"Bearer abc"}


async def test_a_token_is_in_no_repr():
    with calling(token="nl_SECRET") as inner:
        assert "SECRET" not in repr(inner)


async def test_tasks_that_are_started_in_the_block_inherit():
    seen = []

    async def task():
        seen.append(current().fields)

    async with trio.open_nursery() as nursery:
        with calling(headers={"x-a": "1"}):
            nursery.start_soon(task)
    assert seen == [((b"x-a", b"1"),)]


async def test_what_may_not_be_sent_is_refused_where_it_is_given():
    with pytest.raises(ValueError, match="token|ASCII|authorization"), calling(token="a\nb"):
        pass
    assert current() is None


def test_only_named_headers_are_passed_on_and_those_of_the_connection_never():
    sent = [("x-user", "a"), ("x-user", "b"), ("x-raw-bin", b"\0"), ("x-other", "c"), ("x-odd", "\xff")]
    metadata = MultiDict([*sent, ("te", "t"), ("host", "h")])
    names = ["X-User", "x-raw-bin", "x-odd", "te", "host", "grpc-timeout", "absent"]
    assert forwarded(metadata, names) == [("x-user", "a"), ("x-user", "b"), ("x-raw-bin", b"\0")]
    assert forwarded(None, names) == []


def test_what_could_not_be_sent_is_not_passed_on_and_the_rest_is():
    metadata = MultiDict([("x-a", "1"), ("x-b", b"bytes"), ("x-c-bin", "text"), ("x-d", "\n"), ("x-e-bin", b"\0")])
    names = ["X-A", "x-b", "x-c-bin", "x-d", "x-e-bin", "te", "grpc-x"]
    assert forwarded(metadata, names) == [("x-a", "1"), ("x-e-bin", b"\0")]
    assert forwarded(None, names) == []
