"""GetTree's pages: a walk over a directory graph cut into messages that clients take.

A page holds the stored bytes of directories, spliced into the reply without being decoded and encoded again. Each
distinct directory is sent once, breadth first. A token is the `key_text` of the first directory of the next page:
since the order of a walk depends on the root alone, a listing that broke off can be resumed by any server.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Final

from nl.blob.reader import Buffer
from nl.cas.directories import walk
from nl.errors import ExhaustedError, InvalidRequestError
from nl.model.digest import Digest, key_text
from nl.pb.codec import varint
from nl.services.limits import REPLY_BYTES
from nl.storage.contract import Store

PAGE_BYTES = REPLY_BYTES - 512 * 1024
"""A page is closed here; only one directory alone may be larger, up to what fits into a reply."""
KNOWN_BYTES: Final = 300
"""What a walk takes for each directory that it knows of: digests as objects, in a set and in lists (measured)."""
_DIRECTORIES, _NEXT_PAGE_TOKEN = b"\x0a", b"\x12"


async def tree_pages(
    store: Store, root: Digest, *, page_size: int, page_token: str, keep: Callable[[int], None]
) -> AsyncGenerator[list[Buffer], None]:
    """Encoded GetTreeResponses as parts, at least one. `page_size` is the most directories in each, 0 for no limit.
    `keep` is told before each page how many bytes the walk takes beside it.

    Raises as `walk` does, and InvalidRequestError for a token that belongs to no directory of this tree. To be closed
    with `contextlib.aclosing`.
    """
    start = _parse_token(page_token) if page_token else None
    parts: list[Buffer] = []
    count = total = 0
    async with aclosing(walk(store, root)) as directories:
        async for directory in directories:
            if start is not None:
                if directory.digest != start:
                    continue
                start = None
            size = len(directory.encoded)
            if size > REPLY_BYTES:
                raise ExhaustedError(f"directory {directory.digest} does not fit into {REPLY_BYTES} bytes")
            if count and (count == page_size or total + size > PAGE_BYTES):
                keep(directory.known * KNOWN_BYTES)
                token = key_text(directory.digest).encode()
                yield [*parts, _NEXT_PAGE_TOKEN, varint(len(token)), token]
                parts, count, total = [], 0, 0
            parts += (_DIRECTORIES + varint(size), directory.encoded) if size else (_DIRECTORIES + b"\0",)
            count += 1
            total += size + 6
    if start is not None:
        raise InvalidRequestError(f"page_token {page_token[:200]!r} names no directory of the tree {root}")
    keep(0)
    yield parts


def _parse_token(token: str) -> Digest:
    digest = Digest.parse_name(token)
    if digest is None:
        raise InvalidRequestError(f"page_token {token[:200]!r} is not one of this server's")
    return digest
