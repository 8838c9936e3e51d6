import logging
from contextlib import suppress

import pytest
import trio
import trio.testing

from nl.errors import Code, InvalidRequestError, UnavailableError
from nl.pb import reapi, rpc_status, wkt, worker_api
from tests.unit.services.execution_support import house, metadata_of, response_of, result_for
from tests.unit.services.memory_stream import call, calling

Update = worker_api.UpdateForScheduler
RESPONSE = reapi.ExecuteResponse(result=reapi.ActionResult(exit_code=1))


async def test_the_first_message_must_introduce_the_worker():
    async with house() as at:
        with pytest.raises(InvalidRequestError, match="First message was not a ConnectWorkerRequest"):
            await call(at.workers, "ConnectWorker", Update(keep_alive_request=worker_api.KeepAliveRequest()))
        with pytest.raises(InvalidRequestError):
            await call(at.workers, "ConnectWorker")


async def test_bad_properties_are_refused_before_the_worker_counts():
    async with house(supported_platform_properties={"cpu": "minimum"}) as at:
        hello = worker_api.ConnectWorkerRequest(properties=[reapi.PlatformProperty(name="cpu", value="lots")])
        with pytest.raises(InvalidRequestError, match="'cpu'"):
            await call(at.workers, "ConnectWorker", Update(connect_worker_request=hello))
        assert at.scheduler.statistics()["workers"] == 0


async def test_an_order_carries_everything_the_worker_needs():
    async with house(supported_platform_properties={"cpu": "minimum"}) as at:
        request = await at.action(properties=[("cpu", "2"), ("OSFamily", "linux")])
        request.inline_stdout = True
        async with at.executing(request) as stream:
            queued = await stream.receive()
            async with at.worker(("cpu", "4"), prefix="box-") as worker:
                assert worker.id.startswith("box-")
                start = (await worker.receive()).start_action
                assert start.execute_request == request
                assert start.worker_id == worker.id
                assert start.operation_id
                assert start.queued_timestamp == metadata_of(queued).partial_execution_metadata.queued_timestamp
                assert [(each.name, each.value) for each in start.platform.properties] == [
                    ("OSFamily", "linux"),
                    ("cpu", "2"),
                ]


async def test_execute_complete_frees_resources_before_the_result():
    async with house(supported_platform_properties={"cpu": "minimum"}) as at, at.worker(("cpu", "1")) as worker:
        one, two = [await at.action(salt=salt, properties=[("cpu", "1")]) for salt in (b"1", b"2")]
        async with at.executing(one), at.executing(two):
            first = (await worker.receive()).start_action
            with pytest.raises(trio.WouldBlock):
                worker.stream.receive_nowait()
            complete = worker_api.ExecuteComplete(operation_id=first.operation_id)
            await worker.stream.send(Update(execute_complete=complete))
            second = (await worker.receive()).start_action
            assert second.operation_id != first.operation_id


async def test_an_internal_error_is_tried_again_and_exhaustion_waits(autojump_clock):
    async with house(max_job_retries=1) as at, at.worker() as worker, at.executing(await at.action()) as stream:
        for code in (Code.INTERNAL, Code.RESOURCE_EXHAUSTED, Code.RESOURCE_EXHAUSTED):
            start = (await worker.receive()).start_action
            error = rpc_status.Status(code=code, message="no")
            await worker.stream.send(result_for(start.operation_id, error=error))
        start = (await worker.receive()).start_action
        await worker.stream.send(result_for(start.operation_id, RESPONSE))
        while not (operation := await stream.receive()).done:
            pass
        assert response_of(operation) == RESPONSE


async def test_reports_that_make_no_sense_are_ignored_and_the_stream_goes_on(caplog):
    caplog.set_level(logging.INFO)
    hello = worker_api.ConnectWorkerRequest()
    async with house() as at, at.worker() as worker:
        for nonsense in (
            result_for("never heard of", RESPONSE),
            result_for("", None),
            Update(execute_complete=worker_api.ExecuteComplete(operation_id="nobody")),
            Update(connect_worker_request=hello),
            Update(),
        ):
            await worker.stream.send(nonsense)
        async with at.executing(await at.action()) as stream:
            start = (await worker.receive()).start_action
            for _ in range(2):
                await worker.stream.send(result_for(start.operation_id, RESPONSE))
            while not (operation := await stream.receive()).done:
                pass
            assert response_of(operation) == RESPONSE
        await trio.testing.wait_all_tasks_blocked()
        assert at.scheduler.statistics()["workers"] == 1
    assert caplog.text.count("report ignored") == 4
    assert "a second ConnectWorkerRequest" in caplog.text
    assert "an unknown update" in caplog.text


async def test_an_error_with_malformed_details_is_still_an_error():
    broken = wkt.Any(type_url=wkt.type_url(rpc_status.PreconditionFailure), value=b"\xff\xff")
    async with house(max_job_retries=0) as at, at.worker() as worker, at.executing(await at.action()) as stream:
        start = (await worker.receive()).start_action
        error = rpc_status.Status(code=Code.INTERNAL, message="odd", details=[broken])
        await worker.stream.send(result_for(start.operation_id, error=error))
        while not (operation := await stream.receive()).done:
            pass
        assert "odd" in response_of(operation).status.message


async def test_a_result_without_a_result_is_a_failed_attempt():
    async with house(max_job_retries=0) as at, at.worker() as worker, at.executing(await at.action()) as stream:
        start = (await worker.receive()).start_action
        await worker.stream.send(result_for(start.operation_id))
        while not (operation := await stream.receive()).done:
            pass
        assert "a result without a result" in response_of(operation).status.message


async def test_the_end_of_the_stream_gives_the_work_to_another():
    async with house() as at:
        async with at.executing(await at.action()) as stream:
            async with at.worker() as lost:
                first = (await lost.receive()).start_action
                lost.stream.half_close()
                assert await lost.receive() is None
            assert at.scheduler.statistics()["workers"] == 0
            async with at.worker() as other:
                second = (await other.receive()).start_action
                assert second.execute_request == first.execute_request
                await other.stream.send(result_for(second.operation_id, RESPONSE))
                while not (operation := await stream.receive()).done:
                    pass
        assert response_of(operation) == RESPONSE


async def test_keep_alives_keep_a_worker_and_silence_disconnects_it(autojump_clock):
    async with house(worker_timeout_s=5) as at, at.worker() as worker:
        for _ in range(10):
            await trio.sleep(4)
            await worker.stream.send(Update(keep_alive_request=worker_api.KeepAliveRequest()))
        assert at.scheduler.statistics()["workers"] == 1
        update = await worker.receive()
        assert update.disconnect == wkt.Empty()
        assert await worker.receive() is None
        assert at.scheduler.statistics()["workers"] == 0


async def test_a_worker_that_is_back_gets_what_it_runs_already():
    async with house() as at, at.worker():
        request = await at.action()
        async with at.worker(running=[request.action_digest]) as back, at.executing(request):
            start = (await back.receive()).start_action
            assert start.execute_request.action_digest == request.action_digest


async def test_a_worker_that_speaks_seldom_is_kept_while_its_connection_answers(autojump_clock):
    async with house(worker_timeout_s=5) as at, at.worker() as worker:
        worker.stream.peer_answers = True
        for _ in range(5):
            await trio.sleep(50)
            assert at.scheduler.statistics()["workers"] == 1
            await worker.stream.send(Update(keep_alive_request=worker_api.KeepAliveRequest()))
        await trio.sleep(20)
        worker.stream.peer_answers = False
        began = trio.current_time()
        assert (await worker.receive()).disconnect == wkt.Empty()
        assert trio.current_time() - began < 10


async def test_a_removed_worker_that_does_not_read_is_let_go_all_the_same(autojump_clock):
    async with house(worker_timeout_s=5) as at:
        hello = Update(connect_worker_request=worker_api.ConnectWorkerRequest())
        async with calling(at.workers, "ConnectWorker", hello, half_close=False) as stream:
            await stream.receive()
            stuck = trio.Event()
            stream.send_message = lambda message: stuck.wait()
            began = trio.current_time()
            assert await stream.receive() is None
            assert 10 <= trio.current_time() - began <= 12


async def test_a_worker_going_away_finishes_and_gets_nothing_new():
    async with house() as at, at.worker() as worker:
        async with at.executing(await at.action(salt=b"1")) as stream:
            start = (await worker.receive()).start_action
            await worker.stream.send(Update(going_away_request=worker_api.GoingAwayRequest()))
            await trio.testing.wait_all_tasks_blocked()
            async with at.executing(await at.action(salt=b"2")) as waiting:
                assert metadata_of(await waiting.receive()).stage == reapi.ExecutionStageValue.QUEUED
                await worker.stream.send(result_for(start.operation_id, RESPONSE))
                while not (operation := await stream.receive()).done:
                    pass
                with pytest.raises(trio.WouldBlock):
                    worker.stream.receive_nowait()
        assert response_of(operation) == RESPONSE


async def test_during_a_shutdown_workers_are_refused():
    async with house() as at:
        at.scheduler.stop_admission()
        with pytest.raises(UnavailableError):
            await call(at.workers, "ConnectWorker", Update(connect_worker_request=worker_api.ConnectWorkerRequest()))


@pytest.mark.parametrize(("most", "taken"), [(1, 1), (2, 2), (0, 3)])
async def test_a_worker_gets_as_many_actions_at_once_as_it_says(most, taken):
    async with house() as at, at.worker(prefix="w", max_inflight=most) as worker:
        assert worker.id.startswith("w")
        for salt in (b"1", b"2", b"3"):
            async with at.executing(await at.action(salt=salt)) as stream:
                await stream.receive()
        await trio.testing.wait_all_tasks_blocked()
        received = []
        with suppress(trio.WouldBlock):
            while True:
                received.append(worker.stream.receive_nowait().start_action.operation_id)
        assert len(set(received)) == taken
