"""Capabilities: what this server says it can do. Every line is true for the instance asked about, or is not there.

`low_api_version` is 2.0, because clients from before 2.1 (Bazel up to 6) refuse a server that starts higher, and the
older output fields they need are served. Only what is mounted is described: an instance without a scheduler has no
execution capabilities (REAPI, Capabilities).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import grpclib.const

from nl.model.access import ANY_RIGHT, Right
from nl.model.digest import DigestFunction
from nl.pb import reapi
from nl.pb.codec import encode
from nl.rpc.contract import ServerStream
from nl.services.requests import Instances, receive_request

LOW_VERSION = (2, 0)
HIGH_VERSION = (2, 12)
"""The newest minor whose additions are either served or announced as not supported."""
INT32_MAX = (1 << 31) - 1


@dataclass(frozen=True, slots=True)
class CapabilitiesInstance:
    """One instance. `max_batch_bytes` is what the CAS service of the instance takes and gives (0: no CAS here)."""

    max_batch_bytes: int
    max_blob_bytes: int = 0
    """The largest blob that its store keeps; 0: any."""
    update_enabled: bool = True
    """Whether the action cache takes results from clients: Bazel does not try otherwise."""
    execution: bool = False
    """Whether a scheduler takes actions of this instance."""
    compression: bool = False
    """Whether blobs may come and go as zstd, one at a time and in batches."""
    supported_node_properties: tuple[str, ...] = ()
    """The file metadata that workers keep on outputs (`mtime`, `unix_mode`)."""


class CapabilitiesService:
    """build.bazel.remote.execution.v2.Capabilities: what an instance can do, as far as the caller may have it done.

    Clients do not try what is not announced: Bazel uploads no results where updates are not enabled. There are at most
    four replies per instance, each encoded once.
    """

    def __init__(self, instances: Mapping[str, CapabilitiesInstance], *, any_name: bool = False) -> None:
        self._instances = Instances({name: _Replies(each) for name, each in instances.items()}, any_name=any_name)

    async def get_capabilities(
        self, stream: ServerStream[reapi.GetCapabilitiesRequest, reapi.ServerCapabilities]
    ) -> None:
        """What the instance can do."""
        request = await receive_request(stream)
        replies = self._instances.get(stream, request.instance_name, ANY_RIGHT)
        rights = stream.identity.rights_on(self._instances.resolve(request.instance_name))
        await stream.send_parts([replies.get(update=Right.WRITE_AC in rights, execute=Right.EXECUTE in rights)])

    def __mapping__(self) -> dict[str, grpclib.const.Handler]:
        return {
            "/build.bazel.remote.execution.v2.Capabilities/GetCapabilities": grpclib.const.Handler(
                self.get_capabilities,
                grpclib.const.Cardinality.UNARY_UNARY,
                reapi.GetCapabilitiesRequest,
                reapi.ServerCapabilities,
            )
        }


class _Replies:
    """An instance's encoded replies, by what the caller may do."""

    def __init__(self, instance: CapabilitiesInstance) -> None:
        self._instance = instance
        self._encoded: dict[tuple[bool, bool], bytes] = {}

    def get(self, *, update: bool, execute: bool) -> bytes:
        """The reply to somebody who may update the action cache, or not, and execute, or not."""
        encoded = self._encoded.get((update, execute))
        if encoded is None:
            encoded = self._encoded[update, execute] = encode(
                _describe(self._instance, may_update=update, may_execute=execute)
            )
        return encoded


def _describe(instance: CapabilitiesInstance, *, may_update: bool, may_execute: bool) -> reapi.ServerCapabilities:
    compressors = [reapi.CompressorValue.ZSTD] if instance.compression else []
    functions = [reapi.DigestFunctionValue(int(function)) for function in DigestFunction]
    reply = reapi.ServerCapabilities(
        low_api_version=reapi.SemVer(major=LOW_VERSION[0], minor=LOW_VERSION[1]),
        high_api_version=reapi.SemVer(major=HIGH_VERSION[0], minor=HIGH_VERSION[1]),
        cache_capabilities=reapi.CacheCapabilities(
            digest_functions=functions,
            action_cache_update_capabilities=reapi.ActionCacheUpdateCapabilities(
                update_enabled=instance.update_enabled and may_update
            ),
            # Cached results are all alike: there is one priority.
            cache_priority_capabilities=_priorities(0, 0),
            max_batch_total_size_bytes=instance.max_batch_bytes,
            max_cas_blob_size_bytes=instance.max_blob_bytes,
            supported_compressors=compressors,
            supported_batch_update_compressors=compressors,
            symlink_absolute_path_strategy=reapi.SymlinkAbsolutePathStrategyValue.ALLOWED,
        ),
    )
    if instance.execution:
        reply.execution_capabilities = reapi.ExecutionCapabilities(
            digest_function=reapi.DigestFunctionValue.SHA256,
            exec_enabled=may_execute,
            execution_priority_capabilities=_priorities(-INT32_MAX - 1, INT32_MAX),
            supported_node_properties=list(instance.supported_node_properties),
            digest_functions=functions,
        )
    return reply


def _priorities(low: int, high: int) -> reapi.PriorityCapabilities:
    return reapi.PriorityCapabilities(
        priorities=[reapi.PriorityCapabilitiesPriorityRange(min_priority=low, max_priority=high)]
    )
