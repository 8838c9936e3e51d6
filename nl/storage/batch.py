"""What a `put_many` comes to, before anything is sent. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from nl.blob.reader import Buffer
from nl.blob.verify import check_size
from nl.errors import NlError
from nl.model.digest import EMPTY_DIGESTS, Key


class UploadBatch:
    """The values that are to be written, and what becomes of each blob that was given."""

    def __init__(self, blobs: Sequence[tuple[Key, Buffer]]) -> None:
        """Blobs that are not of their digest's size are refused, empty ones need no writing."""
        self._keys = [key for key, _ in blobs]
        self._refused: list[NlError | None] = [None] * len(blobs)
        self.values: dict[Key, Buffer] = {}
        """Of two values for one key the last, which is what is there after one `put` behind the other."""
        self.failed: dict[Key, NlError] = {}
        """For the store to fill in: what of `values` was not written, and why."""
        for at, (key, data) in enumerate(blobs):
            try:
                check_size(key, len(data))
            except NlError as error:
                self._refused[at] = error
                continue
            if key not in EMPTY_DIGESTS:
                self.values[key] = data

    def outcomes(self) -> list[NlError | None]:
        """What `put_many` returns."""
        return [refused or self.failed.get(key) for key, refused in zip(self._keys, self._refused, strict=True)]
