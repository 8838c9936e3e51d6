"""ActionCache: a map from action digests to ActionResults, and nothing more.

The action itself is never fetched or looked at: clients keep other things under digests of their own (moon). A result
passes through as the bytes it is, both ways: on its way in it must be one, on its way out it is decoded only when the
request asks for contents to be inlined, or when it must shed some to fit into a message.
A hit whose outputs are gone is a miss (`nl.cas.completeness`), unless the config wants it otherwise or the store has
looked already.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import grpclib.const

from nl.blob.reader import Buffer
from nl.cas.action_results import check_size, drop_inlined, load_action_result, store_action_result
from nl.cas.completeness import Completeness, IncompleteError
from nl.cas.digests import parse_digest
from nl.cas.large import IN_PLACE_BYTES, off_loop_if, off_loop_if_large
from nl.errors import BlobNotFoundError, CorruptBlobError, InvalidRequestError, NotFoundError, PermissionDeniedError
from nl.model.access import Right
from nl.model.digest import ActionKey, Digest
from nl.pb import reapi
from nl.pb.codec import DecodeError, decode, encode
from nl.pb.hot import parse_update_action_result
from nl.rpc.contract import ServerStream
from nl.services.limits import ACTION_RESULT_MESSAGE_BYTES, INLINE_BYTES, REPLY_BYTES
from nl.services.requests import EncodedRequest, Instances, parse_function, receive_decoded, receive_request
from nl.storage.concurrent import for_each
from nl.storage.contract import Store

_log = logging.getLogger(__name__)
_PREFIX = "/build.bazel.remote.execution.v2.ActionCache/"


@dataclass(frozen=True, slots=True)
class ActionCacheInstance:
    """One instance: where results are; `cas` is where contents to inline are (None: nothing is inlined)."""

    store: Store
    cas: Store | None = None
    read_only: bool = False
    completeness: Completeness | None = None
    """What says whether a result's outputs are there; None: the store does, or nobody."""


class EncodedUpdate(EncodedRequest):
    """An UpdateActionResultRequest; `parse_update_action_result` reads it."""

    max_message_size = ACTION_RESULT_MESSAGE_BYTES


class ActionCacheService:
    """build.bazel.remote.execution.v2.ActionCache."""

    def __init__(self, instances: Mapping[str, ActionCacheInstance], *, any_name: bool = False) -> None:
        self._instances = Instances(instances, any_name=any_name)
        self._checks = {each.completeness for each in instances.values() if each.completeness is not None}

    async def get_action_result(
        self, stream: ServerStream[reapi.GetActionResultRequest, reapi.ActionResult]
    ) -> None:
        """The stored result; NotFoundError if there is none, or a damaged one."""
        request = await receive_request(stream)
        instance = self._instances.get(stream, request.instance_name, Right.READ_AC)
        function = parse_function(request.digest_function)
        digest = parse_digest(request.action_digest, function, "action_digest")
        encoded = await _load(instance.store, digest)
        if instance.completeness is not None:
            try:
                await instance.completeness.require(ActionKey(*digest), encoded)
            except IncompleteError as exc:
                raise NotFoundError(f"no action result for {digest}: {exc.message}") from None
        wants_inlined = request.inline_stdout or request.inline_stderr or request.inline_output_files
        if wants_inlined and instance.cas is not None and self._may_read_blobs(stream, request.instance_name):
            encoded = await _inline(instance.cas, request, digest, encoded=encoded)
        if len(encoded) > REPLY_BYTES:
            encoded = await off_loop_if_large(_without_inlined, encoded)
        await stream.send_parts([encoded])

    def _may_read_blobs(self, stream: ServerStream[Any, Any], instance: str) -> bool:
        """Whether contents may be inlined: a result can be stored that names any blob."""
        return stream.identity.may(Right.READ_CAS, self._instances.resolve(instance))

    async def update_action_result(
        self, stream: ServerStream[EncodedUpdate, reapi.ActionResult]
    ) -> None:
        """Stores a result in place of what may be there, and answers with it."""
        request, encoded = await receive_decoded(stream, parse_update_action_result)
        instance = self._instances.get(stream, request.instance_name, Right.WRITE_AC)
        function = parse_function(request.digest_function)
        digest = parse_digest(request.action_digest, function, "action_digest")
        if instance.read_only:
            raise PermissionDeniedError(f"the action cache of instance {request.instance_name!r} is read-only here")
        if encoded is None:
            raise InvalidRequestError("action_result is not set")
        check_size(digest, len(encoded))
        await off_loop_if_large(_check_result, encoded)
        await store_action_result(instance.store, digest, encoded)
        if len(encoded) > REPLY_BYTES:
            encoded = await off_loop_if_large(_without_inlined, encoded)
        await stream.send_parts([encoded])

    def statistics(self) -> Mapping[str, int]:
        """What the checks of all instances have found, and remember."""
        total: Counter[str] = Counter()
        for completeness in self._checks:
            total.update(completeness.statistics())
        return total

    def __mapping__(self) -> dict[str, grpclib.const.Handler]:
        unary = grpclib.const.Cardinality.UNARY_UNARY
        return {
            _PREFIX + "GetActionResult": grpclib.const.Handler(
                self.get_action_result, unary, reapi.GetActionResultRequest, reapi.ActionResult
            ),
            _PREFIX + "UpdateActionResult": grpclib.const.Handler(
                self.update_action_result, unary, EncodedUpdate, reapi.ActionResult
            ),
        }


async def _load(store: Store, digest: Digest) -> bytes:
    try:
        return await load_action_result(store, digest)
    except BlobNotFoundError:
        pass
    except CorruptBlobError as exc:
        _log.warning("a damaged action result counts as a miss: %s (%s)", exc.message, digest)
    raise NotFoundError(f"no action result for {digest}")


async def _inline(
    cas: Store, request: reapi.GetActionResultRequest, action: Digest, *, encoded: bytes
) -> bytes:
    """The result with the contents that the request asks for, as far as they are there and fit; digests stay."""
    try:
        result = await off_loop_if_large(_decode_result, encoded)
    except DecodeError as exc:
        _log.warning("an action result that cannot be decoded counts as a miss: %s (%s)", exc, action)
        raise NotFoundError(f"the action result stored for {action} cannot be decoded") from exc
    left = INLINE_BYTES

    async def fetch(digest: reapi.Digest | None, already: bytes) -> bytes:
        nonlocal left
        if digest is None or already or digest.size_bytes > left:
            return already
        left -= digest.size_bytes  # others are fetched meanwhile
        try:
            return bytes(await cas.get(Digest.parse(digest.hash, digest.size_bytes, action.function)))
        except (BlobNotFoundError, CorruptBlobError, InvalidRequestError):
            left += digest.size_bytes
            return already

    if request.inline_stdout:
        result.stdout_raw = await fetch(result.stdout_digest, result.stdout_raw)
    if request.inline_stderr:
        result.stderr_raw = await fetch(result.stderr_digest, result.stderr_raw)
    wanted = set(request.inline_output_files)
    files = [file for file in result.output_files if file.path in wanted]

    async def inline(at: int) -> None:
        files[at].contents = await fetch(files[at].digest, files[at].contents)

    await for_each(len(files), inline)
    return await off_loop_if(len(encoded) > IN_PLACE_BYTES, encode, result)


def _decode_result(encoded: Buffer) -> reapi.ActionResult:
    return decode(reapi.ActionResult, encoded)


def _check_result(encoded: Buffer) -> None:
    """Raises DecodeError if the bytes are no ActionResult: they would be a miss for ever."""
    _decode_result(encoded)


def _without_inlined(encoded: Buffer) -> bytes:
    """What most clients can take in of a result that is too large for them otherwise."""
    result = _decode_result(encoded)
    drop_inlined(result)
    return encode(result)
