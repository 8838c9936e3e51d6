"""The head of a request: what HTTP forbids is malformed, whatever gRPC would make of it."""

import pytest

from nl.rpc import hpack
from nl.rpc.hpack import HeaderDecoder
from nl.rpc.request import declared_length, read_head

GOOD = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/t.S/M"), (b":authority", b"x")]


def head(*fields, base=GOOD):
    return read_head(HeaderDecoder().decode(hpack.encode([*base, *fields])))


def test_a_request_says_what_it_wants():
    found = head((b"te", b"trailers"), (b"grpc-timeout", b"1S"), (b"x-own", b"1"), (b"content-length", b"7"))
    assert (found[hpack.PATH], found[hpack.METHOD]) == (b"/t.S/M", b"POST")
    assert (found[hpack.TIMEOUT], found[hpack.TE], found[hpack.ENCODING]) == (b"1S", b"trailers", None)
    assert head()[hpack.TIMEOUT] is None, "nothing of one request is seen by the next"


@pytest.mark.parametrize("missing", [b":method", b":scheme", b":path"])
def test_what_every_request_must_have(missing):
    assert head(base=[field for field in GOOD if field[0] != missing]) is None


@pytest.mark.parametrize("fields", [
    [(b":method", b"POST")], [(b":path", b"/other")], [(b":status", b"200")], [(b":unknown", b"x")],
    [(b"x", b"1"), (b":authority", b"y")], [(b"te", b"gzip")], [(b"connection", b"close")], [(b"Upper", b"x")],
    [(b"x", b"a\nb")], [(b"content-length", b"1"), (b"content-length", b"2")],
], ids=lambda fields: fields[-1][0].decode())  # fmt: skip
def test_what_no_request_may_have(fields):
    assert head(*fields) is None


def test_an_empty_path_is_none():
    assert head(base=[*GOOD[:2], (b":path", b"")]) is None


def test_a_pseudo_field_behind_others_is_malformed_also_when_it_is_the_first_of_its_kind():
    assert head((b":path", b"/t.S/M"), base=[GOOD[0], GOOD[1], (b"x", b"1")]) is None


def test_equal_content_lengths_are_one():
    assert declared_length(head((b"content-length", b"5"), (b"content-length", b"5")), ended=False) == 5


@pytest.mark.parametrize(("value", "ended", "length"), [(None, True, None), (b"0", True, 0), (b"12", False, 12)])
def test_a_length_is_what_it_says(value, ended, length):
    fields = [] if value is None else [(b"content-length", value)]
    assert declared_length(head(*fields), ended=ended) == length


@pytest.mark.parametrize(("value", "ended"), [
    (b"1", True), (b"-1", False), (b"", False), (b"1,1", False), (b"0x10", False), (b"9" * 19, False),
])  # fmt: skip
def test_a_length_that_cannot_be_is_an_error(value, ended):
    with pytest.raises(ValueError, match="content-length"):
        declared_length(head((b"content-length", value)), ended=ended)


@pytest.mark.parametrize("values", [[b"Bearer a", b"Bearer b"], [b"Bearer a", b"Bearer a"], [b"", b"Bearer a"]])
def test_several_authorizations_are_none_of_them(values):
    """Which one counts must not be a matter of taste: whoever stands before this server may have looked at another."""
    found = head(*((b"authorization", value) for value in values))
    assert found[hpack.AUTHORIZATION] == b", ".join(values)
    assert head((b"authorization", b"Bearer a"))[hpack.AUTHORIZATION] == b"Bearer a"


@pytest.mark.parametrize(("digits", "taken"), [(17, True), (18, True), (19, False)])
def test_a_length_may_have_eighteen_digits(digits, taken):
    found = head((b"content-length", b"1" * digits))
    if taken:
        assert declared_length(found, ended=False) == int("1" * digits)
    else:
        with pytest.raises(ValueError, match="content-length"):
            declared_length(found, ended=False)


@pytest.mark.parametrize("name", [b"content-type", b"te", b"user-agent", b"grpc-status", b"x-own", b"authorization"])
def test_pseudo_headers_come_before_all_others_whatever_these_are(name):
    value = b"trailers" if name == b"te" else b"x"
    assert head((name, value)) is not None
    assert head((name, value), (b":authority", b"x"), base=GOOD[:3]) is None
