"""Whose operations are whose: others' are not there, but for those who may administer."""

import pytest
import trio
import trio.testing

from nl.errors import NotFoundError, PermissionDeniedError, UnauthenticatedError
from nl.model.access import Grant, Identity, Right
from nl.pb import longrunning, reapi, worker_api
from tests.unit.services.execution_support import house
from tests.unit.services.memory_stream import call, calling

ONE = Identity("one", [Grant(("main",), Right.EXECUTE)])
TWO = Identity("two", [Grant(("main", "other"), Right.EXECUTE)])
READER = Identity("reader", [Grant(("main",), Right.READ_CAS)])
ADMIN = Identity("admin", [Grant(("main",), Right.ADMINISTER)])
NOBODY = Identity("anonymous", [], is_anonymous=True)
NAMES = {"names": ("main", "other")}
METHODS = [f"{verb}Operation" for verb in ("Get", "Wait", "Cancel", "Delete")]


async def submitted(at, identity, *, name="main", salt=b""):
    async with at.executing(await at.action(name=name, salt=salt), identity=identity) as stream:
        return (await stream.receive()).name


def asking(method, name):
    return getattr(longrunning, f"{method}Request")(name=name)


async def listed(at, identity, name=""):
    [reply] = await call(
        at.operations, "ListOperations", longrunning.ListOperationsRequest(name=name), identity=identity
    )
    return [operation.name for operation in reply.operations]


@pytest.mark.parametrize("method", METHODS)
async def test_anothers_operation_is_as_if_it_were_not(method):
    async with house(instance=NAMES) as at:
        name = await submitted(at, ONE)
        messages = []
        for asked in (name, "main/nobody"):
            with pytest.raises(NotFoundError) as caught:
                await call(at.operations, method, asking(method, asked), identity=TWO)
            messages.append(str(caught.value).replace(asked, "X"))
        assert messages[0] == messages[1]
        [state] = await call(at.operations, "GetOperation", asking("GetOperation", name), identity=ONE)
        assert not state.done, "and nothing has happened to it"


async def test_waiting_for_anothers_execution_is_not_possible_and_for_ones_own_is():
    async with house(instance=NAMES) as at:
        name = await submitted(at, ONE)
        request = reapi.WaitExecutionRequest(name=name)
        with pytest.raises(NotFoundError):
            await call(at.execution, "WaitExecution", request, identity=TWO)
        for identity in (ONE, ADMIN):
            async with calling(at.execution, "WaitExecution", request, identity=identity) as stream:
                assert (await stream.receive()).name == name


async def test_who_has_not_the_right_is_told_so_whether_it_is_there_or_not():
    async with house(instance=NAMES) as at:
        for name in (await submitted(at, ONE), "main/nobody"):
            for method in METHODS:
                with pytest.raises(PermissionDeniedError, match="'reader' does not have execute for instance 'main'"):
                    await call(at.operations, method, asking(method, name), identity=READER)
                with pytest.raises(UnauthenticatedError):
                    await call(at.operations, method, asking(method, name), identity=NOBODY)


async def test_twins_share_the_execution_and_each_has_an_operation_of_its_own():
    async with house(instance=NAMES) as at:
        one, two = await submitted(at, ONE), await submitted(at, TWO)
        assert one != two
        await call(at.operations, "CancelOperation", asking("CancelOperation", two), identity=TWO)
        [state] = await call(at.operations, "GetOperation", asking("GetOperation", one), identity=ONE)
        assert not state.done


async def test_a_list_has_ones_own_and_for_administrators_those_of_their_instances():
    async with house(instance=NAMES) as at:
        one = await submitted(at, ONE, salt=b"1")
        two = await submitted(at, TWO, salt=b"2")
        other = await submitted(at, TWO, name="other", salt=b"3")
        assert await listed(at, ONE) == [one]
        assert await listed(at, TWO) == [two, other]
        assert await listed(at, TWO, "other/operations") == [other]
        assert await listed(at, READER) == []
        assert await listed(at, ADMIN) == [one, two]
        assert await listed(at, ADMIN, "main/operations") == [one, two]
        with pytest.raises(PermissionDeniedError, match="'admin' does not have any right for instance 'other'"):
            await listed(at, ADMIN, "other/operations")
        with pytest.raises(UnauthenticatedError, match="any right for any instance needs credentials"):
            await listed(at, NOBODY)


async def test_who_may_no_longer_execute_does_not_see_what_it_made():
    async with house(instance=NAMES) as at:
        name = await submitted(at, ONE)
        since = Identity("one", [Grant(("main",), Right.READ_CAS)])
        assert await listed(at, since) == []
        with pytest.raises(PermissionDeniedError):
            await call(at.operations, "GetOperation", asking("GetOperation", name), identity=since)


async def test_an_administrator_may_end_what_others_began():
    async with house(instance=NAMES) as at:
        name = await submitted(at, ONE)
        await call(at.operations, "CancelOperation", asking("CancelOperation", name), identity=ADMIN)
        [state] = await call(at.operations, "GetOperation", asking("GetOperation", name), identity=ONE)
        assert state.done


async def test_asking_in_vain_is_no_interest():
    """What nobody listens to is ended after a while; a stranger's question must not keep it."""
    async with house(instance=NAMES) as at:
        await submitted(at, ONE)
        [operation] = at.scheduler.operations()
        interest = dict(at.scheduler._operations.interest._alone_since)
        with pytest.raises(NotFoundError):
            await call(at.operations, "GetOperation", asking("GetOperation", operation.name), identity=TWO)
        assert dict(at.scheduler._operations.interest._alone_since) == interest


@pytest.mark.parametrize(
    ("change", "problem"), [({"is_revoked": True}, "was revoked"), ({"expires_at": 1.0}, "has expired")]
)
async def test_a_worker_whose_token_was_revoked_or_has_ended_is_sent_away_at_its_next_word(change, problem):
    worker = Identity("w", [Grant(("*",), Right.REGISTER_WORKERS)])
    hello = worker_api.UpdateForScheduler(connect_worker_request=worker_api.ConnectWorkerRequest())
    alive = worker_api.UpdateForScheduler(keep_alive_request=worker_api.KeepAliveRequest())
    async with house() as at:
        with pytest.raises(ExceptionGroup) as caught:
            async with calling(at.workers, "ConnectWorker", hello, identity=worker, half_close=False) as stream:
                await stream.receive()
                await stream.send(alive)
                await trio.testing.wait_all_tasks_blocked()
                for name, value in change.items():
                    setattr(worker, name, value)
                await stream.send(alive)
                with trio.fail_after(20):
                    await trio.sleep_forever()
        assert caught.group_contains(UnauthenticatedError, match=f"the token 'w' {problem}")


async def test_a_worker_needs_the_right_for_every_instance_whose_actions_it_may_get():
    from nl.services.worker_api import WorkerApiService

    hello = worker_api.UpdateForScheduler(connect_worker_request=worker_api.ConnectWorkerRequest())
    worker = Identity("w", [Grant(("main",), Right.REGISTER_WORKERS)])
    async with house() as at:
        service = WorkerApiService(at.scheduler, instances=["main"])
        async with calling(service, "ConnectWorker", hello, identity=worker, half_close=False) as stream:
            assert (await stream.receive()).connection_result.worker_id
        for instances, missing in ((["main", "other"], "other"), ([], "")):
            with pytest.raises(PermissionDeniedError, match=f"register_workers for instance '{missing}'$"):
                await call(
                    WorkerApiService(at.scheduler, instances=instances), "ConnectWorker", hello, identity=worker
                )


async def test_under_a_made_up_name_one_has_the_rights_for_the_instance_that_serves_and_no_others():
    rights = Right.EXECUTE
    mine = Identity("mine", [Grant(("",), rights)])
    theirs = Identity("theirs", [Grant(("",), rights)])
    elsewhere = Identity("elsewhere", [Grant(("moon",), ~Right(0))])
    chief = Identity("chief", [Grant(("",), Right.ADMINISTER)])
    async with house(instance={"names": ("",), "any_name": True}) as at:
        with pytest.raises(PermissionDeniedError, match="'elsewhere' does not have execute for instance ''"):
            await at.execute(await at.action(name="moon"), identity=elsewhere)
        name = await submitted(at, mine, name="moon")
        assert "/" not in name, "it is of the nameless instance"
        for identity in (mine, chief):
            [state] = await call(at.operations, "GetOperation", asking("GetOperation", name), identity=identity)
            assert state.name == name
            for asked in ("moon", "moon/operations", "operations"):
                assert await listed(at, identity, asked) == [name]
        with pytest.raises(NotFoundError):
            await call(at.operations, "GetOperation", asking("GetOperation", name), identity=theirs)
        with pytest.raises(PermissionDeniedError, match="'elsewhere' does not have execute for instance ''"):
            await call(at.operations, "GetOperation", asking("GetOperation", name), identity=elsewhere)
        assert await listed(at, theirs, "moon") == []
        assert await listed(at, elsewhere) == []
        with pytest.raises(PermissionDeniedError, match="'elsewhere' does not have any right for instance ''"):
            await listed(at, elsewhere, "moon")
        await call(at.operations, "CancelOperation", asking("CancelOperation", name), identity=chief)
        [state] = await call(at.operations, "GetOperation", asking("GetOperation", name), identity=mine)
        assert state.done
