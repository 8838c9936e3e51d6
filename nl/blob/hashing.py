"""Hashing with the digest functions of the API. Not here: who compares (verify.py), where a digest comes from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Protocol

from blake3 import blake3

from nl.blob.reader import Buffer
from nl.model.digest import Digest, DigestFunction


class Hasher(Protocol):
    """What hashlib and blake3 objects have in common."""

    def update(self, data: Buffer, /) -> object:
        """Takes the next bytes."""

    def hexdigest(self) -> str:
        """Lower-case hex of everything taken so far."""


_HASHERS: dict[DigestFunction, Callable[[], Hasher]] = {
    DigestFunction.SHA256: hashlib.sha256,
    DigestFunction.BLAKE3: blake3,
}


def new_hasher(function: DigestFunction) -> Hasher:
    """A fresh hash object of `function`."""
    return _HASHERS[function]()


def hash_bytes(function: DigestFunction, data: Buffer) -> str:
    """The hash of a whole blob, as the lower-case hex that digests carry."""
    if function is DigestFunction.SHA256:
        return hashlib.sha256(data).hexdigest()
    hasher = _HASHERS[function]()
    hasher.update(data)
    return hasher.hexdigest()


def digest_of(data: Buffer, function: DigestFunction = DigestFunction.SHA256) -> Digest:
    """The digest of a whole blob."""
    return Digest(hash_bytes(function, data), len(data), function)
