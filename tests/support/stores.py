"""Stores for tests, built as the server builds them but without a config."""

from __future__ import annotations

from pathlib import Path

from nl.config.types import EvictionPolicy
from nl.storage.contract import Store
from nl.stores.filesystem import FilesystemOptions, FilesystemStore
from nl.testing import BareContext


def filesystem_store(folder: Path, *, max_bytes: int = 0) -> Store:
    """A filesystem store over `folder`, which is created."""
    options = FilesystemOptions(
        content_path=str(folder),
        temp_path=f"{folder}.temp",
        eviction_policy=EvictionPolicy(max_bytes=max_bytes),
    )
    return FilesystemStore(options, BareContext())
