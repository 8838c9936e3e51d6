"""What reflection answers, one answer for each request, and to whom."""

import pytest

from nl.errors import Code, PermissionDeniedError
from nl.model.access import Grant, Identity, Right
from nl.pb import reflection_v1, reflection_v1alpha
from nl.services.reflection import ReflectionService
from tests.support.foreign import DESCRIPTORS
from tests.unit.services.memory_stream import MemoryStream

CAS = "build.bazel.remote.execution.v2.ContentAddressableStorage"
VERSIONS = {"v1": reflection_v1, "v1alpha": reflection_v1alpha}


@pytest.fixture(params=VERSIONS)
def pb(request):
    return VERSIONS[request.param]


async def answers(pb, *requests, identity=None, loads=None):
    def load():
        if loads is not None:
            loads.append(1)
        return DESCRIPTORS.read_bytes()

    service = ReflectionService(["z.Last", CAS], load_descriptors=load)
    version = next(name for name, module in VERSIONS.items() if module is pb)
    handler = service.__mapping__()[f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"]

    class Stream(MemoryStream):
        def __aiter__(self):
            return self

        async def __anext__(self):
            message = await self.recv_message()
            if message is None:
                raise StopAsyncIteration
            return message

    stream = Stream(handler, "Info", **({"identity": identity} if identity is not None else {}))
    for request in requests:
        await stream.send(pb.ServerReflectionRequest(**request))
    stream.half_close()
    await stream.serve()
    return [await stream.receive() for _ in requests]


async def test_services_are_listed_in_order_without_a_look_at_descriptors(pb):
    loads = []
    [reply] = await answers(pb, {"list_services": "*", "host": "h"}, loads=loads)
    assert [each.name for each in reply.list_services_response.service] == [CAS, "z.Last"]
    assert reply.valid_host == reply.original_request.host == "h"
    assert loads == []


@pytest.mark.parametrize(
    ("request_", "code", "text"),
    [
        ({"file_by_filename": "no/such.proto"}, Code.NOT_FOUND, "unknown file 'no/such.proto'"),
        ({"file_containing_symbol": "no.Such"}, Code.NOT_FOUND, "unknown symbol 'no.Such'"),
        ({"file_containing_symbol": "x" * 1000}, Code.NOT_FOUND, f"unknown symbol '{'x' * 200}'"),
        ({"file_by_filename": "x" * 1000}, Code.NOT_FOUND, f"unknown file '{'x' * 200}'"),
        ({"all_extension_numbers_of_type": CAS}, Code.NOT_FOUND, "there are no extensions of any type here"),
        ({}, Code.INVALID_ARGUMENT, "the request asks for nothing that this server knows"),
    ],
)
async def test_what_is_not_there_is_an_answer_with_a_code_and_a_text(pb, request_, code, text):
    [reply] = await answers(pb, request_)
    assert (reply.error_response.error_code, reply.error_response.error_message) == (code, text)
    assert reply.file_descriptor_response is None


async def test_an_extension_is_nobodys(pb):
    asked = pb.ExtensionRequest(containing_type=CAS, extension_number=1)
    [reply] = await answers(pb, {"file_containing_extension": asked})
    assert reply.error_response.error_code == Code.NOT_FOUND


async def test_a_failure_leaves_the_stream_open_and_descriptors_are_read_once(pb):
    loads = []
    name = {"file_by_filename": "google/bytestream/bytestream.proto"}
    replies = await answers(pb, {"file_by_filename": "x"}, name, {"file_containing_symbol": CAS}, loads=loads)
    assert [reply.error_response is None for reply in replies] == [False, True, True]
    assert [len(reply.file_descriptor_response.file_descriptor_proto) > 0 for reply in replies[1:]] == [True, True]
    assert loads == [1]


@pytest.mark.parametrize("version", VERSIONS)
async def test_whoever_has_any_right_is_answered_and_strangers_are_not(version):
    pb = VERSIONS[version]
    somebody = Identity("ci", [Grant(("somewhere",), Right.READ_AC)])
    assert len(await answers(pb, {"list_services": ""}, identity=somebody)) == 1
    with pytest.raises(PermissionDeniedError, match="'nobody' does not have any right for any instance"):
        await answers(pb, {"list_services": ""}, identity=Identity("nobody", []))
