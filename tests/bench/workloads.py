"""The standard REAPI workloads: what one operation of each row does. Used by load.py, in a process of its own.

Messages are encoded before the clock starts and answers are only checked, so that the client costs little beside the
server. Every operation asks for other blobs than the one before; every request carries a deadline and Bazel-like
metadata that change each time.
"""

from __future__ import annotations

import hashlib
import random
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from grpclib.const import Cardinality

from nl.blob.reader import Buffer
from nl.pb import bytestream, longrunning, reapi
from nl.pb.codec import decode, encode
from nl.rpc.channel import Channel

CAS = "/build.bazel.remote.execution.v2.ContentAddressableStorage/"
ACTION_CACHE = "/build.bazel.remote.execution.v2.ActionCache/"
EXECUTE = "/build.bazel.remote.execution.v2.Execution/Execute"
READ = "/google.bytestream.ByteStream/Read"
WRITE = "/google.bytestream.ByteStream/Write"
METADATA_KEY = "build.bazel.remote.execution.v2.requestmetadata-bin"
WRITE_CHUNK = 1 << 20
METADATA_VARIANTS = 2048
"""More than the dynamic table of a connection holds, so that each one counts as new."""

Operation = Callable[[Channel, int], Awaitable[int]]
"""Does operation number i on a channel; returns how many payload bytes moved. Raises if the answer is wrong."""


class Raw:
    """Bytes that are already encoded, or are not to be decoded."""

    __slots__ = ("data",)

    def __init__(self, data: Buffer) -> None:
        self.data = data

    @classmethod
    def decode(cls, data: Buffer) -> Raw:
        return cls(data)

    def encode_parts(self) -> list[Buffer]:
        return [self.data]


@dataclass(frozen=True)
class Row:
    """One line of the table: the workload and how hard it is driven."""

    name: str
    kind: str
    operations: int
    in_flight: int
    connections: int = 2
    size: int = 0
    count: int = 1


ROWS = {
    row.name: row
    for row in (
        Row("fmb1", "fmb", 30000, 64, 4, count=1),
        Row("fmb100", "fmb", 4000, 32, 4, count=100),
        Row("fmb10k", "fmb", 60, 2, count=10_000),
        Row("ac", "ac", 15000, 64, 4),
        Row("read4k", "read", 12000, 32, 4, size=4096),
        Row("read1m", "read", 600, 4, size=1 << 20),
        Row("read64m", "read", 10, 2, size=64 << 20),
        Row("write4k", "write", 6000, 32, 4, size=4096),
        Row("write1m", "write", 200, 4, size=1 << 20),
        Row("write64m", "write", 6, 2, size=64 << 20),
        Row("batchread", "batchread", 300, 4, size=10240, count=100),
        Row("batchupdate", "batchupdate", 60, 4, size=10240, count=100),
        Row("exec", "exec", 600, 8),
        Row("lone_read4k", "read", 2000, 1, 1, size=4096),
    )
}
TRANSPORT_ROWS = {
    row.name: row
    for row in (
        Row("unary", "unary", 30000, 64, 4, size=80),
        Row("down4m", "stream_down", 600, 4),
        Row("up4m", "stream_up", 300, 4, size=4 << 20),
    )
}


def digest_of(data: Buffer) -> reapi.Digest:
    return reapi.Digest(hash=hashlib.sha256(data).hexdigest(), size_bytes=len(data))


def as_bazel(run: str, action: int) -> dict[str, bytes]:
    """Request metadata as Bazel sends it: it names the action."""
    message = reapi.RequestMetadata(
        tool_details=reapi.ToolDetails(tool_name="bazel", tool_version="7.4.1"),
        action_id=hashlib.sha256(f"{run}{action}".encode()).hexdigest(),
        tool_invocation_id=run,
        action_mnemonic="CppCompile",
        target_id="//some/package:target",
    )
    return {METADATA_KEY: encode(message)}


class Client:
    """One run of one row: prepares its blobs on the server, then gives the operation."""

    def __init__(self, row: Row, instance: str) -> None:
        self.row = row
        self.instance = instance
        self.run = str(uuid.uuid4())
        self._metadata = [as_bazel(self.run, i) for i in range(METADATA_VARIANTS)]
        self._prefix = f"{instance}/" if instance else ""
        self._random = random.Random(row.size)

    async def prepare(self, channel: Channel) -> Operation:
        """Uploads what the row needs; the operation to drive."""
        return await getattr(self, f"_{self.row.kind}")(channel)

    async def call(self, channel: Channel, path: str, request: Buffer, i: int = 0) -> bytes:
        """One unary call with the deadline and metadata of a real client."""
        async with channel.request(
            path, Cardinality.UNARY_UNARY, Raw, Raw, timeout=60 - (i % 997) / 100, metadata=self.metadata(i)
        ) as stream:
            await stream.send_message(Raw(request), end=True)
            reply = await stream.recv_message()
            return bytes(reply.data)

    def metadata(self, i: int) -> dict[str, bytes]:
        """What Bazel would send along with request `i`; made before the clock starts."""
        return self._metadata[i // 3 % METADATA_VARIANTS]

    def blob(self, tag: str, size: int) -> bytes:
        data = bytearray(self._random.randbytes(min(size, 1 << 20)) * (size // (1 << 20) or 1))[:size]
        head = f"{tag} {self.run} ".encode()[:size]
        data[: len(head)] = head
        return bytes(data)

    # -- uploads

    async def upload(self, channel: Channel, blobs: Sequence[bytes]) -> list[reapi.Digest]:
        digests = [digest_of(b) for b in blobs]
        batch: list[reapi.BatchUpdateBlobsRequestRequest] = []
        total = 0
        for blob, digest in zip(blobs, digests, strict=True):
            if len(blob) > 3 << 20:
                await self._write_blob(channel, blob, digest, 0)
                continue
            if total + len(blob) > 3 << 20 or len(batch) == 500:
                await self._update(channel, batch)
                batch, total = [], 0
            batch.append(reapi.BatchUpdateBlobsRequestRequest(digest=digest, data=blob))
            total += len(blob) + 120
        if batch:
            await self._update(channel, batch)
        return digests

    async def _update(self, channel: Channel, batch: list[reapi.BatchUpdateBlobsRequestRequest]) -> None:
        request = reapi.BatchUpdateBlobsRequest(instance_name=self.instance, requests=batch)
        reply = await self.call(channel, CAS + "BatchUpdateBlobs", encode(request))
        check_batch(reapi.BatchUpdateBlobsResponse, reply, len(batch))

    async def _write_blob(self, channel: Channel, blob: bytes, digest: reapi.Digest, i: int) -> int:
        name = f"{self._prefix}uploads/{uuid.uuid4()}/blobs/{digest.hash}/{digest.size_bytes}"
        view = memoryview(blob)
        async with channel.request(
            WRITE, Cardinality.STREAM_UNARY, Raw, Raw, timeout=60 - (i % 997) / 100, metadata=self.metadata(i)
        ) as stream:
            for offset in range(0, len(blob) or 1, WRITE_CHUNK):
                end = min(offset + WRITE_CHUNK, len(blob))
                message = bytestream.WriteRequest(
                    resource_name=name if not offset else "", write_offset=offset, finish_write=end == len(blob),
                    data=view[offset:end],  # type: ignore[arg-type]
                )
                await stream.send_message(message, end=end == len(blob))
            reply = await stream.recv_message()
        committed = decode(bytestream.WriteResponse, reply.data).committed_size
        if committed != len(blob):
            raise ValueError(f"committed {committed} of {len(blob)}")
        return len(blob)

    # -- the rows

    async def _unary(self, channel: Channel) -> Operation:
        request = bytes(self.row.size)

        async def one(channel: Channel, i: int) -> int:
            await self.call(channel, "/t.S/Unary", request, i)
            return 0

        return one

    async def _stream_down(self, channel: Channel) -> Operation:
        async def one(channel: Channel, i: int) -> int:
            total = 0
            async with channel.request(
                "/t.S/Read", Cardinality.UNARY_STREAM, Raw, Raw, timeout=60 - (i % 997) / 100,
                metadata=self.metadata(i),
            ) as stream:
                await stream.send_message(Raw(b"x"), end=True)
                async for message in stream:
                    total += len(message.data)
            if total != 4 << 20:
                raise ValueError(f"got {total} bytes")
            return total

        return one

    async def _stream_up(self, channel: Channel) -> Operation:
        chunk = bytes(1 << 20)

        async def one(channel: Channel, i: int) -> int:
            async with channel.request(
                "/t.S/Write", Cardinality.STREAM_UNARY, Raw, Raw, timeout=60 - (i % 997) / 100,
                metadata=self.metadata(i),
            ) as stream:
                for k in range(4):
                    await stream.send_message(Raw(chunk), end=k == 3)
                await stream.recv_message()
            return 4 << 20

        return one

    async def _fmb(self, channel: Channel) -> Operation:
        digests = await self.upload(channel, [self.blob(f"fmb-{i:06}", 64) for i in range(max(2000, self.row.count))])
        requests = [
            encode(
                reapi.FindMissingBlobsRequest(
                    instance_name=self.instance, blob_digests=self._random.sample(digests, self.row.count)
                )
            )
            for _ in range(64)
        ]

        async def one(channel: Channel, i: int) -> int:
            reply = await self.call(channel, CAS + "FindMissingBlobs", requests[i % 64], i)
            if reply:
                raise ValueError("blobs that were uploaded are missing")
            return 0

        return one

    async def _ac(self, channel: Channel) -> Operation:
        output = (await self.upload(channel, [f"output {self.run}".encode()]))[0]
        result = reapi.ActionResult(output_files=[reapi.OutputFile(path="out/lib.a", digest=output)])
        requests = []
        for k in range(256):
            action = digest_of(f"action {self.run} {k}".encode())
            update = reapi.UpdateActionResultRequest(
                instance_name=self.instance, action_digest=action, action_result=result
            )
            await self.call(channel, ACTION_CACHE + "UpdateActionResult", encode(update))
            requests.append(
                encode(reapi.GetActionResultRequest(instance_name=self.instance, action_digest=action))
            )

        async def one(channel: Channel, i: int) -> int:
            if not await self.call(channel, ACTION_CACHE + "GetActionResult", requests[i % 256], i):
                raise ValueError("empty result")
            return 0

        return one

    async def _read(self, channel: Channel) -> Operation:
        size = self.row.size
        digests = await self.upload(
            channel, [self.blob(f"read {k}", size) for k in range(max(2, min(256, (64 << 20) // size)))]
        )
        requests = [
            encode(bytestream.ReadRequest(resource_name=f"{self._prefix}blobs/{d.hash}/{d.size_bytes}"))
            for d in digests
        ]
        head = 16 * (1 + size // (64 << 10))

        async def one(channel: Channel, i: int) -> int:
            total = 0
            async with channel.request(
                READ, Cardinality.UNARY_STREAM, Raw, Raw, timeout=60 - (i % 997) / 100, metadata=self.metadata(i)
            ) as stream:
                await stream.send_message(Raw(requests[i % len(requests)]), end=True)
                async for message in stream:
                    total += len(message.data)
            if not size < total <= size + head:  # payload and a few bytes of framing a message
                raise ValueError(f"read {total} bytes of {size}")
            return size

        return one

    async def _write(self, channel: Channel) -> Operation:
        body = bytearray(self.blob("write", self.row.size))
        digests = []
        for i in range(self.row.operations):
            head = f"{self.run} {i:012}".encode()[: self.row.size]
            body[: len(head)] = head
            digests.append(digest_of(body))

        async def one(channel: Channel, i: int) -> int:
            head = f"{self.run} {i:012}".encode()[: self.row.size]
            return await self._write_blob(channel, head + bytes(body[len(head) :]), digests[i], i)

        return one

    async def _batchread(self, channel: Channel) -> Operation:
        sets = []
        for k in range(4):
            digests = await self.upload(
                channel, [self.blob(f"br {k} {i}", self.row.size) for i in range(self.row.count)]
            )
            sets.append(encode(reapi.BatchReadBlobsRequest(instance_name=self.instance, digests=digests)))

        async def one(channel: Channel, i: int) -> int:
            reply = await self.call(channel, CAS + "BatchReadBlobs", sets[i % 4], i)
            if len(reply) < self.row.count * self.row.size:
                raise ValueError("short batch")
            return self.row.count * self.row.size

        return one

    async def _batchupdate(self, channel: Channel) -> Operation:
        requests = []
        for k in range(self.row.operations):
            blobs = [self.blob(f"bu {k} {i}", self.row.size) for i in range(self.row.count)]
            batch = [reapi.BatchUpdateBlobsRequestRequest(digest=digest_of(b), data=b) for b in blobs]
            requests.append(encode(reapi.BatchUpdateBlobsRequest(instance_name=self.instance, requests=batch)))

        async def one(channel: Channel, i: int) -> int:
            reply = await self.call(channel, CAS + "BatchUpdateBlobs", requests[i], i)
            check_batch(reapi.BatchUpdateBlobsResponse, reply, self.row.count)
            return self.row.count * self.row.size

        return one

    async def _exec(self, channel: Channel) -> Operation:
        root = digest_of(b"")
        platform = reapi.Platform(properties=[reapi.PlatformProperty(name="OSFamily", value="linux")])
        blobs, actions = [], []
        for i in range(self.row.operations):
            variable = reapi.CommandEnvironmentVariable(name="RUN", value=f"{self.run}-{i}")
            command = encode(reapi.Command(arguments=["/bin/true"], environment_variables=[variable]))
            action = encode(
                reapi.Action(command_digest=digest_of(command), input_root_digest=root, platform=platform)
            )
            blobs += [command, action]
            actions.append(digest_of(action))
        await self.upload(channel, blobs)

        async def one(channel: Channel, i: int) -> int:
            request = reapi.ExecuteRequest(
                instance_name=self.instance, skip_cache_lookup=True, action_digest=actions[i]
            )
            last = None
            async with channel.request(
                EXECUTE, Cardinality.UNARY_STREAM, reapi.ExecuteRequest, longrunning.Operation, timeout=60,
                metadata=self.metadata(i),
            ) as stream:
                await stream.send_message(request, end=True)
                async for last in stream:
                    if last.done:
                        break
            if last is None or not last.done or last.response is None:
                raise ValueError("the execution did not end")
            response = decode(reapi.ExecuteResponse, last.response.value)
            if response.status is not None and response.status.code:
                raise ValueError(f"status {response.status.code}: {response.status.message}")
            return 0

        return one


def check_batch(kind: type[reapi.BatchUpdateBlobsResponse], reply: bytes, count: int) -> None:
    """Every blob answered, and answered OK."""
    responses = decode(kind, reply).responses
    bad = [r.status.message for r in responses if r.status is not None and r.status.code]
    if len(responses) != count or bad:
        raise ValueError(f"{len(responses)} of {count} answers; {bad[:1]}")
