"""ByteStream: blobs read and written in pieces (REAPI, ContentAddressableStorage; google.bytestream).

Small blobs go the short way, whole and in one message, without a reader, a task or a thread. Large ones are pulled:
a Read takes from the store no more than the client's flow-control window lets leave, a Write takes from the
connection no more than the store asks for, and neither holds a file for a client that is not there
(`nl.services.reads`, `upload_bounds`). What is uploaded is always checked against its digest, whatever the store.
Resumable uploads are sessions in a nursery of this service: `run` must be running. See `nl.services.uploads`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import grpclib.const
import trio

from nl.blob.reader import Buffer, Reader
from nl.blob.verify import VerifyingReader, check_bytes
from nl.errors import InternalError, InvalidRequestError, RangeError
from nl.model.access import Right
from nl.model.digest import Digest
from nl.model.resource import ReadName, WriteName, parse_read, parse_write
from nl.pb import bytestream
from nl.pb.hot import write_reply
from nl.rpc.contract import ServerStream
from nl.services.packed_reads import PackedReadSender
from nl.services.packing import COMPRESSOR, PackedTarget, PackedUpload, Packing, unpacking_bytes
from nl.services.reads import ReadSender, response_head
from nl.services.requests import Instances, receive_request, refuse_strangers
from nl.services.upload_bounds import SessionKey, SingleWrite, UploadSessions, UploadSlots
from nl.services.uploads import UploadSession, check_offset
from nl.services.write_messages import WriteMessage, WriteMessages
from nl.storage.coder_memory import CoderMemory
from nl.storage.contract import SMALL, Store

MAX_PARKED = 64
MAX_PARKED_BYTES = 1024 * 1024 * 1024
MAX_OPEN = 1024
"""How many Reads, and how many Writes, may hold a file at once, unless the service is told otherwise."""
MAX_UNPACKING = 64
"""How many uploads may be unpacked at once: each takes up to 8 MiB of history, whatever it sends."""
_PREFIX = "/google.bytestream.ByteStream/"


@dataclass(frozen=True)
class ByteStreamInstance:
    """One instance: its CAS, how long a broken upload can be resumed, and how long one may bring nothing."""

    store: Store
    persist_stream_on_disconnect_timeout_s: float = 60.0
    idle_upload_timeout_s: float = 300.0

    @cached_property
    def packed(self) -> PackedTarget:
        """The same store, for what comes and goes packed."""
        return PackedTarget.of(self.store)


class ByteStreamService:
    """google.bytestream.ByteStream."""

    def __init__(
        self,
        instances: Mapping[str, ByteStreamInstance],
        *,
        any_name: bool = False,
        max_parked: int = MAX_PARKED,
        max_parked_bytes: int = MAX_PARKED_BYTES,
        max_open_reads: int = MAX_OPEN,
        max_open_writes: int = MAX_OPEN,
        coder_memory: CoderMemory | None = None,
    ) -> None:
        self._instances = Instances(instances, any_name=any_name)
        self._sessions = UploadSessions(max_parked=max_parked, max_parked_bytes=max_parked_bytes)
        self._slots = UploadSlots(max_open_writes)
        self._sender = ReadSender(max_open_reads)
        self._packing = Packing()
        self._coder_memory = coder_memory or CoderMemory()
        self._packed = PackedReadSender(self._sender, self._packing)
        self._unpackers = UploadSlots(min(MAX_UNPACKING, max_open_writes))
        self._nursery: trio.Nursery | None = None
        self._idle_s = max((each.idle_upload_timeout_s for each in instances.values()), default=0.0)
        """For the first message, which says whose instance it is for."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Owns the uploads that are resumable, until cancelled: what is parked then is dropped."""
        try:
            async with trio.open_nursery() as self._nursery:
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._nursery = None

    def statistics(self) -> Mapping[str, int]:
        """Files in use now, and counters of resumable uploads."""
        counters = self._sessions.statistics
        return {
            "uploads_started": counters.started,
            "uploads_resumed": counters.resumed,
            "uploads_parked": counters.parked,
            "uploads_given_up": counters.given_up,
            "uploads_open": self._slots.taken,
            "uploads_ended_for_room": self._slots.ended,
            "reads_open": self._sender.open,
            "reads_reopened": self._sender.reopened,
            "reads_packing": self._packed.packing,
            "uploads_unpacking": self._unpackers.taken,
        }

    # -- Read

    async def read(self, stream: ServerStream[bytestream.ReadRequest, bytestream.ReadResponse]) -> None:
        """Bytes [read_offset, read_offset + read_limit) of a blob; a limit of 0 is to the end, one beyond is cut."""
        request = await receive_request(stream)
        name = parse_read(request.resource_name)
        instance = self._instances.get(stream, name.instance, Right.READ_CAS)
        store = instance.store
        digest = name.digest
        offset, limit = request.read_offset, request.read_limit
        if name.compressor:
            _refuse_other_compressors(name)
            if limit:
                raise InvalidRequestError("a read_limit cannot be given for a compressed blob")
            _check_range(name, offset=offset, limit=limit)
            await self._packed.send(stream, instance.packed, digest, offset=offset)
            return
        if not offset and not limit and digest.size <= SMALL:
            data = await store.get(digest)
            if data:
                await stream.send_parts([response_head(len(data)), data])
            return
        _check_range(name, offset=offset, limit=limit)
        await self._sender.send(stream, store, digest, offset=offset, limit=limit)

    # -- Write

    async def write(self, stream: ServerStream[bytestream.WriteRequest, bytestream.WriteResponse]) -> None:
        """Stores a blob. One that is there already ends the call at once, with its full size."""
        refuse_strangers(stream)
        messages = WriteMessages(stream, idle_s=self._idle_s)
        first = await messages.receive_message()
        if first is None:
            raise InvalidRequestError("a Write needs at least one message")
        name = parse_write(first.resource_name)
        instance = self._instances.get(stream, name.instance, Right.WRITE_CAS)
        messages.idle_s = instance.idle_upload_timeout_s
        digest = name.digest
        if name.compressor:
            _refuse_other_compressors(name)
            committed = await self._store_packed(instance, digest, messages=messages, first=first)
            await stream.send_parts((write_reply(committed),))
            return
        if not await _is_surely_there(instance.store, digest):
            if first.size != digest.size or not first.finish or first.offset:
                await self._store_session(instance, _key(stream, name), name, messages=messages, first=first)
            elif digest.size <= SMALL:
                data = await _receive_small(first, digest.size, messages)
                check_bytes(data, digest)
                await instance.store.put(digest, data)
            else:
                await self._store_message(instance.store, name, messages=messages, message=first)
        await stream.send_parts((write_reply(digest.size),))

    async def _store_packed(
        self, instance: ByteStreamInstance, digest: Digest, *, messages: WriteMessages, first: WriteMessage
    ) -> int:
        """Stores a blob that comes packed. The committed size: of the packed bytes; -1 if the blob is there already."""
        if await _is_surely_there(instance.store, digest):
            return -1
        source = PackedUpload(digest, messages, first)
        if first.finish and digest.size <= SMALL and first.size <= SMALL:
            data = await _receive_small(source, first.size, messages)
            await self._packing.store(instance.packed, digest, data)
            return source.committed
        upload = SingleWrite(messages)
        await self._slots.take(upload)
        try:
            await self._unpackers.take(upload)
            try:
                async with self._coder_memory.uploading((unpacking_bytes(digest),)) as held:
                    await self._packing.write(instance.packed, digest, held.watched(source))
            finally:
                self._unpackers.release(upload)
        finally:
            self._slots.release(upload)
        return source.committed

    async def _store_message(
        self, store: Store, name: WriteName, *, messages: WriteMessages, message: WriteMessage
    ) -> None:
        """Stores a blob that comes in one message, as it arrives."""
        upload = SingleWrite(messages)
        await self._slots.take(upload)
        try:
            await store.write(name.digest, VerifyingReader(message, name.digest))
        finally:
            self._slots.release(upload)

    async def _store_session(
        self,
        instance: ByteStreamInstance,
        key: SessionKey,
        name: WriteName,
        *,
        messages: WriteMessages,
        first: WriteMessage,
    ) -> None:
        session = self._sessions.get(key)
        if session is not None and session.joinable and (first.offset or not session.attached):
            self._sessions.statistics.resumed += 1
        else:
            check_offset(first, committed=0, digest=name.digest)
            session = UploadSession(name.digest, persist_s=instance.persist_stream_on_disconnect_timeout_s)
            await self._start(key, session, instance.store)
        try:
            await session.feed(messages, first)
        finally:
            self._sessions.settle(key, session)

    async def _start(self, key: SessionKey, session: UploadSession, store: Store) -> None:
        await self._slots.take(session)
        if self._nursery is None:
            self._slots.release(session)
            raise InternalError("the ByteStream service is not running")
        self._sessions.add(key, session)
        self._nursery.start_soon(self._run_session, key, session, store)

    async def _run_session(self, key: SessionKey, session: UploadSession, store: Store) -> None:
        try:
            await session.run(store)
        finally:
            self._slots.release(session)
            self._sessions.forget(key, session)

    async def query_write_status(
        self, stream: ServerStream[bytestream.QueryWriteStatusRequest, bytestream.QueryWriteStatusResponse]
    ) -> None:
        """How much of an upload is here: all of it, what a session has taken, or nothing."""
        request = await receive_request(stream)
        name = parse_write(request.resource_name)
        instance = self._instances.get(stream, name.instance, Right.WRITE_CAS)
        _refuse_other_compressors(name)
        reply = bytestream.QueryWriteStatusResponse()
        if await _is_surely_there(instance.store, name.digest):
            reply.committed_size, reply.complete = name.digest.size, True
        elif not name.compressor and (session := self._sessions.get(_key(stream, name))) is not None:
            reply.committed_size = session.committed
        await stream.send_message(reply)

    def __mapping__(self) -> dict[str, grpclib.const.Handler]:
        cardinality = grpclib.const.Cardinality
        return {
            _PREFIX + "Read": grpclib.const.Handler(
                self.read, cardinality.UNARY_STREAM, bytestream.ReadRequest, bytestream.ReadResponse
            ),
            _PREFIX + "Write": grpclib.const.Handler(
                self.write, cardinality.STREAM_UNARY, bytestream.WriteRequest, bytestream.WriteResponse
            ),
            _PREFIX + "QueryWriteStatus": grpclib.const.Handler(
                self.query_write_status,
                cardinality.UNARY_UNARY,
                bytestream.QueryWriteStatusRequest,
                bytestream.QueryWriteStatusResponse,
            ),
        }


def _key(stream: ServerStream[Any, Any], name: WriteName) -> SessionKey:
    return (stream.identity.name, name.instance, name.uuid, name.digest)


async def _is_surely_there(store: Store, digest: Digest) -> bool:
    """Whether an upload may be left out: not because of an answer that may be out of date."""
    return store.traits.authoritative and (await store.has([digest]))[0] is not None


async def _receive_small(source: Reader, size: int, messages: WriteMessages) -> Buffer:
    """All `size` bytes of an upload that comes in one message and is small; without a copy if they are in one piece."""
    data: Buffer = b""
    while parts := await source.receive_parts(SMALL):
        if len(parts) == 1 and len(parts[0]) == size:
            return parts[0]
        data = b"".join((data, *parts))
        if len(data) < size:
            messages.keep(len(data))
    return data


def _check_range(name: ReadName, *, offset: int, limit: int) -> None:
    if offset < 0:
        raise InvalidRequestError(f"read_offset {offset} is negative")
    if limit < 0:
        raise InvalidRequestError(f"read_limit {limit} is negative")
    if offset > name.digest.size:
        raise RangeError(f"read_offset {offset} is beyond the end of {name.digest}")


def _refuse_other_compressors(name: ReadName | WriteName) -> None:
    if name.compressor not in ("", COMPRESSOR):
        raise InvalidRequestError(f"compressor {name.compressor!r} is not offered by this server")
