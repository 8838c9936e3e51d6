"""The index of `ontap_s3_existence_cache` as a file: what a bucket had when it was last listed, over a restart.

JSON, written beside its place and renamed. It belongs to one bucket and prefix; of another, or older than the caller
wants, it is nothing. Nor is it left standing where its own server has deleted something since: a restart would take its
word for it.
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TextIO

from nl.plugin import Digest, key_of_text, key_text
from nl_cloud_object_store.digest_set import DigestSet

_VERSION = 1
_AT_ONCE = 10_000
"""Digests that are turned into text at the same time."""


class Listing(NamedTuple):
    """What was there."""

    digests: DigestSet
    listed_at: float
    """When the listing began, in seconds since 1970."""


class IndexFile:
    """The file at `path`, for the objects of `source`. Its blocking methods may run in threads."""

    def __init__(self, path: str, source: str) -> None:
        self._path = path
        self._source = source
        self._renaming = threading.Lock()
        self.outdated = 0
        """How many times something that may be in it has been deleted."""
        self.may_exist = True

    def write(self, listing: Listing, outdated: int) -> None:
        """Replaces the file, unless it has been `outdated` since. Blocking; raises OSError."""
        folder, name = os.path.split(os.path.abspath(self._path))
        os.makedirs(folder, exist_ok=True)
        handle, unfinished = tempfile.mkstemp(prefix=f".{name}-", dir=folder)
        try:
            with open(handle, "w", encoding="ascii") as file:
                self._write_into(file, listing)
            with self._renaming:
                if outdated == self.outdated:
                    os.replace(unfinished, self._path)
                    self.may_exist = True
                else:
                    os.unlink(unfinished)
        except BaseException:
            os.unlink(unfinished)
            raise

    def _write_into(self, file: TextIO, listing: Listing) -> None:
        head = {"version": _VERSION, "source": self._source, "listed_at": listing.listed_at}
        file.write(json.dumps(head)[:-1] + ', "digests": [')
        names, comma = map(key_text, listing.digests), ""
        while some := list(islice(names, _AT_ONCE)):
            file.write(comma + json.dumps(some)[1:-1])
            comma = ",\n"
        file.write("]}\n")

    def remove(self) -> None:
        """Of which something is no longer true. Blocking; raises OSError."""
        with self._renaming:
            Path(self._path).unlink(missing_ok=True)
            self.may_exist = False

    def read(self, *, max_age: float, most: int) -> Listing:
        """What the file says. Blocking; raises OSError, and ValueError if it cannot be used."""
        found = json.loads(Path(self._path).read_bytes())
        if not isinstance(found, dict) or found.get("version") != _VERSION:
            raise ValueError("it is not an index of this version")
        if found.get("source") != self._source:
            raise ValueError("it is of other objects")
        listed_at = float(found["listed_at"])
        if not 0 <= time.time() - listed_at <= max_age:
            raise ValueError("it is too old")
        digests = DigestSet()
        for digest in islice(_digests(found.get("digests")), most):
            digests.add(digest)
        return Listing(digests, listed_at)


def _digests(names: object) -> Iterator[Digest]:
    if not isinstance(names, list):
        raise ValueError("it has no list of digests")
    for name in names:
        digest = key_of_text(name) if isinstance(name, str) else None
        if not isinstance(digest, Digest):
            raise ValueError(f"{str(name)[:80]!r} in it is no digest")
        yield digest
