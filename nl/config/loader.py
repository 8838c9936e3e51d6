"""From a JSON5 file to a checked `Config`, or one ConfigError with file, line, column and path.

Pure apart from reading the file: nothing is opened, made or started. Warnings (older forms, options without effect)
go to `on_warning`, a line each.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import json5

from nl.config.checks import check
from nl.config.convert import struct
from nl.config.document import Config
from nl.config.fields import Conversion, Raw
from nl.config.positions import duplicate, line_and_column, locate
from nl.config.registry import StoreKinds
from nl.errors import ConfigError

MAX_CONFIG_BYTES = 4 * 1024 * 1024

_log = logging.getLogger("nl.config")
_PARSER_MESSAGE = re.compile(r".*?:(\d+) (.*?)(?: at column (\d+))?", re.DOTALL)


def load_file(
    path: str | os.PathLike[str],
    *,
    env: Mapping[str, str] | None = None,
    kinds: StoreKinds | None = None,
    on_warning: Callable[[str], None] = _log.warning,
) -> Config:
    """The config in a file.

    `env` is what `${VAR}` sees (default: the process's environment), `kinds` the installed store kinds. Raises
    ConfigError, also for a file that cannot be read, and PluginError for a store kind that cannot be loaded.
    """
    source = os.fspath(path)
    try:
        with Path(source).open("rb") as file:
            data = file.read(MAX_CONFIG_BYTES + 1)
        text = data.decode()
    except OSError as exc:
        raise ConfigError("", f"cannot be read: {exc.strerror}", source=source) from exc
    except UnicodeDecodeError as exc:
        raise ConfigError("", f"is not UTF-8 at byte {exc.start}; expected JSON5 text", source=source) from exc
    if len(data) > MAX_CONFIG_BYTES:
        raise ConfigError("", f"is larger than {MAX_CONFIG_BYTES} bytes", source=source)
    return load_text(text, source=source, env=env, kinds=kinds, on_warning=on_warning)


def in_file(error: ConfigError, path: str | os.PathLike[str]) -> ConfigError:
    """The same error with file, line and column in front: for what only building or starting could find."""
    source = os.fspath(path)
    if error.source and error.source != source:
        return error
    try:
        text = Path(source).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        text = ""  # gone or changed since: the file's name is still right
    return type(error)(error.path, error.problem, source=_place(text, source, error.path))


def _place(text: str, source: str, path: str) -> str:
    at = locate(text, path) if path else None
    return f"{source}:{at[0]}:{at[1]}" if at else source


def load_text(
    text: str,
    *,
    source: str = "<config>",
    env: Mapping[str, str] | None = None,
    kinds: StoreKinds | None = None,
    on_warning: Callable[[str], None] = _log.warning,
) -> Config:
    """The config in a text; `source` names it in messages."""
    raw = parse(text, source=source)
    try:
        return load_value(raw, env=env, kinds=kinds, on_warning=lambda line: on_warning(f"{source}: {line}"))
    except ConfigError as exc:
        raise type(exc)(exc.path, exc.problem, source=_place(text, source, exc.path)) from exc
    except RecursionError as exc:
        raise ConfigError("", "is nested too deeply", source=source) from exc


def load_value(
    raw: Raw,
    *,
    env: Mapping[str, str] | None = None,
    kinds: StoreKinds | None = None,
    on_warning: Callable[[str], None] = _log.warning,
) -> Config:
    """The config in a parsed value: what code uses that makes a config of its own."""
    found = kinds if kinds is not None else StoreKinds()
    conversion = Conversion(os.environ if env is None else env, found.options)
    config: Config = struct(Config, raw, "", conversion)
    check(config, conversion.references)
    for path, text in conversion.warnings:
        on_warning(f"{path} {text}")
    return config


def parse(text: str, *, source: str = "<config>") -> Raw:
    """JSON5 as plain values. Raises ConfigError with line and column, also for a key that an object has twice."""
    if not text.strip():
        raise ConfigError("", "is empty; expected a JSON5 object", source=source)
    try:
        raw = json5.loads(text)
    except ValueError as exc:
        raise _syntax_error(str(exc), source) from None
    except RecursionError as exc:
        raise ConfigError("", "is nested too deeply", source=source) from exc
    twice = duplicate(text)
    if twice is not None:
        line, column = line_and_column(text, twice[1])
        raise ConfigError(twice[0], "this key is there twice; expected it once", source=f"{source}:{line}:{column}")
    if "\\u" in text:
        raw = _join_surrogates(raw)
    if not isinstance(raw, dict):
        raise ConfigError("", "is not an object; expected { stores: [...], servers: [...] }", source=source)
    return raw


def _syntax_error(message: str, source: str) -> ConfigError:
    match = _PARSER_MESSAGE.fullmatch(message)
    if match is None:
        return ConfigError("", f"is not JSON5: {message}", source=source)
    line, problem, column = match.groups()
    problem = problem.replace("\n", "\\n")
    where = f"{source}:{line}:{column}" if column else f"{source}:{line}"
    return ConfigError("", f"is not JSON5: {problem[:1].lower()}{problem[1:]}", source=where)


def _join_surrogates(raw: Raw) -> Raw:
    """Pairs of surrogate escapes as the one character they stand for, which the parser leaves apart."""
    if isinstance(raw, str):
        return raw.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(raw, dict):
        return {_join_surrogates(key): _join_surrogates(value) for key, value in raw.items()}
    return [_join_surrogates(value) for value in raw] if isinstance(raw, list) else raw
