"""The options of `compression`."""

from __future__ import annotations

from nl.plugin import ConfigError, Count, Flag, Options, Size, StoreSpec

MAX_BLOCK = 64 * 1024 * 1024
"""What the format's 32 bits allow makes no sense beyond this: a block is held in memory whole, twice."""
MIN_BLOCK = 1024
MAX_LEVEL = 19


class Lz4Options(Options):
    """LZ4, in the format of NativeLink, whose blobs are found, too: fast."""

    block_size: Size = 64 * 1024
    """How many bytes are compressed at a time. Larger blocks compress better and take more memory."""
    max_decode_block_size: Size = 0
    """Blobs with larger blocks than this are refused when they are read; 0 means `block_size`."""
    seal: Flag = False
    """End blobs with a checksum of each block, instead of as NativeLink does: what is read costs half, as it need not
    be hashed, and a range costs its own blocks, not all before it. Blobs of either form are read whatever this says."""
    find_nativelink_blobs: Flag = True
    """Find blobs that NativeLink has written, too: they have other names, so what is not there is looked for twice."""

    def check(self) -> None:
        """Refuses blocks that cannot be read again."""
        if not MIN_BLOCK <= self.block_size <= MAX_BLOCK:
            problem = f"{self.block_size} bytes; expected {MIN_BLOCK} to {MAX_BLOCK}"
            raise ConfigError("block_size", problem)
        if self.max_decode_block_size > MAX_BLOCK:
            raise ConfigError("max_decode_block_size", f"{self.max_decode_block_size}; expected at most {MAX_BLOCK}")
        if 0 < self.max_decode_block_size < self.block_size:
            problem = f"{self.max_decode_block_size} is less than block_size; expected at least {self.block_size}"
            raise ConfigError("max_decode_block_size", problem)


class ZstdOptions(Options):
    """Zstandard: compresses better. What clients send and take compressed passes through as it is."""

    level: Count = 3
    """1 (fast) to 19 (small). From 9 on an upload takes 40 to 80 MiB; where half of `global.max_coder_memory` is taken,
    level 1 is used."""

    def check(self) -> None:
        """Refuses levels whose frames not every reader takes."""
        if not 1 <= self.level <= MAX_LEVEL:
            raise ConfigError("level", f"{self.level}; expected 1 to {MAX_LEVEL}")


class CompressionAlgorithm(Options):
    """How blobs are compressed: one of these."""

    lz4: Lz4Options | None = None
    """LZ4: fast. `{}` for the defaults."""
    zstd: ZstdOptions | None = None
    """Zstandard: small. `{}` for the defaults."""

    def check(self) -> None:
        """Refuses none and two."""
        if (self.lz4 is None) == (self.zstd is None):
            raise ConfigError("", "names none of lz4 and zstd, or both; expected one")


class CompressionOptions(Options):
    """Keeps blobs compressed in the store behind it, also action results. What it has stored can be read by it only."""

    EXAMPLE = """{ compression: {
  compression_algorithm: { zstd: { level: 3 } },
  backend: { filesystem: { content_path: "/var/cache/nl/cas", temp_path: "/var/cache/nl/tmp" } },
} }"""

    backend: StoreSpec
    """Gets the compressed blobs."""
    compression_algorithm: CompressionAlgorithm
    """How they are compressed."""
