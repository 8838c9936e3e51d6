"""Metadata, timeouts and messages between Python and the wire."""

import pytest
from multidict import MultiDict

from nl.errors import InvalidRequestError
from nl.rpc import hpack, metadata
from nl.rpc.hpack import HeaderDecoder


@pytest.mark.parametrize(("text", "seconds"), [
    (b"1H", 3600), (b"2M", 120), (b"3S", 3), (b"4m", 0.004), (b"5u", 5e-6), (b"6n", 6e-9), (b"0n", 0),
    (b"99999999H", 99_999_999 * 3600.0), (b"00000001S", 1),
])  # fmt: skip
def test_timeouts_have_units(text, seconds):
    assert metadata.decode_timeout(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", [b"", b"S", b"1", b"-1S", b"+1S", b"1.5S", b"123456789S", b"1s", b"1 S", b"1_0S"])
def test_what_is_no_timeout_is_refused_and_named(text):
    with pytest.raises(InvalidRequestError, match="grpc-timeout is '"):
        metadata.decode_timeout(text)


@pytest.mark.parametrize(("seconds", "text"), [
    (-1, b"1n"), (0, b"1n"), (1e-9, b"2n"), (0.05, b"50000001n"), (0.5, b"500001u"), (99, b"99000001u"),
    (100, b"100001m"), (100_000, b"100001S"), (1e12, b"99999999H"), (1e8, b"27778H"),
])  # fmt: skip
def test_a_timeout_is_rounded_up_in_the_finest_unit_that_has_room(seconds, text):
    assert metadata.encode_timeout(seconds) == text


@pytest.mark.parametrize(("seconds", "text"), [
    (0.0999999995, b"100000u"), (99.9999995, b"100000m"), (99_999.9995, b"100000S"), (99_999_999.5, b"27778H"),
])  # fmt: skip
def test_a_timeout_that_rounding_makes_nine_digits_long_takes_the_next_unit(seconds, text):
    assert metadata.encode_timeout(seconds) == text
    assert metadata.decode_timeout(text) >= seconds


@pytest.mark.parametrize("seconds", [float("inf"), 1e300, 4e11])
def test_what_is_longer_than_gRPC_can_say_is_the_longest_that_it_can(seconds):
    assert metadata.encode_timeout(seconds) == b"99999999H"


def test_binary_values_may_be_padded_or_not_and_joined_by_commas():
    assert metadata.decode_binary(b"AP8=") == metadata.decode_binary(b"AP8") == b"\x00\xff"
    assert metadata.decode_binary(b"AP8,AP8=") == metadata.decode_binary(b"AP8, AP8") == b"\x00\xff\x00\xff"
    assert metadata.decode_binary(b"") == b""


@pytest.mark.parametrize("value", [b"!", b"A", b"AP8=AP8=", b"AP-_", "\u00fc".encode()])
def test_what_is_no_base64_is_refused(value):
    with pytest.raises(InvalidRequestError, match="not base64"):
        metadata.decode_binary(value)


def test_binary_values_are_sent_without_padding():
    assert [metadata.encode_binary(bytes(count)) for count in range(4)] == [b"", b"AA", b"AAA", b"AAAA"]


def test_only_custom_fields_are_metadata_and_equal_names_stay_apart():
    block = hpack.encode([
        (b":path", b"/x"), (b"content-type", b"application/grpc"), (b"te", b"trailers"), (b"user-agent", b"me"),
        (b"grpc-timeout", b"1S"), (b"grpc-trace-bin", b"!"), (b"x-a", b"1"), (b"x-b-bin", b"AP8"), (b"x-a", b"\xe9"),
    ])  # fmt: skip
    found = metadata.decode_fields(HeaderDecoder().decode(block))
    assert isinstance(found, MultiDict)
    assert list(found.items()) == [("x-a", "1"), ("x-b-bin", b"\x00\xff"), ("x-a", "\xe9")]


def test_a_binary_field_that_is_none_is_refused():
    with pytest.raises(InvalidRequestError):
        metadata.decode_fields(HeaderDecoder().decode(hpack.encode([(b"x-bin", b"*")])))


def test_metadata_may_be_a_mapping_or_pairs_and_text_loses_outer_blanks():
    expected = [(b"a", b"x y"), (b"b-bin", b"AA")]
    assert metadata.encode_fields({"a": " x y ", "b-bin": b"\0"}) == expected
    assert metadata.encode_fields([("a", "x y"), ("b-bin", b"\0")]) == expected
    assert metadata.encode_fields([("a", "1"), ("a", "2")]) == [(b"a", b"1"), (b"a", b"2")]
    assert metadata.encode_fields(MultiDict([("a", "1"), ("a", "2")])) == [(b"a", b"1"), (b"a", b"2")]


@pytest.mark.parametrize(("pairs", "error"), [
    ({"Upper": "x"}, ValueError), ({"": "x"}, ValueError), ({"a b": "x"}, ValueError), ({":path": "x"}, ValueError),
    ({"grpc-x": "x"}, ValueError), ({"te": "x"}, ValueError), ({"content-type": "x"}, ValueError),
    ({"user-agent": "x"}, ValueError), ({"a": "\n"}, ValueError), ({"a": "\u00e9"}, ValueError),
    ({"a": "\x7f"}, ValueError), ({"a": b"x"}, TypeError), ({"a-bin": "x"}, TypeError), ({"a": 1}, TypeError),
])  # fmt: skip
def test_metadata_that_may_not_be_sent_is_refused(pairs, error):
    with pytest.raises(error, match="metadata"):
        metadata.encode_fields(pairs)


def test_messages_are_percent_encoded_where_they_must_be():
    assert metadata.encode_message("plain ~text~ !") == b"plain ~text~ !"
    assert metadata.encode_message("100 %") == b"100 %25"
    assert metadata.encode_message("a\nb\t\u00fc\x7f") == b"a%0Ab%09%C3%BC%7F"
    assert metadata.decode_message(b"100 %25 %C3%BC") == "100 % \u00fc"
    assert metadata.decode_message(b"%zz %C3 100%") == "%zz \ufffd 100%"


@pytest.mark.parametrize("text", ["plain", "a%b", "\u00e4", "\u20ac\u20ac", "a b", " a ", "\n", ""])
@pytest.mark.parametrize("max_bytes", [*range(-1, 14), 100])
def test_a_message_is_cut_to_as_many_whole_characters_as_fit(text, max_bytes):
    cut, whole = metadata.encode_message(text, max_bytes=max_bytes), metadata.encode_message(text)
    assert len(cut) <= max(0, max_bytes)
    assert whole.startswith(cut) or cut == metadata.encode_message(text[: len(metadata.decode_message(cut))])
    assert text.strip(" ").startswith(metadata.decode_message(cut).strip(" "))
    if len(text.encode()) <= len(whole) <= max_bytes:
        assert cut == whole
    elif " " not in text:  # one more would have been too many
        kept = len(metadata.decode_message(cut))
        assert max_bytes <= 0 or len(metadata.encode_message(text[: kept + 1])) > max_bytes
