"""HPACK: the examples of RFC 7541 and what it forbids."""

import pytest

from nl.rpc import hpack
from nl.rpc.frames import ConnectionFault
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
