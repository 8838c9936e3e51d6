"""Which right each method asks for, and for which instance: that which serves, whatever name was written."""

import pytest

from nl.errors import NlError, PermissionDeniedError, UnauthenticatedError
from nl.model.access import ALL_RIGHTS, Grant, Identity, Right
from nl.pb import bytestream, reapi
from nl.pb.codec import encode
from nl.rpc.call import WholeBody
from tests.unit.services.memory_stream import call
from tests.unit.services.test_mount import ZERO, mounted, named, service_of

NEEDED = {
    "FindMissingBlobs": Right.READ_CAS,
    "BatchUpdateBlobs": Right.WRITE_CAS,
    "BatchReadBlobs": Right.READ_CAS,
    "GetTree": Right.READ_CAS,
    "SplitBlob": Right.READ_CAS,
    "SpliceBlob": Right.WRITE_CAS,
    "GetActionResult": Right.READ_AC,
    "UpdateActionResult": Right.WRITE_AC,
    "Read": Right.READ_CAS,
    "QueryWriteStatus": Right.WRITE_CAS,
    "Write": Right.WRITE_CAS,
    "Execute": Right.EXECUTE,
}
ANY = ("GetCapabilities", "ListOperations")
"""Any right will do."""
REFUSED = (PermissionDeniedError, UnauthenticatedError)


class Write:
    """A Write call of one message."""

    peer = "test:1"
    method = "Write"

    def __init__(self, name, identity):
        self.identity = identity
        prefix = f"{name}/" if name else ""
        self._messages = [bytestream.WriteRequest(resource_name=f"{prefix}uploads/u/blobs/{ZERO}/1", data=b"x")]

    def take_body(self, max_bytes):
        return None

    async def receive_body(self):
        return WholeBody(encode(self._messages.pop())) if self._messages else None


async def outcome(method, identity, *, name, request=None):
    """What stops a call, or None."""
    service = service_of(mounted(server="any_instance_name: true,"), method)
    requests = {**named(name), "SplitBlob": reapi.SplitBlobRequest(instance_name=name),
                "SpliceBlob": reapi.SpliceBlobRequest(instance_name=name)}  # fmt: skip
    try:
        if method == "Write":
            await service.write(Write(name, identity))
        else:
            await call(service, method, request or requests[method], identity=identity)
    except NlError as error:
        return error
    return None


def who(**rights):
    """Somebody with rights for instances; `nameless` is the one that is called ""."""
    return Identity("ci", [Grant((name.replace("nameless", ""),), right) for name, right in rights.items()])


@pytest.mark.parametrize("name", ["", "moon"])
@pytest.mark.parametrize("method", NEEDED)
async def test_the_one_right_is_enough_and_all_others_are_not(method, name):
    needed = NEEDED[method]
    assert not isinstance(await outcome(method, who(nameless=needed), name=name), REFUSED)
    for identity in (
        who(nameless=ALL_RIGHTS & ~needed),
        who(nameless=ALL_RIGHTS & ~needed, moon=needed),
        who(moon=ALL_RIGHTS, main=ALL_RIGHTS),
    ):
        error = await outcome(method, identity, name=name)
        assert isinstance(error, PermissionDeniedError), identity
        assert str(error) == f"'ci' does not have {needed.words} for instance ''"


@pytest.mark.parametrize("name", ["", "moon"])
@pytest.mark.parametrize("method", ANY)
async def test_where_any_right_will_do_it_is_one_for_the_instance_that_serves(method, name):
    name = name or ("operations" if method == "ListOperations" else "")
    for right in Right:
        assert await outcome(method, who(nameless=right), name=name) is None
    error = await outcome(method, who(moon=ALL_RIGHTS, main=ALL_RIGHTS), name=name)
    assert str(error) == "'ci' does not have any right for instance ''"


@pytest.mark.parametrize("method", [*NEEDED, *ANY])
async def test_who_has_no_right_at_all_is_refused_before_anything_is_read(method):
    nothing = reapi.Digest()  # which would be refused as such if it were read
    error = await outcome(method, Identity("nobody", []), name="main", request=nothing)
    assert str(error) == "'nobody' does not have any right for any instance"


MALFORMED = {
    method: type(request)(instance_name="main", digest_function=99)
    for method, request in named("main").items()
    if hasattr(request, "digest_function")
}


@pytest.mark.parametrize("method", MALFORMED)
async def test_what_is_wrong_with_a_request_is_told_only_to_those_who_have_the_right(method):
    needed = NEEDED[method]
    error = await outcome(method, who(main=ALL_RIGHTS & ~needed), name="", request=MALFORMED[method])
    assert isinstance(error, PermissionDeniedError)


@pytest.mark.parametrize("update", [True, False])
@pytest.mark.parametrize("execute", [True, False])
@pytest.mark.parametrize("name", ["", "moon"])
async def test_what_one_may_not_do_is_not_announced(update, execute, name):
    found = mounted(server="any_instance_name: true,")
    rights = Right.READ_CAS | (Right.WRITE_AC if update else Right(0)) | (Right.EXECUTE if execute else Right(0))
    identity = who(nameless=rights, moon=ALL_RIGHTS & ~rights)
    request = reapi.GetCapabilitiesRequest(instance_name=name)
    for _ in range(2):  # encoded, and found again
        [said] = await call(service_of(found, "GetCapabilities"), "GetCapabilities", request, identity=identity)
        assert said.cache_capabilities.action_cache_update_capabilities.update_enabled is update
        assert said.execution_capabilities.exec_enabled is execute
