"""The descriptions of options, read from source: the class docstring and the literal after each field.

Only the schema and the reference need them, so this is the one place that parses source, and only when asked.
"""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
import textwrap
from typing import Any

from nl.config.types import Options


def describe(cls: type[Options]) -> str:
    """The struct's own docstring as one paragraph each, without examples (what follows `::`)."""
    doc = inspect.cleandoc(cls.__dict__.get("__doc__") or "")
    return "" if doc.startswith(f"{cls.__name__}(") else doc  # a dataclass without a docstring gets its signature


def describe_fields(cls: type[Options]) -> dict[str, str]:
    """Attribute name -> description, inherited fields included; fields without one are absent."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if issubclass(base, Options):
            key: Any = base
            found |= _own_fields(key)
    return found


@functools.cache
def _own_fields(cls: Any) -> dict[str, str]:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    except (OSError, TypeError, SyntaxError):
        return {}  # no source at hand (a frozen or generated module): the options work, undescribed
    (body,) = (node.body for node in tree.body if isinstance(node, ast.ClassDef))
    found = {}
    for field, after in itertools.pairwise(body):
        if (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str)):
            found[field.target.id] = " ".join(after.value.value.split())
    return found
