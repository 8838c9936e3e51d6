"""Names of values: NativeLink's for blobs, and temporary ones that lie in the same slot of a cluster."""

from __future__ import annotations

import secrets

from nl.plugin import ConfigError, Key, key_text
from nl_redis_store.addresses import hash_tag

TEMPORARY_S = 3600
"""How long an unfinished upload, or a copy that is being read, is kept after it was last used."""


class Names:
    """Keys under a prefix."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix.encode()
        self._has_tag = hash_tag(self._prefix) is not self._prefix

    def of(self, key: Key) -> bytes:
        """`{prefix}{hash}-{size}`; `.blake3` and `.ac` follow where they apply, and names begin with `~`."""
        return self._prefix + key_text(key).encode()

    def temporary(self, name: bytes) -> bytes:
        """A new one, in the slot of `name`. No key has it: `key_text` is without colons."""
        unique = self._prefix + b":temp:" + secrets.token_hex(8).encode()
        return unique if self._has_tag else unique + b":{" + name + b"}"


def check_prefix(prefix: str) -> None:
    """Raises ConfigError for one in which a brace would take part in the choice of a slot only by accident."""
    encoded = prefix.encode()
    if b"{" in encoded and hash_tag(encoded) is encoded:
        raise ConfigError("key_prefix", f'"{prefix}" has a brace that is no hash tag; expected {{TAG}}, or no brace')
