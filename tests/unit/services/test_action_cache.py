"""Results and what is inlined into them: whose rights count, and for which instance."""

import pytest

from nl.errors import PermissionDeniedError
from nl.model.access import Grant, Identity, Right
from nl.pb import reapi
from nl.plugin import digest_of
from nl.services.action_cache import ActionCacheInstance, ActionCacheService
from nl.stores.memory import MemoryOptions, MemoryStore
from nl.testing import BareContext
from tests.unit.services.memory_stream import call

OUTPUT = b"what the action has printed"
ACTION = reapi.Digest(hash=digest_of(b"action").hash, size_bytes=6)


@pytest.fixture
async def service():
    """The nameless instance, which every other name means too, with a result whose output is in the CAS."""
    results, blobs = (MemoryStore(MemoryOptions(), BareContext(name)) for name in ("AC", "CAS"))
    found = ActionCacheService({"": ActionCacheInstance(results, blobs)}, any_name=True)
    await blobs.put(digest_of(OUTPUT), OUTPUT)
    output = reapi.Digest(hash=digest_of(OUTPUT).hash, size_bytes=len(OUTPUT))
    await call(found, "UpdateActionResult", reapi.UpdateActionResultRequest(
        action_digest=ACTION, action_result=reapi.ActionResult(stdout_digest=output)
    ))  # fmt: skip
    return found


async def inlined(service, name, **rights):
    """What is inlined for one who asks by this name and has these rights for instances."""
    grants = [Grant((instance.replace("nameless", ""),), right) for instance, right in rights.items()]
    request = reapi.GetActionResultRequest(instance_name=name, action_digest=ACTION, inline_stdout=True)
    [result] = await call(service, "GetActionResult", request, identity=Identity("ci", grants))
    return result.stdout_raw


@pytest.mark.parametrize("name", ["", "moon"])
async def test_contents_are_inlined_by_the_rights_for_the_instance_that_serves_whatever_name_was_written(service, name):
    both = Right.READ_AC | Right.READ_CAS
    assert await inlined(service, name, nameless=both) == OUTPUT
    assert await inlined(service, name, nameless=Right.READ_AC) == b""
    assert await inlined(service, name, nameless=Right.READ_AC, moon=both) == b""


@pytest.mark.parametrize("name", ["", "moon"])
async def test_results_are_read_and_written_by_the_rights_for_the_instance_that_serves(service, name):
    everything = Right.READ_AC | Right.WRITE_AC
    identity = Identity("ci", [Grant(("moon",), everything), Grant(("",), Right.READ_CAS)])
    get = reapi.GetActionResultRequest(instance_name=name, action_digest=ACTION)
    update = reapi.UpdateActionResultRequest(
        instance_name=name, action_digest=ACTION, action_result=reapi.ActionResult(exit_code=1)
    )
    for method, request in (("GetActionResult", get), ("UpdateActionResult", update)):
        with pytest.raises(PermissionDeniedError):
            await call(service, method, request, identity=identity)
