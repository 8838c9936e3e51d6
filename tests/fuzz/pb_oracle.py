"""google's protobuf as the judge: message classes out of our own descriptor set, and hypothesis strategies for them."""

from __future__ import annotations

import functools
import importlib
import os
from pathlib import Path

import pytest

pytest.importorskip("google.protobuf", reason="the oracle is google's protobuf (extra: test)")

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import FieldDescriptor
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

import nl.pb
from nl.pb.gen.message_pool import default_message_pool

settings.register_profile(
    "pb",
    max_examples=int(os.environ.get("NL_PB_FUZZ_EXAMPLES", "25")),
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
FUZZ = settings.get_profile("pb")
FUZZ_MORE = settings(FUZZ, max_examples=12 * FUZZ.max_examples)
"""For the few codecs that are written by hand."""

DESCRIPTORS = descriptor_pb2.FileDescriptorSet.FromString(
    (Path(nl.pb.__file__).parent / "descriptors.binpb").read_bytes()
)
POOL = descriptor_pool.DescriptorPool()
for _file in DESCRIPTORS.file:
    POOL.Add(_file)
for _module in sorted({f"nl.pb.gen.{file.package}" for file in DESCRIPTORS.file}):
    importlib.import_module(_module)


def _message_names():
    def walk(prefix, messages):
        for message in messages:
            name = f"{prefix}.{message.name}"
            if not message.options.map_entry:
                yield name
            yield from walk(name, message.nested_type)

    return [name for file in DESCRIPTORS.file for name in walk(file.package, file.message_type)]


NAMES = sorted(name for name in _message_names() if f"type.googleapis.com/{name}" in default_message_pool.url_to_type)
ALL_NAMES = sorted(_message_names())


def ours(name):
    return default_message_pool.url_to_type[f"type.googleapis.com/{name}"]


@functools.cache
def theirs(name):
    return message_factory.GetMessageClass(POOL.FindMessageTypeByName(name))


_F = FieldDescriptor
_TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)


def _around(*values):
    return st.sampled_from(sorted({v + d for v in values for d in (-1, 0, 1)}))


_I32 = _around(0, 127, 128, 4095, 4096, 16383, 2**31 - 2, -(2**31) + 1)
_I64 = st.one_of(_I32, _around(2**32, 2**35, 2**56, 2**63 - 2, -(2**63) + 1))
_U32 = st.one_of(_around(1, 128, 4096, 2**31, 2**32 - 2))
_U64 = st.one_of(_U32, _around(2**63, 2**64 - 2))
_FLOATS = st.sampled_from([0.0, -0.0, 1.5, -2.25, float("inf"), float("-inf"), 2.0**-20])
_SCALARS = {
    _F.TYPE_INT32: _I32, _F.TYPE_SINT32: _I32, _F.TYPE_SFIXED32: _I32,
    _F.TYPE_INT64: _I64, _F.TYPE_SINT64: _I64, _F.TYPE_SFIXED64: _I64,
    _F.TYPE_UINT32: _U32, _F.TYPE_FIXED32: _U32, _F.TYPE_UINT64: _U64, _F.TYPE_FIXED64: _U64,
    _F.TYPE_BOOL: st.booleans(), _F.TYPE_FLOAT: _FLOATS, _F.TYPE_DOUBLE: _FLOATS,
    _F.TYPE_STRING: _TEXT, _F.TYPE_BYTES: st.one_of(st.binary(max_size=12), st.just(b"\xff" * 200)),
    _F.TYPE_ENUM: st.sampled_from([0, 1, 2, 3, 77, -1, 2**31 - 1, -(2**31)]),
}  # fmt: skip


@st.composite
def messages(draw, name, depth=3):
    """A google message with any of its fields set, to boundary values, and now and then unknown fields."""
    descriptor = POOL.FindMessageTypeByName(name)
    message = theirs(name)()
    for field in descriptor.fields:
        is_nested = field.type == _F.TYPE_MESSAGE
        if (is_nested and depth == 0) or not draw(st.integers(0, 3)):
            continue
        if is_nested and field.message_type.GetOptions().map_entry:
            key_field, value_field = field.message_type.fields
            for _ in range(draw(st.integers(1, 2))):
                key = draw(_SCALARS[key_field.type])
                if value_field.type == _F.TYPE_MESSAGE:
                    value = messages(value_field.message_type.full_name, depth - 1)
                    getattr(message, field.name)[key].CopyFrom(draw(value))
                else:
                    getattr(message, field.name)[key] = draw(_SCALARS[value_field.type])
        elif is_nested:
            nested = messages(field.message_type.full_name, depth - 1)
            if field.is_repeated:
                getattr(message, field.name).extend(draw(st.lists(nested, min_size=1, max_size=3)))
            else:
                getattr(message, field.name).CopyFrom(draw(nested))
        elif field.is_repeated:
            getattr(message, field.name).extend(draw(st.lists(_SCALARS[field.type], min_size=1, max_size=4)))
        else:
            setattr(message, field.name, draw(_SCALARS[field.type]))
    if not draw(st.integers(0, 4)):
        unknown = [b"\xfa\x7f\x03abc", b"\xf8\x7f\x05", b"\xfb\x7f\x08\x01\xfc\x7f"]
        message.MergeFromString(draw(st.sampled_from(unknown)))
    return message


@st.composite
def mutated(draw, data):
    """The bytes with a few of them changed, cut out, doubled or replaced by pieces that matter to a parser."""
    out = bytearray(data)
    pieces = st.one_of(
        st.binary(max_size=4),
        st.sampled_from([
            b"\x80" * 9 + b"\x01", b"\x80" * 10, b"\xff" * 9 + b"\x01", b"\xff\xff\xff\xff\x0f", b"\x0b\x0c",
            b"\x08\x05", b"\x12\x00", b"\x0a\x02\xc3\x28", b"\x0d\x01\x02\x03\x04", b"\x00", b"\x14",
            b"\x12\x81\x80\x80\x80\x00", b"\x8a\x80\x80\x80\x80\x00\x00", b"\x52\x03abc", b"\x9a\x01\x00",
        ]),
    )  # fmt: skip
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(out)))
        kind = draw(st.integers(0, 4))
        if kind == 0 and at < len(out):
            out[at] = draw(st.integers(0, 255))
        elif kind == 1 and at < len(out):
            out[at] = (out[at] + draw(st.sampled_from([1, 255, 128, 8, 2]))) & 255
        elif kind == 2:
            del out[at : at + draw(st.integers(1, 5))]
        elif kind == 3:
            out[at:at] = draw(pieces)
        else:
            out[at:at] = out[at : at + draw(st.integers(1, 20))]
    return bytes(out)
