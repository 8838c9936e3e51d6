"""Health and reflection, asked with grpcio's own client libraries."""

import grpc
import pytest
import trio
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from tests.support.foreign import Package
from tests.support.serving import Serving, serving

CAS = "build.bazel.remote.execution.v2.ContentAddressableStorage"


@pytest.fixture
async def served():
    async with serving() as running:
        yield running


async def in_thread(call, *arguments):
    return await trio.to_thread.run_sync(lambda: call(*arguments))


async def test_health_follows_the_server(served: Serving):
    stub = health_pb2_grpc.HealthStub(served.client.channel)
    for service in ("", CAS, "google.bytestream.ByteStream"):
        reply = await in_thread(stub.Check, health_pb2.HealthCheckRequest(service=service))
        assert reply.status == health_pb2.HealthCheckResponse.SERVING
    served.health.set_serving(False)
    for service in ("", CAS):
        reply = await in_thread(stub.Check, health_pb2.HealthCheckRequest(service=service))
        assert reply.status == health_pb2.HealthCheckResponse.NOT_SERVING
    with pytest.raises(grpc.RpcError) as caught:
        await in_thread(stub.Check, health_pb2.HealthCheckRequest(service="no.such.Service"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_watch_tells_every_change(served: Serving):
    stub = health_pb2_grpc.HealthStub(served.client.channel)
    watch = stub.Watch(health_pb2.HealthCheckRequest(service=CAS), timeout=60)
    assert (await in_thread(next, watch)).status == health_pb2.HealthCheckResponse.SERVING
    served.health.set_serving(False, service=CAS)
    assert (await in_thread(next, watch)).status == health_pb2.HealthCheckResponse.NOT_SERVING
    served.health.set_serving(True)
    assert (await in_thread(next, watch)).status == health_pb2.HealthCheckResponse.SERVING
    watch.cancel()


async def test_a_watch_of_an_unknown_service_goes_on_until_it_is_known(served: Serving):
    stub = health_pb2_grpc.HealthStub(served.client.channel)
    watch = stub.Watch(health_pb2.HealthCheckRequest(service="later.Service"), timeout=60)
    assert (await in_thread(next, watch)).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    served.health.add_service("later.Service")
    assert (await in_thread(next, watch)).status == health_pb2.HealthCheckResponse.SERVING
    watch.cancel()


async def test_reflection_lists_the_services_and_describes_each(served: Serving):
    database = ProtoReflectionDescriptorDatabase(served.client.channel)
    names = await in_thread(database.get_services)
    assert CAS in names
    assert "grpc.health.v1.Health" in names
    pool = DescriptorPool(database)

    def describe():
        return {
            name: [method.name for method in pool.FindServiceByName(name).methods]
            for name in names
            if "reflection" not in name
        }

    methods = await trio.to_thread.run_sync(describe)
    assert "FindMissingBlobs" in methods[CAS]
    assert methods["google.bytestream.ByteStream"] == ["Read", "Write", "QueryWriteStatus"]


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_both_versions_answer_every_kind_of_request_on_one_stream(served: Serving, version):
    pb = Package(f"grpc.reflection.{version}")
    requests = [
        pb.ServerReflectionRequest(host="h", file_containing_symbol=f"{CAS}.BatchReadBlobs"),
        pb.ServerReflectionRequest(file_containing_symbol="build.bazel.remote.execution.v2.BatchReadBlobsRequest"),
        pb.ServerReflectionRequest(file_by_filename="google/bytestream/bytestream.proto"),
        pb.ServerReflectionRequest(file_by_filename="no/such.proto"),
        pb.ServerReflectionRequest(file_containing_symbol="no.such.Symbol"),
        pb.ServerReflectionRequest(file_containing_extension={"containing_type": CAS, "extension_number": 1}),
        pb.ServerReflectionRequest(all_extension_numbers_of_type=CAS),
        pb.ServerReflectionRequest(list_services=""),
        pb.ServerReflectionRequest(),
    ]
    method = f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
    replies = await served.client.bidi(method, requests, pb.ServerReflectionResponse)
    assert [reply.original_request for reply in replies] == requests
    assert replies[0].valid_host == "h"
    for reply in replies[:3]:
        assert reply.file_descriptor_response.file_descriptor_proto
    assert replies[0].file_descriptor_response == replies[1].file_descriptor_response
    not_found, invalid = grpc.StatusCode.NOT_FOUND.value[0], grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert [reply.error_response.error_code for reply in replies[3:7]] == [not_found] * 4
    assert CAS in [service.name for service in replies[7].list_services_response.service]
    assert replies[8].error_response.error_code == invalid


async def test_v1alpha_stub_of_grpcio_is_answered(served: Serving):
    stub = reflection_pb2_grpc.ServerReflectionStub(served.client.channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    replies = await trio.to_thread.run_sync(lambda: list(stub.ServerReflectionInfo(iter([request]), timeout=60)))
    assert any(service.name == CAS for service in replies[0].list_services_response.service)
