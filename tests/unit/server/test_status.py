"""The status page: what it says to whom."""

import json
from http import HTTPStatus
from types import SimpleNamespace

import pytest
import trio

from nl.config.loader import load_text
from nl.model.access import EVERYONE, Grant, Identity, Right
from nl.scheduler.options import SimpleSchedulerOptions
from nl.scheduler.simple import SimpleScheduler
from nl.server.admin import Administration
from nl.server.doors import Doors
from nl.server.status import StatusPage, routes
from nl.services.health import HealthRegistry
from nl.storage.builder import build_stores

CONFIG = """{
  stores: [{ name: "CAS", memory: {} }],
  servers: [{
    listener: { http: { socket_address: "127.0.0.1:0" } },
    services: { cas: [{ instance_name: "a", cas_store: "CAS" }, { instance_name: "b", cas_store: "CAS" }] },
  }],
  auth: { anonymous: [{ allow: ["read"] }] },
}"""


def schedulers(_config):
    return {"MAIN": SimpleScheduler(SimpleSchedulerOptions(), name="MAIN")}


class Listener:
    addresses = ("127.0.0.1:1", "[::1]:1")

    def statistics(self):
        return {"connections": 3}


async def answer(identity, *, serving=True):
    config = load_text(CONFIG)
    health = HealthRegistry(["a.Service"])
    health.set_serving(serving)
    page = StatusPage(health, build_stores(config.stores), [Listener()], Doors(config), schedulers(config))
    response = await page.answer(SimpleNamespace(identity=identity))
    assert response.content_type == "application/json; charset=utf-8"
    return response.status, json.loads(response.body)


@pytest.mark.parametrize(("serving", "status", "text"), [
    (True, HTTPStatus.OK, "SERVING"), (False, HTTPStatus.SERVICE_UNAVAILABLE, "NOT_SERVING")])
async def test_whoever_administers_everything_sees_everything(serving, status, text):
    for identity in (EVERYONE, Identity("admin", [Grant(("a",), Right.ADMINISTER), Grant(("b",), Right.ADMINISTER)])):
        found, body = await answer(identity, serving=serving)
        assert found is status
        assert body.pop("tasks") > 0
        assert body.pop("coder_memory")["max_bytes"] == 1024**3
        assert body.pop("schedulers")["MAIN"]["connected"] == {}
        assert body.pop("stores")["CAS"]["kind"] == "memory"
        assert body == {
            "status": text, "services": {"": serving, "a.Service": serving},
            "listeners": {"127.0.0.1:1, [::1]:1": {"connections": 3}},
            "auth": {"auth": {"tokens": 0, "remembered": 0, "failures": 0}},
        }  # fmt: skip


@pytest.mark.parametrize("grants", [
    [], [Grant(("a",), Right.ADMINISTER)], [Grant(("*",), ~Right.ADMINISTER)], [Grant(("c",), Right.ADMINISTER)]])
async def test_everybody_else_sees_the_state_and_nothing_more(grants):
    status, body = await answer(Identity("ci", grants))
    assert (status, body) == (HTTPStatus.OK, {"status": "SERVING"})


def test_the_page_is_where_the_config_says():
    services = SimpleNamespace(health=None, admin=None)
    page = SimpleNamespace(answer=None)
    assert list(routes(SimpleNamespace(services=services), page, None)) == ["/status"]
    services.health = SimpleNamespace(path="/healthz")
    assert list(routes(SimpleNamespace(services=services), page, None)) == ["/healthz"]
    services.admin = SimpleNamespace(path="/a/")
    assert list(routes(SimpleNamespace(services=services), page, Administration({}, None))) == [
        "/healthz", "/a/scheduler/",
    ]


async def test_workers_are_shown_to_whoever_administers_everything():
    config = load_text(CONFIG)
    (scheduler,) = schedulers(config).values()
    page = StatusPage(HealthRegistry(), build_stores(config.stores), [], Doors(config), {"MAIN": scheduler})
    async with trio.open_nursery() as nursery:
        await nursery.start(scheduler.run)
        with scheduler.attach_worker([], max_inflight=3) as session:
            shown = json.loads((await page.answer(SimpleNamespace(identity=EVERYONE))).body)["schedulers"]["MAIN"]
        nursery.cancel_scope.cancel()
    assert shown["workers"] == 1
    worker = shown["connected"][session.worker_id]
    assert (worker["state"], worker["running"], worker["max_inflight"]) == ("idle", 0, 3)
