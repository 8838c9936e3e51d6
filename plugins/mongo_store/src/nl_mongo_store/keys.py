"""Names of documents (`_id`): those of values, and those of what is behind them.

| `_id` | what |
|---|---|
| `{prefix}{key_text}` | a value: its bytes, or where they are |
| `{prefix}!chunk:{upload}:{number}` | some bytes of a large one |
| `{prefix}!upload:{upload}` | a record of chunks that may belong to no value: see `sweep` |

No `key_text` has a `!`, and it sorts before all that keys begin with, so a range of names has values alone.
"""

from __future__ import annotations

import secrets

from nl.plugin import ConfigError, Key, key_of_text, key_text

Range = tuple[str, str]
"""Names from the first, up to but not including the second."""


def new_upload() -> str:
    """The id of an upload: of no other one."""
    return secrets.token_hex(12)


class Names:
    """Those under a prefix."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self.values: Range = (f"{prefix}0", f"{prefix}\x7f")
        """All values."""
        self.records: Range = (f"{prefix}!upload:", f"{prefix}!upload;")
        """All records."""

    def of(self, key: Key) -> str:
        """`{prefix}{hash}-{size}`; `.blake3` and `.ac` follow where they apply, and those of strings begin with `~`."""
        return self._prefix + key_text(key)

    def key(self, name: str) -> Key | None:
        """The key of a value; None if that is something else's name, or that of a string which was too long."""
        return key_of_text(self.text(name))

    def text(self, name: str) -> str:
        """A name without the prefix."""
        return name[len(self._prefix) :]

    def named(self, text: str) -> str:
        """The name that has such a `text`."""
        return self._prefix + text

    def record(self, upload: str) -> str:
        """That of the record of an upload."""
        return f"{self._prefix}!upload:{upload}"

    def upload(self, record: str) -> str:
        """The id of the upload that has a record."""
        return record[len(self.records[0]) :]

    def chunk(self, upload: str, number: int) -> str:
        """That of a chunk, which are counted from 0. In the order of their numbers."""
        return f"{self._prefix}!chunk:{upload}:{number:08x}"

    def chunks(self, upload: str) -> Range:
        """All chunks of an upload."""
        return (f"{self._prefix}!chunk:{upload}:", f"{self._prefix}!chunk:{upload};")


def check_prefix(prefix: str) -> None:
    """Raises ConfigError for one under which names would be taken for those of a store with another prefix."""
    if prefix[:1] in ("!", "~"):
        raise ConfigError("key_prefix", f'"{prefix}" begins with {prefix[0]}, which has a meaning; expected "cas/"')
