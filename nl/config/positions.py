"""Where in a JSON5 text a path stands: line and column for error messages.

The JSON5 parser gives no positions, so once something is found wrong the text is read again here, by tokens only. The
text has been parsed before (or fails at a point that the parser names); this scan never raises.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import json5

from nl.config.fields import join

_TOKEN = re.compile(
    r"""(?P<space>\s+|//[^\n\r]*|/\*.*?\*/)
      | (?P<punctuation>[{}\[\]:,])
      | (?P<string>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
      | (?P<word>[^\s{}\[\]:,"'/]+|.)""",
    re.VERBOSE | re.DOTALL,
)


def positions(text: str) -> Iterator[tuple[str, int, bool]]:
    """(path, offset, whether a key of this name was there before) of every key and list entry, in order."""
    stack: list[_Level] = []
    path, expect_key = "", False
    for match in _TOKEN.finditer(text):
        token, kind = match[0], match.lastgroup
        if kind == "space" or token == ":":
            continue
        level = stack[-1] if stack else None
        if token in "}]" and kind == "punctuation":
            if stack:
                stack.pop()
            expect_key = False
        elif token == "," and kind == "punctuation":
            expect_key = level is not None and level.keys is not None
            if level is not None and level.keys is None:
                level.index += 1
        elif expect_key and level is not None and level.keys is not None:
            key = _key(token)
            path = join(level.path, key)
            yield path, match.start(), key in level.keys
            level.keys.add(key)
            expect_key = False
        else:
            if level is not None and level.keys is None:
                path = f"{level.path}[{level.index}]"
                yield path, match.start(), False
            if token in "{[" and kind == "punctuation":
                stack.append(_Level(path, keys=set() if token == "{" else None))
                expect_key = token == "{"


class _Level:
    """An object or list that is open: its path, and its keys so far (None: a list)."""

    def __init__(self, path: str, *, keys: set[str] | None) -> None:
        self.path = path
        self.keys = keys
        self.index = 0


def _key(token: str) -> str:
    if token[0] not in "\"'" and "\\" not in token:
        return token
    try:
        quoted = token if token[0] in "\"'" else f'"{token}"'
        return str(json5.loads(quoted)).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    except ValueError:
        return token


def line_and_column(text: str, offset: int) -> tuple[int, int]:
    """Both count from 1."""
    return text.count("\n", 0, offset) + 1, offset - text.rfind("\n", 0, offset)


def locate(text: str, path: str) -> tuple[int, int] | None:
    """Line and column of the place `path`, or of the innermost enclosing one that is there; None for the whole."""
    best: tuple[int, int] | None = None
    for found, offset, _ in positions(text):
        encloses = path == found or (path.startswith(found) and path[len(found)] in ".[")
        if encloses and (best is None or len(found) > best[0]):
            best = (len(found), offset)
    return None if best is None else line_and_column(text, best[1])


def duplicate(text: str) -> tuple[str, int] | None:
    """(path, offset) of the first key that its object has twice."""
    return next(((path, offset) for path, offset, again in positions(text) if again), None)
