"""Compressed messages: one whole gzip stream, and never more than was allowed."""

import gzip

import pytest

from nl.errors import ExhaustedError, InvalidRequestError
from nl.rpc import messages

TEXT = bytes(range(256)) * 400


def test_what_others_have_packed_is_unpacked():
    assert messages.decompress(gzip.compress(TEXT), max_bytes=len(TEXT)) == TEXT
    assert messages.decompress(memoryview(gzip.compress(b"")), max_bytes=0) == b""


def test_one_byte_more_than_allowed_is_too_much():
    with pytest.raises(ExhaustedError, match=f"more than {len(TEXT) - 1} bytes"):
        messages.decompress(gzip.compress(TEXT), max_bytes=len(TEXT) - 1)


@pytest.mark.parametrize("broken", [
    b"", b"nonsense", gzip.compress(TEXT)[:-1], gzip.compress(TEXT) + b"x", gzip.compress(b"a") + gzip.compress(b"b"),
    gzip.compress(TEXT)[:-8] + bytes(8),
], ids=["nothing", "nonsense", "cut", "more behind it", "two members", "wrong checksum"])  # fmt: skip
def test_what_is_not_one_whole_stream_is_invalid(broken):
    with pytest.raises(InvalidRequestError, match="gzip"):
        messages.decompress(broken, max_bytes=len(TEXT))
