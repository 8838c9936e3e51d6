"""The agent against a real scheduler over real sockets: orders, reports, losses, ends."""

from __future__ import annotations

import logging
import os
import signal
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from nl.config.workers import (
    IsolationOptions,
    LocalWorkerOptions,
    PropertySource,
    UploadActionResult,
    WorkerApiEndpoint,
)
from nl.errors import ConfigError, UnavailableError
from nl.model.execution import ActionRequest
from nl.pb import reapi, worker_api
from nl.pb.codec import decode, encode
from nl.rpc.server import Server
from nl.scheduler.options import SimpleSchedulerOptions
from nl.scheduler.simple import SimpleScheduler
from nl.services.worker_api import WorkerApiService
from nl.stores.memory import MemoryOptions, MemoryStore
from nl.testing import BareContext
from nl.worker import actions
from nl.worker.connection import connector
from nl.worker.local import local_worker
from tests.integration.worker_site import SHA256, Site, alive, message, site_with, until


class House:
    """A scheduler that can go away and come back at the same address, and workers that know only this address."""

    def __init__(self, site: Site, nursery: trio.Nursery) -> None:
        self.site = site
        self.nursery = nursery
        self.port = 0
        self.scheduler: SimpleScheduler | None = None
        self._scope: trio.CancelScope | None = None
        self._gone = trio.Event()

    async def open(self, **options: object) -> None:
        await self.nursery.start(self._serve, options)

    async def _serve(self, options: dict, *, task_status=trio.TASK_STATUS_IGNORED) -> None:
        self._gone = trio.Event()
        (listener,) = await trio.open_tcp_listeners(self.port, host="127.0.0.1")
        self.port = listener.socket.getsockname()[1]
        self.scheduler = SimpleScheduler(SimpleSchedulerOptions(worker_match_logging_interval_s=0, **options))
        server = Server([WorkerApiService(self.scheduler)])
        async with trio.open_nursery() as nursery:
            self._scope = nursery.cancel_scope
            await nursery.start(self.scheduler.run)
            await nursery.start(server.serve, [listener])
            task_status.started()
        await listener.aclose()
        self._gone.set()

    async def close(self) -> None:
        self._scope.cancel()
        await self._gone.wait()

    def worker(self, connect=None, **options: object):
        configured = {
            "name": "w-",
            "cas_fast_slow_store": "CAS",
            "work_directory": str(self.site.path / "agents"),
            "isolation": IsolationOptions(kind="plain"),  # actions write to files of the tests
            "upload_action_result": UploadActionResult(ac_store="AC"),
            "worker_api_endpoint": WorkerApiEndpoint(uri=f"grpc://127.0.0.1:{self.port}"),
            **options,
        }
        stores = {"CAS": self.site.store, "AC": self.site.ac}
        return local_worker(LocalWorkerOptions(**configured), index=0, store_named=stores.__getitem__, connect=connect)

    async def connected(self, count: int = 1) -> None:
        await until(lambda: self.scheduler.statistics()["workers"] == count)

    async def submit(self, argv, *, anew: bool = False, **how: object):
        action = await self.site.action(argv, **how)
        request = reapi.ExecuteRequest(action_digest=message(action), skip_cache_lookup=anew)
        return await self.scheduler.submit(
            ActionRequest(
                instance_name="",
                action_digest=action,
                digest_function=SHA256,
                execute_request=encode(request),
                skip_cache_lookup=True,
            )
        )

    async def response(self, operation) -> reapi.ExecuteResponse:
        with operation.watched(), trio.fail_after(60):
            state = operation.state
            while not state.done:
                state = await operation.wait_changed(state.version)
        assert state.outcome.response is not None, state.outcome
        return decode(reapi.ExecuteResponse, state.outcome.response)

    async def execute(self, argv, **how: object) -> reapi.ExecuteResponse:
        return await self.response(await self.submit(argv, **how))


@asynccontextmanager
async def house_at(path: Path):
    async with site_with(path, "memory") as site, trio.open_nursery() as nursery:
        made = House(site, nursery)
        await made.open()
        yield made
        nursery.cancel_scope.cancel()


@pytest.fixture
async def house(tmp_path):
    async with house_at(tmp_path) as made:
        yield made


async def test_an_action_goes_over_the_wire_and_its_result_comes_back(house: House, caplog):
    caplog.set_level(logging.INFO)
    await house.nursery.start(house.worker().run)
    response = await house.execute(["sh", "-c", "echo hello; echo x > out"], output_paths=["out"])
    assert response.result.exit_code == 0
    assert await house.site.text(response.result.stdout_digest) == b"hello\n"
    assert response.result.execution_metadata.worker.startswith("w-")
    assert response.result.execution_metadata.queued_timestamp.seconds > 0
    for line in (
        "Starting worker 'w-'. IMPORTANT: If running multiple workers, all workers must share the same CAS storage",
        "Worker registered with scheduler",
        "Connected to scheduler",
        "platform_properties",
        "Executing action",
    ):
        assert line in caplog.text


async def test_many_actions_run_at_once(house: House):
    await house.nursery.start(house.worker().run)
    meet = house.site.path / "meet"
    meet.mkdir()
    script = f"touch {meet}/$1; while [ $(ls {meet} | wc -l) -lt 8 ]; do sleep 0.02; done"
    operations = [await house.submit(["sh", "-c", script, "sh", str(n)]) for n in range(8)]
    for operation in operations:
        assert (await house.response(operation)).result.exit_code == 0


async def test_a_cancelled_operation_kills_its_processes(house: House):
    await house.nursery.start(house.worker().run)
    path = house.site.path / "pid"
    operation = await house.submit(["sh", "-c", f"setsid sleep 1000 & echo $! > {path}; wait"])
    await until(lambda: path.exists() and bool(path.read_text()))
    await house.scheduler.cancel(operation.name)
    await until(lambda: not alive(int(path.read_text())))
    assert (await house.execute(["/bin/true"])).result.exit_code == 0


async def test_a_worker_comes_back_when_its_scheduler_does(house: House, caplog):
    await house.nursery.start(house.worker().run)
    await house.connected()
    await house.close()
    await until(lambda: "Worker disconnected from scheduler, reconnecting" in caplog.text)
    await house.open()
    await house.connected()
    assert (await house.execute(["/bin/true"])).result.exit_code == 0


async def test_what_runs_when_the_scheduler_goes_away_for_good_is_killed(house: House, monkeypatch):
    monkeypatch.setattr(actions, "KEEP_S", 0.1)
    await house.nursery.start(house.worker().run)
    path = house.site.path / "pid"
    await house.submit(["sh", "-c", f"setsid sleep 1000 & echo $! > {path}; wait"])
    await until(lambda: path.exists() and bool(path.read_text()))
    await house.close()
    await until(lambda: not alive(int(path.read_text())))
    await until(lambda: os.listdir(house.site.path / "agents") == [])


class Waiting:
    """An action that counts how often it is run, and waits for a flag."""

    def __init__(self, house: House, **how: object) -> None:
        self.house = house
        self.how = how
        self.runs, self.flag = house.site.path / "runs", house.site.path / "flag"
        self.argv = ["sh", "-c", f"echo run >> {self.runs}; while [ ! -e {self.flag} ]; do sleep 0.02; done; echo done"]

    async def submit(self):
        return await self.house.submit(self.argv, **self.how)

    async def started(self, times: int = 1) -> None:
        await until(lambda: self.runs.exists() and len(self.runs.read_text().split()) == times)

    async def ended_once(self, operation) -> None:
        response = await self.house.response(operation)
        assert await self.house.site.text(response.result.stdout_digest) == b"done\n"
        assert self.runs.read_text().split() == ["run"]


async def test_what_runs_goes_on_over_a_restart_of_the_scheduler_and_is_not_run_again(house: House):
    worker = house.worker()
    await house.nursery.start(worker.run)
    waiting = Waiting(house)
    await waiting.submit()
    await waiting.started()
    await house.close()
    await until(lambda: worker.statistics()["unclaimed"] == 1)
    await house.open()
    operation = await waiting.submit()  # as a client does who hears that the scheduler has gone
    await until(lambda: worker.statistics()["taken_up"] == 1)
    waiting.flag.touch()
    await waiting.ended_once(operation)


async def test_what_runs_comes_to_the_worker_that_runs_it_though_another_would_be_next(house: House):
    worker = house.worker()
    await house.nursery.start(worker.run)
    waiting = Waiting(house)
    await waiting.submit()
    await waiting.started()
    await house.close()
    await until(lambda: worker.statistics()["unclaimed"] == 1)
    await house.open(allocation_strategy="most_recently_used")
    await house.connected()
    await house.nursery.start(house.worker(name="idle-", work_directory=str(house.site.path / "idle")).run)
    await house.connected(2)
    operation = await waiting.submit()
    await until(lambda: worker.statistics()["taken_up"] == 1)
    waiting.flag.touch()
    await waiting.ended_once(operation)


async def test_what_has_ended_meanwhile_is_told_when_it_is_asked_for_again(house: House):
    worker = house.worker()
    await house.nursery.start(worker.run)
    waiting = Waiting(house)
    await waiting.submit()
    await waiting.started()
    await house.close()
    await until(lambda: worker.statistics()["unclaimed"] == 1)
    waiting.flag.touch()
    await until(lambda: worker.statistics()["completed"] == 1)
    await house.open()
    await waiting.ended_once(await waiting.submit())


class Cuttable:
    """A stream that a test can cut, and the way to get one."""

    def __init__(self, endpoint: WorkerApiEndpoint) -> None:
        self.loses_results = False
        self._connect = connector(endpoint)
        self._stream = None
        self._scope = trio.CancelScope()

    @asynccontextmanager
    async def connect(self):
        async with self._connect() as self._stream:
            self.end = self._stream.end
            yield self

    async def send_message(self, update) -> None:
        if self.loses_results and update.execute_result is not None:
            self.loses_results = False
            raise UnavailableError("cut, and the result is lost on its way")
        await self._stream.send_message(update)

    async def recv_message(self):
        with trio.CancelScope() as self._scope:
            return await self._stream.recv_message()
        raise UnavailableError("cut")

    def cut(self) -> None:
        self._scope.cancel()


async def test_a_cut_costs_an_action_nothing_and_its_client_hears_nothing_of_it(house: House):
    way = Cuttable(WorkerApiEndpoint(uri=f"grpc://127.0.0.1:{house.port}"))
    worker = house.worker(connect=way.connect)
    await house.nursery.start(worker.run)
    waiting = Waiting(house)
    operation = await waiting.submit()
    await waiting.started()
    way.cut()
    await until(lambda: worker.statistics()["taken_up"] == 1)
    waiting.flag.touch()
    await waiting.ended_once(operation)


async def test_a_report_that_was_lost_on_its_way_is_told_again(house: House):
    way = Cuttable(WorkerApiEndpoint(uri=f"grpc://127.0.0.1:{house.port}"))
    way.loses_results = True
    worker = house.worker(connect=way.connect)
    await house.nursery.start(worker.run)
    waiting = Waiting(house)
    waiting.flag.touch()
    await waiting.ended_once(await waiting.submit())
    assert worker.statistics()["taken_up"] == 1


async def test_who_wants_no_cached_result_gets_none_that_has_ended_before(house: House):
    worker = house.worker()
    await house.nursery.start(worker.run)
    waiting = Waiting(house)
    await waiting.submit()
    await waiting.started()
    await house.close()
    await until(lambda: worker.statistics()["unclaimed"] == 1)
    waiting.flag.touch()
    await until(lambda: worker.statistics()["completed"] == 1)
    await house.open()
    assert (await house.response(await house.submit(waiting.argv, anew=True))).result.exit_code == 0
    await waiting.started(2)


async def test_what_nobody_asks_for_again_is_killed_when_the_scheduler_is_back(house: House, monkeypatch):
    monkeypatch.setattr(actions, "CLAIM_S", 0.1)
    worker = house.worker()
    await house.nursery.start(worker.run)
    waiting = Waiting(house)
    await waiting.submit()
    await waiting.started()
    await house.close()
    await until(lambda: worker.statistics()["unclaimed"] == 1)
    await house.open()
    await until(lambda: worker.statistics()["unclaimed"] == 0)
    await until(lambda: os.listdir(house.site.path / "agents") == [])
    operation = await waiting.submit()
    await waiting.started(2)
    waiting.flag.touch()
    assert (await house.response(operation)).result.exit_code == 0


async def test_an_action_that_is_to_be_run_for_each_who_asks_is_run_again(house: House):
    worker = house.worker()
    await house.nursery.start(worker.run)
    waiting = Waiting(house, do_not_cache=True)
    await waiting.submit()
    await waiting.started()
    await house.close()
    await until(lambda: worker.statistics()["unclaimed"] == 1)
    await house.open()
    operation = await waiting.submit()
    await waiting.started(2)
    waiting.flag.touch()
    assert (await house.response(operation)).result.exit_code == 0
    assert worker.statistics()["taken_up"] == 0


class Told:
    """A listener that remembers what it was told."""

    worker_id = "w"

    def __init__(self) -> None:
        self.news: list[tuple[str, str]] = []

    def executed(self, start) -> None:
        self.news.append(("executed", start.operation_id))

    def ended(self, start, report) -> None:
        self.news.append(("ended", start.operation_id))


async def order(site: Site, number: int, argv, **how: object) -> worker_api.StartExecute:
    request = reapi.ExecuteRequest(action_digest=message(await site.action(argv, **how)))
    return worker_api.StartExecute(operation_id=f"order-{number}", execute_request=request)


async def test_what_ended_untold_is_told_in_order_to_who_takes_it_up(house: House):
    running = actions.Actions(house.site.runner())
    before, after = Told(), Told()
    first, second = [await order(house.site, n, ["sh", "-c", "echo x > o"], output_paths=["o"]) for n in (1, 2)]
    async with running.opened():
        assert running.start(first, before)
        running.lose(before)
        await until(lambda: running.completed == 1)
        assert not running.start(second, after)
        assert (before.news, after.news) == ([], [("executed", "order-2"), ("ended", "order-2")])
        assert len(running) == 0


async def test_what_was_killed_is_not_taken_up(house: House):
    running = actions.Actions(house.site.runner())
    before, after = Told(), Told()
    first, second = [await order(house.site, n, ["/bin/true"]) for n in (1, 2)]
    async with running.opened():
        running.start(first, before)
        assert running.kill("order-1")
        running.lose(before)
        assert running.start(second, after)
        await until(lambda: after.news[-1:] == [("ended", "order-2")])


async def test_a_stream_that_is_back_in_time_saves_what_waits_for_it(house: House, monkeypatch):
    monkeypatch.setattr(actions, "KEEP_S", 0.05)
    monkeypatch.setattr(actions, "CLAIM_S", 1000)
    running = actions.Actions(house.site.runner())
    async with running.opened():
        running.start(await order(house.site, 1, ["sleep", "1000"]), before := Told())
        running.lose(before)
        running.welcome()
        await trio.sleep(0.2)
        assert running.statistics()["unclaimed"] == 1


async def test_of_two_that_are_the_same_one_is_kept(house: House):
    running = actions.Actions(house.site.runner())
    told = Told()
    async with running.opened():
        for n in (1, 2):
            running.start(await order(house.site, n, ["sleep", "1000"], do_not_cache=True), told)
        await until(lambda: len(house.site.left()) == 2)
        running.lose(told)
        assert running.statistics()["unclaimed"] == 1
        await until(lambda: len(house.site.left()) == 1)


async def test_a_worker_waits_for_a_scheduler_that_is_not_there_yet(tmp_path, caplog):
    async with house_at(tmp_path) as house:
        await house.close()
        await house.nursery.start(house.worker().run)
        await until(lambda: "UNAVAILABLE" in caplog.text)
        await house.open()
        await house.connected()


async def test_keepalives_keep_a_silent_worker_registered(house: House):
    await house.close()
    await house.open(worker_timeout_s=1.0)
    endpoint = WorkerApiEndpoint(uri=f"grpc://127.0.0.1:{house.port}", timeout=0.5)
    await house.nursery.start(house.worker(worker_api_endpoint=endpoint).run)
    response = await house.execute(["sleep", "3"])
    assert response.result.exit_code == 0
    assert house.scheduler.statistics()["workers_connected_total"] == 1


async def test_properties_are_sent_also_queried_ones(house: House):
    await house.close()
    await house.open(supported_platform_properties={"os": "exact", "cores": "minimum", "words": "exact"})
    properties = {
        "os": PropertySource(values=("linux",)),
        "cores": PropertySource(values=("4",)),
        "words": PropertySource(query_cmd="sh -c 'echo \"two words\"; env | grep -c HOME || true'"),
    }
    await house.nursery.start(house.worker(platform_properties=properties).run)
    await house.connected()
    operation = await house.submit(["/bin/true"])
    assert (await house.response(operation)).result.exit_code == 0
    assert set(house.scheduler.known_properties()) >= {"os", "cores", "words"}


async def test_a_query_that_fails_is_told_and_tried_again(house: House, caplog):
    flag = house.site.path / "flag"
    properties = {"p": PropertySource(query_cmd=f"cat {flag}")}
    await house.nursery.start(house.worker(platform_properties=properties).run)
    await until(lambda: "query_cmd" in caplog.text and "No such file" in caplog.text)
    flag.write_text("value\n")
    await house.connected()


async def test_shutdown_finishes_what_runs_and_says_goodbye(house: House):
    worker = house.worker()
    await house.nursery.start(worker.run)
    flag = house.site.path / "flag"
    started = house.site.path / "started"
    operation = await house.submit(["sh", "-c", f"touch {started}; while [ ! -e {flag} ]; do sleep 0.02; done"])
    await until(started.exists)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(worker.shutdown, 60)
        await until(lambda: worker._stopping)
        flag.touch()
        assert (await house.response(operation)).result.exit_code == 0
    await house.connected(0)


async def test_a_result_that_no_message_can_hold_is_an_error_and_not_the_end_of_the_stream(house: House, monkeypatch):
    for room in ("nl.worker.agent", "nl.cas.action_results"):  # 16 MiB of names would take a minute to make
        monkeypatch.setattr(f"{room}.MAX_ACTION_RESULT_BYTES", 4 * 1024 * 1024)
    await house.nursery.start(house.worker().run)
    names = [f"{n:05d}" + "x" * 200 for n in range(16_000)]
    script = "for n in $(seq -f %05.0f 0 15999); do : > $n$TAIL; done"
    response = await house.execute(["sh", "-c", script], env={"TAIL": "x" * 200}, output_paths=names)
    assert response.status.code == 8
    assert "16000 output files" in response.status.message
    assert (await house.execute(["/bin/true"])).result.exit_code == 0
    assert house.scheduler.statistics()["workers_connected_total"] == 1


async def test_a_worker_that_shuts_down_refuses_new_actions_at_no_cost(house: House):
    worker, other = house.worker(), house.worker(name="other-", work_directory=str(house.site.path / "others"))
    await house.nursery.start(worker.run)
    await house.connected()
    flag, started = house.site.path / "flag", house.site.path / "started"
    first = await house.submit(["sh", "-c", f"touch {started}; while [ ! -e {flag} ]; do sleep 0.02; done"])
    await until(started.exists)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(worker.shutdown, 60)
        await until(lambda: worker._stopping)
        second = await house.submit(["/bin/true"])
        await house.nursery.start(other.run)
        assert (await house.response(second)).result.execution_metadata.worker.startswith("other-")
        flag.touch()
        assert (await house.response(first)).result.exit_code == 0


async def test_shutdown_kills_what_does_not_end_in_time(house: House):
    worker = house.worker()
    await house.nursery.start(worker.run)
    path = house.site.path / "pid"
    await house.submit(["sh", "-c", f"echo $$ > {path}; exec sleep 1000"])
    await until(lambda: path.exists() and bool(path.read_text()))
    await worker.shutdown(0.2)
    await until(lambda: not alive(int(path.read_text())))


async def test_a_worker_that_never_connected_can_be_shut_down(house: House):
    await house.close()
    worker = house.worker()
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            await nursery.start(worker.run)
            await worker.shutdown(5)


async def test_the_work_directory_is_emptied_at_the_start(house: House):
    stale = house.site.path / "agents" / "old" / "deep"
    stale.mkdir(parents=True)
    (stale / "f").touch()
    stale.chmod(0o500)
    (house.site.path / "agents" / "file").touch()
    await house.nursery.start(house.worker().run)
    assert os.listdir(house.site.path / "agents") == []


async def test_a_warden_killed_by_an_action_costs_only_that_attempt(house: House):
    await house.nursery.start(house.worker().run)
    once = house.site.path / "once"
    script = f"if [ ! -e {once} ]; then touch {once}; kill -{int(signal.SIGKILL)} $PPID; sleep 1000; fi"
    assert (await house.execute(["sh", "-c", script])).result.exit_code == 0


def test_a_worker_without_an_action_cache_is_warned_about(tmp_path, caplog):
    options = LocalWorkerOptions(name="w", cas_fast_slow_store="CAS", work_directory=str(tmp_path))
    local_worker(options, index=0, store_named={"CAS": MemoryStore(MemoryOptions(), BareContext())}.__getitem__)
    assert "worker 'w' writes no results to an action cache" in caplog.text


def test_an_unknown_placeholder_is_refused(tmp_path):
    upload = UploadActionResult(upload_ac_results_strategy="never", failure_message_template="see {nowhere}")
    options = LocalWorkerOptions(
        cas_fast_slow_store="CAS", work_directory=str(tmp_path), upload_action_result=upload
    )
    with pytest.raises(ConfigError, match="nowhere"):
        local_worker(options, index=0, store_named={"CAS": None}.__getitem__)
