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
