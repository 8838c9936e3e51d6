"""HPACK: the examples of RFC 7541 and what it forbids."""

import hpack as other_hpack
import pytest

from nl.rpc import hpack
from nl.rpc.frames import ConnectionFault, ErrorCode
from nl.rpc.hpack import HeaderDecoder, HeadersTooLarge


def pairs(fields):
    return [field[:2] for field in fields]


def test_the_requests_of_appendix_c_4_share_one_table():
    decoder = HeaderDecoder()
    first = bytes.fromhex("828684418cf1e3c2e5f23a6ba0ab90f4ff")
    second = bytes.fromhex("828684be5886a8eb10649cbf")
    third = bytes.fromhex("828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf")
    common = [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/"), (b":authority", b"www.example.com")]
    assert pairs(decoder.decode(first)) == common
    assert pairs(decoder.decode(second)) == [*common, (b"cache-control", b"no-cache")]
    assert pairs(decoder.decode(third))[-1] == (b"custom-key", b"custom-value")
    assert decoder._size == 164


def test_the_responses_of_appendix_c_6_evict():
    decoder = HeaderDecoder(table_size=256)
    blocks = [
        "488264025885aec3771a4b6196d07abe941054d444a8200595040b8166e082a62d1bff6e919d29ad171863c78f0b97c8e9ae82ae43d3",
        "4883640effc1c0bf",
        "88c16196d07abe941054d444a8200595040b8166e084a62d1bffc05a839bd9ab77ad94e7821dd7f2e6c7b335dfdfcd5b3960d5af27087f"
        "3672c1ab270fb5291f9587316065c003ed4ee5b1063d5007",
    ]
    last = [pairs(decoder.decode(bytes.fromhex(block))) for block in blocks][-1]
    assert last[0] == (b":status", b"200")
    assert last[-1][1] == b"foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1"
    assert decoder._size == 215


def test_a_static_name_knows_its_kind():
    decoder = HeaderDecoder()
    (field,) = decoder.decode(hpack.CONTENT_TYPE_GRPC)
    assert field[:3] == (b"content-type", b"application/grpc", hpack.CONTENT_TYPE)


@pytest.mark.parametrize("name", [b"Upper", b"sp ace", b"", b":unknown", b"connection", b"transfer-encoding"])
def test_names_that_http_2_forbids_are_bad(name):
    (field,) = HeaderDecoder().decode(hpack.encode([(name, b"v")]))
    assert field[2] == hpack.BAD


@pytest.mark.parametrize("value", [b"a\rb", b"a\nb", b"\0", b" a", b"a\t"])
def test_values_that_http_2_forbids_are_bad(value):
    (field,) = HeaderDecoder().decode(hpack.encode([(b"x", value)]))
    assert field[2] == hpack.BAD


def test_too_large_a_list_leaves_the_table_in_step():
    decoder = HeaderDecoder(max_list_size=100)
    with pytest.raises(HeadersTooLarge):
        decoder.decode(b"\x40\x01a\x01b" + hpack.encode([(b"x", bytes(200))]))
    assert pairs(decoder.decode(b"\xbe")) == [(b"a", b"b")]


def test_a_few_bytes_that_stand_for_a_huge_list_end_the_connection():
    """8,000 references to a header of 4 KB would take a millisecond for each 12 KB that a peer sends."""
    decoder = HeaderDecoder(max_list_size=16_384)
    with pytest.raises(HeadersTooLarge):
        decoder.decode(literal(b"a", b"v" * 4000) + b"\xbe" * 60)
    with pytest.raises(ConnectionFault, match="far over") as caught:
        decoder.decode(b"\xbe" * 8000)
    assert caught.value.code == ErrorCode.ENHANCE_YOUR_CALM


FORBIDDEN = ["82 20", "3f e2 1f", "80", "be", "7f", "00 01", "00 01 61 05 61", "ff ff ff ff ff ff"]


@pytest.mark.parametrize("block", FORBIDDEN)
def test_what_rfc_7541_forbids_is_a_compression_error(block):
    with pytest.raises(ConnectionFault, match="COMPRESSION_ERROR"):
        HeaderDecoder().decode(bytes.fromhex(block))


@pytest.mark.parametrize("literal", ["82 1f ff", "81 18", "84 ff ff ff ff"])
def test_huffman_padding_is_checked(literal):
    with pytest.raises(ConnectionFault, match="Huffman"):
        HeaderDecoder().decode(b"\x00\x01a" + bytes.fromhex(literal))


def test_without_the_rust_decoder_huffman_means_the_same():
    raw = bytes.fromhex("f1e3c2e5f23a6ba0ab90f4ff")
    literal = bytes([0x80 | len(raw)]) + raw
    assert hpack._huffman_in_python(literal, 1) == hpack._huffman(literal, 1) == b"www.example.com"


def literal(name, value):
    """A literal that goes into the table."""
    return b"\x40" + hpack.encode([(name, value)])[1:]


def test_new_entries_come_first_and_the_oldest_are_evicted_first():
    decoder = HeaderDecoder(table_size=3 * 34)
    decoder.decode(b"".join(literal(b"a", b"%d" % number) for number in range(4)))
    assert pairs(decoder.decode(b"\xbe\xbf\xc0")) == [(b"a", b"3"), (b"a", b"2"), (b"a", b"1")]
    with pytest.raises(ConnectionFault, match="no table entry 65"):
        decoder.decode(b"\xc1")


def test_an_entry_larger_than_the_table_empties_it_and_is_no_error():
    decoder = HeaderDecoder(table_size=100)
    assert pairs(decoder.decode(literal(b"a", b"b") + literal(b"c", b"d" * 68))) == [(b"a", b"b"), (b"c", b"d" * 68)]
    for block in (b"\xbe", b"\x7e\x01x"):  # as a whole, and as a name
        with pytest.raises(ConnectionFault, match="no table entry 62"):
            decoder.decode(block)


@pytest.mark.parametrize("size", [67, 68])
def test_a_table_holds_what_is_exactly_its_size(size):
    decoder = HeaderDecoder(table_size=size)
    decoder.decode(literal(b"a", b"1") + literal(b"b", b"2"))
    assert pairs(decoder.decode(b"\xbe")) == [(b"b", b"2")]
    if size == 68:
        assert pairs(decoder.decode(b"\xbf")) == [(b"a", b"1")]
    else:
        with pytest.raises(ConnectionFault):
            decoder.decode(b"\xbf")


def test_the_table_may_be_made_smaller_and_larger_again_up_to_the_limit():
    decoder = HeaderDecoder(table_size=4096)
    decoder.decode(literal(b"a", b"1") + literal(b"b", b"2"))
    assert pairs(decoder.decode(b"\x3f\x03\xbe")) == [(b"b", b"2")]  # 34 bytes: one of them
    assert pairs(decoder.decode(b"\x20\x3f\xe1\x1f" + literal(b"c", b"3") + b"\xbe")) == [(b"c", b"3")] * 2
    with pytest.raises(ConnectionFault):
        decoder.decode(b"\xbf")
    with pytest.raises(ConnectionFault, match="4097"):
        decoder.decode(b"\x3f\xe2\x1f")


@pytest.mark.parametrize("first", [b"\x00", b"\x10"], ids=["without indexing", "never indexed"])
def test_literals_that_are_not_to_be_indexed_are_not(first):
    decoder = HeaderDecoder()
    assert pairs(decoder.decode(first + b"\x01a\x01b")) == [(b"a", b"b")]
    with pytest.raises(ConnectionFault):
        decoder.decode(b"\xbe")


@pytest.mark.parametrize("first", [b"\x0f", b"\x1f", b"\x7f"], ids=["without indexing", "never indexed", "indexed"])
def test_names_come_from_both_tables(first):
    full = first[0] & (0x3F if first[0] & 0x40 else 0x0F)
    for index, name in ((61, b"www-authenticate"), (62, b"newest"), (63, b"own")):
        decoder = HeaderDecoder()
        decoder.decode(literal(b"own", b"1") + literal(b"newest", b"2"))
        start = first + bytes([index - full]) if index >= full else bytes([first[0] - full + index])
        assert pairs(decoder.decode(start + b"\x01v")) == [(name, b"v")]


def test_a_list_may_be_exactly_as_large_as_the_limit():
    block = hpack.encode([(b"a", b"1" * 17), (b"b", b"2" * 16)])  # 50 and 49
    assert len(HeaderDecoder(max_list_size=99).decode(block)) == 2
    with pytest.raises(HeadersTooLarge):
        HeaderDecoder(max_list_size=98).decode(block)


def test_a_reference_counts_as_much_as_what_it_stands_for():
    decoder = HeaderDecoder(max_list_size=1000)
    decoder.decode(literal(b"a", b"b" * 67))
    assert len(decoder.decode(b"\xbe" * 10)) == 10
    with pytest.raises(HeadersTooLarge):
        decoder.decode(b"\xbe" * 11)


@pytest.mark.parametrize("length", [0, 1, 126, 127, 128, 254, 255, 256, 16_510, 16_511, 2_000_000])
def test_lengths_of_every_size_are_written_as_others_read_them(length):
    block = hpack.encode([(b"n" * max(1, length), b"v" * length)]) + hpack.encode_path(b"/" + b"p" * length)
    expected = [(b"n" * max(1, length), b"v" * length), (b":path", b"/" + b"p" * length)]
    assert other_hpack.Decoder(max_header_list_size=1 << 30).decode(block, raw=True) == expected
    assert pairs(HeaderDecoder(max_list_size=1 << 30).decode(block)) == expected


def test_the_constant_blocks_are_what_their_names_say():
    def read(block):
        return other_hpack.Decoder().decode(block, raw=True)

    grpc = (b"content-type", b"application/grpc")
    assert read(hpack.RESPONSE) == [(b":status", b"200"), grpc]
    assert read(hpack.RESPONSE_GZIP) == [(b":status", b"200"), grpc, (b"grpc-encoding", b"gzip")]
    assert read(hpack.TRAILERS_OK) == [(b"grpc-status", b"0")]
    assert read(hpack.METHOD_POST + hpack.SCHEME_HTTP) == [(b":method", b"POST"), (b":scheme", b"http")]
    assert read(hpack.SCHEME_HTTPS + hpack.encode_status(415)) == [(b":scheme", b"https"), (b":status", b"415")]


@pytest.mark.parametrize("digits", ["ff ff ff ff 7f", "ff 80 80 80 80 01"])
def test_integers_that_nobody_needs_are_refused(digits):
    with pytest.raises(ConnectionFault, match="COMPRESSION_ERROR"):
        HeaderDecoder().decode(bytes.fromhex(digits))


def test_equal_huffman_strings_are_decoded_once_and_stay_right():
    decoder, encoder = HeaderDecoder(), other_hpack.Encoder()
    encoder.header_table_size = 0
    for number in [*range(200), *range(200)]:
        sent = [(b"x-name", b"value %d" % number), (b"x-name", b"other %d" % (number % 7))]
        assert pairs(decoder.decode(encoder.encode(sent, huffman=True))) == sent


def test_names_that_are_learnt_are_bounded():
    for number in range(1000):
        assert HeaderDecoder().decode(hpack.encode([(b"x-learnt-%d" % number, b"v")]))[0][2] == hpack.REGULAR
    assert len(hpack._KINDS) <= hpack._MAX_KNOWN


def test_a_literal_that_is_remembered_means_what_it_meant_on_any_connection():
    sent = [(b"te", b"trailers"), (b"x-a", b"b" * 80), (b"x-a", b""), (b"grpc-timeout", b"10S"), (b"bad name", b"v")]
    block = hpack.encode(sent) + hpack.encode_path(b"/t.S/M") + literal(b"own", b"1")
    first, again = HeaderDecoder(), HeaderDecoder()
    fields = first.decode(block)
    assert pairs(fields) == [*sent, (b":path", b"/t.S/M"), (b"own", b"1")]
    assert again.decode(block) == fields
    assert again._size == first._size, "what enters the table enters each connection's"
    for end in range(len(block)):
        try:
            some = again.decode(block[:end])
        except ConnectionFault:
            continue
        assert some == fields[: len(some)], "the beginning of a literal is never taken for another one"


def test_secrets_and_what_differs_each_time_are_not_remembered():
    hpack._literals.clear()
    secret = hpack.encode([(b"authorization", b"Bearer x"), (b"grpc-timeout", b"1S"), (b"x", b"\n")])
    never_indexed = b"\x10" + hpack.encode([(b"x-key", b"secret")])[1:]
    HeaderDecoder().decode(secret + never_indexed)
    assert hpack._literals == {}


def test_literals_that_are_remembered_are_bounded():
    for number in range(2 * hpack._MAX_LITERALS + 10):
        sent = [(b"x-some", b"%d" % number), (b"x-long", b"%d" % number * 50)]
        assert pairs(HeaderDecoder().decode(hpack.encode(sent))) == sent
    assert len(hpack._literals) <= hpack._MAX_LITERALS
    assert all(len(each) < hpack._LITERAL_BELOW for each in hpack._literals)


def test_every_entry_of_a_long_table_is_found_by_its_number():
    decoder = HeaderDecoder()
    values = [b"%d" % number for number in range(110)]
    for value in values:
        decoder.decode(literal(b"a", value))
    for index in range(62, 62 + 110):
        reference = bytes([0x80 | index]) if index < 127 else bytes([0xFF, index - 127])
        assert pairs(decoder.decode(reference)) == [(b"a", values[-1 - (index - 62)])]
        as_name = b"\x0f" + (bytes([index - 15]) if index - 15 < 128 else bytes([(index - 15) & 0x7F | 0x80, 1]))
        assert pairs(decoder.decode(as_name + b"\x01v")) == [(b"a", b"v")]
    assert pairs(decoder.decode(b"\xbd")) == [(b"www-authenticate", b"")]


@pytest.mark.parametrize("value", [0, 1, 127, 128, 16_383, 16_384, (1 << 21) - 1, 1 << 21, (1 << 28) - 1])
def test_an_integer_behind_a_full_prefix_is_what_it_says(value):
    digits, left = bytearray(), value
    while left >= 128:
        digits.append(left & 0x7F | 0x80)
        left >>= 7
    digits.append(left)
    assert hpack._integer(b"xx" + bytes(digits) + b"more", 2, 31) == (31 + value, 2 + len(digits))
    for end in range(2, 2 + len(digits)):
        with pytest.raises(ConnectionFault, match="inside of an integer"):
            hpack._integer(b"xx" + bytes(digits)[: end - 2], 2, 31)


def test_a_table_size_comes_before_the_fields_also_where_they_are_too_large_to_be_kept():
    decoder = HeaderDecoder(max_list_size=100)
    with pytest.raises(ConnectionFault, match="table size update after a field"):
        decoder.decode(hpack.encode([(b"x", bytes(200))]) + b"\x20")
    assert decoder.decode(b"\x20\x20") == []


@pytest.mark.parametrize("over", [0, 1])
def test_a_list_is_a_bomb_beyond_sixteen_times_the_limit(over):
    decoder = HeaderDecoder(max_list_size=100)
    block = hpack.encode([(b"x", bytes(1600 - 33 + over))])
    with pytest.raises(ConnectionFault if over else HeadersTooLarge):
        decoder.decode(block)


def test_a_literal_of_some_length_is_remembered_and_a_longer_one_is_not():
    for size in (95, 96):
        hpack._literals.clear()
        block = hpack.encode([(b"x-key", b"v" * (size - 8))])
        assert len(block) == size
        for _ in range(2):
            assert pairs(HeaderDecoder().decode(block)) == [(b"x-key", b"v" * (size - 8))]
        assert list(hpack._literals) == ([block] if size < 96 else [])


def test_what_is_remembered_is_what_is_given_out():
    hpack._literals.clear()
    block = hpack.encode([(b"x-key", b"value")])
    [field] = HeaderDecoder().decode(block)
    [again] = HeaderDecoder().decode(block)
    assert again is field


@pytest.mark.parametrize("length", [1, 126, 127, 511, 512, 1999, 2000, 2001, 9000])
def test_long_huffman_strings_are_decoded_whatever_their_length(length):
    for character in (b"0", b"~", b"\x01"):  # 5, 13 and 23 bits
        block = other_hpack.Encoder().encode([(b"x-a", character * length)], huffman=True)
        assert pairs(HeaderDecoder(max_list_size=1 << 20).decode(block)) == [(b"x-a", character * length)]
