"""The options of `dedup`."""

from __future__ import annotations

from nl.plugin import MAX_WHOLE, ConfigError, Count, Options, Size, StoreSpec

LEAST_SIZE = 256
LEAST_MAX = 1024
MAX_FETCHES = 100


class DedupOptions(Options):
    """Cuts blobs into chunks where their content says, so that what two blobs have in common is kept once."""

    EXAMPLE = """{ dedup: {
  index_store: { filesystem: { content_path: "/var/cache/nl/index", temp_path: "/var/cache/nl/index_tmp" } },
  content_store: { filesystem: { content_path: "/var/cache/nl/chunks", temp_path: "/var/cache/nl/chunks_tmp" } },
} }"""

    index_store: StoreSpec
    """Keeps for each blob the list of its chunks: 40 bytes a chunk. Losing an entry loses the blob."""
    content_store: StoreSpec
    """Keeps the chunks, as blobs with BLAKE3 digests. It evicts those that are used least: no blob owns a chunk. A blob
    whose chunks are not all there is not there."""
    min_size: Size = 64 * 1024
    """No chunk is smaller, but for the last of a blob."""
    normal_size: Size = 256 * 1024
    """The size that most chunks come near to. Smaller chunks find more in common and cost more to look after."""
    max_size: Size = 512 * 1024
    """No chunk is larger."""
    max_concurrent_fetch_per_get: Count = 10
    """How many chunks are fetched at once, and held in memory, for one reader."""

    def check(self) -> None:
        """Refuses sizes between which nothing can be cut."""
        rising = LEAST_SIZE <= self.min_size < self.normal_size < self.max_size
        if not (rising and LEAST_MAX <= self.max_size <= MAX_WHOLE):
            problem = (
                f"min_size {self.min_size}, normal_size {self.normal_size}, max_size {self.max_size}; expected each "
                f"larger than the one before, from {LEAST_SIZE} on, and max_size from {LEAST_MAX} to {MAX_WHOLE}"
            )
            raise ConfigError("", problem)
        if not 1 <= self.max_concurrent_fetch_per_get <= MAX_FETCHES:
            problem = f"{self.max_concurrent_fetch_per_get}; expected 1 to {MAX_FETCHES}"
            raise ConfigError("max_concurrent_fetch_per_get", problem)
