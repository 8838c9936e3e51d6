"""A REAPI server that is not ours: grpcio with google's protobuf. It misbehaves as the test plans it, call by call.

    server.plan("Read", fail("UNAVAILABLE", after=100_000), fail("UNAVAILABLE"))

is what the next two Reads do; the ones after them are answered well. `calls` are the methods in the order in which they
came. What it keeps is in `blobs` and `results`, by (hash, size).
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc

from nl.blob.zstd import library
from nl.plugin import Digest, digest_of
from nl.testing import make_blob
from tests.support.foreign import BYTESTREAM, REAPI, RPC

ZSTD = library()
"""The C library's own interface, and nothing of ours."""

_V2 = "build.bazel.remote.execution.v2."
PIECE = 64 * 1024


@dataclass(frozen=True)
class Fault:
    """What one call does instead of being answered well."""

    code: grpc.StatusCode | None = None
    after: int = 0
    """For streams: so many bytes are moved before it fails."""
    says: str = "as planned"
    alter: Callable[[bytes], bytes] | None = None
    """What becomes of the data of a blob."""
    delay_s: float = 0.0
    blob_code: int = 0
    """The status of each blob in a batch."""
    drops: bool = False
    """A batch's reply leaves blobs out; a write forgets what it has taken; capabilities say nothing of the cache."""
    commits: int | None = None
    """What a Write, or a QueryWriteStatus, says that has been committed."""
    completes: bool = False
    """A QueryWriteStatus says that it is complete, whatever it says of bytes."""
    keeps: bool = False
    """A write that fails has the blob all the same: only its answer is lost."""
    held: threading.Event | None = None
    """It goes no further until this is set: a stream after `after` bytes, others at once."""
    prefix: bytes = b""
    """What stands before the other fields of each message of a Read."""
    spoils: Callable[[bytes], bytes] | None = None
    """What becomes of the packed form of a blob that is read."""


def fail(code: str, *, after: int = 0, says: str = "as planned", drops: bool = False) -> Fault:
    return Fault(getattr(grpc.StatusCode, code), after=after, says=says, drops=drops)


OK = Fault()
Key = tuple[str, int]


class ForeignServer:
    """See the module."""

    def __init__(
        self, *, max_batch: int = 0, max_blob: int = 0, options: Any = (), offers: tuple[int, ...] = (),
        packs: bool = True,
    ) -> None:
        self.blobs: dict[Key, bytes] = {}
        self.packed: dict[Key, int] = {}
        """How large the packed form was of what was written so; 0 if it came as it is."""
        self.results: dict[Key, bytes] = {}
        self.calls: list[str] = []
        self.requests: list[Any] = []
        self.metadata: list[dict[str, Any]] = []
        self.offsets: list[int] = []
        """Of Reads and Writes, as they came."""
        self.port = 0
        self._max_batch, self._max_blob = max_batch, max_blob
        self._options = options
        self._offers = offers
        """The compressors that it announces; 1 is zstd."""
        self._packs = packs
        """Whether it does what zstd asks for."""
        self._plans: dict[str, deque[Fault]] = defaultdict(deque)
        self._partial: dict[str, bytearray] = {}
        self._lock = threading.Lock()

    def plan(self, method: str, *faults: Fault) -> None:
        self._plans[method].extend(faults)

    def put(self, data: bytes, key: Any) -> None:
        self.blobs[key.hash, key.size] = data

    def keep(self, size: int, *, seed: int = 0) -> tuple[Digest, bytes]:
        """A blob that it has from now on."""
        digest = digest_of(data := make_blob(size, seed=seed))
        self.put(data, digest)
        return digest, data

    def count(self, method: str) -> int:
        return self.calls.count(method)

    def wait_for(self, method: str, count: int) -> None:
        """Until so many calls of a method have come. Blocks."""
        until = time.monotonic() + 60
        while self.count(method) < count:
            assert time.monotonic() < until, self.calls
            time.sleep(0.001)

    @contextmanager
    def running(self, *, port: int = 0) -> Iterator[ForeignServer]:
        server = grpc.server(futures.ThreadPoolExecutor(32), options=[("grpc.so_reuseport", 0), *self._options])
        server.add_generic_rpc_handlers(tuple(self._handlers()))
        self.port = server.add_insecure_port(f"127.0.0.1:{port}")
        server.start()
        try:
            yield self
        finally:
            server.stop(None).wait()

    def _handlers(self) -> Iterator[Any]:
        unary, stream, upload = (
            grpc.unary_unary_rpc_method_handler, grpc.unary_stream_rpc_method_handler,
            grpc.stream_unary_rpc_method_handler,
        )  # fmt: skip

        def handler(make: Any, function: Any, request: Any) -> Any:
            return make(function, request.FromString, lambda message: message.SerializeToString())

        services = {
            _V2 + "ContentAddressableStorage": {
                "FindMissingBlobs": handler(unary, self._find_missing, REAPI.FindMissingBlobsRequest),
                "BatchReadBlobs": handler(unary, self._batch_read, REAPI.BatchReadBlobsRequest),
                "BatchUpdateBlobs": handler(unary, self._batch_update, REAPI.BatchUpdateBlobsRequest),
            },
            _V2 + "ActionCache": {
                "GetActionResult": handler(unary, self._get_result, REAPI.GetActionResultRequest),
                "UpdateActionResult": handler(unary, self._update_result, REAPI.UpdateActionResultRequest),
            },
            _V2 + "Capabilities": {
                "GetCapabilities": handler(unary, self._capabilities, REAPI.GetCapabilitiesRequest),
            },
            "google.bytestream.ByteStream": {
                "Read": handler(stream, self._read, BYTESTREAM.ReadRequest),
                "Write": handler(upload, self._write, BYTESTREAM.WriteRequest),
                "QueryWriteStatus": handler(unary, self._query, BYTESTREAM.QueryWriteStatusRequest),
            },
        }
        for name, methods in services.items():
            yield grpc.method_handlers_generic_handler(name, methods)

    def _begin(self, method: str, request: Any, context: grpc.ServicerContext) -> Fault:
        with self._lock:
            self.calls.append(method)
            self.requests.append(request)
            self.metadata.append(dict(context.invocation_metadata()))
            plan = self._plans[method]
            fault = plan.popleft() if plan else OK
        if fault.delay_s:
            time.sleep(fault.delay_s)
        if not fault.after:
            _wait(fault)
        if fault.code is not None and not fault.after:
            context.abort(fault.code, fault.says)
        return fault

    def _find_missing(self, request: Any, context: Any) -> Any:
        self._begin("FindMissingBlobs", request, context)
        lacking = [each for each in request.blob_digests if (each.hash, each.size_bytes) not in self.blobs]
        return REAPI.FindMissingBlobsResponse(missing_blob_digests=lacking)

    def _batch_read(self, request: Any, context: Any) -> Any:
        fault = self._begin("BatchReadBlobs", request, context)
        reply = REAPI.BatchReadBlobsResponse()
        for each in reversed(request.digests):
            data = self.blobs.get((each.hash, each.size_bytes))
            if fault.drops:
                continue
            if fault.blob_code or data is None:
                reply.responses.add(digest=each, status=RPC.Status(code=fault.blob_code or 5, message=fault.says))
            else:
                reply.responses.add(digest=each, data=fault.alter(data) if fault.alter else data)
        return reply

    def _batch_update(self, request: Any, context: Any) -> Any:
        fault = self._begin("BatchUpdateBlobs", request, context)
        reply = REAPI.BatchUpdateBlobsResponse()
        for each in request.requests:
            if fault.drops:
                continue
            if not fault.blob_code:
                self.blobs[each.digest.hash, each.digest.size_bytes] = each.data
            reply.responses.add(digest=each.digest, status=RPC.Status(code=fault.blob_code, message=fault.says))
        return reply

    def _read(self, request: Any, context: Any) -> Iterator[Any]:
        fault = self._begin("Read", request, context)
        self.offsets.append(request.read_offset)
        hash, size = request.resource_name.split("/")[-2:]
        data = self.blobs.get((hash, int(size)))
        if data is None:
            context.abort(grpc.StatusCode.NOT_FOUND, "no such blob")
        if fault.alter:
            data = fault.alter(data)
        if "compressed-blobs/zstd/" in request.resource_name:
            if request.read_limit or not self._packs:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, "not packed")
            data = ZSTD.compress(data[request.read_offset :])
            data = fault.spoils(data) if fault.spoils else data
            request.read_offset = 0
        end = request.read_offset + request.read_limit if request.read_limit else len(data)
        moved = 0
        for at in range(request.read_offset, end, PIECE):
            if moved >= fault.after:
                _fail_if_planned(fault, context)
            piece = data[at : min(at + PIECE, end)]
            moved += len(piece)
            message = BYTESTREAM.ReadResponse(data=piece)
            yield _Raw(fault.prefix + message.SerializeToString()) if fault.prefix else message
        _fail_if_planned(fault, context)

    def _write(self, requests: Iterator[Any], context: Any) -> Any:
        first = next(requests)
        fault = self._begin("Write", first, context)
        name = first.resource_name
        hash, size = name.split("/")[-2:]
        self.offsets.append(first.write_offset)
        packed = "compressed-blobs/zstd/" in name
        if packed and not self._packs:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "not packed")
        if (hash, int(size)) in self.blobs:
            return BYTESTREAM.WriteResponse(committed_size=-1 if packed else int(size))
        taken = self._partial.setdefault(name, bytearray())
        if first.write_offset != len(taken):
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"offset {first.write_offset}, expected {len(taken)}")
        message, finished, moved = first, False, 0
        while message is not None:
            if message.write_offset != len(taken):
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"offset {message.write_offset} at {len(taken)}")
            taken += message.data
            moved += len(message.data)
            finished = message.finish_write
            if (fault.code or fault.held) and moved >= fault.after:
                if fault.drops:
                    del self._partial[name]
                if fault.keeps:
                    self.blobs[hash, int(size)] = bytes(taken)
                _fail_if_planned(fault, context)
            message = None if finished else next(requests, None)
        blob = ZSTD.decompress(bytes(taken)) if packed and finished else bytes(taken)
        if not finished or len(blob) != int(size):
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "not complete")
        if fault.commits is None:
            self.blobs[hash, int(size)] = blob
            self.packed[hash, int(size)] = len(taken) if packed else 0
        return BYTESTREAM.WriteResponse(committed_size=len(taken) if fault.commits is None else fault.commits)

    def _query(self, request: Any, context: Any) -> Any:
        fault = self._begin("QueryWriteStatus", request, context)
        if fault.commits is not None:
            return BYTESTREAM.QueryWriteStatusResponse(committed_size=fault.commits, complete=fault.completes)
        hash, size = request.resource_name.split("/")[-2:]
        if (hash, int(size)) in self.blobs:
            return BYTESTREAM.QueryWriteStatusResponse(committed_size=int(size), complete=True)
        return BYTESTREAM.QueryWriteStatusResponse(committed_size=len(self._partial.get(request.resource_name, b"")))

    def _get_result(self, request: Any, context: Any) -> Any:
        fault = self._begin("GetActionResult", request, context)
        found = self.results.get((request.action_digest.hash, request.action_digest.size_bytes))
        if found is None:
            context.abort(grpc.StatusCode.NOT_FOUND, "no such result")
        return _Raw(fault.alter(found) if fault.alter else found)

    def _update_result(self, request: Any, context: Any) -> Any:
        self._begin("UpdateActionResult", request, context)
        key = (request.action_digest.hash, request.action_digest.size_bytes)
        self.results[key] = request.action_result.SerializeToString()
        return request.action_result

    def _capabilities(self, request: Any, context: Any) -> Any:
        if self._begin("GetCapabilities", request, context).drops:
            return REAPI.ServerCapabilities()
        cache = REAPI.CacheCapabilities(
            max_batch_total_size_bytes=self._max_batch, max_cas_blob_size_bytes=self._max_blob, digest_functions=[1, 9],
            supported_compressors=self._offers,
        )
        return REAPI.ServerCapabilities(cache_capabilities=cache)


def _wait(fault: Fault) -> None:
    if fault.held is not None:
        fault.held.wait(60)


def _fail_if_planned(fault: Fault, context: Any) -> None:
    """At the place in a stream where it is to fail."""
    _wait(fault)
    if fault.code is not None:
        context.abort(fault.code, fault.says)


@dataclass
class _Raw:
    """A reply that is these bytes, a message or not."""

    data: bytes

    def SerializeToString(self) -> bytes:  # noqa: N802
        return self.data
