"""How the bytes of a blob may be encoded on their way and at rest. Pure values."""

from __future__ import annotations

import enum


class Encoding(enum.Enum):
    """An encoding that a client or a store may ask for; the value is its name in resource names and messages."""

    IDENTITY = "identity"
    ZSTD = "zstd"
