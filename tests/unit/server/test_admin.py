"""Workers are taken out of service, and back, by a path that NativeLink's scripts know."""

from http import HTTPStatus
from types import SimpleNamespace

import pytest

from nl.config.loader import load_text
from nl.errors import ConfigError, PermissionDeniedError
from nl.model.access import EVERYONE, Grant, Identity, Right
from nl.server.admin import Administration
from nl.server.doors import Doors
from nl.web.server import HttpError
from tests.unit.scheduler.support import request, running

CONFIG = """{ stores: [{ name: "CAS", memory: {} }], servers: [{
    listener: { http: { socket_address: "127.0.0.1:0" } },
    services: { cas: [{ instance_name: "a", cas_store: "CAS" }, { instance_name: "b", cas_store: "CAS" }], %s },
}] }"""


async def post(administration, path, identity=EVERYONE):
    return await administration.answer(SimpleNamespace(path=path, identity=identity))


def administration_of(scheduler):
    return Administration({"MAIN/ONE": scheduler}, Doors(load_text(CONFIG % "admin: {}")))


async def test_a_worker_is_drained_and_undrained():
    async with running() as scheduler:
        it = administration_of(scheduler)
        assert list(it.routes("/admin")) == ["/admin/scheduler/"]
        with scheduler.attach_worker([]) as session:
            path = f"/admin/scheduler/MAIN%2FONE/set_drain_worker/{session.worker_id}"
            response = await post(it, f"{path}/1")
            assert (response.status, response.body) == (200, f"Draining worker {session.worker_id}".encode())
            await scheduler.submit(request(1))
            assert session.next_update_nowait() is None
            await post(it, f"{path}/0")
            assert session.next_update_nowait() is not None


async def test_all_workers_with_a_property_are_drained_and_those_that_come():
    async with running() as scheduler:
        it = administration_of(scheduler)
        path = "/admin/scheduler/MAIN%2FONE/set_drain_property/rack/a%2F1"
        old, new = [("rack", "a/1")], [("rack", "a/1"), ("rack", "b")]
        with scheduler.attach_worker(old) as first:
            response = await post(it, f"{path}/1")
            assert response.body == f"Draining workers with rack=a/1: {first.worker_id}".encode()
            with (
                scheduler.attach_worker(new) as second,
                scheduler.attach_worker([("rack", "b")], max_inflight=1) as other,
            ):
                await scheduler.submit(request(1))
                await scheduler.submit(request(2))
                assert other.next_update_nowait() is not None
                assert first.next_update_nowait() is None and second.next_update_nowait() is None
                scheduler.drain_offering("rack", "b", drained=True)
                await post(it, f"{path}/0")
                assert first.next_update_nowait() is not None
                assert second.worker.draining, "by its other rack"
                scheduler.drain_offering("rack", "b", drained=False)
                assert not second.worker.draining


@pytest.mark.parametrize(("path", "text"), [
    ("/admin/scheduler/MAIN%2FONE/set_drain_worker/nobody/1", "worker 'nobody' is not connected"),
    ("/admin/scheduler/NO/set_drain_worker/w/1", "there is no scheduler 'NO' with workers; there are: 'MAIN/ONE'"),
    ("/admin/scheduler/MAIN%2FONE/set_drain_worker/w/2", "expected POST"),
    ("/admin/scheduler/MAIN%2FONE/kill_worker/w/1", "expected POST"),
    ("/admin/scheduler/", "expected POST"),
])
async def test_what_is_not_there_is_named(path, text):
    async with running() as scheduler:
        with pytest.raises(HttpError, match=text) as got:
            await post(administration_of(scheduler), path)
        assert got.value.status == HTTPStatus.NOT_FOUND


@pytest.mark.parametrize("grants", [[], [Grant(("a",), Right.ADMINISTER)], [Grant(("*",), ~Right.ADMINISTER)]])
async def test_it_needs_the_right_to_administer_every_instance(grants):
    async with running() as scheduler:
        with scheduler.attach_worker([]) as session, pytest.raises(PermissionDeniedError):
            path = f"/admin/scheduler/MAIN%2FONE/set_drain_worker/{session.worker_id}/1"
            await post(administration_of(scheduler), path, Identity("ci", grants))
        assert not session.worker.draining


def test_it_begins_at_a_path_of_its_own():
    for path in ("", "/", "admin"):
        with pytest.raises(ConfigError, match="admin.path: .* is no path"):
            load_text(CONFIG % f'admin: {{ path: "{path}" }}')
