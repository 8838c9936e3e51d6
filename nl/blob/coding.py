"""Readers that encode or decode what passes, by pure coders: in batches, and off the loop where a batch is large.

A coder is fed buffers and hands out buffers; it knows no loop, so it may run in a thread. The readers here gather what
trickles in, so that a hop to a thread is paid for by at least `BATCH` bytes, and never hold more than a batch on either
side. Not here: the encodings themselves (`nl.blob.zstd`, `nl/stores/compression`), and who compares with a digest.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar, Final, TypeVar

import trio

from nl.blob.reader import CHUNK, Buffer, Reader
from nl.errors import NlError

T = TypeVar("T")

BATCH: Final = 256 * 1024
"""A hop to a thread costs some 50 us: what is coded there comes in pieces of so many bytes, or all that is left."""
INLINE: Final = 64 * 1024
"""So many bytes and fewer are coded where they are: it takes no longer than the hop would."""
OUTPUT: Final = 512 * 1024
"""How much is decoded at once, and so held: encoded bytes can stand for any number of bytes."""


class CodingError(Exception):
    """Encoded bytes are wrong; the text says how. Whoever knows where they come from makes an NlError of it."""


class Encoder(ABC):
    """Encodes one blob. Pure; one thread at a time."""

    batch: ClassVar[int] = BATCH
    """How many bytes pay for a hop to a thread."""

    @abstractmethod
    def encode(self, parts: Sequence[Buffer]) -> list[Buffer]:
        """What the next bytes give, which may be nothing, and is valid as long as they are."""

    @abstractmethod
    def finish(self) -> list[Buffer]:
        """The end of the encoded form."""


class Decoder(ABC):
    """Decodes one blob. Pure; one thread at a time. Never holds much more than it was fed and is asked for."""

    batch: ClassVar[int] = BATCH
    """How many encoded bytes pay for a hop to a thread."""
    output: ClassVar[int] = OUTPUT
    """How much is decoded in one stay there."""

    @property
    def is_quick(self) -> bool:
        """Whether decoding CHUNK bytes takes no longer than a hop to a thread does."""
        return False

    @abstractmethod
    def feed(self, parts: Sequence[Buffer]) -> None:
        """Takes the next encoded bytes, which may be reused afterwards. To be called when `needs_input`."""

    @property
    @abstractmethod
    def needs_input(self) -> bool:
        """Whether nothing more can be decoded without more input."""

    @abstractmethod
    def decode(self, most: int) -> list[Buffer]:
        """The next decoded bytes: about `most`, fewer where the input ends. Raises CodingError."""

    @abstractmethod
    def finish(self) -> None:
        """Called when there is no more input, and all has been decoded. Raises CodingError if something is missing."""


async def code(function: Callable[[], T], *, size: int, threads: trio.CapacityLimiter | None) -> T:
    """Calls `function`, which has `size` bytes to code: here if they are few, else in a thread.

    *Cancellation*: a call that has begun is waited for; it is short.
    """
    if size <= INLINE:
        return function()
    return await trio.to_thread.run_sync(function, limiter=threads)


async def gather(reader: Reader, *, least: int = BATCH) -> Sequence[Buffer]:
    """The next bytes of a reader: `least` or a few more, or all that is left; empty at the end.

    Without a copy if they come at once; valid until the reader is asked again.
    """
    parts = await reader.receive_parts(max(least, CHUNK))
    total = sum(map(len, parts))
    if total >= least or not parts or total == reader.size:
        return parts
    kept: list[Buffer] = list(map(bytes, parts))
    while total < least and (parts := await reader.receive_parts(CHUNK)):
        kept.extend(map(bytes, parts))
        total += sum(map(len, parts))
    return kept


class Ready:
    """Buffers that are ready to be handed out, in pieces of any size."""

    __slots__ = ("_at", "_parts")

    def __init__(self) -> None:
        self._parts: list[Buffer] = []
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._parts)

    def put(self, parts: Sequence[Buffer]) -> None:
        """Adds buffers; empty ones are left out."""
        if self._at:
            del self._parts[: self._at]
            self._at = 0
        self._parts += [part for part in parts if len(part)]

    def keep(self) -> None:
        """Copies what there is, because it would not stay valid."""
        self._parts[self._at :] = [bytes(part) for part in self._parts[self._at :]]

    def take(self, max_bytes: int) -> list[Buffer]:
        """At most `max_bytes` of what there is."""
        taken: list[Buffer] = []
        parts = self._parts
        while self._at < len(parts) and max_bytes:
            part = parts[self._at]
            if len(part) > max_bytes:
                view = memoryview(part)
                taken.append(view[:max_bytes])
                parts[self._at] = view[max_bytes:]
                break
            taken.append(part)
            max_bytes -= len(part)
            parts[self._at] = b""  # it lives as long as the caller has it
            self._at += 1
        return taken


class EncodingReader(Reader):
    """Delivers the encoded form of what `reader` delivers. Its size is not known beforehand."""

    __slots__ = ("_encoder", "_ended", "_reader", "_ready", "_threads", "size", "taken")

    def __init__(self, reader: Reader, encoder: Encoder, *, threads: trio.CapacityLimiter | None = None) -> None:
        self.size = -1
        self.taken = 0
        """How many bytes it has read."""
        self._reader = reader
        self._encoder = encoder
        self._threads = threads
        self._ready = Ready()
        self._ended = False

    async def receive_parts(self, max_bytes: int = CHUNK) -> Sequence[Buffer]:
        while not self._ready:
            if self._ended:
                return ()
            parts = await gather(self._reader, least=self._encoder.batch)
            if parts:
                size = sum(map(len, parts))
                self.taken += size
                self._ready.put(await code(partial(self._encoder.encode, parts), size=size, threads=self._threads))
            else:
                self._ended = True
                self._ready.put(await code(self._encoder.finish, size=BATCH, threads=self._threads))
        return self._ready.take(max_bytes)


class DecodingReader(Reader):
    """Delivers what the bytes of `reader` decode to.

    `size`: how many bytes that has to be, -1 if it is not known; more and fewer are wrong. `failure` makes the error
    to raise of what is wrong. `note` is called with all that is decoded, where it is decoded (in a thread, perhaps),
    and `compare` once all is there: the last bytes are held back until it has returned.
    """

    __slots__ = (
        "_compare", "_decoder", "_ended", "_failure", "_note", "_reader", "_ready", "_threads", "_total", "size",
    )  # fmt: skip

    def __init__(
        self,
        reader: Reader,
        decoder: Decoder,
        *,
        size: int,
        failure: Callable[[str], NlError],
        note: Callable[[Buffer], object] | None = None,
        compare: Callable[[], None] | None = None,
        threads: trio.CapacityLimiter | None = None,
    ) -> None:
        self.size = size
        self._reader = reader
        self._decoder = decoder
        self._failure = failure
        self._note = note
        self._compare = compare
        self._threads = threads
        self._ready = Ready()
        self._total = 0
        self._ended = False

    async def receive_parts(self, max_bytes: int = CHUNK) -> Sequence[Buffer]:
        while not self._ended and (not self._ready or self._total == self.size):
            await self._advance()
        return self._ready.take(max_bytes)

    async def _advance(self) -> None:
        decoder = self._decoder
        fed = 0
        if decoder.needs_input:
            parts = await gather(self._reader, least=decoder.batch)
            if not parts:
                return self._finish()
            fed = sum(map(len, parts))
            decoder.feed(parts)
        small = 0 <= self.size <= INLINE and fed <= INLINE
        try:
            if decoder.is_quick:
                decoded = self._decode(CHUNK)
            else:
                decode = partial(self._decode, decoder.output)
                decoded = await code(decode, size=0 if small else decoder.output, threads=self._threads)
        except CodingError as error:
            raise self._failure(str(error)) from None
        self._total += sum(map(len, decoded))
        if 0 <= self.size < self._total:
            raise self._failure(f"more than {self.size} bytes come out of it")
        self._ready.put(decoded)

    def _decode(self, most: int) -> list[Buffer]:
        decoded = self._decoder.decode(most)
        if self._note is not None:
            for part in decoded:
                self._note(part)
        return decoded

    def _finish(self) -> None:
        try:
            self._decoder.finish()
        except CodingError as error:
            raise self._failure(str(error)) from None
        if self.size not in (-1, self._total):
            raise self._failure(f"{self._total} bytes come out of it, {self.size} were expected")
        if self._compare is not None:
            self._compare()
        self._ended = True
