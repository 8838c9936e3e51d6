"""Digests and the keys that stores are asked with.

Pure values. `Digest` is what clients name blobs by; a store key is a `Digest` (content-addressed: the bytes must hash
to it), an `ActionKey` (names an action result: the bytes are *about* the digest, not of it) or a plain string.
`key_text` is the one way to make a text of a key that no other key has.
"""

from __future__ import annotations

import enum
import hashlib
import re
from typing import NamedTuple
from urllib.parse import quote, unquote

from nl.errors import InvalidRequestError

MAX_SIZE = (1 << 63) - 1
MAX_TEXT = 255
"""The longest `key_text`, in characters (all ASCII): a file name can have it, and so can any backend's key."""
_BLAKE3_SUFFIX, _ACTION_SUFFIX, _TEXT_PREFIX = ".blake3", ".ac", "~"
_HASH = re.compile(r"[0-9a-f]{64}").fullmatch
_CUT_TAIL = re.compile(r"~~[0-9a-f]{64}")
_UNCUT = MAX_TEXT - 66
"""How much of a text that is too long stays in front of its `_CUT_TAIL`."""


class DigestFunction(enum.IntEnum):
    """build.bazel.remote.execution.v2.DigestFunction.Value, the ones this server speaks. Both are 256 bits wide."""

    SHA256 = 1
    BLAKE3 = 9


class Digest(NamedTuple):
    """A content address: lower-case hex hash, size in bytes, and the function that gives the hash.

    Digests of two functions are two keys, even if their texts should be equal. Build untrusted ones with `parse`.
    """

    hash: str
    size: int
    function: DigestFunction = DigestFunction.SHA256

    def __str__(self) -> str:
        return f"{self.hash}-{self.size}"

    @classmethod
    def parse(cls, hash: str, size: int, function: DigestFunction) -> Digest:
        """Checks what came from a peer.

        Raises InvalidRequestError unless `hash` is 64 lower-case hex digits and `size` is in 0..2^63-1
        (REAPI Digest: lower-case, exact length; sizes are never negative).
        """
        if not _HASH(hash):
            raise InvalidRequestError(
                f"invalid digest hash {hash[:80]!r}: expected 64 lower-case hex digits (SHA256 or BLAKE3)"
            )
        if not 0 <= size <= MAX_SIZE:
            raise InvalidRequestError(f"invalid digest size {size} of {hash}: expected 0 to {MAX_SIZE}")
        return cls(hash, size, function)

    @classmethod
    def parse_name(cls, name: str) -> Digest | None:
        """The digest whose `key_text` is `name`, or None."""
        text = name.removesuffix(_BLAKE3_SUFFIX)
        hash, dash, size = text.partition("-")
        if not (dash and _HASH(hash) and size.isdecimal() and size.isascii()):
            return None
        if (len(size) > 1 and size[0] == "0") or int(size) > MAX_SIZE:
            return None
        return cls(hash, int(size), DigestFunction.SHA256 if text is name else DigestFunction.BLAKE3)


class ActionKey(NamedTuple):
    """The key of an action result: the digest of the *action*. A store never checks the value against it.

    Build it as `ActionKey(*digest)`. The last field only makes it unequal to the `Digest` of the same action: named
    tuples of equal content are equal whatever their class, and would meet in a dict.
    """

    hash: str
    size: int
    function: DigestFunction = DigestFunction.SHA256
    tag: str = "ac"

    def __str__(self) -> str:
        return f"{self.hash}-{self.size}"



class ForeignKey(NamedTuple):
    """The key of an object that another program has stored under the name of a digest, in a form of its own.

    Its text is the digest's, `{hash}-{size}`, whatever the function: so NativeLink has named what it compressed. For
    reading and deleting only, by whoever knows the form and checks what comes out; a store never checks the value.
    """

    hash: str
    size: int
    function: DigestFunction = DigestFunction.SHA256
    tag: str = "in d"

    def __str__(self) -> str:
        return f"{self.hash}-{self.size}"


Key = Digest | ActionKey | ForeignKey | str
"""What a store is asked with. Equal text in different types names different things."""

EMPTY = {
    DigestFunction.SHA256: Digest("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", 0),
    DigestFunction.BLAKE3: Digest(
        "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262", 0, DigestFunction.BLAKE3
    ),
}
EMPTY_DIGESTS = frozenset(EMPTY.values())
"""The empty blob in every function: always present, never stored (REAPI A.7 rule 4)."""


def key_text(key: Key) -> str:
    """A text for a key, of letters, digits and `_-.~%`, that no other key has: for file names and backends' keys.
    (A ForeignKey's is that of its digest; it is never written to.)

    A SHA-256 digest's is `{hash}-{size}`, as everybody's caches have it; `.blake3` and `.ac` follow where they apply. A
    string's begins with `~`, is percent-encoded, and ends in `~~` and a hash if it would be too long, or look as if it
    had been.
    """
    if isinstance(key, str):
        text = _TEXT_PREFIX + quote(key, safe="", errors="surrogatepass")
        if len(text) > MAX_TEXT or _looks_cut(text):
            digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
            text = f"{text[:_UNCUT]}~~{digest}"
        return text
    text = f"{key.hash}-{key.size}"
    if isinstance(key, ForeignKey):
        return text
    if key.function is not DigestFunction.SHA256:
        text += _BLAKE3_SUFFIX
    return text + _ACTION_SUFFIX if isinstance(key, ActionKey) else text


def _looks_cut(text: str) -> bool:
    """Whether a string's text could be that of a longer one, which was cut."""
    return _CUT_TAIL.fullmatch(text, _UNCUT) is not None


def key_of_text(text: str) -> Key | None:
    """The key whose `key_text` is `text`; None if that is no key's, or that of a string which had to be cut."""
    if text.startswith(_TEXT_PREFIX):
        try:
            key = unquote(text[1:], errors="surrogatepass")
        except UnicodeDecodeError:
            return None
        return key if key_text(key) == text else None
    name = text.removesuffix(_ACTION_SUFFIX)
    digest = Digest.parse_name(name)
    return digest if digest is None or name is text else ActionKey(*digest)
