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

from nl.plugin import ActionKey, Digest, DigestFunction, InvalidRequestError

LEGACY = "in d"
"""The tag of keys for files in `d` whose size is not what their name says."""

IndexKey = tuple[str, int, int] | tuple[str, int, int, str] | str
"""A key as the index has it: the content of a Digest or an ActionKey, or the file name of a string key.

Digests and ActionKeys are equal to the plain tuples that the index keeps, and find them. Plain ones are kept because
the garbage collector stops looking at those, and there may be millions.
"""
_ACTION_TAG = ActionKey("", 0).tag
_SHA256 = int(DigestFunction.SHA256)
_MAX_NAME = 255
_HEX = re.compile(r"[0-9a-f]{64}").fullmatch


def name_of(key: tuple[str, int, int] | tuple[str, int, int, str]) -> str:
    """The file name of a digest or an action key. Raises InvalidRequestError if it is not well-formed."""
    if not _HEX(key[0]):
        raise InvalidRequestError(f"invalid digest hash {key[0][:80]!r}: expected 64 lower-case hex digits")
    return f"{key[0]}-{key[1]}" if key[2] == _SHA256 else f"{key[0]}-{key[1]}.blake3"


def plain(key: IndexKey) -> IndexKey:
    """The key as the index keeps it: of types that the garbage collector need not look into."""
    if isinstance(key, str):
        return key
    return (key[0], key[1], int(key[2])) if len(key) == 3 else (key[0], key[1], int(key[2]), key[3])


def wrong_size_key(digest: Digest) -> IndexKey:
    """The index key of a digest's file whose size is not the digest's."""
    return (digest.hash, digest.size, int(digest.function), LEGACY)


def legacy_action_key(key: ActionKey) -> IndexKey:
    """The index key of an action result among the blobs, where others keep them: its name tells no function."""
    return (key.hash, key.size, _SHA256, LEGACY)


def unmarked_key(digest: Digest) -> IndexKey | None:
    """The index key of a blob whose file name does not tell that its function is not SHA-256, as others name them."""
    return None if digest.function is DigestFunction.SHA256 else (digest.hash, digest.size, _SHA256)


def is_blob(key: IndexKey) -> bool:
    """Whether a key is that of a blob with the size that its name says."""
    return not isinstance(key, str) and len(key) == 3


def is_in_blobs(key: IndexKey) -> bool:
    """Whether a key's file lies among the blobs."""
    return not isinstance(key, str) and (len(key) == 3 or key[3] == LEGACY)


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
    return plain(digest) if digest.size == size else wrong_size_key(digest)


def key_in_actions(name: str, size: int) -> IndexKey | None:
    """The index key of a file in `a`."""
    digest = Digest.parse_name(name)
    return None if digest is None else (*digest[:2], int(digest.function), _ACTION_TAG)


def key_in_texts(name: str, size: int) -> IndexKey | None:
    """The index key of a file in `s`: the file name itself, as long names cannot be turned back."""
    return None if name.startswith(".") else name


def key_in_executables(name: str, size: int) -> IndexKey | None:
    """The key of an executable variant: that of its blob."""
    digest = Digest.parse_name(name)
    return plain(digest) if digest is not None and digest.size == size else None
