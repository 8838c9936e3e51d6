"""The options of the `filesystem` kind."""

from __future__ import annotations

from dataclasses import field
from typing import Literal

from nl.plugin import ConfigError, Count, EvictionPolicy, Flag, Options, Size, Text


class FilesystemOptions(Options):
    """Keeps blobs as files in a folder, which any number of processes on one machine may share.

    In `content_path`, blobs lie in `d` and action results in `a`: an action and a blob may have the same digest. A
    folder that NativeLink has filled can be taken over: action results that it has put into `d` are still found there.
    Files that turn out to be wrong are moved to `{content_path}.corrupt`, at most 64 of them, 256 MiB, and a twentieth
    of `max_bytes`.
    """

    EXAMPLE = """{
      filesystem: {
        content_path: "/var/cache/nl/content", temp_path: "/var/cache/nl/temp",
        eviction_policy: { max_bytes: "100gb", evict_bytes: "1gb" },
      }
    }"""

    content_path: Text
    """The folder of the blobs. All processes that name it share it: each sees at once what the others write and evict,
    and together they stay under `max_bytes` (so all should be given the same)."""
    temp_path: Text
    """The folder in which uploads are written before they are renamed into `content_path`. Each process may have its
    own, or all the same. It should lie on the same file system: if it does not, a folder in `content_path` is used
    instead, with a warning."""
    read_buffer_size: Size = 256 * 1024
    """The most bytes that one read of a large blob takes from its file, and so what one reader holds in memory."""
    eviction_policy: EvictionPolicy = field(default_factory=EvictionPolicy)
    """When blobs are deleted; without it, never."""
    min_free: Size | None = None
    """Bytes of the disk that stay free, by default a hundredth of it and at most 1 GiB. Only a store that has at least
    half of what is used on the disk evicts for it, so that a cache does not shrink to nothing when others fill the
    disk: uploads are refused then."""
    block_size: Size = 4096
    """Each file counts as a multiple of this many bytes against `max_bytes`, as it does on the disk."""
    max_concurrent_writes: Count = 0
    """How many large uploads may write to the disk at the same moment; 0 means as many as there are threads for."""
    evict_page_cache: Flag = False
    """Write large uploads through to the disk and drop them from the page cache, for stores that are rarely read."""

    durability: Literal["none", "fsync"] = "none"
    """Whether an action result is on the disk before it is acknowledged, and so survives a power cut (`fsync`: some
    milliseconds each), or a few seconds later (`none`). What a power cut tears is found and counts as missing either
    way; blobs are never waited for, as a result without them is a miss and they are uploaded again."""

    def check(self) -> None:
        """Refuses empty paths, a temp folder that is the content folder, and sizes that make no sense."""
        if not self.content_path:
            raise ConfigError("content_path", "is empty; expected a folder")
        if not self.temp_path:
            raise ConfigError("temp_path", "is empty; expected a folder")
        if self.content_path.rstrip("/") == self.temp_path.rstrip("/"):
            raise ConfigError("temp_path", "is the same as content_path; expected another folder on that file system")
        if self.block_size < 1:
            raise ConfigError("block_size", f"is {self.block_size}; expected at least 1")
        if self.read_buffer_size < 1:
            raise ConfigError("read_buffer_size", f"is {self.read_buffer_size}; expected at least 1")
