"""What `nl.plugin` offers, as text: every name with its signature, every class with its public members.

    python -m tests.meta.surface > tests/meta/plugin_surface.txt
"""

from __future__ import annotations

import dataclasses
import inspect
import types
from collections.abc import Iterator

import nl.plugin


def surface() -> str:
    """One line for each name, and one for each member of a class."""
    return "".join(f"{line}\n" for name in sorted(nl.plugin.__all__) for line in _lines(name, getattr(nl.plugin, name)))


def _lines(name: str, thing: object) -> Iterator[str]:
    if inspect.isclass(thing):
        bases = ", ".join(base.__name__ for base in thing.__bases__ if base is not object)
        yield f"class {name}({bases})"
        for member, value in sorted(vars(thing).items()):
            if not member.startswith("_") or (member == "__init__" and not getattr(thing, "_is_protocol", False)):
                yield from (f"    {line}" for line in _member(thing, member, value))
    elif isinstance(thing, types.FunctionType):
        yield f"{_kind(thing)} {name}{inspect.signature(thing)}"
    else:
        yield f"{name}: {type(thing).__name__}"


def _member(cls: type, name: str, value: object) -> Iterator[str]:
    if isinstance(value, classmethod | staticmethod):
        yield f"{type(value).__name__} {name}{inspect.signature(value.__func__)}"
    elif isinstance(value, property):
        yield f"property {name}"
    elif isinstance(value, types.FunctionType):
        if name != "__init__" or not dataclasses.is_dataclass(cls):
            yield f"{_kind(value)} {name}{inspect.signature(value)}"
        else:
            yield f"fields {', '.join(field.name for field in dataclasses.fields(cls))}"
    elif isinstance(value, types.MemberDescriptorType):
        yield f"slot {name}"
    else:
        yield f"{name}"


def _kind(function: types.FunctionType) -> str:
    return "async def" if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function) else "def"


if __name__ == "__main__":
    print(surface(), end="")
