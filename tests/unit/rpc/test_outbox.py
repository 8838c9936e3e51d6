"""What a connection sends: skipping what is out. tests/wire has the queue with a socket behind it."""

from nl.rpc.outbox import _advance


def test_advancing_skips_what_was_sent():
    parts = [b"abc", b"", b"defg", b"h"]
    index = _advance(parts, 0, 5)
    assert b"".join(parts[index:]) == b"fgh"
    assert _advance([b"a", b"b"], 0, 2) == 2
