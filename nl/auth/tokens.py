"""Named tokens: how they are made, the file that keeps their hashes, and finding one.

A token is 256 random bits, so one SHA-256 protects it as well as a slow hash would, at a microsecond per look. The
file has one JSON object per line (`TokenEntry`); empty lines and those that begin with `#` are kept as they are.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import stat
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from nl.auth.grants import grants_of
from nl.config.auth import TokenEntry
from nl.config.convert import struct
from nl.config.fields import Conversion
from nl.errors import ConfigError, PluginError
from nl.model.access import Grant, Identity

PREFIX = "nl_"
"""What tokens begin with, so that people and scanners for leaked secrets know one when they see it."""
MAX_FILE_BYTES = 16 * 1024 * 1024
_HEAD = "# Tokens of nl, one per line; only their hashes are kept. Written by `nl token create`.\n"


def new_token() -> str:
    """A token that nobody can guess: 256 bits, URL-safe."""
    return PREFIX + secrets.token_urlsafe(32)


def hash_token(token: bytes) -> bytes:
    """What is kept of a token."""
    return hashlib.sha256(token).digest()


# ------------------------------------------------------------------------------------------------------- the file


def read_tokens(path: str) -> list[TokenEntry]:
    """All entries of a file. Raises ConfigError, with the line, for anything that is not right."""
    return parse_tokens(read_text(path), source=path)


def read_text(path: str) -> str:
    """The text of a tokens file; ConfigError if it cannot be read, or anybody could write to it."""
    try:
        with Path(path).open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(MAX_FILE_BYTES + 1)
        text = data.decode()
    except FileNotFoundError:
        hint = f"make it with: nl token create NAME --allow read --file {path}"
        raise ConfigError("", f"there is no such file; {hint}", source=path) from None
    except OSError as exc:
        raise ConfigError("", f"cannot be read: {exc.strerror}", source=path) from exc
    except UnicodeDecodeError as exc:
        raise ConfigError("", f"is not UTF-8 at byte {exc.start}", source=path) from None
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError("", f"is larger than {MAX_FILE_BYTES} bytes", source=path)
    if stat.S_ISREG(mode) and mode & stat.S_IWOTH:
        raise ConfigError("", f"everybody on this machine can write to it; expected: chmod o-w {path}", source=path)
    return text


def parse_tokens(text: str, *, source: str) -> list[TokenEntry]:
    """The entries of a tokens file. A line's text is in no message: somebody may have put a token there."""
    entries: list[TokenEntry] = []
    lines: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not _is_entry(line):
            continue
        entry = _parse_line(line, source=f"{source}:{number}")
        for key in (entry.name, entry.sha256):
            if key in lines:
                what = "name" if key == entry.name else "token"
                problem = f"is that of line {lines[key]}, too; expected another"
                raise ConfigError(what, problem, source=f"{source}:{number}")
            lines[key] = number
        entries.append(entry)
    return entries


def _is_entry(line: str) -> bool:
    return bool(line.strip()) and not line.lstrip().startswith("#")


def _parse_line(line: str, *, source: str) -> TokenEntry:
    try:
        raw = json.loads(line)
    except (ValueError, RecursionError):
        raise ConfigError("", "is no JSON object; expected what `nl token create` writes", source=source) from None
    try:
        entry: TokenEntry = struct(TokenEntry, raw, "", Conversion(env={}, kinds=_no_stores))
    except ConfigError as exc:
        raise ConfigError(exc.path, exc.problem, source=source) from None
    return entry


def _no_stores(kind: str, path: str) -> Any:
    raise PluginError(path, f"no store kind {kind} here")


def add_entry(text: str, entry: dict[str, Any], *, source: str) -> str:
    """The file's text with one more entry; ConfigError if its name is taken or it is not a right one."""
    if text and not text.endswith("\n"):
        text += "\n"
    text = (text or _HEAD) + json.dumps(entry, ensure_ascii=False) + "\n"
    parse_tokens(text, source=source)
    return text


def remove_entry(text: str, name: str, *, source: str) -> str:
    """The file's text without the entry of that name; ConfigError if there is none."""
    lines = text.splitlines(keepends=True)
    kept = [line for line in lines if not (_is_entry(line) and _parse_line(line, source=source).name == name)]
    if len(kept) == len(lines):
        names = ", ".join(entry.name for entry in parse_tokens(text, source=source)) or "none"
        raise ConfigError("", f"has no token {name!r}; it has: {names}", source=source)
    return "".join(kept)


def write_atomically(path: str, text: str) -> None:
    """Puts a file in place whole, readable by its owner alone unless it was there with another mode already."""
    target = Path(path)
    target = target.resolve() if target.is_symlink() else target
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                if target.exists():
                    found = target.stat()
                    os.fchmod(file.fileno(), stat.S_IMODE(found.st_mode))
                    if os.geteuid() == 0:
                        os.fchown(file.fileno(), found.st_uid, found.st_gid)
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(target)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as exc:
        raise ConfigError("", f"cannot be written: {exc.strerror}", source=path) from exc


# ---------------------------------------------------------------------------------------------------- finding one


class Found(NamedTuple):
    """Whose a token is, and until when (seconds since the epoch)."""

    identity: Identity
    expires_at: float


class TokenTable:
    """Tokens by their hash. What a look takes says nothing about any token: it depends on a hash of what was sent."""

    def __init__(self, entries: Sequence[TokenEntry], *, everybody: Sequence[Grant]) -> None:
        self._by_hash = {
            bytes.fromhex(entry.sha256): Found(
                Identity(entry.name, [*grants_of(entry.grants), *everybody], expires_at=entry.expires_at),
                entry.expires_at,
            )
            for entry in entries
        }

    def find(self, token: bytes) -> Found | None:
        """The one that `token` is, ended or not."""
        return self._by_hash.get(hash_token(token))

    def replace(self, older: TokenTable) -> None:
        """Revokes the identities of an older table, but those that are here with the same rights: they go on."""
        for digest, found in older._by_hash.items():
            here, old = self._by_hash.get(digest), found.identity
            if here is None or (here.identity.name, here.identity.grants) != (old.name, old.grants):
                old.is_revoked = True
            else:
                old.expires_at = here.expires_at
                self._by_hash[digest] = Found(old, here.expires_at)

    def __len__(self) -> int:
        return len(self._by_hash)

    def __repr__(self) -> str:
        return f"TokenTable({', '.join(sorted(found.identity.name for found in self._by_hash.values()))})"
