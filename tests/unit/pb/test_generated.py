"""The generated code is what protos/ says, and protos/ say what the public APIs do."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import grpclib.const
import pytest

import nl.pb
from nl.pb import bytestream, health, longrunning, reapi, reflection_v1, reflection_v1alpha, worker_api
from nl.pb.codec.fields import fields_of
from nl.pb.gen.message_pool import default_message_pool

ROOT = Path(nl.pb.__file__).parents[2]


@pytest.mark.skipif(
    importlib.util.find_spec("grpc_tools") is None or importlib.util.find_spec("betterproto2_compiler") is None,
    reason="NOT CHECKED that nl/pb/gen matches protos/: grpcio-tools or betterproto2-compiler (extra: dev) is missing",
)
def test_the_committed_code_is_what_the_generator_writes():
    done = subprocess.run(
        [sys.executable, ROOT / "protos" / "generate.py", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def shape(cls):
    """Field numbers with names and types, as the table of an API writes them."""
    rows = {}
    for field in fields_of(cls):
        kind = field.kind
        if kind == "message":
            kind = default_message_pool.type_to_url[field.cls].rpartition("/")[2].rpartition(".")[2]
        rows[field.number] = f"{field.name} {'repeated ' if field.repeated else ''}{kind}"
    return rows


WORKER_API = {
    "KeepAliveRequest": {},
    "GoingAwayRequest": {},
    "ConnectWorkerRequest": {
        1: "properties repeated Property", 2: "worker_id_prefix string", 3: "max_inflight_tasks uint64",
        1001: "max_action_timeout Duration", 1002: "running_actions repeated Digest",  # our own, passed over by others
    },
    "ExecuteResult": {
        1: "instance_name string", 2: "operation_id string", 3: "execute_response ExecuteResponse",
        4: "internal_error Status", 5: "resource_usage ActionResourceUsage",
    },
    "ExecuteComplete": {1: "operation_id string"},
    "ActionResourceUsage": {
        1: "peak_memory_kb uint64", 2: "sampled bool", 3: "operation_id string", 4: "worker_id string",
        5: "cpu_time_ms uint64",
    },
    "ConnectionResult": {1: "worker_id string"},
    "KillOperationRequest": {1: "operation_id string"},
    "UpdateForWorker": {
        1: "connection_result ConnectionResult", 2: "keep_alive Empty", 3: "start_action StartExecute",
        4: "disconnect Empty", 5: "kill_operation_request KillOperationRequest",
    },
    "UpdateForScheduler": {
        1: "connect_worker_request ConnectWorkerRequest", 2: "keep_alive_request KeepAliveRequest",
        3: "going_away_request GoingAwayRequest", 4: "execute_result ExecuteResult",
        5: "execute_complete ExecuteComplete",
    },
    "StartExecute": {
        1: "execute_request ExecuteRequest", 3: "queued_timestamp Timestamp", 4: "operation_id string",
        5: "platform Platform", 6: "worker_id string",
    },
    "HistoricalExecuteResponse": {1: "action_digest Digest", 3: "execute_response ExecuteResponse"},
}  # fmt: skip
ONEOFS = {"ExecuteResult": {3, 4}, "UpdateForWorker": {1, 2, 3, 4, 5}, "UpdateForScheduler": {1, 2, 3, 4, 5}}


@pytest.mark.parametrize("name", sorted(WORKER_API))
def test_the_worker_api_has_the_numbers_that_workers_know(name):
    cls = getattr(worker_api, name)
    package = "com.github.trace_machina.nativelink.remote_execution"
    assert default_message_pool.type_to_url[cls] == f"type.googleapis.com/{package}.{name}"
    assert shape(cls) == WORKER_API[name]
    assert {field.number for field in fields_of(cls) if field.rivals} == ONEOFS.get(name, set())


def test_the_worker_api_has_no_other_message():
    names = {name for name in vars(worker_api) if not name.startswith("_")}
    assert names == {*WORKER_API, "WorkerApiBase", "WorkerApiStub"}


UU, US, SU, SS = (
    grpclib.const.Cardinality.UNARY_UNARY,
    grpclib.const.Cardinality.UNARY_STREAM,
    grpclib.const.Cardinality.STREAM_UNARY,
    grpclib.const.Cardinality.STREAM_STREAM,
)
V2 = "/build.bazel.remote.execution.v2"
METHODS = [
    (reapi.ExecutionBase, {f"{V2}.Execution/Execute": US, f"{V2}.Execution/WaitExecution": US}),
    (reapi.ActionCacheBase, {f"{V2}.ActionCache/GetActionResult": UU, f"{V2}.ActionCache/UpdateActionResult": UU}),
    (
        reapi.ContentAddressableStorageBase,
        {
            f"{V2}.ContentAddressableStorage/{method}": US if method == "GetTree" else UU
            for method in (
                "FindMissingBlobs", "BatchUpdateBlobs", "BatchReadBlobs", "GetTree", "SplitBlob", "SpliceBlob",
            )
        },
    ),
    (reapi.CapabilitiesBase, {f"{V2}.Capabilities/GetCapabilities": UU}),
    (
        bytestream.ByteStreamBase,
        {
            "/google.bytestream.ByteStream/Read": US,
            "/google.bytestream.ByteStream/Write": SU,
            "/google.bytestream.ByteStream/QueryWriteStatus": UU,
        },
    ),
    (
        longrunning.OperationsBase,
        {
            f"/google.longrunning.Operations/{method}Operation{'s' if method == 'List' else ''}": UU
            for method in ("List", "Get", "Delete", "Cancel", "Wait")
        },
    ),
    (
        health.HealthBase,
        {"/grpc.health.v1.Health/Check": UU, "/grpc.health.v1.Health/List": UU, "/grpc.health.v1.Health/Watch": US},
    ),
    (reflection_v1.ServerReflectionBase, {"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo": SS}),
    (reflection_v1alpha.ServerReflectionBase, {"/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": SS}),
    (
        worker_api.WorkerApiBase,
        {"/com.github.trace_machina.nativelink.remote_execution.WorkerApi/ConnectWorker": SS},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("base", "methods"), METHODS, ids=[base.__name__ for base, _ in METHODS])
def test_services_have_the_methods_of_the_public_api(base, methods):
    assert {path: handler.cardinality for path, handler in base().__mapping__().items()} == methods


@pytest.mark.parametrize(
    ("package", "name"),
    [("grpc_health.v1", "health"), ("grpc_reflection.v1alpha", "reflection")],
)
def test_gRPC_services_are_those_of_the_gRPC_project(package, name):
    """Field by field against the descriptors that grpcio ships; names of files and options do not count."""
    theirs = pytest.importorskip(f"{package}.{name}_pb2")
    from google.protobuf import descriptor_pb2

    every = descriptor_pb2.FileDescriptorSet.FromString((ROOT / "nl" / "pb" / "descriptors.binpb").read_bytes())
    (ours,) = (file for file in every.file if file.package == theirs.DESCRIPTOR.package)
    expected = descriptor_pb2.FileDescriptorProto()
    theirs.DESCRIPTOR.CopyToProto(expected)
    for message in ours.message_type:
        for each in (message, *message.nested_type):
            for field in each.field:
                field.ClearField("json_name")  # protoc spells these out
    assert sorted(ours.message_type, key=lambda m: m.name) == sorted(expected.message_type, key=lambda m: m.name)
    assert list(ours.service) == list(expected.service)


@pytest.mark.parametrize("unwanted", ["google.protobuf", "dateutil", "pydantic", "trio", "asyncio"])
def test_importing_the_api_loads_nothing_heavy(unwanted):
    program = f"import sys; from nl.pb import reapi, bytestream, codec; print({unwanted!r} in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "False\n"
