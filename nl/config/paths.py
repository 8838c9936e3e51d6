"""Which files and folders a config names: what is in them is the server's business, and no action's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from nl.config.fields import walk
from nl.config.listeners import UNIX

_PUBLIC = frozenset(
    {
        "ca_file", "client_ca_file", "entrypoint", "experimental_precondition_script", "query_cmd", "values", "value",
        "visible_paths", "platform_properties", "additional_environment", "services",
    }
)  # fmt: skip
"""Keys whose values anybody's programs may need (certificates of authorities, programs, what actions are told), or that
are no paths of files (of services)."""
_PATHS = ("path", "paths", "file", "files", "root", "directory")


def private_paths(config: Any) -> Iterator[str]:
    """The absolute paths of files, folders and sockets that the config names, those of plugins' stores as well."""
    for where, value in walk(config):
        if not isinstance(value, str):
            continue
        keys = where.replace("[", ".").replace("]", "").replace('"', "").split(".")
        if not _PUBLIC.isdisjoint(keys):
            continue
        text = value.removeprefix(UNIX).removeprefix("//") if value.startswith(UNIX) else value
        is_path = any(key.rpartition("_")[2] in _PATHS for key in keys)
        if os.path.isabs(text) or (is_path and text):
            yield os.path.abspath(text)
