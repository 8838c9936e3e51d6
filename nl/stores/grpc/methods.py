"""The methods that a grpc store calls, and the right that each needs at a server that asks for rights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from grpclib.const import Cardinality

from nl.pb import bytestream, cas_calls, reapi

_REAPI = "/build.bazel.remote.execution.v2."
_STREAM = "/google.bytestream.ByteStream/"


@dataclass(frozen=True, slots=True)
class Method:
    """One method. `reply` is a message class or anything with `decode`."""

    path: str
    reply: Any
    right: str
    cardinality: Cardinality = Cardinality.UNARY_UNARY

    @property
    def name(self) -> str:
        """Without its service."""
        return self.path.rpartition("/")[2]


FIND_MISSING = Method(_REAPI + "ContentAddressableStorage/FindMissingBlobs", cas_calls.MissingBlobs, "read_cas")
BATCH_READ = Method(_REAPI + "ContentAddressableStorage/BatchReadBlobs", cas_calls.ReadBlobs, "read_cas")
BATCH_UPDATE = Method(_REAPI + "ContentAddressableStorage/BatchUpdateBlobs", cas_calls.UpdatedBlobs, "write_cas")
READ = Method(_STREAM + "Read", bytestream.ReadResponse, "read_cas", Cardinality.UNARY_STREAM)
WRITE = Method(_STREAM + "Write", bytestream.WriteResponse, "write_cas", Cardinality.STREAM_UNARY)
QUERY_WRITE = Method(_STREAM + "QueryWriteStatus", bytestream.QueryWriteStatusResponse, "write_cas")
GET_RESULT = Method(_REAPI + "ActionCache/GetActionResult", bytes, "read_ac")
UPDATE_RESULT = Method(_REAPI + "ActionCache/UpdateActionResult", bytes, "write_ac")
CAPABILITIES = Method(_REAPI + "Capabilities/GetCapabilities", reapi.ServerCapabilities, "any right")
REPEATABLE = frozenset(
    each.path
    for each in (
        FIND_MISSING, BATCH_READ, BATCH_UPDATE, READ, WRITE, QUERY_WRITE, GET_RESULT, UPDATE_RESULT, CAPABILITIES
    )
)  # fmt: skip
"""Those that do no harm if the server runs them twice: all."""
