"""How much a store has done, for its statistics."""

from __future__ import annotations

from collections.abc import Mapping


class Traffic:
    """Counts what was asked of a backend so far: nothing that is answered without it."""

    __slots__ = ("bytes_uploaded", "downloads", "lookups", "uploads")

    def __init__(self) -> None:
        self.lookups = self.downloads = self.uploads = self.bytes_uploaded = 0

    def uploaded(self, *sizes: int) -> None:
        """Values of so many bytes each have arrived."""
        self.uploads += len(sizes)
        self.bytes_uploaded += sum(sizes)

    def statistics(self) -> Mapping[str, int]:
        """For the store's."""
        return {name: getattr(self, name) for name in ("lookups", "downloads", "uploads", "bytes_uploaded")}
