"""The capability LocalFiles of this store: links out, files in."""

from __future__ import annotations

from collections.abc import Sequence

from nl.plugin import Digest, Link
from nl.stores.filesystem.adopting import Adopter
from nl.stores.filesystem.links import Linker


class StoredFiles:
    """A LocalFiles: what `FilesystemStore.capability(LocalFiles)` returns."""

    def __init__(self, linker: Linker, adopter: Adopter) -> None:
        self.linker = linker
        self.adopter = adopter

    async def link_files(self, links: Sequence[Link]) -> list[Digest]:
        """See LocalFiles."""
        return await self.linker.link_files(links)

    async def adopt_file(self, digest: Digest, path: str) -> None:
        """See LocalFiles."""
        await self.adopter.adopt_file(digest, path)
