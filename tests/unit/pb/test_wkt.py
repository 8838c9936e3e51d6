"""The well-known types: Any, and times to the nanosecond."""

from __future__ import annotations

import pytest

from nl.pb import codec, reapi, rpc_status, wkt


@pytest.mark.parametrize("ns", [0, 1, -1, 999_999_999, -1_000_000_000, -1_500_000_000, 1_763_844_403_123_456_789])
def test_times_survive_to_the_nanosecond(ns):
    stamp, span = wkt.timestamp_from_ns(ns), wkt.duration_from_ns(ns)
    assert wkt.timestamp_to_ns(stamp) == ns
    assert wkt.duration_to_ns(span) == ns
    assert 0 <= stamp.nanos < 10**9
    assert span.seconds * span.nanos >= 0


def test_an_any_is_opened_as_what_it_holds():
    failure = rpc_status.PreconditionFailure(violations=[rpc_status.PreconditionFailureViolation(type="MISSING")])
    packed = wkt.pack(failure)
    assert packed.type_url == "type.googleapis.com/google.rpc.PreconditionFailure"
    assert wkt.unpack(packed, rpc_status.PreconditionFailure) == failure
    assert wkt.unpack(packed, rpc_status.BadRequest) is None
    assert wkt.unpack(None, rpc_status.BadRequest) is None
    assert wkt.pack_encoded(rpc_status.PreconditionFailure, codec.encode(failure)) == packed


def test_only_the_name_behind_the_last_slash_of_a_type_url_counts():
    packed = wkt.Any(type_url="example.org/x/build.bazel.remote.execution.v2.Digest", value=b"\x10\x05")
    assert wkt.unpack(packed, reapi.Digest) == reapi.Digest(size_bytes=5)


def test_broken_bytes_in_an_any_are_an_error():
    with pytest.raises(codec.DecodeError):
        wkt.unpack(wkt.Any(type_url=wkt.type_url(reapi.Digest), value=b"\x0a"), reapi.Digest)
