"""The two forms in which blobs are kept, as the store uses them: how to write, to read, to tell the size at rest.

A form knows no key and no backend. What is wrong with an object is a CodingError, or what `failure` makes of its text.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar, Final

import trio

from nl.plugin import (
    BATCH,
    CHUNK,
    OUTPUT,
    Buffer,
    CodingError,
    Decoder,
    DecodingReader,
    Digest,
    EncodingReader,
    NlError,
    Reader,
    ZstdDecoder,
    ZstdEncoder,
    new_hasher,
)
from nl.stores.compression import lz4_format, sealing
from nl.stores.compression.lz4_format import Lz4Decoder, Lz4Encoder
from nl.stores.compression.lz4_seal import Blocks, seal_bytes
from nl.stores.compression.options import Lz4Options

Failure = Callable[[str], NlError]
_STEP: Final = 1024 * 1024
_LARGEST_MAP: Final = 1024 * 1024
"""Of a blob of 3 GiB in blocks of 64 KiB."""
_CROWDED_BLOCK: Final = 64 * 1024
_CROWDED_LEVEL: Final = 1
"""What one upload among very many is packed with: two thirds of a MiB."""
_MIB: Final = 1024 * 1024
_BATCHES: Final = BATCH + OUTPUT
"""What a reader that codes holds of what goes in and comes out."""
_LZ4_BATCHES: Final = Lz4Decoder.batch + Lz4Decoder.output
_ZSTD_WINDOW: Final = 8 * _MIB
_ZSTD_PER_BYTE: Final = 20
"""What an encoder takes at most for each byte of a small blob: its window, and two tables of 32 bits with up to two
entries for each byte of that."""
_ZSTD_MIB: Final = ((4, 3), (8, 6), (12, 41), (19, 82))
"""Up to which level an encoder takes how much memory for a large blob, as measured (zstd 1.5)."""


class Form(ABC):
    """One way to keep blobs."""

    suffix: ClassVar[str]
    """What keys in the backend end in."""
    tail_bytes: ClassVar[int]
    """So many bytes at the end of an object tell the decoded size."""

    @abstractmethod
    def encoder_bytes(self, size: int) -> Sequence[int]:
        """The most that one `encoding` of `size` bytes (-1: not known) holds, roughly, and what a crowded one does."""

    @abstractmethod
    def decoder_bytes(self, size: int) -> int:
        """The most that one `decoding` of a blob of `size` bytes (-1: not known) holds, roughly."""

    @abstractmethod
    def encode(self, data: Buffer) -> bytes:
        """The object of a whole blob."""

    @abstractmethod
    def decode(self, data: Buffer, digest: Digest | None, *, most: int) -> bytes | None:
        """The whole blob of an object; None if it has more than `most` bytes, which are never made. Raises CodingError.

        With a digest, what is not known to be right by another means is compared with it.
        """

    @abstractmethod
    def encoding(self, reader: Reader, *, size: int, crowded: bool, threads: trio.CapacityLimiter) -> Reader:
        """The object of what `reader` delivers: `size` bytes, or -1 if that is not known.

        `crowded`: there are so many others that it has to be made with little memory, if it be larger.
        """

    @abstractmethod
    def decoding(
        self, reader: Reader, digest: Digest | None, *, stored_size: int, failure: Failure,
        threads: trio.CapacityLimiter,
    ) -> Reader:
        """What an object of `stored_size` bytes decodes to. As for `decode`; the last bytes come when all is right."""

    @abstractmethod
    def decoded_size(self, tail: Buffer) -> int:
        """What the last `tail_bytes` say. Raises CodingError."""

    def map_bytes(self, size: int) -> int:
        """So many bytes at the end of most objects of `size` decoded bytes tell where what is; 0 if nothing does."""
        return 0

    def blocks(self, tail: Buffer, *, stored_size: int) -> Blocks:
        """What these bytes tell. Raises CodingError, also for objects that have to be decoded from their start."""
        raise CodingError("it says nothing of blocks")


class Lz4Form(Form):
    """LZ4 blocks as NativeLink keeps them, or sealed. What has no seal is compared with its digest when it is read."""

    suffix = ".lz4"
    tail_bytes = lz4_format.TAIL_BYTES

    def __init__(self, options: Lz4Options) -> None:
        self._block_size = options.block_size
        self._sealed = options.seal
        self._max_block_size = options.max_decode_block_size or options.block_size

    def encoder_bytes(self, size: int) -> Sequence[int]:
        block = self._block_size if size < 0 else min(self._block_size, size)
        batches = 2 * Lz4Encoder.batch
        return (2 * block + batches, 2 * min(block, _CROWDED_BLOCK) + batches)

    def decoder_bytes(self, size: int) -> int:
        if size < 0:
            return 2 * self._max_block_size + _LZ4_BATCHES
        held_for_map = 2 * self.map_bytes(size)  # as it comes, and as it is kept
        return 2 * min(self._max_block_size, size) + held_for_map + min(_LZ4_BATCHES, 2 * size + CHUNK)

    def encode(self, data: Buffer) -> bytes:
        encoder = Lz4Encoder(self._block_size, size=len(data), sealed=self._sealed)
        return b"".join(encoder.encode([data]) + encoder.finish())

    def decode(self, data: Buffer, digest: Digest | None, *, most: int) -> bytes | None:
        decoder = Lz4Decoder(max_block_size=self._max_block_size)
        whole = _decode_whole(decoder, data, most=digest.size if digest is not None else most)
        if digest is not None:
            if whole is None or len(whole) != digest.size:
                raise CodingError(f"it decodes to {'more' if whole is None else len(whole)} bytes, not {digest.size}")
            if decoder.is_sealed:
                return whole
            hasher = new_hasher(digest.function)
            hasher.update(whole)
            _compare(hasher.hexdigest(), digest)
        return whole

    def encoding(self, reader: Reader, *, size: int, crowded: bool, threads: trio.CapacityLimiter) -> Reader:
        block_size = min(self._block_size, _CROWDED_BLOCK) if crowded else self._block_size
        return EncodingReader(reader, Lz4Encoder(block_size, size=size, sealed=self._sealed), threads=threads)

    def decoding(
        self, reader: Reader, digest: Digest | None, *, stored_size: int, failure: Failure,
        threads: trio.CapacityLimiter,
    ) -> Reader:
        decoder = Lz4Decoder(max_block_size=self._max_block_size)
        if digest is None:
            return DecodingReader(reader, decoder, size=-1, failure=failure, threads=threads)
        hasher = new_hasher(digest.function)

        def note(part: Buffer) -> None:
            if not decoder.is_sealed:
                hasher.update(part)

        def compare() -> None:
            if decoder.is_sealed:
                return
            try:
                _compare(hasher.hexdigest(), digest)
            except CodingError as error:
                raise failure(str(error)) from None

        return DecodingReader(
            reader, decoder, size=digest.size, failure=failure, note=note, compare=compare, threads=threads
        )

    def decoded_size(self, tail: Buffer) -> int:
        return lz4_format.decoded_size(tail)

    def map_bytes(self, size: int) -> int:
        length = seal_bytes(size, self._block_size)
        return length if self._sealed and length <= _LARGEST_MAP else 0

    def blocks(self, tail: Buffer, *, stored_size: int) -> Blocks:
        blocks = Blocks(tail, head_bytes=lz4_format.HEAD_BYTES, stored_size=stored_size)
        if blocks.block_size > self._max_block_size:
            raise CodingError("its blocks are larger than max_decode_block_size")
        return blocks


class ZstdForm(Form):
    """Zstandard frames and a seal. What the seal covers was compared with the digest when it was written."""

    suffix = ".zst"
    tail_bytes = sealing.SEAL_BYTES

    def __init__(self, level: int) -> None:
        self._level = level
        self._encoder_bytes = next(mib for most, mib in _ZSTD_MIB if level <= most) * _MIB

    def encoder_bytes(self, size: int) -> Sequence[int]:
        least = _MIB + _BATCHES
        most = self._encoder_bytes + _BATCHES
        return (most if size < 0 else max(min(most, least + _ZSTD_PER_BYTE * size), least), least)

    def decoder_bytes(self, size: int) -> int:
        return (_ZSTD_WINDOW if size < 0 else min(_ZSTD_WINDOW, size)) + _BATCHES

    def encode(self, data: Buffer) -> bytes:
        encoder = ZstdEncoder(self._level, size=len(data))
        return sealing.seal(b"".join(encoder.encode([data]) + encoder.finish()), len(data))

    def decode(self, data: Buffer, digest: Digest | None, *, most: int) -> bytes | None:
        frames, size = sealing.unseal(data)
        if digest is not None and size != digest.size:
            raise CodingError(f"its seal says {size} bytes, its digest {digest.size}")
        if size > most:
            return None
        whole = _decode_whole(ZstdDecoder(), frames, most=size)
        if whole is None or len(whole) != size:
            raise CodingError("its frames contradict its seal")
        return whole

    def encoding(self, reader: Reader, *, size: int, crowded: bool, threads: trio.CapacityLimiter) -> Reader:
        level = _CROWDED_LEVEL if crowded else self._level
        frames = EncodingReader(reader, ZstdEncoder(level, size=size), threads=threads)
        return sealing.SealingReader(frames, lambda: frames.taken)

    def decoding(
        self, reader: Reader, digest: Digest | None, *, stored_size: int, failure: Failure,
        threads: trio.CapacityLimiter,
    ) -> Reader:
        size = digest.size if digest is not None else -1
        frames = sealing.UnsealingReader(reader, stored_size=stored_size, decoded_size=size, failure=failure)
        return DecodingReader(frames, ZstdDecoder(), size=size, failure=failure, threads=threads)

    def decoded_size(self, tail: Buffer) -> int:
        return sealing.decoded_size(tail)


def _compare(hash: str, digest: Digest) -> None:
    if hash != digest.hash:
        raise CodingError(f"what it decodes to has the {digest.function.name} hash {hash}")


def _decode_whole(decoder: Decoder, data: Buffer, *, most: int) -> bytes | None:
    """All that `data` decodes to; None if that is more than `most`. Raises CodingError."""
    decoder.feed([data])
    parts: list[Buffer] = []
    left = most
    while True:
        decoded = decoder.decode(min(_STEP, left + 1))
        left -= sum(map(len, decoded))
        if left < 0:
            return None
        parts += decoded
        if decoder.needs_input:
            break
    decoder.finish()
    return bytes(parts[0]) if len(parts) == 1 else b"".join(parts)
