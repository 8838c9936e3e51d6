"""The index finds what google's own descriptor pool finds."""

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool

from nl.services.descriptor_index import DescriptorIndex
from tests.support.foreign import DESCRIPTORS


@pytest.fixture(scope="module")
def files():
    return descriptor_pb2.FileDescriptorSet.FromString(DESCRIPTORS.read_bytes())


@pytest.fixture(scope="module")
def index():
    return DescriptorIndex(DESCRIPTORS.read_bytes())


def test_every_file_comes_with_all_that_it_imports(files, index):
    for file in files.file:
        pool = descriptor_pool.DescriptorPool()
        found = index.file(file.name)
        assert found[0].name == file.name
        assert len({one.name for one in found}) == len(found)
        for one in [*found[1:], found[0]]:
            pool.AddSerializedFile(one.encoded)
        assert pool.FindFileByName(file.name).name == file.name
    assert index.file("no/such.proto") is None


def test_every_symbol_leads_to_its_file(files, index):
    def symbols(scope, message):
        name = f"{scope}.{message.name}"
        yield name
        yield from (f"{name}.{field.name}" for field in [*message.field, *message.oneof_decl])
        for enum in message.enum_type:
            yield f"{name}.{enum.name}"
            yield from (f"{name}.{value.name}" for value in enum.value)
        for nested in message.nested_type:
            yield from symbols(name, nested)

    count = 0
    for file in files.file:
        names = [name for message in file.message_type for name in symbols(file.package, message)]
        for service in file.service:
            names += [f"{file.package}.{service.name}"]
            names += [f"{file.package}.{service.name}.{method.name}" for method in service.method]
        names += [f"{file.package}.{enum.name}" for enum in file.enum_type]
        for name in names:
            assert index.file_of_symbol(name)[0].name == file.name, name
            count += 1
    assert count > 500
    assert index.file_of_symbol("." + names[0]) is not None
    assert index.file_of_symbol("no.such.Symbol") is None


def symbols_of(file):
    """Every name that a file defines, and nothing else."""

    def of_enum(scope, enum):
        yield f"{scope}{enum.name}"
        yield from (f"{scope}{value.name}" for value in enum.value)  # in the scope that the enum is in

    def of_message(scope, message):
        yield f"{scope}{message.name}"
        inner = f"{scope}{message.name}."
        yield from (f"{inner}{each.name}" for each in [*message.field, *message.extension, *message.oneof_decl])
        for nested in message.nested_type:
            yield from of_message(inner, nested)
        for enum in message.enum_type:
            yield from of_enum(inner, enum)

    scope = f"{file.package}." if file.package else ""
    for message in file.message_type:
        yield from of_message(scope, message)
    for enum in file.enum_type:
        yield from of_enum(scope, enum)
    for service in file.service:
        yield f"{scope}{service.name}"
        yield from (f"{scope}{service.name}.{method.name}" for method in service.method)
    yield from (f"{scope}{extension.name}" for extension in file.extension)


def test_an_index_has_every_name_of_its_files_and_no_other(files):
    index = DescriptorIndex(DESCRIPTORS.read_bytes())
    assert set(index._symbols) == {name for file in files.file for name in symbols_of(file)}


@pytest.mark.parametrize("package", ["", "a.b"])
def test_of_all_that_a_file_can_define_every_name_is_found(package):
    """Also what no file that is served has: extensions, numbers of fixed length, enums within enums' neighbours."""
    file = descriptor_pb2.FileDescriptorProto(name="x.proto", package=package, syntax="proto2")
    outer = file.message_type.add(name="Outer")
    outer.field.add(name="one", number=1, label=1, type=9)
    outer.extension.add(name="inner_extension", number=100, label=1, type=5, extendee=".x")
    outer.oneof_decl.add(name="choice")
    outer.extension_range.add(start=100, end=200)
    outer.reserved_name.append("gone")
    outer.nested_type.add(name="Nested").enum_type.add(name="Deep").value.add(name="DEEP", number=0)
    kind = outer.enum_type.add(name="Kind")
    kind.value.add(name="KIND", number=0)
    kind.reserved_range.add(start=5, end=6)
    kind.options.deprecated = True
    top = file.enum_type.add(name="Top")
    top.value.add(name="TOP", number=0).options.deprecated = True
    service = file.service.add(name="Service")
    service.method.add(name="Call", input_type=".x", output_type=".x")
    service.options.deprecated = True
    file.extension.add(name="extension", number=101, label=1, type=5, extendee=".x")
    other = descriptor_pb2.FileDescriptorProto(name="y.proto", package="y", dependency=["x.proto", "missing.proto"])
    encoded = descriptor_pb2.FileDescriptorSet(file=[file, other]).SerializeToString()
    fixed = b"\x59" + bytes(8) + b"\x5d" + bytes(4) + b"\x60\x80\x01"  # unknown fields 11 and 12 of other kinds
    index = DescriptorIndex(fixed + encoded)
    assert set(index._symbols) == set(symbols_of(file))
    assert [each.name for each in index.file("y.proto")] == ["y.proto", "x.proto"]
    assert index.file("missing.proto") is None
