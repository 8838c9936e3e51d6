"""ByteStream: blobs read and written in pieces (REAPI, ContentAddressableStorage; google.bytestream).

Small blobs go the short way, whole and in one message, without a reader, a task or a thread. Large ones are pulled:
a Read takes from the store no more than the client's flow-control window lets leave, a Write takes from the
connection no more than the store asks for. What is uploaded is always checked against its digest, whatever the store.
Resumable uploads are sessions in a nursery of this service: `run` must be running. See `nl.services.uploads`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import grpclib.const
import trio

from nl.blob.reader import Buffer
from nl.blob.verify import VerifyingReader, check_bytes
from nl.errors import InternalError, InvalidRequestError, RangeError
from nl.model.access import Right
from nl.model.resource import ReadName, WriteName, parse_read, parse_write
from nl.pb import bytestream
from nl.pb.codec import varint
from nl.rpc.contract import ServerStream
from nl.services.limits import READ_BYTES
from nl.services.requests import Instances, receive_request
from nl.services.uploads import SessionKey, UploadSession, UploadSessions, check_offset
from nl.services.write_messages import WriteMessage, WriteMessages
from nl.storage.contract import SMALL, Store

_DATA = b"\x52"
"""Tag of ReadResponse.data: a reply is sent as that, a length and the store's own buffers."""
_OVERHEAD = 16
"""Bytes of a ReadResponse, and of the gRPC prefix before it, that are not data."""
_LEAST_BYTES = 1024
"""A window with less room than that is not worth a smaller message."""
MAX_PARKED = 64
MAX_PARKED_BYTES = 1024 * 1024 * 1024
_PREFIX = "/google.bytestream.ByteStream/"


@dataclass(frozen=True, slots=True)
class ByteStreamInstance:
    """One instance: its CAS, and how long a broken upload can be resumed."""

    store: Store
    persist_stream_on_disconnect_timeout_s: float = 60.0


class ByteStreamService:
    """google.bytestream.ByteStream."""

    def __init__(
        self,
        instances: Mapping[str, ByteStreamInstance],
        *,
        any_name: bool = False,
        max_parked: int = MAX_PARKED,
        max_parked_bytes: int = MAX_PARKED_BYTES,
    ) -> None:
        self._instances = Instances(instances, any_name=any_name)
        self._sessions = UploadSessions(max_parked=max_parked, max_parked_bytes=max_parked_bytes)
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Owns the uploads that are resumable, until cancelled: what is parked then is dropped."""
        try:
            async with trio.open_nursery() as self._nursery:
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._nursery = None

    def statistics(self) -> Mapping[str, int]:
        """Counters of resumable uploads."""
        counters = self._sessions.statistics
        return {
            "uploads_started": counters.started,
            "uploads_resumed": counters.resumed,
            "uploads_parked": counters.parked,
            "uploads_given_up": counters.given_up,
        }

    # -- Read

    async def read(self, stream: ServerStream[bytestream.ReadRequest, bytestream.ReadResponse]) -> None:
        """Bytes [read_offset, read_offset + read_limit) of a blob; a limit of 0 is to the end, one beyond is cut."""
        request = await receive_request(stream)
        name = parse_read(request.resource_name)
        store = self._instances.get(stream, name.instance, Right.READ_CAS).store
        _refuse_compressor(name)
        digest = name.digest
        offset, limit = request.read_offset, request.read_limit
        if not offset and not limit and digest.size <= SMALL:
            data = await store.get(digest)
            if data:
                await stream.send_parts([_DATA + varint(len(data)), data])
            return
        _check_range(name, offset=offset, limit=limit)
        async with store.open(digest, offset=offset, length=limit or None) as reader:
            while True:
                room = await stream.wait_send_credit() - _OVERHEAD
                parts = await reader.receive_parts(min(READ_BYTES, max(room, _LEAST_BYTES)))
                if not parts:
                    return
                await stream.send_parts([_DATA + varint(sum(map(len, parts))), *parts])

    # -- Write

    async def write(self, stream: ServerStream[bytestream.WriteRequest, bytestream.WriteResponse]) -> None:
        """Stores a blob. One that is there already ends the call at once, with its full size."""
        messages = WriteMessages(stream)
        first = await messages.receive_message()
        if first is None:
            raise InvalidRequestError("a Write needs at least one message")
        name = parse_write(first.resource_name)
        instance = self._instances.get(stream, name.instance, Right.WRITE_CAS)
        _refuse_compressor(name)
        digest = name.digest
        if (await instance.store.has([digest]))[0] is None:
            if first.size == digest.size and first.finish and not first.offset:
                await _store_message(instance.store, name, first)
            else:
                await self._store_session(instance, _key(stream, name), name, messages=messages, first=first)
        await stream.send_message(bytestream.WriteResponse(committed_size=digest.size))

    async def _store_session(
        self,
        instance: ByteStreamInstance,
        key: SessionKey,
        name: WriteName,
        *,
        messages: WriteMessages,
        first: WriteMessage,
    ) -> None:
        if self._nursery is None:
            raise InternalError("the ByteStream service is not running")
        session = self._sessions.get(key)
        if session is not None and not (session.done or session.expired) and (first.offset or not session.attached):
            self._sessions.statistics.resumed += 1
        else:
            check_offset(first, committed=0, digest=name.digest)
            session = UploadSession(
                name.digest, name.function, persist_s=instance.persist_stream_on_disconnect_timeout_s
            )
            self._sessions.add(key, session)
            self._nursery.start_soon(self._run_session, key, session, instance.store)
        try:
            await session.feed(messages, first)
        finally:
            self._sessions.settle(key, session)

    async def _run_session(self, key: SessionKey, session: UploadSession, store: Store) -> None:
        try:
            await session.run(store)
        finally:
            self._sessions.forget(key, session)

    async def query_write_status(
        self, stream: ServerStream[bytestream.QueryWriteStatusRequest, bytestream.QueryWriteStatusResponse]
    ) -> None:
        """How much of an upload is here: all of it, what a session has taken, or nothing."""
        request = await receive_request(stream)
        name = parse_write(request.resource_name)
        instance = self._instances.get(stream, name.instance, Right.WRITE_CAS)
        _refuse_compressor(name)
        reply = bytestream.QueryWriteStatusResponse()
        if (await instance.store.has([name.digest]))[0] is not None:
            reply.committed_size, reply.complete = name.digest.size, True
        elif (session := self._sessions.get(_key(stream, name))) is not None:
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


async def _store_message(store: Store, name: WriteName, message: WriteMessage) -> None:
    """Stores a blob that came in one message: whole if it is small, else as it arrives."""
    digest = name.digest
    if digest.size > SMALL:
        await store.write(digest, VerifyingReader(message, digest, name.function))
        return
    data: Buffer = b""
    while parts := await message.receive_parts(SMALL):
        if len(parts) == 1 and len(parts[0]) == digest.size:
            data = parts[0]
            break
        data = b"".join((data, *parts))
    check_bytes(data, digest=digest, function=name.function)
    await store.put(digest, data)


def _check_range(name: ReadName, *, offset: int, limit: int) -> None:
    if offset < 0:
        raise InvalidRequestError(f"read_offset {offset} is negative")
    if limit < 0:
        raise InvalidRequestError(f"read_limit {limit} is negative")
    if offset > name.digest.size:
        raise RangeError(f"read_offset {offset} is beyond the end of {name.digest}")


def _refuse_compressor(name: ReadName | WriteName) -> None:
    if name.compressor:
        raise InvalidRequestError(f"compressor {name.compressor!r} is not offered by this server")
