"""Header compression (RFC 7541): a strict, bounded decoder, and the few blocks this project sends. Pure.

Fields are tuples `(name, value, kind, size)`. `kind` says at a glance what a field is (see below): it is computed once
when a field enters the dynamic table, so a request whose headers are table references costs a list index each. Values
stay bytes: whoever wants text or base64 decodes it later. Huffman strings are decoded by the Rust code in `jh2`, which
takes any padding, so the padding is checked here; without `jh2` the `hpack` package does it, twenty times slower.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from zlib import adler32

from hpack.huffman_constants import REQUEST_CODES_LENGTH
from hpack.huffman_table import decode_huffman
from hpack.table import HeaderTable

from nl.rpc.frames import ConnectionFault, ErrorCode

Field = tuple[bytes, bytes, int, int]

REGULAR = 0
METHOD, SCHEME, PATH, AUTHORITY, STATUS = range(1, 6)
LAST_PSEUDO = STATUS
CONTENT_TYPE, TE, CONTENT_LENGTH, TIMEOUT, ENCODING, ACCEPT_ENCODING, AUTHORIZATION = range(6, 13)
GRPC_STATUS, GRPC_MESSAGE, USER_AGENT = range(13, 16)
BAD = 99
"""A field that makes its message malformed (RFC 9113, section 8.2)."""

_KINDS: dict[bytes, int] = {
    b":method": METHOD, b":scheme": SCHEME, b":path": PATH, b":authority": AUTHORITY, b":status": STATUS,
    b"content-type": CONTENT_TYPE, b"te": TE, b"content-length": CONTENT_LENGTH, b"grpc-timeout": TIMEOUT,
    b"grpc-encoding": ENCODING, b"grpc-accept-encoding": ACCEPT_ENCODING,
    b"authorization": AUTHORIZATION, b"grpc-status": GRPC_STATUS,
    b"grpc-message": GRPC_MESSAGE, b"user-agent": USER_AGENT,
    b"connection": BAD, b"keep-alive": BAD, b"proxy-connection": BAD, b"transfer-encoding": BAD, b"upgrade": BAD,
}  # fmt: skip
_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")
_BLANKS = b" \t"
_OVERHEAD = 32
_CODE_BITS = bytes(REQUEST_CODES_LENGTH[:256])
_SUMMED_BELOW = 2000
"""Encoded strings of fewer bytes have fewer than 65,521 bits by far."""
_BOMB = 16
"""Times the limit: 32 KiB of literals make a list of a tenth of a megabyte, so what is larger was meant to cost."""
_MAX_CACHED = 512
_MAX_KNOWN = 256
"""Names found to be well-formed are remembered up to this many; clients send few."""
_MAX_LITERALS = 512
_LITERAL_BELOW = 96
"""Literals of fewer bytes are remembered, up to this many: clients that index nothing send the same ones each time."""


def classify(name: bytes, value: bytes) -> Field:
    """A field with its kind and its size in the sense of RFC 7541, section 4.1."""
    kind = _KINDS.get(name)
    if kind is None:
        kind = REGULAR if _NAME.fullmatch(name) else BAD
        if kind == REGULAR and len(_KINDS) < _MAX_KNOWN and len(name) < 64:
            _KINDS[name] = REGULAR
    if value.strip(_BLANKS) != value or b"\n" in value or b"\r" in value or b"\0" in value:
        kind = BAD
    return (name, value, kind, len(name) + len(value) + _OVERHEAD)


_STATIC: list[Field] = [(b"", b"", BAD, 0), *(classify(name, value) for name, value in HeaderTable.STATIC_TABLE)]
_literals: dict[bytes, Field] = {}
"""Of all connections, by their encoding, which says all of them: none refers to a connection's dynamic table."""
_NEVER_KEPT = (BAD, AUTHORIZATION, TIMEOUT)
"""Malformed, secret, different each time."""


def _huffman_in_python(string: bytes, prefix: int) -> bytes:
    try:
        return bytes(decode_huffman(string[prefix:]))
    except Exception as exc:  # whatever it raises, the string was wrong
        raise _fault("bad Huffman string") from exc


def _load_huffman() -> Callable[[bytes, int], bytes]:
    """A function from a string literal (length prefix of `prefix` bytes included) to its text."""
    try:
        from jh2._hazmat import Decoder, HPACKError
    except ImportError:
        return _huffman_in_python
    decoder = Decoder()
    decoder.max_header_list_size = 1 << 30  # bounds are the caller's

    def huffman(string: bytes, prefix: int) -> bytes:
        if len(string) == prefix:
            return b""
        try:
            text: bytes = decoder.decode(b"\x00\x01a" + string)[0][1]  # as a literal field `a`, never indexed
        except (HPACKError, IndexError) as exc:
            raise _fault("bad Huffman string") from exc
        bits = text.translate(_CODE_BITS)
        # The low half of Adler-32 is the sum of the bytes, plus one, modulo 65521: ten times as fast as `sum`.
        used = (adler32(bits) & 0xFFFF) - 1 if len(string) < _SUMMED_BELOW else sum(bits)
        padding = 8 * (len(string) - prefix) - used
        ones = (1 << padding) - 1 if 0 <= padding < 8 else 256
        if string[-1] & ones != ones:
            raise _fault("bad Huffman padding")
        return text

    return huffman


def _fault(message: str) -> ConnectionFault:
    return ConnectionFault(ErrorCode.COMPRESSION_ERROR, message)


_huffman = _load_huffman()


class HeadersTooLarge(Exception):  # a verdict about one message, not an error of this connection
    """The list is over the limit. The table is in step with the peer's, so only this message is lost."""


class HeaderDecoder:
    """One direction's decoding state.

    Raises ConnectionFault(COMPRESSION_ERROR) on anything RFC 7541 forbids, ENHANCE_YOUR_CALM on a bomb.
    """

    __slots__ = ("_capacity", "_limit", "_max_list", "_size", "_strings", "_table")

    def __init__(self, *, table_size: int = 4096, max_list_size: int = 16_384) -> None:
        self._limit = table_size
        self._capacity = table_size
        self._max_list = max_list_size
        self._size = 0
        self._table: list[Field] = []  # newest last
        self._strings: dict[bytes, bytes] = {}

    def decode(self, block: bytes) -> list[Field]:
        """All fields of a complete block. HeadersTooLarge if their sizes add up to more than `max_list_size`."""
        fields: list[Field] = []
        table, known = self._table, _literals
        pos, end, total = 0, len(block), 0
        while pos < end:
            byte = block[pos]
            field: Field | None
            if byte & 0x80:
                pos += 1
                index = byte & 0x7F
                if index == 0x7F:
                    index, pos = _integer(block, pos, 0x7F)
                if index > 61:
                    if index - 61 > len(table):
                        raise _fault(f"no table entry {index}")
                    field = table[61 - index]
                elif index:
                    field = _STATIC[index]
                else:
                    raise _fault("table entry 0")
            elif byte & 0x40:
                name, pos = self._name(block, pos + 1, byte & 0x3F, 0x3F)
                value, pos = self._string(block, pos)
                field = self._insert(classify(name, value))
            elif byte & 0x20:
                if fields or total:
                    raise _fault("table size update after a field")
                pos = self._resize(block, pos + 1, byte & 0x1F)
                continue
            else:
                # A name of its own, or one of the static table's first. Longer lengths lead beyond `_LITERAL_BELOW`.
                at = pos + 1
                if not byte and at < end:
                    at += 1 + (block[at] & 0x7F)
                field = None
                if byte < 0x0F and at < end and (stop := at + 1 + (block[at] & 0x7F)) - pos < _LITERAL_BELOW:
                    field = known.get(block[pos:stop])
                if field is None:
                    field, stop = self._literal(block, pos, byte)
                pos = stop
            total += field[3]
            if total <= self._max_list:
                fields.append(field)
            elif total > self._max_list * _BOMB:
                raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "header list far over the limit")
        if total > self._max_list:
            raise HeadersTooLarge
        return fields

    def _literal(self, block: bytes, start: int, byte: int) -> tuple[Field, int]:
        """A field that does not enter the table, and where the next one begins."""
        name, pos = self._name(block, start + 1, byte & 0x0F, 0x0F)
        value, pos = self._string(block, pos)
        field = classify(name, value)
        if byte < 0x0F and pos - start < _LITERAL_BELOW and field[2] not in _NEVER_KEPT:
            if len(_literals) >= _MAX_LITERALS:
                _literals.clear()
            _literals[block[start:pos]] = field
        return field, pos

    def _name(self, block: bytes, pos: int, index: int, full: int) -> tuple[bytes, int]:
        if not index:
            return self._string(block, pos)
        if index == full:
            index, pos = _integer(block, pos, full)
        if index < 62:
            return _STATIC[index][0], pos
        if index - 61 > len(self._table):
            raise _fault(f"no table entry {index}")
        return self._table[61 - index][0], pos

    def _string(self, block: bytes, pos: int) -> tuple[bytes, int]:
        first, end = pos, len(block)
        if pos >= end:
            raise _fault("block ends inside of a field")
        byte = block[pos]
        length = byte & 0x7F
        pos += 1
        if length == 0x7F:
            length, pos = _integer(block, pos, 0x7F)
        stop = pos + length
        if stop > end:
            raise _fault("block ends inside of a string")
        if byte < 0x80:
            return block[pos:stop], stop
        literal = block[first:stop]
        strings = self._strings
        text = strings.get(literal)
        if text is None:
            text = _huffman(literal, pos - first)
            if length < _MAX_CACHED:
                if len(strings) >= 64:
                    strings.clear()
                strings[literal] = text
        return text, stop

    def _insert(self, field: Field) -> Field:
        table = self._table
        self._size += field[3]
        table.append(field)
        if self._size > self._capacity:
            self._evict()
        return field

    def _evict(self) -> None:
        table = self._table
        count = 0
        while self._size > self._capacity:
            self._size -= table[count][3]
            count += 1
        del table[:count]

    def _resize(self, block: bytes, pos: int, size: int) -> int:
        if size == 0x1F:
            size, pos = _integer(block, pos, 0x1F)
        if size > self._limit:
            raise _fault(f"table size {size} is over the limit")
        self._capacity = size
        self._evict()
        return pos


def _integer(block: bytes, pos: int, value: int) -> tuple[int, int]:
    """RFC 7541, section 5.1, after a full prefix. Four more bytes are enough for anything that we accept."""
    for shift in (0, 7, 14, 21):
        if pos >= len(block):
            raise _fault("block ends inside of an integer")
        byte = block[pos]
        pos += 1
        value += (byte & 0x7F) << shift
        if byte < 0x80:
            return value, pos
    raise _fault("integer too large")


def _length(value: int) -> bytes:
    if value < 0x7F:
        return bytes((value,))
    out = bytearray(b"\x7f")
    value -= 0x7F
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def encode(fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    """A block of literals without indexing: stateless, so that blocks can be constants. Names must be lower-case."""
    return b"".join(b"\x00" + _length(len(name)) + name + _length(len(value)) + value for name, value in fields)


STATUS_200 = b"\x88"
METHOD_POST = b"\x83"
SCHEME_HTTP = b"\x86"
SCHEME_HTTPS = b"\x87"
CONTENT_TYPE_GRPC = b"\x0f\x10\x10application/grpc"
RESPONSE = STATUS_200 + CONTENT_TYPE_GRPC
"""`:status: 200`, `content-type: application/grpc`."""
RESPONSE_GZIP = RESPONSE + encode([(b"grpc-encoding", b"gzip")])
TRAILERS_OK = encode([(b"grpc-status", b"0")])


def encode_status(code: int) -> bytes:
    """`:status` with any number."""
    return b"\x08\x03" + b"%03d" % code


def encode_path(path: bytes) -> bytes:
    """`:path`, as a literal with an indexed name."""
    return b"\x04" + _length(len(path)) + path
