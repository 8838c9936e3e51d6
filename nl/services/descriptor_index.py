"""Finds file descriptors by file name and by symbol, for server reflection, in a serialised FileDescriptorSet.

Descriptors are served as the bytes they are in the set, so this reads only what an index needs: names and nesting.
The numbers are those of google/protobuf/descriptor.proto.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

# FileDescriptorSet.file, FileDescriptorProto.*, DescriptorProto.*, ServiceDescriptorProto.*, EnumDescriptorProto.*
_SET_FILE = 1
_FILE_NAME, _FILE_PACKAGE, _FILE_DEPENDENCY = 1, 2, 3
_FILE_MESSAGE, _FILE_ENUM, _FILE_SERVICE, _FILE_EXTENSION = 4, 5, 6, 7
_NAME = 1
_MESSAGE_FIELD, _MESSAGE_NESTED, _MESSAGE_ENUM, _MESSAGE_EXTENSION, _MESSAGE_ONEOF = 2, 3, 4, 6, 8
_ENUM_VALUE = 2
_SERVICE_METHOD = 2


class FileDescriptor(NamedTuple):
    """One .proto file: its encoded FileDescriptorProto and the files it imports."""

    name: str
    encoded: bytes
    dependencies: tuple[str, ...]


class DescriptorIndex:
    """An index over a FileDescriptorSet. Built on first use of reflection; immutable afterwards."""

    def __init__(self, descriptor_set: bytes) -> None:
        self._files: dict[str, FileDescriptor] = {}
        self._symbols: dict[str, str] = {}
        for number, encoded in _fields(descriptor_set):
            if number == _SET_FILE:
                self._add_file(encoded)

    def file(self, name: str) -> list[FileDescriptor] | None:
        """A file and all that it imports, itself first, the others in an order to load them; None if it is unknown."""
        if name not in self._files:
            return None
        found: set[str] = set()
        wanted = [name]
        while wanted:
            at = wanted.pop()
            if at not in found and at in self._files:
                found.add(at)
                wanted.extend(self._files[at].dependencies)
        # protoc puts imported files first.
        return [self._files[name], *(file for file in self._files.values() if file.name in found - {name})]

    def file_of_symbol(self, symbol: str) -> list[FileDescriptor] | None:
        """The file that defines a fully qualified name (no leading dot needed) and all that it imports, or None."""
        name = self._symbols.get(symbol.removeprefix("."))
        return None if name is None else self.file(name)

    def _add_file(self, encoded: bytes) -> None:
        fields = list(_fields(encoded))
        name = _text(fields, _FILE_NAME)
        package = _text(fields, _FILE_PACKAGE)
        dependencies = tuple(value.decode() for number, value in fields if number == _FILE_DEPENDENCY)
        self._files[name] = FileDescriptor(name, encoded, dependencies)
        for number, value in fields:
            if number == _FILE_MESSAGE:
                symbols = _message_symbols(package, value)
            elif number == _FILE_ENUM:
                symbols = _enum_symbols(package, value)
            elif number == _FILE_SERVICE:
                symbols = _named_symbols(package, value, _SERVICE_METHOD)
            elif number == _FILE_EXTENSION:
                symbols = iter([_join(package, _text(list(_fields(value)), _NAME))])
            else:
                continue
            self._symbols.update(dict.fromkeys(symbols, name))


def _message_symbols(scope: str, encoded: bytes) -> Iterator[str]:
    fields = list(_fields(encoded))
    name = _join(scope, _text(fields, _NAME))
    yield name
    for number, value in fields:
        if number in (_MESSAGE_FIELD, _MESSAGE_EXTENSION, _MESSAGE_ONEOF):
            yield _join(name, _text(list(_fields(value)), _NAME))
        elif number == _MESSAGE_NESTED:
            yield from _message_symbols(name, value)
        elif number == _MESSAGE_ENUM:
            yield from _enum_symbols(name, value)


def _enum_symbols(scope: str, encoded: bytes) -> Iterator[str]:
    """An enum's values belong to the scope that the enum is in (protobuf's C++ scoping rule)."""
    fields = list(_fields(encoded))
    yield _join(scope, _text(fields, _NAME))
    for number, value in fields:
        if number == _ENUM_VALUE:
            yield _join(scope, _text(list(_fields(value)), _NAME))


def _named_symbols(scope: str, encoded: bytes, member: int) -> Iterator[str]:
    fields = list(_fields(encoded))
    name = _join(scope, _text(fields, _NAME))
    yield name
    for number, value in fields:
        if number == member:
            yield _join(name, _text(list(_fields(value)), _NAME))


def _join(scope: str, name: str) -> str:
    return f"{scope}.{name}" if scope else name


def _text(fields: list[tuple[int, bytes]], number: int) -> str:
    return next((value.decode() for at, value in fields if at == number), "")


def _fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The length-delimited fields of a message that protoc wrote, skipping the others."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == 2:
            length, at = _varint(data, at)
            yield tag >> 3, data[at : at + length]
            at += length
        elif kind == 0:
            _, at = _varint(data, at)
        else:
            at += 8 if kind == 1 else 4


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
