"""The types that options are declared with, for built-in and third-party store kinds alike.

These are declarations only: `convert` reads values into them, `values` knows the text forms, `schema` and `reference`
describe them. Nothing here knows a component.

A type checker sees plain `int`, `float`, `str` and `bool`, so `max_bytes: Size = 0` and `Options(max_bytes=10)` are
fine; at run time `Size`, `Duration`, ... are subclasses that tell the converter which text forms to accept.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias, dataclass_transform

from nl.errors import ConfigError

Flag: TypeAlias = bool
"""`true` or `false`, also as a string (`"${USE_IT:-true}"`)."""

if TYPE_CHECKING:
    Text = str
    SecretText = str
    Count = int
    Size = int
    Duration = float
    SignedDuration = float
    Milliseconds = int
    StoreName = str
    SchedulerName = str
    ServerAddress = str
else:

    class Text(str):
        """Text in which `${VAR}`, `$VAR` and `${VAR:-default}` stand for environment variables and `$$` for `$`.

        A field of type plain `str` takes its value as it is written.
        """

        __slots__ = ()

    class SecretText(Text):
        """Text that messages, drawings and `repr` of the options do not show: a password, a key."""

        __slots__ = ()

        def __repr__(self) -> str:
            return "'***'"

    class StoreName(Text):
        """The name of a store in the top-level `stores`. That it exists is checked when the config is read.

        The empty text means "none" and is only allowed as a field's default.
        """

        __slots__ = ()

    class SchedulerName(Text):
        """The name of a scheduler in the top-level `schedulers`. That it exists is checked when the config is read."""

        __slots__ = ()

    class ServerAddress(Text):
        """Where another server is (`grpc://host:port`). That it does not lead back to the store that has it is checked
        when the config is read.
        """

        __slots__ = ()

    class Count(int):
        """A whole number, not negative, as a number or a string of digits."""

        __slots__ = ()

    class Size(int):
        """Bytes: a whole number, or text with a unit (`"10gb"` = 10^10, `"64KiB"` = 65536, `"1.5 MB"`)."""

        __slots__ = ()

    class Duration(float):
        """Seconds: a number, or text with units (`"1h 30m"`, `"500ms"`). Fractions are kept."""

        __slots__ = ()

    class SignedDuration(Duration):
        """Like Duration, but numbers may be negative (where -1 means "off")."""

        __slots__ = ()

    class Milliseconds(int):
        """Milliseconds: a whole number, or text with units like a Duration."""

        __slots__ = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Alias:
    """A second key under which a field is accepted: `ttl_s: Annotated[Duration, Alias("ttl")] = Duration(0)`."""

    key: str


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(dataclasses.field,))
@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Base of all option structs. A subclass is a frozen, keyword-only dataclass without needing a decorator::

        class MyOptions(Options):
            '''What this kind of store does, in a sentence: it opens the kind's page in the reference.'''

            path: Text
            '''Where the blobs lie. (A literal after the field is its description in schema and reference.)'''
            max_bytes: Size = 0
            '''Evict when more than this is stored; 0 means never.'''
            backend: StoreSpec
            '''Every miss goes here.'''
            mode: Literal["fast", "safe"] = "safe"

    * A field without a default is required; unknown keys are refused; null counts as absent where there is a default.
    * Types: Text, SecretText, str (taken literally), Count, Size, Duration, Flag, float, StoreSpec (a child store,
      written inline as `{ kind: {...} }`), StoreName (a store defined elsewhere), ServerAddress, Literal["a", "b"],
      `X | None`, `tuple[X, ...]` (default `()`), `Mapping[str, X]` (default `field(default_factory=dict)`) and
      other Options subclasses (default an instance, as they are frozen).
    * A field called `global_` is written `global` in the config. `Annotated[X, Alias("old")]` accepts an older key.
    * `check` may refuse combinations.
    * `EXAMPLE` may hold a JSON5 snippet for the reference.
    """

    EXAMPLE: ClassVar[str] = ""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        dataclasses.dataclass(frozen=True, kw_only=True)(cls)

    def check(self) -> None:
        """Called once after reading. Raise `ConfigError("field", "what is wrong; expected ...")` to refuse.

        The path is relative to this struct and may be empty, which means the struct as a whole, as does a ValueError.
        """


class Tagged:
    """Base of what is written `{ <kind>: {...} }`, with options by its kind, but for stores."""

    __slots__ = ()

    kind: str
    options: Options


@dataclasses.dataclass(frozen=True, slots=True)
class StoreSpec:
    """A store as configured: its kind and that kind's options. Build it with `StoreContext.child(spec)`."""

    kind: str
    options: Options
    path: str = ""
    """Where it stands in the config: `stores[0].fast_slow.fast`. Unique, and what messages name."""


class EvictionPolicy(Options):
    """When blobs are dropped, the least recently used first."""

    max_bytes: Size = 0
    """Evict when the blobs together are larger; 0 means never for that reason."""
    evict_bytes: Size = 0
    """When evicting for size, go this far below `max_bytes`, so that it happens in batches."""
    max_seconds: Duration = 0
    """Evict what has not been used for so long; 0 means never for that reason."""
    max_count: Count = 0
    """Evict when there are more blobs than this; 0 means never for that reason."""

    def check(self) -> None:
        """Refuses a batch larger than the whole."""
        if self.max_bytes and self.evict_bytes > self.max_bytes:
            problem = f"{self.evict_bytes} is more than max_bytes; expected at most {self.max_bytes}"
            raise ConfigError("evict_bytes", problem)
