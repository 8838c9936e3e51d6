import pytest
import trio
import trio.testing

from nl.errors import Code, InvalidRequestError, NotFoundError, PreconditionError
from nl.pb import longrunning, reapi, wkt
from tests.unit.services.execution_support import house, metadata_of, response_of, result_for
from tests.unit.services.memory_stream import call, calling

RESPONSE = reapi.ExecuteResponse(result=reapi.ActionResult(exit_code=3))


async def submitted(at, salt=b"", **action):
    """The name of an operation whose stream has dropped."""
    async with at.executing(await at.action(salt=salt, **action)) as stream:
        return (await stream.receive()).name


async def test_get_tells_the_present_state():
    async with house() as at:
        name = await submitted(at)
        [operation] = await call(at.operations, "GetOperation", longrunning.GetOperationRequest(name=name))
        assert operation.name == name
        assert metadata_of(operation).stage == reapi.ExecutionStageValue.QUEUED


@pytest.mark.parametrize("name", ["", "main/nobody", "nowhere/x"])
@pytest.mark.parametrize("method", ["Get", "Cancel", "Delete", "Wait"])
async def test_unknown_names_are_not_found(method, name):
    request = getattr(longrunning, f"{method}OperationRequest")(name=name)
    async with house() as at:
        with pytest.raises(NotFoundError, match="not found"):
            await call(at.operations, f"{method}Operation", request)


async def test_cancel_ends_a_queued_operation_and_the_stream_that_shows_it():
    async with house() as at, at.executing(await at.action()) as stream:
        name = (await stream.receive()).name
        assert await call(at.operations, "CancelOperation", longrunning.CancelOperationRequest(name=name)) == [
            wkt.Empty()
        ]
        last = await stream.receive()
        assert last.done
        assert response_of(last).status.code == Code.CANCELLED
        assert last.error is None


async def test_cancel_kills_what_runs():
    async with house() as at, at.worker() as worker:
        name = await submitted(at)
        start = (await worker.receive()).start_action
        await call(at.operations, "CancelOperation", longrunning.CancelOperationRequest(name=name))
        kill = (await worker.receive()).kill_operation_request
        assert kill.operation_id == start.operation_id
        await call(at.operations, "CancelOperation", longrunning.CancelOperationRequest(name=name))
        [operation] = await call(at.operations, "GetOperation", longrunning.GetOperationRequest(name=name))
        assert response_of(operation).status.code == Code.CANCELLED


async def matching(at, text, **more):
    request = longrunning.ListOperationsRequest(name="main", filter=text, **more)
    [reply] = await call(at.operations, "ListOperations", request)
    return [operation.name for operation in reply.operations], reply.next_page_token


async def test_a_list_has_what_the_filter_says_in_pages_of_that():
    async with house() as at:
        names = [await submitted(at, salt=b"%d" % number) for number in range(6)]
        for name in names[::2]:
            await call(at.operations, "CancelOperation", longrunning.CancelOperationRequest(name=name))
        assert (await matching(at, "done=true"))[0] == names[::2]
        assert (await matching(at, ' stage = "QUEUED" AND done=false '))[0] == names[1::2]
        assert (await matching(at, "done=true AND stage=QUEUED"))[0] == []
        assert (await matching(at, ""))[0] == names
        first, token = await matching(at, "done=true", page_size=2)
        rest, end = await matching(at, "done=true", page_size=2, page_token=token)
        assert (first + rest, end) == (names[::2], "")


async def test_delete_forgets_what_is_over_and_refuses_what_is_not():
    async with house() as at:
        name = await submitted(at)
        with pytest.raises(PreconditionError):
            await call(at.operations, "DeleteOperation", longrunning.DeleteOperationRequest(name=name))
        await call(at.operations, "CancelOperation", longrunning.CancelOperationRequest(name=name))
        reply = await call(at.operations, "DeleteOperation", longrunning.DeleteOperationRequest(name=name))
        assert reply == [wkt.Empty()]
        with pytest.raises(NotFoundError):
            await call(at.operations, "GetOperation", longrunning.GetOperationRequest(name=name))


async def test_wait_returns_the_final_state():
    async with house() as at, at.worker() as worker:
        name = await submitted(at)
        async with calling(at.operations, "WaitOperation", longrunning.WaitOperationRequest(name=name)) as stream:
            start = (await worker.receive()).start_action
            await worker.stream.send(result_for(start.operation_id, RESPONSE))
            operation = await stream.receive()
        assert operation.done
        assert response_of(operation) == RESPONSE


async def test_wait_returns_the_present_state_when_its_timeout_runs_out(autojump_clock):
    async with house() as at:
        name = await submitted(at)
        request = longrunning.WaitOperationRequest(name=name, timeout=wkt.Duration(seconds=7))
        began = trio.current_time()
        [operation] = await call(at.operations, "WaitOperation", request)
        assert trio.current_time() - began == 7
        assert not operation.done


async def listed(at, **request):
    names, token = [], ""
    while True:
        [page] = await call(
            at.operations, "ListOperations", longrunning.ListOperationsRequest(page_token=token, **request)
        )
        names.append([each.name for each in page.operations])
        token = page.next_page_token
        if not token:
            return names


async def test_list_pages_through_all_operations_in_order():
    async with house() as at:
        names = [await submitted(at, salt=bytes([number])) for number in range(7)]
        assert await listed(at) == [names]
        assert await listed(at, page_size=3) == [names[:3], names[3:6], names[6:]]
        assert await listed(at, page_size=7) == [names]
        assert await listed(at, name="main") == [names]
        assert await listed(at, name="main/operations") == [names]
        with pytest.raises(NotFoundError, match="unknown instance name 'other'"):
            await listed(at, name="other")


async def test_a_page_has_a_hundred_operations_and_never_more_than_a_thousand_whatever_is_asked_for():
    async with house() as at:
        action = await at.action()
        names = []
        for _ in range(1001):  # twins: each client has an operation of its own
            async with at.executing(action) as stream:
                names.append((await stream.receive()).name)
        assert [len(page) for page in await listed(at)] == [*[100] * 10, 1]
        assert await listed(at, page_size=5000) == [names[:1000], names[1000:]]


@pytest.mark.parametrize("name", ["operation", "ops-operations", "a/b", "soperations"])
async def test_operations_are_listed_under_the_name_of_their_instance_whatever_it_is(name):
    async with house(instance={"names": ("", "main", name)}) as at:
        other = await submitted(at, name="main")
        nameless = await submitted(at, name="")
        own = await submitted(at, name=name)
        assert await listed(at, name=name) == [[own]]
        assert await listed(at, name=f"{name}/operations") == [[own]]
        assert await listed(at, name="operations") == [[nameless]]
        assert await listed(at) == [[other, nameless, own]]


async def test_an_unknown_name_is_the_nameless_instance_where_the_config_says_so():
    async with house(instance={"names": ("", "main"), "any_name": True}) as at:
        nameless = await submitted(at, name="moon-outputs")
        await submitted(at, name="main")
        assert nameless.rpartition("/")[0] == ""
        assert await listed(at, name="moon-outputs") == await listed(at, name="default/x/operations") == [[nameless]]
        [operation] = await call(at.operations, "GetOperation", longrunning.GetOperationRequest(name=nameless))
        assert operation.name == nameless


async def test_list_stays_below_the_message_limit():
    async with house() as at, at.worker() as worker:
        for number in range(3):
            name = await submitted(at, salt=bytes([number]))
            start = (await worker.receive()).start_action
            response = reapi.ExecuteResponse(result=reapi.ActionResult(stdout_raw=bytes(1_800_000)))
            await worker.stream.send(result_for(start.operation_id, response))
            await call(at.operations, "WaitOperation", longrunning.WaitOperationRequest(name=name))
        assert [len(page) for page in await listed(at)] == [2, 1]


@pytest.mark.parametrize(
    "bad", [{"filter": "done"}, {"filter": "shoe=1"}, {"page_size": -1}, {"page_token": "x"}, {"page_token": "9" * 30}]
)
async def test_list_refuses_what_it_does_not_understand(bad):
    async with house() as at:
        with pytest.raises(InvalidRequestError):
            await call(at.operations, "ListOperations", longrunning.ListOperationsRequest(**bad))
