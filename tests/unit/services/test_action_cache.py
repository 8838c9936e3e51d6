"""Results and what is inlined into them: whose rights count, and for which instance."""

import pytest

from nl.cas.action_results import store_action_result
from nl.cas.completeness import Completeness
from nl.errors import InvalidRequestError, NotFoundError, PermissionDeniedError
from nl.model.access import Grant, Identity, Right
from nl.model.digest import ActionKey, Digest
from nl.pb import reapi
from nl.pb.codec import DecodeError, encode
from nl.plugin import digest_of
from nl.services.action_cache import ActionCacheInstance, ActionCacheService
from nl.services.limits import INLINE_BYTES, REPLY_BYTES
from nl.stores.memory import MemoryOptions, MemoryStore
from nl.testing import BareContext
from tests.unit.services.memory_stream import MemoryStream, call

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


class Counting(MemoryStore):
    """Counts what is asked for."""

    def __init__(self, name):
        super().__init__(MemoryOptions(), BareContext(name))
        self.gets = []

    async def get(self, key):
        self.gets.append(key)
        return await super().get(key)


def message(data, size=None):
    return reapi.Digest(hash=digest_of(data).hash, size_bytes=len(data) if size is None else size)


async def answered(result, blobs, **inline):
    """What one gets who asks for contents of a stored result; `blobs` are in the CAS."""
    results, cas = MemoryStore(MemoryOptions(), BareContext("AC")), Counting("CAS")
    for blob in blobs:
        await cas.put(digest_of(blob), blob)
    service = ActionCacheService({"": ActionCacheInstance(results, cas)})
    update = reapi.UpdateActionResultRequest(action_digest=ACTION, action_result=result)
    await call(service, "UpdateActionResult", update)
    [found] = await call(service, "GetActionResult", reapi.GetActionResultRequest(action_digest=ACTION, **inline))
    return found, cas


async def test_each_content_is_inlined_if_it_is_asked_for_and_only_then():
    out, err, file, other = b"out", b"err", b"file", b"other"
    result = reapi.ActionResult(
        stdout_digest=message(out), stderr_digest=message(err),
        output_files=[reapi.OutputFile(path="f", digest=message(file)),
                      reapi.OutputFile(path="o", digest=message(other))],
    )  # fmt: skip
    for asked, expected in (
        ({}, (b"", b"", b"", b"")),
        ({"inline_stdout": True}, (out, b"", b"", b"")),
        ({"inline_stderr": True}, (b"", err, b"", b"")),
        ({"inline_output_files": ["f", "nothing"]}, (b"", b"", file, b"")),
        ({"inline_stdout": True, "inline_stderr": True, "inline_output_files": ["o"]}, (out, err, b"", other)),
    ):
        found, _ = await answered(result, [out, err, file, other], **asked)
        contents = [each.contents for each in found.output_files]
        assert (found.stdout_raw, found.stderr_raw, *contents) == expected
        assert (found.stdout_digest, found.stderr_digest) == (message(out), message(err)), "digests stay"


@pytest.mark.parametrize("beyond", [0, 1])
async def test_contents_are_inlined_as_far_as_there_is_room_for_all_together(beyond):
    out, err = b"o" * 1000, b"e" * (INLINE_BYTES - 1000 + beyond)
    result = reapi.ActionResult(stdout_digest=message(out), stderr_digest=message(err))
    found, cas = await answered(result, [out, err], inline_stdout=True, inline_stderr=True)
    assert (found.stdout_raw, found.stderr_raw) == (out, b"" if beyond else err)
    assert len(cas.gets) == 2 - beyond, "what has no room is not fetched"


async def test_what_is_not_there_takes_no_room_and_leaves_its_digest():
    gone, there = b"g" * INLINE_BYTES, b"t" * INLINE_BYTES
    result = reapi.ActionResult(stdout_digest=message(gone), stderr_digest=message(there))
    found, _ = await answered(result, [there], inline_stdout=True, inline_stderr=True)
    assert (found.stdout_raw, found.stderr_raw, found.stdout_digest) == (b"", there, message(gone))


async def test_a_digest_in_a_result_that_is_none_is_no_reason_to_refuse_it():
    wrong = reapi.Digest(hash="no hash", size_bytes=INLINE_BYTES)
    result = reapi.ActionResult(stdout_digest=wrong, stderr_digest=message(OUTPUT))
    found, _ = await answered(result, [OUTPUT], inline_stdout=True, inline_stderr=True)
    assert (found.stdout_raw, found.stderr_raw) == (b"", OUTPUT)


async def test_what_is_in_the_result_already_is_not_fetched():
    result = reapi.ActionResult(stdout_raw=b"inside", stdout_digest=message(OUTPUT))
    found, cas = await answered(result, [OUTPUT], inline_stdout=True)
    assert (found.stdout_raw, cas.gets) == (b"inside", [])


async def test_a_result_that_cannot_be_decoded_is_a_miss_where_it_has_to_be_and_says_so(caplog):
    results = MemoryStore(MemoryOptions(), BareContext("AC"))
    service = ActionCacheService({"": ActionCacheInstance(results, Counting("CAS"))})
    await store_action_result(results, Digest(ACTION.hash, ACTION.size_bytes), b"\xff" * 10)
    with pytest.raises(NotFoundError, match=f"stored for {ACTION.hash}.* cannot be decoded"):
        request = reapi.GetActionResultRequest(action_digest=ACTION, inline_stdout=True)
        await call(service, "GetActionResult", request)
    [record] = caplog.records
    assert "cannot be decoded counts as a miss" in record.message


async def test_a_damaged_result_is_a_miss_and_says_so(caplog):
    results = MemoryStore(MemoryOptions(), BareContext("AC"))
    await results.put(ActionKey(ACTION.hash, ACTION.size_bytes), b"damaged")
    with pytest.raises(NotFoundError, match=f"no action result for {ACTION.hash}"):
        await call(ActionCacheService({"": ActionCacheInstance(results)}), "GetActionResult",
                   reapi.GetActionResultRequest(action_digest=ACTION))  # fmt: skip
    [record] = caplog.records
    assert "a damaged action result counts as a miss" in record.message


@pytest.mark.parametrize("beyond", [0, 1])
async def test_a_result_that_is_too_long_for_clients_comes_without_what_it_names_by_digest(beyond):
    results = MemoryStore(MemoryOptions(), BareContext("AC"))
    service = ActionCacheService({"": ActionCacheInstance(results)})
    result = reapi.ActionResult(stdout_digest=message(OUTPUT), stdout_raw=b"x" * (REPLY_BYTES - 200))
    result.stdout_raw += b"x" * (REPLY_BYTES - len(encode(result)) + beyond)
    assert len(encode(result)) == REPLY_BYTES + beyond
    update = reapi.UpdateActionResultRequest(action_digest=ACTION, action_result=result)
    [echoed] = await call(service, "UpdateActionResult", update)
    [found] = await call(service, "GetActionResult", reapi.GetActionResultRequest(action_digest=ACTION))
    for each in (echoed, found):
        assert bool(each.stdout_raw) is not bool(beyond)
        assert each.stdout_digest == message(OUTPUT)


async def test_updates_are_refused_where_the_cache_is_read_only_and_where_there_is_nothing_in_them():
    results = MemoryStore(MemoryOptions(), BareContext("AC"))
    update = reapi.UpdateActionResultRequest(action_digest=ACTION, action_result=reapi.ActionResult(exit_code=1))
    closed = ActionCacheService({"": ActionCacheInstance(results, read_only=True)})
    with pytest.raises(PermissionDeniedError, match="the action cache of instance '' is read-only here"):
        await call(closed, "UpdateActionResult", update)
    with pytest.raises(NotFoundError):
        await call(closed, "GetActionResult", reapi.GetActionResultRequest(action_digest=ACTION))
    with pytest.raises(InvalidRequestError, match="action_result is not set"):
        await call(ActionCacheService({"": ActionCacheInstance(results)}), "UpdateActionResult",
                   reapi.UpdateActionResultRequest(action_digest=ACTION))  # fmt: skip


class Looking(Completeness):
    """Says that it has found something."""

    def statistics(self):
        return {"checked": 3, "incomplete": 1}


async def test_figures_are_those_of_all_checks_each_counted_once():
    stores = [MemoryStore(MemoryOptions(), BareContext(name)) for name in ("AC", "CAS")]
    one, other = Looking(stores[1], name="CAS"), Looking(stores[1], name="CAS")
    checked = [ActionCacheInstance(stores[0], completeness=each) for each in (one, one, other, None)]
    service = ActionCacheService(dict(zip("abcd", checked, strict=True)))
    assert service.statistics() == {"checked": 6, "incomplete": 2}
    assert ActionCacheService({"": checked[3]}).statistics() == {}


@pytest.mark.parametrize("there", [True, False])
async def test_a_result_whose_outputs_are_gone_is_a_miss_that_says_what_is_gone(there):
    results, blobs = (MemoryStore(MemoryOptions(), BareContext(name)) for name in ("AC", "CAS"))
    service = ActionCacheService({"": ActionCacheInstance(results, completeness=Completeness(blobs, name="CAS"))})
    if there:
        await blobs.put(digest_of(OUTPUT), OUTPUT)
    result = reapi.ActionResult(stdout_digest=message(OUTPUT))
    update = reapi.UpdateActionResultRequest(action_digest=ACTION, action_result=result)
    await call(service, "UpdateActionResult", update)
    request = reapi.GetActionResultRequest(action_digest=ACTION)
    if there:
        assert await call(service, "GetActionResult", request) == [result]
    else:
        with pytest.raises(NotFoundError, match=f"no action result for {ACTION.hash}.*: found, but not everything"):
            await call(service, "GetActionResult", request)


async def test_what_is_no_result_is_not_taken_for_one():
    """It would be a miss for ever."""
    results = MemoryStore(MemoryOptions(), BareContext("AC"))
    service = ActionCacheService({"": ActionCacheInstance(results)})
    handler = service.__mapping__()["/build.bazel.remote.execution.v2.ActionCache/UpdateActionResult"]
    stream = MemoryStream(handler, "UpdateActionResult")
    broken = encode(reapi.UpdateActionResultRequest(action_digest=ACTION)) + b"\x1a\x02\x0a\xff"
    await stream._to_server.send(broken)
    with pytest.raises(DecodeError):
        await stream.serve()
    assert await results.has([ActionKey(ACTION.hash, ACTION.size_bytes)]) == [None]
