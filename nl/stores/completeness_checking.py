"""The `completeness_checking` kind: an action cache whose hits are worth something.

A result is only there if everything that it refers to is in the CAS: output files, stdout, stderr, Trees and the files
in them (REAPI: a hit whose blobs are gone breaks the build that trusts it). Asking also makes those blobs recent, so
that they live on. What a result refers to is parsed once and remembered as long as the stored bytes are the same; that
it still exists is asked every time.

Only values under an ActionKey are results. Other keys pass through unchecked.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar, cast

from nl.cas.action_results import read_value
from nl.cas.completeness import Completeness, IncompleteError
from nl.plugin import (
    ActionKey,
    BlobNotFoundError,
    BlobSizeLimit,
    Buffer,
    ChecksCompleteness,
    CorruptBlobError,
    Deletes,
    Key,
    NlError,
    NotFoundError,
    Options,
    Reader,
    StoreContext,
    StoreSpec,
    StoreWrapper,
    TooLargeError,
    Traits,
    slice_bytes,
)

C = TypeVar("C")
_WINDOW = 64
"""Results that are in memory at once when many are asked about."""
_log = logging.getLogger(__name__)


class CompletenessCheckingOptions(Options):
    """An action cache that does not report results whose outputs are gone from the CAS."""

    EXAMPLE = '{ completeness_checking: { backend: { memory: {} }, cas_store: { ref_store: { name: "CAS" } } } }'

    backend: StoreSpec
    """The action cache."""
    cas_store: StoreSpec
    """Where the outputs have to be."""


class CompletenessCheckingStore(StoreWrapper):
    """Checks when asked or read; what is written passes straight through.

    A CAS that cannot be reached is an UnavailableError, not a miss: a miss would have everything built again.
    """

    Options = CompletenessCheckingOptions

    def __init__(self, options: CompletenessCheckingOptions, context: StoreContext) -> None:
        super().__init__(context.child(options.backend))
        self._name = context.name
        self._cas = context.child(options.cas_store)
        self._completeness = Completeness(self._cas, name=context.name)
        self._damaged = 0

    @property
    def traits(self) -> Traits:
        return Traits(
            authoritative=self._backend.traits.authoritative and self._cas.traits.authoritative,
            tracks_use=self._backend.traits.tracks_use,
        )

    async def has(self, keys: Sequence[Key]) -> list[int | None]:
        sizes = await self._backend.has(keys)
        results = [at for at, key in enumerate(keys) if isinstance(key, ActionKey) and sizes[at] is not None]
        for begin in range(0, len(results), _WINDOW):
            window = results[begin : begin + _WINDOW]
            for at, value in zip(window, await self.get_many([keys[at] for at in window]), strict=True):
                if not isinstance(value, NlError):
                    sizes[at] = len(value)
                elif isinstance(value, NotFoundError):
                    sizes[at] = None
                else:
                    raise value
        return sizes

    async def touch(self, keys: Sequence[Key]) -> None:
        await self.has(keys)  # a result is used with all that it refers to

    async def get(self, key: Key) -> Buffer:
        value = await self._backend.get(key)
        return await self._checked(key, value) if isinstance(key, ActionKey) else value

    async def get_many(self, keys: Sequence[Key]) -> list[Buffer | NlError]:
        found = list(await self._backend.get_many(keys))
        for at, key in enumerate(keys):
            value = found[at]
            if isinstance(key, ActionKey) and (not isinstance(value, NlError) or isinstance(value, TooLargeError)):
                try:
                    if isinstance(value, NlError):
                        value = await self._read(key)
                    found[at] = await self._checked(key, value)
                except NlError as error:
                    found[at] = error
        return found

    async def _read(self, key: ActionKey) -> Buffer:
        """The stored value; one that is larger than any result can be is none."""
        try:
            return await read_value(self._backend, key)
        except CorruptBlobError as error:
            self._damaged += 1
            _log.warning("%s: the result of %s counts as a miss: %s", self._name, key, error)
            raise BlobNotFoundError(key, message=f"{key}: {error.message}") from None

    async def _checked(self, key: ActionKey, value: Buffer) -> Buffer:
        """The value, if everything that it refers to is there; BlobNotFoundError if not."""
        try:
            await self._completeness.require(key, value, sealed=True)
        except IncompleteError as reason:
            raise BlobNotFoundError(key, message=f"{key}: {reason.message}") from None
        return value

    @asynccontextmanager
    async def open(self, key: Key, *, offset: int = 0, length: int | None = None) -> AsyncIterator[Reader]:
        if isinstance(key, ActionKey):
            value = await self._checked(key, await self._read(key))
            yield slice_bytes(value, offset=offset, length=length)
        else:
            async with self._backend.open(key, offset=offset, length=length) as reader:
                yield reader

    def capability(self, kind: type[C]) -> C | None:
        if kind is ChecksCompleteness:
            return cast("C", self)
        return self._backend.capability(kind) if kind in (BlobSizeLimit, Deletes) else None

    def checks_completeness(self) -> bool:
        """See `ChecksCompleteness`."""
        return True

    def statistics(self) -> Mapping[str, int | float | str]:
        return {**self._completeness.statistics(), "damaged": self._damaged}
