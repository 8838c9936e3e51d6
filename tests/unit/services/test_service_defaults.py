"""What a service does that is told nothing else: each default, and each bound that only code knows."""

from dataclasses import MISSING, fields

import pytest

from nl.errors import NotFoundError
from nl.pb import bytestream, longrunning, reapi
from nl.services import bytestream as bytestream_module
from nl.services import limits, operations, packing, reads, requests, upload_bounds, uploads, worker_api
from nl.services.action_cache import ActionCacheInstance, ActionCacheService, EncodedUpdate
from nl.services.bounded import EncodedBatchRead, EncodedBatchUpdate, EncodedFindMissing
from nl.services.bytestream import ByteStreamInstance, ByteStreamService
from nl.services.capabilities import CapabilitiesInstance, CapabilitiesService
from nl.services.cas import CasInstance, CasService
from nl.services.execution import ExecutionInstance, ExecutionService
from nl.services.operations import OperationsService
from nl.services.requests import EncodedRequest
from nl.services.upload_bounds import UploadStatistics
from nl.services.worker_api import EncodedWorkerUpdate
from nl.stores.memory import MemoryOptions, MemoryStore
from nl.testing import BareContext
from tests.unit.services.memory_stream import call

KIB, MIB = 1024, 1024 * 1024


def defaults(kind):
    return {field.name: field.default for field in fields(kind) if field.default is not MISSING}


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (ByteStreamInstance, {"persist_stream_on_disconnect_timeout_s": 60.0, "idle_upload_timeout_s": 300.0}),
        (ActionCacheInstance, {"cas": None, "read_only": False, "completeness": None}),
        (CapabilitiesInstance, {"max_blob_bytes": 0, "update_enabled": True, "execution": False, "compression": False,
                                "supported_node_properties": ()}),
        (ExecutionInstance, {"node_properties": frozenset({"mtime", "unix_mode"})}),
        (UploadStatistics, {"started": 0, "resumed": 0, "parked": 0, "given_up": 0}),
    ],
)  # fmt: skip
def test_what_holds_for_an_instance_that_says_nothing(kind, expected):
    assert defaults(kind) == expected


def store():
    return MemoryStore(MemoryOptions(), BareContext("S"))


SERVICES = {
    "FindMissingBlobs": (lambda: CasService({"": CasInstance(store())}),
                         reapi.FindMissingBlobsRequest(instance_name="moon")),
    "GetActionResult": (lambda: ActionCacheService({"": ActionCacheInstance(store())}),
                        reapi.GetActionResultRequest(instance_name="moon")),
    "GetCapabilities": (lambda: CapabilitiesService({"": CapabilitiesInstance(1)}),
                        reapi.GetCapabilitiesRequest(instance_name="moon")),
    "Execute": (lambda: ExecutionService({"": ExecutionInstance("", store(), None)}),
                reapi.ExecuteRequest(instance_name="moon")),
    "ListOperations": (lambda: OperationsService({"": None}), longrunning.ListOperationsRequest(name="moon")),
    "Read": (lambda: ByteStreamService({"": ByteStreamInstance(store())}),
             bytestream.ReadRequest(resource_name="moon/blobs/" + "a" * 64 + "/1")),
}  # fmt: skip


@pytest.mark.parametrize("method", SERVICES)
async def test_a_name_that_is_not_configured_is_not_found_unless_any_is_to_be_served(method):
    make, request = SERVICES[method]
    with pytest.raises(NotFoundError, match="unknown instance name 'moon'"):
        await call(make(), method, request)


async def test_a_service_counts_nothing_before_anything_has_happened():
    service = ByteStreamService({"": ByteStreamInstance(store())})
    assert service.statistics() == dict.fromkeys(
        ["uploads_started", "uploads_resumed", "uploads_parked", "uploads_given_up", "uploads_open",
         "uploads_ended_for_room", "reads_open", "reads_reopened", "reads_packing", "uploads_unpacking"], 0,
    )  # fmt: skip


def test_how_many_files_uploads_and_readers_may_hold_at_once():
    service = ByteStreamService({"": ByteStreamInstance(store())})
    assert (service._slots.most, service._sender.max_open, service._unpackers.most) == (1024, 1024, 64)
    assert (service._sessions._max_parked, service._sessions._max_parked_bytes) == (64, 1024 * MIB)
    few = ByteStreamService({}, max_open_writes=10, max_open_reads=20, max_parked=3, max_parked_bytes=7)
    assert (few._slots.most, few._sender.max_open, few._unpackers.most) == (10, 20, 10)
    assert (few._sessions._max_parked, few._sessions._max_parked_bytes) == (3, 7)
    assert bytestream_module.MAX_UNPACKING == 64


def test_the_first_message_of_a_write_may_take_as_long_as_the_most_patient_instance_has():
    patience = [ByteStreamInstance(store(), idle_upload_timeout_s=each) for each in (10.0, 30.0, 20.0)]
    assert ByteStreamService(dict(zip("abc", patience, strict=True)))._idle_s == 30.0


@pytest.mark.parametrize(
    ("request_kind", "most"),
    [
        (EncodedRequest, 0), (EncodedBatchRead, 0),
        (EncodedFindMissing, 16 * MIB),
        (EncodedBatchUpdate, 4 * MIB - 64 * KIB + 40_000 * 84 + 64 * KIB),
        (EncodedUpdate, limits.MAX_ACTION_RESULT_BYTES + 64 * KIB),
        (EncodedWorkerUpdate, limits.MAX_ACTION_RESULT_BYTES + 64 * KIB),
    ],
)  # fmt: skip
def test_how_large_the_requests_of_a_method_may_be(request_kind, most):
    """0: as large as the listener takes, as for every other method."""
    assert request_kind.max_message_size == most


def test_times_that_only_code_knows():
    assert ExecutionService({})._keepalive_s == 20.0
    assert operations.LONGEST_WAIT_S == 24 * 3600
    assert (reads.PATIENCE_S, reads.MAX_PATIENT, reads.LEAST_BYTES) == (2.0, 64, 1024)
    assert upload_bounds.MIN_IDLE_S == 5.0
    assert uploads.RELEASE_GRACE_S == 10.0
    assert worker_api.GOODBYE_S == 5.0
    assert packing._UNPACKED_AT_ONCE == 4 * MIB


def test_sizes_that_clients_meet():
    assert limits.READ_BYTES == 256 * KIB
    assert limits.INLINE_BYTES == MIB
    assert limits.REPLY_BYTES == 4 * MIB - 64 * KIB
    assert limits.MAX_ENTRIES == 40_000
    assert requests._SHOWN_INSTANCES == 10


@pytest.mark.parametrize("room", [1033, 2000, (1 << 14) + 7, (1 << 14) + 9, 100_000, 256 * KIB + 8, 256 * KIB + 9])
def test_a_piece_uses_up_the_room_that_there_is(room):
    size = reads.piece_size(room)
    assert 5 + len(reads.response_head(size)) + size == room


@pytest.mark.parametrize(("room", "size"), [(1, 1024), (1000, 1024), (256 * KIB + 10, 256 * KIB), (1 << 30, 256 * KIB)])
def test_a_piece_is_neither_too_small_nor_too_large(room, size):
    assert reads.piece_size(room) == size
