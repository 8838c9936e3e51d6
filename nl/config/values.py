"""The text forms of single values: environment variables, numbers, flags, sizes, durations.

Pure functions from what JSON5 gave to a Python value, used by `convert` only. Each raises ValueError whose text says
what is wrong ("`"10 gigs"` is not a size"); the caller adds the path and what was expected. The forms are those that
NativeLink's configs use; where those lose something (fractions of a second), they are kept here.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from fractions import Fraction

MAX_COUNT = (1 << 63) - 1
MAX_SIZE = (1 << 64) - 1
MAX_DURATION_S = float(1 << 63)

_VARIABLE = re.compile(r"\$(?:(\$)|([A-Za-z_][A-Za-z0-9_]*)|\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}|(\{))")
_SIZE = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*([a-z]*)", re.ASCII)
_DURATION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-zµ]+)", re.ASCII)
_DECIMAL = re.compile(r"[+-]?\d+", re.ASCII)

_PREFIXES = "kmgtpe"
SIZE_UNITS: dict[str, int] = {"": 1, "b": 1}
for _power, _letter in enumerate(_PREFIXES, start=1):
    SIZE_UNITS |= {_letter: 1000**_power, f"{_letter}b": 1000**_power}
    SIZE_UNITS |= {f"{_letter}i": 1024**_power, f"{_letter}ib": 1024**_power}

_DAY = 86400
DURATION_UNITS: dict[str, Fraction] = {
    unit: Fraction(seconds)
    for units, seconds in (
        ("nanos nsec ns", Fraction(1, 10**9)),
        ("usec us µs micros", Fraction(1, 10**6)),
        ("millis msec ms", Fraction(1, 1000)),
        ("seconds second secs sec s", 1),
        ("minutes minute mins min m", 60),
        ("hours hour hrs hr h", 3600),
        ("days day d", _DAY),
        ("weeks week wks wk w", 7 * _DAY),
        ("months month M", Fraction("30.44") * _DAY),
        ("years year yrs yr y", Fraction("365.25") * _DAY),
    )
    for unit in units.split()
}


def show(raw: object) -> str:
    """A value as it stands in the config, shortened, for messages."""
    if isinstance(raw, dict):
        return "an object"
    if isinstance(raw, list):
        return "a list"
    try:
        text = json.dumps(raw, ensure_ascii=False)
    except (TypeError, ValueError):
        text = repr(raw)
    return text if len(text) <= 60 else f"{text[:57]}..."


def expand(raw: object, env: Mapping[str, str]) -> str:
    """Text with `${VAR}`, `$VAR`, `${VAR:-default}` (unset or empty) and `$$` replaced; any other `$` stays.

    A default is expanded, too, but cannot hold a closing brace: `${DATA:-$HOME/data}`.
    """
    if not isinstance(raw, str):
        raise ValueError(f"{show(raw)} is not text")

    def one(match: re.Match[str]) -> str:
        dollar, bare, braced, default, broken = match.groups()
        if dollar:
            return "$"
        if broken:
            raise ValueError(f"{show(raw)} has a ${{ that is no ${{NAME}} or ${{NAME:-default}} (a plain $ is $$)")
        name = bare or braced
        value = env.get(name)
        if default is not None and not value:
            return expand(default, env)
        if value is None:
            raise ValueError(f"environment variable {name} is not set")
        return value

    return _VARIABLE.sub(one, raw)


def literal(raw: object) -> str:
    """Text as it is written: nothing is expanded."""
    if not isinstance(raw, str):
        raise ValueError(f"{show(raw)} is not text")
    return raw


def _whole(raw: object) -> int | None:
    """A JSON5 number without a fraction (`1e9` counts), or None for anything else."""
    if isinstance(raw, bool):
        return None
    if isinstance(raw, int):
        return raw
    if isinstance(raw, float) and raw.is_integer():
        return int(raw)
    return None


def _text(raw: object, env: Mapping[str, str], *, what: str) -> str:
    if not isinstance(raw, str):
        raise ValueError(f"{show(raw)} is not {what}")
    text = expand(raw, env).strip()
    if not text:
        raise ValueError("empty text" if raw == "" else f"{show(raw)} comes out empty")
    return text


def count(raw: object, env: Mapping[str, str]) -> int:
    """A whole number from 0 to 2^63-1."""
    number = _whole(raw)
    if number is None:
        text = _text(raw, env, what="a whole number")
        if not _DECIMAL.fullmatch(text):
            raise ValueError(f"{show(text)} is not a whole number")
        number = int(text)
    if number < 0:
        raise ValueError(f"{number} is negative")
    if number > MAX_COUNT:
        raise ValueError(f"{number} is too large")
    return number


def real(raw: object, env: Mapping[str, str]) -> float:
    """A number, whole or not."""
    if isinstance(raw, bool) or not isinstance(raw, (int, float, str)):
        raise ValueError(f"{show(raw)} is not a number")
    try:
        number = float(_text(raw, env, what="a number") if isinstance(raw, str) else raw)
    except (ValueError, OverflowError):
        raise ValueError(f"{show(raw)} is not a number") from None
    if not math.isfinite(number):
        raise ValueError(f"{show(raw)} is not a finite number")
    return number


def flag(raw: object, env: Mapping[str, str]) -> bool:
    """`true` or `false`, also as text in any case."""
    if isinstance(raw, bool):
        return raw
    text = _text(raw, env, what="true or false").lower()
    if text not in {"true", "false"}:
        raise ValueError(f"{show(text)} is not true or false")
    return text == "true"


def size(raw: object, env: Mapping[str, str]) -> int:
    """Bytes, 0 to 2^64-1. Letter case does not matter; b is bytes, never bits; a fraction of a byte is rounded up."""
    number = _whole(raw)
    if number is None:
        text = _text(raw, env, what="a size")
        if text.startswith("-"):
            raise ValueError(f"{show(text)} is negative")
        match = _SIZE.fullmatch(text.lower())
        if match is None or match[2] not in SIZE_UNITS:
            raise ValueError(f"{show(text)} is not a size")
        number = math.ceil(Fraction(match[1]) * SIZE_UNITS[match[2]])
    if number < 0:
        raise ValueError(f"{number} is negative")
    if number > MAX_SIZE:
        raise ValueError(f"{show(raw)} is too large")
    return number


def duration(raw: object, env: Mapping[str, str], *, signed: bool = False) -> float:
    """Seconds. Text needs units and may have several (`1h 30m`), each number with or without a fraction."""
    if isinstance(raw, (int, float)) and not isinstance(raw, bool):
        if not math.isfinite(raw):
            raise ValueError(f"{show(raw)} is not a duration")
        if raw < 0 and not signed:
            raise ValueError(f"{raw} is negative")
        seconds = float(raw) if abs(raw) <= MAX_DURATION_S else math.inf
    else:
        seconds = _humane(_text(raw, env, what="a duration"))
    if abs(seconds) >= MAX_DURATION_S:
        raise ValueError(f"{show(raw)} is too long")
    return seconds


def _humane(text: str) -> float:
    if text == "0":
        return 0.0
    total, at = Fraction(0), 0
    while at < len(text):
        match = _DURATION.match(text, at)
        if match is None:
            if _DECIMAL.fullmatch(text):
                raise ValueError(f"{show(text)} has no unit")
            raise ValueError(f"{show(text)} is not a duration")
        unit = DURATION_UNITS.get(match[2])
        if unit is None:
            raise ValueError(f"{show(text)} has the unknown unit {show(match[2])}")
        total += Fraction(match[1]) * unit
        at = match.end()
    return float(total) if total < MAX_DURATION_S else math.inf


def milliseconds(raw: object, env: Mapping[str, str]) -> int:
    """Milliseconds as a whole number, or a duration with units."""
    if isinstance(raw, str):
        text = _text(raw, env, what="a time")
        return count(text, env) if _DECIMAL.fullmatch(text) else round(duration(text, env) * 1000)
    return count(raw, env)


def format_size(value: int) -> str:
    """A size as people write it: the largest unit that keeps it exact to a tenth (`10 GB`, `64 KiB`, `1234 B`)."""
    for step, suffix in ((1000, "B"), (1024, "iB")):
        for power in range(len(_PREFIXES), 0, -1):
            unit = step**power
            if value >= unit and value * 10 % unit == 0:
                whole, tenth = divmod(value * 10 // unit, 10)
                shown = f"{whole}.{tenth}" if tenth else str(whole)
                letter = _PREFIXES[power - 1].upper()
                return f"{shown} {letter.lower() if letter + suffix == 'KB' else letter}{suffix}"
    return f"{value} B"


def format_duration(seconds: float) -> str:
    """A duration as people write it (`1h 30m`, `500ms`)."""
    rest, parts = round(seconds * 1000), []
    if seconds <= 0 or rest / 1000 != seconds:
        return f"{str(float(seconds)).removesuffix('.0')}s"
    for unit, size_ms in (("d", _DAY * 1000), ("h", 3600_000), ("m", 60_000), ("s", 1000), ("ms", 1)):
        if rest >= size_ms:
            parts.append(f"{rest // size_ms}{unit}")
            rest %= size_ms
    return " ".join(parts)
