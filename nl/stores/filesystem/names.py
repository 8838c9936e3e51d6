"""File names of keys, and keys of file names. Pure; nothing that a key says can name a file outside of its folder.

Digests are `{hash}-{size}` in the folder `d`, as NativeLink has it. Action keys have the same form in a folder `a` of
their own: in one folder, the file of a blob and that of an action's result could not be told apart. (An action result
that an older cache left in `d` is still found: its size is not the one in its name. Its key in the index carries the
tag LEGACY.) Strings are percent-encoded in `s`.
"""

from __future__ import annotations

import hashlib
import re
from urllib.parse import quote

from nl.plugin import ActionKey, Digest, InvalidRequestError

LEGACY = "in d"
"""The tag of keys for files in `d` whose size is not what their name says."""

IndexKey = tuple[str, int] | tuple[str, int, str] | str
"""A key as the index has it: the content of a Digest or an ActionKey, or the file name of a string key.

Digests and ActionKeys are equal to the plain tuples that the index keeps, and find them. Plain ones are kept because
the garbage collector stops looking at those, and there may be millions.
"""
_ACTION_TAG = ActionKey("", 0).tag
_MAX_NAME = 255
_HEX = re.compile(r"[0-9a-f]{64}").fullmatch


def name_of(key: tuple[str, int] | tuple[str, int, str]) -> str:
    """The file name of a digest or an action key. Raises InvalidRequestError if it is not well-formed."""
    if not _HEX(key[0]):
        raise InvalidRequestError(f"invalid digest hash {key[0][:80]!r}: expected 64 lower-case hex digits")
    return f"{key[0]}-{key[1]}"


def name_of_text(key: str) -> str:
    """The file name of a string key: letters, digits and `_-.~` as they are, all else as %XX.

    A leading dot is encoded too, so that no name is hidden, `.` or `..`. Longer than a file name can be, a name is
    `%%` and the SHA-256 of the key instead; the empty key is `%`.
    """
    if not key:
        return "%"
    name = quote(key, safe="", errors="surrogatepass")
    if name[0] == ".":
        name = "%2E" + name[1:]
    if len(name) > _MAX_NAME:
        name = "%%" + hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
    return name


def key_in_blobs(name: str, size: int) -> IndexKey | None:
    """The index key of a file in `d` that has `size` bytes; None if its name is not of ours."""
    digest = Digest.parse_name(name)
    if digest is None:
        return None
    hash, length = digest
    return (hash, length) if length == size else (hash, length, LEGACY)


def key_in_actions(name: str, size: int) -> IndexKey | None:
    """The index key of a file in `a`."""
    digest = Digest.parse_name(name)
    return None if digest is None else (*digest, _ACTION_TAG)


def key_in_texts(name: str, size: int) -> IndexKey | None:
    """The index key of a file in `s`: the file name itself, as long names cannot be turned back."""
    return None if name.startswith(".") else name


def key_in_executables(name: str, size: int) -> IndexKey | None:
    """The key of an executable variant: that of its blob."""
    digest = Digest.parse_name(name)
    return (*digest,) if digest is not None and digest.size == size else None
