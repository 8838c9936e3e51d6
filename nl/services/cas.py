"""ContentAddressableStorage: what is missing, many small blobs at once, and directory trees.

Every uploaded blob is checked against its digest, whatever the store. Batches answer in the order of the request,
one status a blob; only what concerns the call as a whole fails it. The blobs of a batch are handled by a few tasks
(`nl.cas.concurrent`).

Not here: single blobs in pieces (`nl.services.bytestream`), the cutting of trees into pages (`tree_pages`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial

import grpclib.const

from nl.blob.reader import Buffer
from nl.blob.verify import check_bytes
from nl.cas.concurrent import for_each
from nl.cas.digests import parse_digest
from nl.errors import InvalidRequestError, NlError, UnimplementedError
from nl.model.access import Right
from nl.model.digest import Digest, DigestFunction
from nl.pb import reapi, rpc_status
from nl.pb.find_missing import FindMissingRequest
from nl.pb.hot import BatchReadReply, Pair
from nl.rpc.contract import ServerStream
from nl.services.bounded import BoundedBatchRead, BoundedBatchUpdate, BoundedFindMissing
from nl.services.requests import Instances, parse_function, receive_request
from nl.services.tree_pages import tree_pages
from nl.storage.contract import Store

MAX_BATCH_BYTES = 4 * 1024 * 1024 - 64 * 1024
"""What is announced, and enforced, as the total of a batch: below the 4 MiB that gRPC clients take in a message by
default, with room for the digests of several hundred blobs."""
MAX_MESSAGE_BYTES = 4 * 1024 * 1024
_REPLY_OVERHEAD = 100
"""Bytes that a batch's reply has for a blob beside its own: its digest, tags, lengths, a status code."""
_EXPLAINED = 200
_EXPLANATION_CHARS = 300
"""How many failed blobs of a batch get a message beside their code, and how long that may be."""
_OK = rpc_status.Status()
_MASK64 = (1 << 64) - 1
_PREFIX = "/build.bazel.remote.execution.v2.ContentAddressableStorage/"


@dataclass(frozen=True, slots=True)
class CasInstance:
    """One instance: its store, and the most bytes of blobs in a batch."""

    store: Store
    max_batch_bytes: int = MAX_BATCH_BYTES


class CasService:
    """build.bazel.remote.execution.v2.ContentAddressableStorage."""

    def __init__(self, instances: Mapping[str, CasInstance], *, any_name: bool = False) -> None:
        self._instances = Instances(instances, any_name=any_name)

    async def find_missing_blobs(
        self, stream: ServerStream[FindMissingRequest, reapi.FindMissingBlobsResponse]
    ) -> None:
        """The digests of the request that the store does not have, as they were written, in their order."""
        request = await receive_request(stream)
        store = self._instances.get(stream, request.instance_name, Right.READ_CAS).store
        parse_function(request.digest_function)
        make = _make_digest if request.is_plain else _parse_pair  # the codec has checked what is plain
        sizes = await store.has(list(map(make, request.pairs())))
        await stream.send_parts(request.missing(sizes).encode_parts())

    async def batch_update_blobs(
        self, stream: ServerStream[reapi.BatchUpdateBlobsRequest, reapi.BatchUpdateBlobsResponse]
    ) -> None:
        """Stores blobs, each checked against its digest, each with a status of its own."""
        request = await receive_request(stream)
        instance = self._instances.get(stream, request.instance_name, Right.WRITE_CAS)
        function = parse_function(request.digest_function)
        blobs = request.requests
        total = sum(len(blob.data) for blob in blobs)
        if total > instance.max_batch_bytes:
            raise InvalidRequestError(
                f"the batch has {total} bytes, more than the {instance.max_batch_bytes} announced"
            )
        _check_reply_size(0, len(blobs))
        statuses = [_OK] * len(blobs)
        explain = _Explanations()

        async def store_one(at: int) -> None:
            try:
                await _store_blob(instance.store, blobs[at], function)
            except NlError as exc:
                statuses[at] = rpc_status.Status(code=int(exc.code), message=explain(exc))

        await for_each(len(blobs), store_one)
        await stream.send_message(
            reapi.BatchUpdateBlobsResponse(
                responses=[
                    reapi.BatchUpdateBlobsResponseResponse(digest=blob.digest, status=status)
                    for blob, status in zip(blobs, statuses, strict=True)
                ]
            )
        )

    async def batch_read_blobs(
        self, stream: ServerStream[reapi.BatchReadBlobsRequest, reapi.BatchReadBlobsResponse]
    ) -> None:
        """Whole blobs, each with a status of its own; refused if the reply would be larger than announced."""
        request = await receive_request(stream)
        instance = self._instances.get(stream, request.instance_name, Right.READ_CAS)
        parse_function(request.digest_function)
        _refuse_large_reply(request, limit=instance.max_batch_bytes)
        found: list[Buffer | NlError] = [b""] * len(request.digests)

        async def read_one(at: int) -> None:
            try:
                found[at] = await instance.store.get(parse_digest(request.digests[at], "digest"))
            except NlError as exc:
                found[at] = exc

        await for_each(len(found), read_one)
        reply = BatchReadReply()
        explain = _Explanations()
        for digest, blob in zip(request.digests, found, strict=True):
            pair = (digest.hash, digest.size_bytes & _MASK64)
            if isinstance(blob, NlError):
                reply.add_status(pair, code=int(blob.code), message=explain(blob))
            else:
                reply.add_blob(pair, blob)
        await stream.send_parts(reply.encode_parts())

    async def get_tree(self, stream: ServerStream[reapi.GetTreeRequest, reapi.GetTreeResponse]) -> None:
        """All distinct directories below a root, in pages."""
        request = await receive_request(stream)
        store = self._instances.get(stream, request.instance_name, Right.READ_CAS).store
        parse_function(request.digest_function)
        root = parse_digest(request.root_digest, "root_digest")
        if request.page_size < 0:
            raise InvalidRequestError(f"page_size {request.page_size} is negative")
        pages = tree_pages(store, root, page_size=request.page_size, page_token=request.page_token)
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
                self.find_missing_blobs, unary, BoundedFindMissing, reapi.FindMissingBlobsResponse
            ),
            _PREFIX + "BatchUpdateBlobs": handler(
                self.batch_update_blobs, unary, BoundedBatchUpdate, reapi.BatchUpdateBlobsResponse
            ),
            _PREFIX + "BatchReadBlobs": handler(
                self.batch_read_blobs, unary, BoundedBatchRead, reapi.BatchReadBlobsResponse
            ),
            _PREFIX + "GetTree": handler(self.get_tree, streaming, reapi.GetTreeRequest, reapi.GetTreeResponse),
            _PREFIX + "SplitBlob": handler(self.split_blob, unary, reapi.SplitBlobRequest, reapi.SplitBlobResponse),
            _PREFIX + "SpliceBlob": handler(self.splice_blob, unary, reapi.SpliceBlobRequest, reapi.SpliceBlobResponse),
        }

_make_digest: Callable[[Pair], Digest] = partial(tuple.__new__, Digest)


def _parse_pair(pair: Pair) -> Digest:
    try:
        return Digest.parse(*pair)
    except InvalidRequestError as exc:
        raise InvalidRequestError(f"blob_digests: {exc.message}") from None


async def _store_blob(store: Store, blob: reapi.BatchUpdateBlobsRequestRequest, function: DigestFunction) -> None:
    digest = parse_digest(blob.digest, "digest")
    if blob.compressor != reapi.CompressorValue.IDENTITY:
        raise InvalidRequestError(f"{digest}: compressor {int(blob.compressor)} is not offered by this server")
    check_bytes(blob.data, digest=digest, function=function)
    await store.put(digest, blob.data)


def _refuse_large_reply(request: reapi.BatchReadBlobsRequest, *, limit: int) -> None:
    total = sum(digest.size_bytes for digest in request.digests if digest.size_bytes > 0)
    if total > limit:
        raise InvalidRequestError(f"the batch asks for {total} bytes, more than the {limit} announced")
    _check_reply_size(total, len(request.digests))


def _check_reply_size(blob_bytes: int, blobs: int) -> None:
    if blob_bytes + _REPLY_OVERHEAD * blobs > MAX_MESSAGE_BYTES:
        raise InvalidRequestError(
            f"a batch of {blobs} blobs is too large: its reply would not fit into {MAX_MESSAGE_BYTES} bytes"
        )


class _Explanations:
    """The messages of a batch's failures: of the first ones, so that the reply stays small whatever was asked."""

    def __init__(self) -> None:
        self._left = _EXPLAINED

    def __call__(self, error: NlError) -> str:
        self._left -= 1
        return error.message[:_EXPLANATION_CHARS] if self._left >= 0 else ""
