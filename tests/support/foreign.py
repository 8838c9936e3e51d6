"""A foreign client: grpcio with google's protobuf, so that nothing of our own reads what our server writes.

Messages are made from the committed descriptors (`REAPI.FindMissingBlobsRequest(...)`); calls run in a thread, since
grpcio's client blocks, and give back the reply or raise `grpc.RpcError`.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import trio
from blake3 import blake3
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

DESCRIPTORS = Path(__file__).resolve().parents[2] / "nl" / "pb" / "descriptors.binpb"
_V2 = "build.bazel.remote.execution.v2"
_TIMEOUT_S = 60


def _load_pool() -> descriptor_pool.DescriptorPool:
    pool = descriptor_pool.DescriptorPool()
    files = descriptor_pb2.FileDescriptorSet.FromString(DESCRIPTORS.read_bytes())
    for file in files.file:
        pool.Add(file)
    return pool


_POOL = _load_pool()


class Package:
    """Message classes of one protobuf package, by name; nested ones with a dot, through getattr."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, message: str) -> Any:
        return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(f"{self._name}.{message}"))


REAPI = Package(_V2)
BYTESTREAM = Package("google.bytestream")
HEALTH = Package("grpc.health.v1")
RPC = Package("google.rpc")

CAS = f"/{_V2}.ContentAddressableStorage/"
AC = f"/{_V2}.ActionCache/"
CAPABILITIES = f"/{_V2}.Capabilities/GetCapabilities"
BYTES = "/google.bytestream.ByteStream/"


def digest(data: bytes) -> Any:
    """The SHA-256 digest message of a blob."""
    return REAPI.Digest(hash=hashlib.sha256(data).hexdigest(), size_bytes=len(data))


def digest3(data: bytes) -> Any:
    """The BLAKE3 digest message of a blob."""
    return REAPI.Digest(hash=blake3(data).hexdigest(), size_bytes=len(data))


def upload_name(of: Any, *, instance: str = "", function: str = "", upload_id: str | None = None) -> str:
    parts = [instance, "uploads", upload_id or str(uuid.uuid4()), "blobs", function, of.hash, str(of.size_bytes)]
    return "/".join(part for part in parts if part)


def read_name(of: Any, *, instance: str = "", function: str = "") -> str:
    return "/".join(part for part in [instance, "blobs", function, of.hash, str(of.size_bytes)] if part)


class Foreign:
    """One grpcio channel."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.channel = channel

    async def unary(self, method: str, request: Any, reply: Any) -> Any:
        call = self.channel.unary_unary(method, _encode, reply.FromString)
        return await trio.to_thread.run_sync(lambda: call(request, timeout=_TIMEOUT_S))

    async def server_stream(self, method: str, request: Any, reply: Any) -> list[Any]:
        call = self.channel.unary_stream(method, _encode, reply.FromString)
        return await trio.to_thread.run_sync(lambda: list(call(request, timeout=_TIMEOUT_S)))

    async def client_stream(self, method: str, requests: Iterable[Any], reply: Any) -> Any:
        call = self.channel.stream_unary(method, _encode, reply.FromString)
        return await trio.to_thread.run_sync(lambda: call(iter(requests), timeout=_TIMEOUT_S))

    async def bidi(self, method: str, requests: Iterable[Any], reply: Any) -> list[Any]:
        call = self.channel.stream_stream(method, _encode, reply.FromString)
        return await trio.to_thread.run_sync(lambda: list(call(iter(requests), timeout=_TIMEOUT_S)))

    # -- the calls that most tests make

    async def missing(self, digests: Iterable[Any], **fields: Any) -> list[Any]:
        request = REAPI.FindMissingBlobsRequest(blob_digests=list(digests), **fields)
        reply = await self.unary(CAS + "FindMissingBlobs", request, REAPI.FindMissingBlobsResponse)
        return list(reply.missing_blob_digests)

    async def update(self, *blobs: tuple[Any, bytes], **fields: Any) -> list[Any]:
        request = REAPI.BatchUpdateBlobsRequest(**fields)
        for of, data in blobs:
            request.requests.add(digest=of, data=data)
        return await self.update_request(request)

    async def update_request(self, request: Any) -> list[Any]:
        reply = await self.unary(CAS + "BatchUpdateBlobs", request, REAPI.BatchUpdateBlobsResponse)
        return list(reply.responses)

    async def put(self, data: bytes, **fields: Any) -> Any:
        """Uploads one blob; its digest."""
        of = digest(data)
        [response] = await self.update((of, data), **fields)
        assert response.status.code == 0, response
        return of

    async def batch_read(self, digests: Iterable[Any], **fields: Any) -> list[Any]:
        request = REAPI.BatchReadBlobsRequest(digests=list(digests), **fields)
        reply = await self.unary(CAS + "BatchReadBlobs", request, REAPI.BatchReadBlobsResponse)
        return list(reply.responses)

    async def read(self, name: str, *, offset: int = 0, limit: int = 0) -> list[bytes]:
        """The data of each message of a ByteStream.Read."""
        request = BYTESTREAM.ReadRequest(resource_name=name, read_offset=offset, read_limit=limit)
        return [reply.data for reply in await self.server_stream(BYTES + "Read", request, BYTESTREAM.ReadResponse)]

    async def write(self, messages: Iterable[Any]) -> int:
        """The committed size that a ByteStream.Write ends with."""
        return (await self.client_stream(BYTES + "Write", messages, BYTESTREAM.WriteResponse)).committed_size

    async def status(self, name: str) -> tuple[int, bool]:
        request = BYTESTREAM.QueryWriteStatusRequest(resource_name=name)
        reply = await self.unary(BYTES + "QueryWriteStatus", request, BYTESTREAM.QueryWriteStatusResponse)
        return reply.committed_size, reply.complete


def chunks(name: str, data: bytes, *, size: int, start: int = 0, finish: bool = True) -> list[Any]:
    """The messages of a Write, `size` bytes in each, from `start` on."""
    messages = []
    for at in range(start, max(len(data), start + 1), size):
        piece = data[at : at + size]
        messages.append(
            BYTESTREAM.WriteRequest(
                resource_name="" if messages else name,
                write_offset=at,
                finish_write=finish and at + size >= len(data),
                data=piece,
            )
        )
    return messages


def _encode(message: Any) -> bytes:
    return message if isinstance(message, bytes) else message.SerializeToString()


@asynccontextmanager
async def connect(port: int, **options: Any) -> AsyncIterator[Foreign]:
    """A client of a server on loopback. grpcio's own limit of 4 MiB for a received message applies."""
    channel = grpc.insecure_channel(
        f"127.0.0.1:{port}", options=[("grpc.use_local_subchannel_pool", 1), *options.items()]
    )
    try:
        yield Foreign(channel)
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(channel.close)
