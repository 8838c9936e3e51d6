"""Services seen from the server: one table of methods, each with what a call needs to know."""

import pytest
from grpclib.const import Cardinality, Handler

from nl.pb import reapi
from nl.pb.codec import DecodeError, encode
from nl.rpc.method import decoder_for, table_of


class Service:
    def __init__(self, *names, cardinality=Cardinality.UNARY_UNARY):
        self._mapping = {name: Handler(self.act, cardinality, bytes, bytes) for name in names}

    async def act(self, stream):
        """Never called."""

    def __mapping__(self):
        return self._mapping


def test_methods_of_all_services_are_found_by_their_path_as_it_comes_on_the_wire():
    one, two = Service("/a.A/X", "/a.A/Y"), Service("/b.B/X")
    table = table_of([one, two])
    assert {path: method.name for path, method in table.items()} == {
        b"/a.A/X": "/a.A/X", b"/a.A/Y": "/a.A/Y", b"/b.B/X": "/b.B/X",
    }  # fmt: skip
    assert table[b"/b.B/X"].func == two.act


def test_two_services_with_the_same_method_are_a_mistake():
    with pytest.raises(ValueError, match="two services offer /a.A/X"):
        table_of([Service("/a.A/X"), Service("/a.A/X")])


@pytest.mark.parametrize("cardinality", list(Cardinality))
def test_a_method_knows_which_sides_stream(cardinality):
    method = table_of([Service("/a.A/X", cardinality=cardinality)])[b"/a.A/X"]
    assert (method.client_streaming, method.server_streaming) == cardinality.value


def test_bytes_come_as_they_are_and_as_bytes_whatever_held_them():
    decode = decoder_for(bytes)
    data = b"abc"
    assert decode(data) is data
    assert type(decode(memoryview(data))) is type(decode(bytearray(data))) is bytes


def test_messages_are_decoded_strictly():
    digest = reapi.Digest(hash="ab", size_bytes=3)
    assert decoder_for(reapi.Digest)(memoryview(encode(digest))) == digest
    with pytest.raises(DecodeError):
        decoder_for(reapi.Digest)(b"\x0a\x05ab")


def test_a_class_with_a_decoder_of_its_own_is_asked():
    class Own:
        @classmethod
        def decode(cls, data):
            return "decoded", bytes(data)

    assert decoder_for(Own)(memoryview(b"x")) == ("decoded", b"x")
