"""The head of a request: what makes it malformed (RFC 9113, section 8), and its content-length."""

import pytest

from nl.rpc import hpack
from nl.rpc.request import declared_length, read_head

GOOD = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/s/m"), (b"te", b"trailers")]


def head(*fields, base=GOOD):
    return read_head([hpack.classify(*field) for field in [*base, *fields]])


def test_a_good_head_has_the_values_by_kind():
    values = head((b"grpc-timeout", b"1S"), (b"x-other", b"y"))
    assert (values[hpack.PATH], values[hpack.TIMEOUT], values[hpack.ENCODING]) == (b"/s/m", b"1S", None)


@pytest.mark.parametrize(
    "fields",
    [
        [(b":method", b"POST")],
        [(b"x", b"y"), (b":authority", b"late")],
        [(b":status", b"200")],
        [(b"connection", b"close")],
        [(b"Upper", b"case")],
        [(b"te", b"gzip")],
        [(b"content-length", b"1"), (b"content-length", b"2")],
    ],
)
def test_what_http2_forbids_is_malformed(fields):
    assert head(*fields) is None


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_method_scheme_and_path_are_needed(missing):
    assert head(base=GOOD[:missing] + GOOD[missing + 1 :]) is None


def test_equal_content_lengths_are_one():
    assert declared_length(head((b"content-length", b"7"), (b"content-length", b"7")), ended=False) == 7
    assert declared_length(head(), ended=True) is None


@pytest.mark.parametrize(("value", "ended"), [(b"-1", False), (b"1e3", False), (b"5", True), (b"9" * 19, False)])
def test_a_content_length_that_is_none_or_wrong_already(value, ended):
    with pytest.raises(ValueError, match="content-length"):
        declared_length(head((b"content-length", value)), ended=ended)
