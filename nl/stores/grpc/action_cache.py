"""The action results of another server: store_type "ac".

Values are sealed here (`nl.cas.action_results`) and plain on the wire: what comes is checked to be an ActionResult and
sealed, what goes is unsealed, with its checksum compared, or checked to be one if it has none.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

from grpclib.const import Status

from nl.cas.action_results import MAX_ACTION_RESULT_BYTES, check_size, seal, unseal
from nl.cas.large import off_loop_if_large
from nl.pb import reapi
from nl.pb.codec import encode, varint
from nl.plugin import (
    MAX_WHOLE,
    ActionKey,
    BlobNotFoundError,
    Buffer,
    CorruptBlobError,
    InvalidRequestError,
    Key,
    Reader,
    Store,
    TooLargeError,
    UploadMismatchError,
    for_each,
    must_be_streamed,
    slice_bytes,
)
from nl.stores.grpc.cas import Inherited
from nl.stores.grpc.failures import Failure
from nl.stores.grpc.methods import GET_RESULT, UPDATE_RESULT
from nl.stores.grpc.remote import Remote, Retrying

MESSAGE_BYTES: Final = MAX_ACTION_RESULT_BYTES + 64 * 1024
"""A message with an ActionResult and little else."""
_SEAL_ROOM: Final = 64


class RemoteActionCache(Store):
    """See the module. Keys are those of action results only."""

    def __init__(self, remote: Remote, inherited: Inherited) -> None:
        self._remote = remote
        self._inherited = inherited

    async def has(self, keys: Sequence[Key]) -> list[int | None]:
        """A call for each: the protocol has none for many."""
        sizes: list[int | None] = [None] * len(keys)
        for key in keys:
            self._action(key)

        async def ask(at: int) -> None:
            try:
                sizes[at] = len(await self._load(keys[at]))
            except BlobNotFoundError:
                pass

        await for_each(len(keys), ask)
        return sizes

    async def get(self, key: Key) -> Buffer:
        value = await self._load(key)
        if len(value) > MAX_WHOLE:
            raise must_be_streamed(key, len(value))
        return value

    @asynccontextmanager
    async def open(self, key: Key, *, offset: int = 0, length: int | None = None) -> AsyncIterator[Reader]:
        yield slice_bytes(await self._load(key), offset=offset, length=length)

    async def _load(self, key: Key) -> bytes:
        action = self._action(key)
        request = encode(
            reapi.GetActionResultRequest(
                instance_name=self._remote.instance,
                action_digest=reapi.Digest(hash=action.hash, size_bytes=action.size),
                digest_function=reapi.DigestFunctionValue(int(action.function)),
            )
        )
        retrying = Retrying(self._remote, GET_RESULT, str(action))
        while True:
            try:
                encoded: bytes = await self._remote.ask_once(GET_RESULT, [request], self._inherited())
                break
            except Failure as failure:
                if failure.status is Status.NOT_FOUND:
                    where = f"the grpc store {self._remote.name!r} ({failure.peer or self._remote.where})"
                    message = f"{key} not found in {where}: {self._remote.said(failure)}"[:500]
                    raise BlobNotFoundError(key, message=message) from failure.error
                await retrying.failed(failure)
        return seal(await self._checked(action, encoded))

    async def _checked(self, action: ActionKey, encoded: bytes) -> bytes:
        """Raises CorruptBlobError if it is no ActionResult. An empty message is one: of a call that has ended well."""
        try:
            return await off_loop_if_large(unseal, encoded) if encoded else encoded
        except CorruptBlobError as exc:
            raise CorruptBlobError(
                f"the grpc store {self._remote.name!r} ({self._remote.where}) sent no action result for {action}: "
                f"{exc.message}"
            ) from exc

    async def put(self, key: Key, data: Buffer) -> None:
        action = self._action(key)
        try:
            encoded = await off_loop_if_large(unseal, data)
        except CorruptBlobError as exc:
            raise InvalidRequestError(f"what is to be stored for {action} is no action result: {exc.message}") from exc
        check_size(action, len(encoded))
        head, tail = _update(self._remote.instance, action, len(encoded))
        await self._remote.ask(UPDATE_RESULT, [head, encoded, tail], self._inherited(), what=str(action))

    async def write(self, key: Key, reader: Reader) -> None:
        parts: list[bytes] = []
        total = 0
        while got := await reader.receive_parts():
            total += sum(map(len, got))
            if total > MAX_ACTION_RESULT_BYTES + _SEAL_ROOM:
                raise TooLargeError(f"the result of action {key} has more than {MAX_ACTION_RESULT_BYTES} bytes")
            parts.extend(map(bytes, got))
        if reader.size not in (-1, total):
            raise UploadMismatchError(f"{key}: {total} bytes came of {reader.size}")
        await self.put(key, b"".join(parts))

    def _action(self, key: Key) -> ActionKey:
        if isinstance(key, ActionKey):
            return key
        what = f"the name {key[:80]!r}" if isinstance(key, str) else f"{key}, a {type(key).__name__}"
        raise InvalidRequestError(
            f'the grpc store {self._remote.name!r} keeps action results (store_type: "ac") and nothing else; it was '
            f"asked for {what}"
        )


def _update(instance: str, action: ActionKey, length: int) -> tuple[bytes, bytes]:
    """What stands around `length` bytes of an encoded ActionResult in an UpdateActionResultRequest."""
    head = encode(
        reapi.UpdateActionResultRequest(
            instance_name=instance, action_digest=reapi.Digest(hash=action.hash, size_bytes=action.size)
        )
    )
    return head + b"\x1a" + varint(length), b"\x28" + varint(int(action.function))
