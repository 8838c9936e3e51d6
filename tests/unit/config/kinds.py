"""Store kinds for the tests of reading configs: the shapes that a config sees, with real entry points."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from importlib import metadata
from typing import Annotated, Literal

from nl.config.convert import struct
from nl.config.fields import Conversion
from nl.config.registry import GROUP, StoreKinds
from nl.config.types import (
    Alias,
    Count,
    Duration,
    EvictionPolicy,
    Flag,
    Options,
    SecretText,
    SignedDuration,
    Size,
    StoreName,
    StoreSpec,
    Text,
)
from nl.errors import ConfigError


class DiskOptions(Options):
    """Blobs in a directory.

    Several lines.
    """

    EXAMPLE = '{ disk: { content_path: "/x", temp_path: "/y" } }'

    content_path: Text
    """Where the blobs lie."""
    temp_path: Text
    read_buffer_size: Size = 32768
    """The size of reads; two
    lines."""
    eviction_policy: EvictionPolicy = EvictionPolicy()


class MemOptions(Options):
    eviction_policy: EvictionPolicy = EvictionPolicy()


class PairOptions(Options):
    """Two stores."""

    left: StoreSpec
    right: StoreSpec
    mode: Literal["both", "update", "get", "read_only"] = "both"


class LinkOptions(Options):
    name: StoreName


class ManyOptions(Options):
    stores: tuple[StoreSpec, ...] = ()
    by_name: Mapping[str, StoreSpec] = field(default_factory=dict)


class EverythingOptions(Options):
    """One field of every type."""

    text: Text = "t"
    literal: str = "l"
    secret: SecretText = ""
    count: Count = 1
    size: Size = 2
    duration: Duration = 3.0
    signed: SignedDuration = -1.0
    flag: Flag = False
    real: float = 0.5
    choice: Literal["a", "b"] = "a"
    maybe: Size | None = None
    texts: tuple[Text, ...] = ()
    sizes: Mapping[str, Size] = field(default_factory=dict)
    renamed: Annotated[Count, Alias("old_name")] = 4
    either: Literal["x"] | MemOptions = "x"
    class_: Text = "c"

    def check(self) -> None:
        if self.count == 13:
            raise ConfigError("count", "is 13; expected luck")
        if self.size == 14:
            raise ValueError("is 14; expected less")
        if self.size == 13:
            raise ConfigError("", "all of it is wrong; expected luck")


class _Store:
    def __init__(self, options: Options, context: object) -> None:
        self.options = options


class Disk(_Store):
    Options = DiskOptions


class Mem(_Store):
    Options = MemOptions


class Pair(_Store):
    Options = PairOptions


class Link(_Store):
    Options = LinkOptions


class Many(_Store):
    Options = ManyOptions


class Everything(_Store):
    Options = EverythingOptions


def kinds() -> StoreKinds:
    """The kinds of this module, by lower-case class name."""
    classes = (Disk, Mem, Pair, Link, Many, Everything)
    return StoreKinds(
        metadata.EntryPoint(cls.__name__.lower(), f"{__name__}:{cls.__name__}", GROUP) for cls in classes)


def everything(raw: object, env: Mapping[str, str] | None = None) -> EverythingOptions:
    """Converts one struct with a field of every type, found at `here`."""
    result = struct(EverythingOptions, raw, "here", Conversion(env or {}, kinds().options))
    assert isinstance(result, EverythingOptions)
    return result
