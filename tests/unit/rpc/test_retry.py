"""What may be sent again, and when."""

import pytest
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from nl.pb import rpc_status, wkt
from nl.rpc.errors import NotProcessed
from nl.rpc.retry import RetryPolicy

METHOD = "/t.S/Read"
POLICY = RetryPolicy(
    max_retries=3, delay=1, max_delay=3, codes=frozenset({Status.UNAVAILABLE}), methods=frozenset({METHOD})
)


def pause(error, *, policy=POLICY, method=METHOD, retries=0, trailers=(), uniform=lambda low, high: (low + high) / 2):
    fields = [(name, value, 0, 0) for name, value in trailers]
    return policy.pause(error, method=method, retries=retries, trailers=fields, uniform=uniform)


def unavailable(details=None):
    return GRPCError(Status.UNAVAILABLE, "down", details)


def test_pauses_double_up_to_the_maximum_and_then_it_is_enough():
    assert [pause(unavailable(), retries=each) for each in range(5)] == [1, 2, 3, None, None]


def test_pauses_vary_by_the_jitter():
    assert pause(unavailable(), uniform=lambda low, high: low) == pytest.approx(0.8)
    assert pause(unavailable(), uniform=lambda low, high: high) == pytest.approx(1.2)


def test_what_the_server_may_have_begun_is_only_repeated_if_method_and_status_are_named():
    assert pause(unavailable(), method="/t.S/Execute") is None
    assert pause(GRPCError(Status.INTERNAL, "")) is None
    assert pause(GRPCError(Status.OK, "")) is None


def test_what_the_server_has_not_begun_is_repeated_whatever_it_is():
    assert pause(NotProcessed(Status.UNAVAILABLE, ""), method="/t.S/Execute") == 1
    assert pause(NotProcessed(Status.INTERNAL, ""), method="/t.S/Execute") == 1
    assert pause(NotProcessed(Status.UNAVAILABLE, ""), policy=RetryPolicy(max_retries=0)) is None


def test_nothing_is_named_by_default():
    assert pause(unavailable(), policy=RetryPolicy()) is None


@pytest.mark.parametrize(
    ("said", "expected"),
    [(b"1500", 1.5), (b"0", 0.0), (b"-1", None), (b"soon", None), (b"9" * 30, None), (b"", None)],
)
def test_a_server_that_asks_for_a_pause_gets_it_and_one_that_asks_for_none_is_left_alone(said, expected):
    assert pause(unavailable(), trailers=[(b"grpc-retry-pushback-ms", said)]) == expected


def test_pushback_does_not_make_a_call_safe():
    assert pause(unavailable(), method="/t.S/Execute", trailers=[(b"grpc-retry-pushback-ms", b"1")]) is None


def info(seconds):
    return wkt.pack(rpc_status.RetryInfo(retry_delay=wkt.duration_from_ns(round(seconds * 1e9))))


def test_retry_info_is_the_least_pause():
    assert pause(unavailable([info(5)])) == 5
    assert pause(unavailable([info(0.1)])) == 1
    assert pause(unavailable([info(-5)])) == 1
    assert pause(unavailable([info(1e9)])) == 3600


def test_details_that_cannot_be_read_change_nothing():
    broken = wkt.Any(type_url="type.googleapis.com/google.rpc.RetryInfo", value=b"\xff")
    assert pause(unavailable([broken, rpc_status.RetryInfo(), wkt.Any()])) == 1


def test_a_request_is_kept_in_memory_of_its_own_unless_it_is_too_large():
    data = bytearray(b"abc")
    kept = POLICY.kept([b"x", memoryview(data)])
    data[:] = b"zzz"
    assert kept == [b"x", b"abc"]
    assert RetryPolicy(max_kept=3).kept([b"ab", b"cd"]) is None
    assert RetryPolicy(max_kept=4).kept([b"ab", b"cd"]) == [b"ab", b"cd"]


@pytest.mark.parametrize(("said", "expected"), [(b"9999999", 9999.999), (b"10000000", None)])
def test_a_pause_that_a_server_asks_for_has_seven_digits_of_milliseconds_at_the_most(said, expected):
    assert pause(unavailable(), trailers=[(b"x", b"1"), (b"grpc-retry-pushback-ms", said)]) == expected


@pytest.mark.parametrize(("asked", "expected"), [(-5, 1), (0, 1), (0.5, 1), (2.5, 2.5), (3600, 3600), (3601, 3600)])
def test_a_pause_in_the_details_is_within_bounds(asked, expected):
    assert pause(unavailable([info(asked)])) == expected


def test_details_without_a_pause_say_nothing():
    empty = wkt.pack(rpc_status.RetryInfo())
    assert pause(unavailable([empty, info(50)])) == 50
    assert pause(unavailable([wkt.pack(rpc_status.BadRequest()), "text", info(50)])) == 50


@pytest.mark.parametrize("over", [0, 1])
def test_a_request_is_kept_up_to_a_size_and_in_memory_of_its_own(over):
    policy, mutable = RetryPolicy(max_kept=10), bytearray(b"12345")
    kept = policy.kept([b"67890", mutable, b"x" * over])
    if over:
        assert kept is None
    else:
        mutable[:] = b"....."
        assert kept == [b"67890", b"12345", b""]
        assert all(type(each) is bytes for each in kept)


def test_the_pause_is_what_the_jitter_makes_of_it_at_random():
    found = {POLICY.pause(unavailable(), method=METHOD, retries=0) for _ in range(50)}
    assert len(found) > 1
    assert all(0.8 <= each <= 1.2 for each in found)
    patient = RetryPolicy(max_retries=100, methods=POLICY.methods, max_delay=7)
    assert pause(unavailable(), policy=patient, retries=99) == 7
