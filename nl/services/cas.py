"""ContentAddressableStorage: what is missing, many small blobs at once, and directory trees.

Every uploaded blob is checked against its digest, whatever the store. Batches answer in the order of the request,
one status a blob; only what concerns the call as a whole fails it. A store is asked for the blobs of a batch at once:
one far away makes that one trip.

Not here: single blobs in pieces (`nl.services.bytestream`), the cutting of trees into pages (`tree_pages`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import cached_property
from itertools import repeat
from typing import Any

import grpclib.const
import trio

from nl.blob.reader import Buffer
from nl.blob.verify import check_bytes
from nl.cas.digests import parse_digest
from nl.cas.large import MANY, off_loop_if
from nl.errors import ExhaustedError, InvalidRequestError, NlError, UnimplementedError
from nl.model.access import Right
from nl.model.digest import Digest, DigestFunction
from nl.pb import reapi, rpc_status
from nl.pb.codec import encode
from nl.pb.find_missing import FindMissingRequest
from nl.pb.hot import BatchReadReply, stored_blob
from nl.rpc.contract import ServerStream
from nl.services.bounded import (
    EncodedBatchRead,
    EncodedBatchUpdate,
    EncodedFindMissing,
    decode_batch_read,
    decode_batch_update,
    decode_few_reads,
    decode_few_updates,
    receive_batch,
    receive_find_missing,
)
from nl.services.limits import (
    BATCH_BYTES,
    BATCH_UPDATE_BYTES,
    ENTRY_BYTES,
    MESSAGE_BYTES,
    REPLY_BYTES,
    UNPACKED_BATCH_BYTES,
)
from nl.services.packing import PackedTarget, Packing
from nl.services.requests import Instances, parse_function, receive_request
from nl.services.tree_pages import tree_pages
from nl.storage.concurrent import for_each
from nl.storage.contract import Store

_EXPLAINED = 150
_EXPLANATION_CHARS = 300
"""How many failed blobs of a batch get a message beside their code, and how long that may be."""
_HAS_AT_ONCE = 20_000
"""How many digests a store is asked about before others get their turn."""
_IDENTITY = reapi.CompressorValue.IDENTITY
_ZSTD = reapi.CompressorValue.ZSTD
_Triple = tuple[str, int, DigestFunction]
_MASK64 = (1 << 64) - 1
_PREFIX = "/build.bazel.remote.execution.v2.ContentAddressableStorage/"


@dataclass(frozen=True)
class CasInstance:
    """One instance: its store."""

    store: Store

    @cached_property
    def packed(self) -> PackedTarget:
        """The same store, for what comes and goes packed."""
        return PackedTarget.of(self.store)


class CasService:
    """build.bazel.remote.execution.v2.ContentAddressableStorage."""

    def __init__(self, instances: Mapping[str, CasInstance], *, any_name: bool = False) -> None:
        self._instances = Instances(instances, any_name=any_name)
        self._packing = Packing()

    async def find_missing_blobs(
        self, stream: ServerStream[EncodedFindMissing, reapi.FindMissingBlobsResponse]
    ) -> None:
        """The digests of the request that the store does not have, as they were written, in their order."""
        await stream.send_parts(await self._missing(stream))

    async def _missing(self, stream: ServerStream[Any, Any]) -> Sequence[Buffer]:
        """The reply. A method of its own, as the others are: while a client takes the reply, which counts as held for
        it, nothing else is kept. Digests as objects are ten times as large.
        """
        request = await receive_find_missing(stream)
        store = self._instances.get(stream, request.instance_name, Right.READ_CAS).store
        function = parse_function(request.digest_function)
        are_many = len(request.hashes) > (_HAS_AT_ONCE if request.is_plain else MANY)
        digests = await off_loop_if(are_many, _digests_of, request, function)
        sizes = await store.has(digests) if len(digests) <= _HAS_AT_ONCE else await _has_many(store, digests)
        return await off_loop_if(are_many, _missing_of, request, sizes)

    async def batch_update_blobs(
        self, stream: ServerStream[EncodedBatchUpdate, reapi.BatchUpdateBlobsResponse]
    ) -> None:
        """Stores blobs, each checked against its digest, each with a status of its own."""
        await stream.send_parts([await self._update(stream)])

    async def _update(self, stream: ServerStream[Any, Any]) -> bytes:
        request = await receive_batch(stream, decode_few_updates, decode_batch_update)
        instance = self._instances.get(stream, request.instance_name, Right.WRITE_CAS)
        function = parse_function(request.digest_function)
        blobs = request.requests
        total = sum(len(blob.data) for blob in blobs)
        if total > BATCH_UPDATE_BYTES:
            raise InvalidRequestError(
                f"the batch has {total} bytes of blobs, more than {BATCH_UPDATE_BYTES}; max_batch_total_size_bytes is "
                f"{BATCH_BYTES}"
            )
        failed: list[NlError | None] = [None] * len(blobs)
        plain: list[tuple[int, Digest]] = []
        packed: list[tuple[int, Digest]] = []

        async def check_one(at: int) -> None:
            blob = blobs[at]
            try:
                digest = parse_digest(blob.digest, function, "digest")
                if blob.compressor == _IDENTITY:
                    check_bytes(blob.data, digest)
                    plain.append((at, digest))
                elif blob.compressor == _ZSTD:
                    packed.append((at, digest))
                else:
                    raise InvalidRequestError(
                        f"{digest}: compressor {int(blob.compressor)} is not offered by this server"
                    )
            except NlError as exc:
                failed[at] = exc

        await for_each(len(blobs), check_one, tasks=1)
        if packed:
            await self._store_packed(instance, blobs, packed, failed)
        results = await instance.store.put_many([(digest, blobs[at].data) for at, digest in plain])
        for (at, _), error in zip(plain, results, strict=True):
            failed[at] = error
        return await off_loop_if(len(blobs) > MANY, _encode_statuses, blobs, failed)

    async def _store_packed(
        self,
        instance: CasInstance,
        blobs: Sequence[reapi.BatchUpdateBlobsRequestRequest],
        packed: Sequence[tuple[int, Digest]],
        failed: list[NlError | None],
    ) -> None:
        """Stores those blobs of a batch that come packed; `failed` gets their errors."""
        room = UNPACKED_BATCH_BYTES

        async def store_one(number: int) -> None:
            nonlocal room
            at, digest = packed[number]
            try:
                if digest.size > room:
                    raise InvalidRequestError(f"{digest} does not fit into a batch any more: upload it by itself")
                room -= digest.size
                await self._packing.store(instance.packed, digest, blobs[at].data)
            except NlError as exc:
                failed[at] = exc

        await for_each(len(packed), store_one)

    async def batch_read_blobs(
        self, stream: ServerStream[EncodedBatchRead, reapi.BatchReadBlobsResponse]
    ) -> None:
        """Whole blobs, each with a status of its own; RESOURCE_EXHAUSTED for those that the reply has no room for."""
        await stream.send_parts(await self._read(stream))

    async def _read(self, stream: ServerStream[Any, Any]) -> Sequence[Buffer]:
        request = await receive_batch(stream, decode_few_reads, decode_batch_read)
        instance = self._instances.get(stream, request.instance_name, Right.READ_CAS)
        function = parse_function(request.digest_function)
        found: list[Buffer | NlError] = [b""] * len(request.digests)
        are_many = len(found) > MANY
        wanted = await off_loop_if(are_many, _that_fit, request.digests, function, found)
        packed = [False] * len(found)
        if _ZSTD in request.acceptable_compressors:

            async def read_one(number: int) -> None:
                at, digest = wanted[number]
                try:
                    found[at], packed[at] = await self._packing.read(instance.packed, digest)
                except NlError as exc:
                    found[at] = exc

            await for_each(len(wanted), read_one)
        else:
            blobs = await instance.store.get_many([digest for _, digest in wanted])
            for (at, _), blob in zip(wanted, blobs, strict=True):
                found[at] = blob
        return await off_loop_if(are_many, _read_reply, request.digests, found, packed)

    async def get_tree(self, stream: ServerStream[reapi.GetTreeRequest, reapi.GetTreeResponse]) -> None:
        """All distinct directories below a root, in pages."""
        request = await receive_request(stream)
        store = self._instances.get(stream, request.instance_name, Right.READ_CAS).store
        function = parse_function(request.digest_function)
        root = parse_digest(request.root_digest, function, "root_digest")
        if request.page_size < 0:
            raise InvalidRequestError(f"page_size {request.page_size} is negative")
        pages = tree_pages(
            store, root, page_size=request.page_size, page_token=request.page_token, keep=stream.keep
        )
        async with aclosing(pages):
            async for page in pages:
                await stream.send_parts(page)

    async def split_blob(self, stream: ServerStream[reapi.SplitBlobRequest, reapi.SplitBlobResponse]) -> None:
        """Not offered, and announced as such."""
        self._instances.get(stream, (await receive_request(stream)).instance_name, Right.READ_CAS)
        raise UnimplementedError("SplitBlob is not offered by this server (split_blob_support is not announced)")

    async def splice_blob(self, stream: ServerStream[reapi.SpliceBlobRequest, reapi.SpliceBlobResponse]) -> None:
        """Not offered, and announced as such."""
        self._instances.get(stream, (await receive_request(stream)).instance_name, Right.WRITE_CAS)
        raise UnimplementedError("SpliceBlob is not offered by this server (splice_blob_support is not announced)")

    def __mapping__(self) -> dict[str, grpclib.const.Handler]:
        cardinality = grpclib.const.Cardinality
        unary, streaming = cardinality.UNARY_UNARY, cardinality.UNARY_STREAM
        handler = grpclib.const.Handler
        return {
            _PREFIX + "FindMissingBlobs": handler(
                self.find_missing_blobs, unary, EncodedFindMissing, reapi.FindMissingBlobsResponse
            ),
            _PREFIX + "BatchUpdateBlobs": handler(
                self.batch_update_blobs, unary, EncodedBatchUpdate, reapi.BatchUpdateBlobsResponse
            ),
            _PREFIX + "BatchReadBlobs": handler(
                self.batch_read_blobs, unary, EncodedBatchRead, reapi.BatchReadBlobsResponse
            ),
            _PREFIX + "GetTree": handler(self.get_tree, streaming, reapi.GetTreeRequest, reapi.GetTreeResponse),
            _PREFIX + "SplitBlob": handler(self.split_blob, unary, reapi.SplitBlobRequest, reapi.SplitBlobResponse),
            _PREFIX + "SpliceBlob": handler(self.splice_blob, unary, reapi.SpliceBlobRequest, reapi.SpliceBlobResponse),
        }

_make_digest: Callable[[type[Digest], _Triple], Digest] = tuple.__new__


def _digests_of(request: FindMissingRequest, function: DigestFunction) -> list[Digest]:
    """Raises InvalidRequestError for what is none."""
    triples = zip(request.hashes, request.sizes, repeat(function), strict=False)
    if request.is_plain:  # the codec has checked them all
        return list(map(_make_digest, repeat(Digest), triples))
    return list(map(_parse_triple, triples))


def _missing_of(request: FindMissingRequest, sizes: Sequence[int | None]) -> list[Buffer]:
    return request.missing(sizes).encode_parts()


def _parse_triple(triple: _Triple) -> Digest:
    try:
        return Digest.parse(*triple)
    except InvalidRequestError as exc:
        raise InvalidRequestError(f"blob_digests: {exc.message}") from None


def _that_fit(
    digests: Sequence[reapi.Digest], function: DigestFunction, outcomes: list[Buffer | NlError]
) -> list[tuple[int, Digest]]:
    """Those whose blobs have room in one reply, with their places; `outcomes` gets the errors of the others."""
    room = REPLY_BYTES - ENTRY_BYTES * len(digests)
    wanted: list[tuple[int, Digest]] = []
    for at, each in enumerate(digests):
        try:
            digest = parse_digest(each, function, "digest")
        except InvalidRequestError as exc:
            outcomes[at] = exc
            continue
        if digest.size > room:
            outcomes[at] = ExhaustedError(f"{digest} does not fit into this reply any more: ask for it by itself")
        else:
            room -= digest.size
            wanted.append((at, digest))
    return wanted


def _read_reply(
    digests: Sequence[reapi.Digest], found: Sequence[Buffer | NlError], packed: Sequence[bool]
) -> Sequence[Buffer]:
    """The reply to a read, as it is sent."""
    reply = BatchReadReply()
    explain = _Explanations()
    for digest, blob, is_packed in zip(digests, found, packed, strict=True):
        pair = (digest.hash, digest.size_bytes & _MASK64)
        if isinstance(blob, NlError):
            reply.add_status(pair, code=int(blob.code), message=explain(blob))
        elif is_packed:
            reply.add_blob(pair, blob, compressor=_ZSTD)
        else:
            reply.add_blob(pair, blob)
    if reply.size > MESSAGE_BYTES:  # invalid digests can be of any length
        raise InvalidRequestError(f"the digests that the batch asks for do not fit into {MESSAGE_BYTES} bytes")
    return reply.encode_parts()


def _encode_statuses(
    blobs: Sequence[reapi.BatchUpdateBlobsRequestRequest], errors: Sequence[NlError | None]
) -> bytes:
    """The reply to an upload; None is OK, which only a blob with a digest can be."""
    reply = []
    explain = _Explanations()
    for blob, error in zip(blobs, errors, strict=True):
        if error is None and blob.digest is not None:
            reply.append(stored_blob((blob.digest.hash, blob.digest.size_bytes)))
        else:
            status = None if error is None else rpc_status.Status(code=int(error.code), message=explain(error))
            response = reapi.BatchUpdateBlobsResponseResponse(digest=blob.digest, status=status)
            reply.append(encode(reapi.BatchUpdateBlobsResponse(responses=[response])))
    return b"".join(reply)


async def _has_many(store: Store, digests: Sequence[Digest]) -> list[int | None]:
    sizes: list[int | None] = []
    for at in range(0, len(digests), _HAS_AT_ONCE):
        sizes += await store.has(digests[at : at + _HAS_AT_ONCE])
        await trio.lowlevel.checkpoint()
    return sizes


class _Explanations:
    """The messages of a batch's failures: of the first ones, so that the reply stays small whatever was asked."""

    def __init__(self) -> None:
        self._left = _EXPLAINED

    def __call__(self, error: NlError) -> str:
        self._left -= 1
        return error.message[:_EXPLANATION_CHARS] if self._left >= 0 else ""
