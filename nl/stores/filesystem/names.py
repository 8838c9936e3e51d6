"""File names of keys, and keys of file names: the one place that knows which key is what. Pure.

Nothing that a key says can name a file outside of its folder. Digests are `{hash}-{size}` in the folder `d`, as
NativeLink has it (`.blake3` follows where that is the function). Action keys have the same form in a folder `a` of
their own: in one folder, the file of a blob and that of an action's result could not be told apart. (An action result
that an older cache left in `d` is still found: its size is not the one in its name.) Strings are percent-encoded in
`s`.

The index has a text for each file (`IndexKey`), the shortest for the most frequent:

    {hash}         the blob of a SHA-256 digest       a{file name}    an action result
    b{hash}        the blob of a BLAKE3 digest        s{file name}    the value of a string key
                                                      w{file name}    a file in `d` of another size than its name says
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from urllib.parse import quote, unquote

from nl.plugin import ActionKey, Digest, DigestFunction, ForeignKey, InvalidRequestError, Key

IndexKey = str
_HASH_SIZE = 64
_BLAKE3, _ACTION, _TEXT, _WRONG_SIZE = "b", "a", "s", "w"
_BLAKE3_SUFFIX = ".blake3"
_SHA256 = DigestFunction.SHA256
_MAX_NAME = 255
_HEX = re.compile(r"[0-9a-f]{64}").fullmatch


def index_key(key: Key) -> IndexKey:
    """The key of the index for what is asked for. The size of a digest is not in it: compare that besides."""
    if type(key) is Digest:
        return key[0] if key[2] == _SHA256 else _BLAKE3 + key[0]
    if type(key) is ActionKey:
        return key_of_result(name_of(key))
    if type(key) is ForeignKey:
        return wrong_size_key(name_of(key))
    return _TEXT + name_of_text(str(key))


def key_of_result(name: str) -> IndexKey:
    """The index key of an action result, by its file name."""
    return _ACTION + name


def wrong_size_key(name: str) -> IndexKey:
    """The index key of a file in `d` that cannot be the blob that its name says."""
    return _WRONG_SIZE + name


def legacy_action_key(key: ActionKey) -> IndexKey:
    """The index key of an action result among the blobs, where others keep them: its name tells no function."""
    return wrong_size_key(f"{key.hash}-{key.size}")


def unmarked_key(digest: Digest) -> IndexKey | None:
    """The index key of a blob whose file name does not tell that its function is not SHA-256, as others name them."""
    return None if digest.function is _SHA256 else digest.hash


def _is_sha256(key: IndexKey) -> bool:
    """Whether a key is a SHA-256 hash: a text with its letter before it may be as long."""
    return len(key) == _HASH_SIZE and key[0] != _TEXT


def is_blob(key: IndexKey) -> bool:
    """Whether a key is that of a blob with the size that its name says."""
    return _is_sha256(key) or (len(key) == _HASH_SIZE + 1 and key[0] == _BLAKE3)


def is_in_blobs(key: IndexKey) -> bool:
    """Whether a key's file lies among the blobs."""
    return is_blob(key) or key[0] == _WRONG_SIZE


def is_in_actions(key: IndexKey) -> bool:
    """Whether a key's file lies among the action results."""
    return key[0] == _ACTION and not is_blob(key)


def file_name(key: IndexKey, size: int) -> str:
    """The name of the file of a key, which has `size` bytes."""
    if _is_sha256(key):
        return f"{key}-{size}"
    if is_blob(key):
        return f"{key[1:]}-{size}{_BLAKE3_SUFFIX}"
    return key[1:]


def name_of(key: Digest | ActionKey | ForeignKey) -> str:
    """The file name of a digest or another key of a hash. Raises InvalidRequestError if it is not well-formed."""
    if not _HEX(key[0]):
        raise InvalidRequestError(f"invalid digest hash {key[0][:80]!r}: expected 64 lower-case hex digits")
    return f"{key[0]}-{key[1]}" if key[2] == _SHA256 else f"{key[0]}-{key[1]}{_BLAKE3_SUFFIX}"


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
    return index_key(digest) if digest.size == size else wrong_size_key(name)


def key_in_actions(name: str, size: int) -> IndexKey | None:
    """The index key of a file in `a`."""
    return None if Digest.parse_name(name) is None else _ACTION + name


def key_in_texts(name: str, size: int) -> IndexKey | None:
    """The index key of a file in `s`: the file name itself, as long names cannot be turned back."""
    return None if name.startswith(".") else _TEXT + name


def key_in_executables(name: str, size: int) -> IndexKey | None:
    """The key of an executable variant: that of its blob."""
    digest = Digest.parse_name(name)
    return index_key(digest) if digest is not None and digest.size == size else None


def asked_in_blobs(name: str) -> Sequence[Key] | None:
    """The keys under which a file in `d` may have been known to others; None if that cannot be told."""
    digest = Digest.parse_name(name)
    return () if digest is None else (digest, ActionKey(*digest))  # whose result an older cache may have left there


def asked_in_actions(name: str) -> Sequence[Key] | None:
    """The same for `a`."""
    digest = Digest.parse_name(name)
    return () if digest is None else (ActionKey(*digest),)


def asked_in_texts(name: str) -> Sequence[Key] | None:
    """The same for `s`."""
    if name.startswith("%%"):
        return None  # a hash stands for the key
    return ("" if name == "%" else unquote(name, errors="surrogatepass"),)
