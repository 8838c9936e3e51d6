"""The `filesystem` kind: blobs as files in a folder that several processes may share."""

from nl.stores.filesystem.options import FilesystemOptions
from nl.stores.filesystem.store import FilesystemStore

__all__ = ["FilesystemOptions", "FilesystemStore"]
