"""An action result whose outputs are gone is a miss, whatever store has it, unless the config wants otherwise."""


import pytest

from nl.blob.hashing import digest_of
from nl.cas.action_results import store_action_result
from nl.config.loader import load_text
from nl.errors import NotFoundError
from nl.model.digest import DigestFunction
from nl.model.execution import ActionRequest
from nl.pb import reapi
from nl.pb.codec import decode, encode
from nl.scheduler.options import SimpleSchedulerOptions
from nl.scheduler.simple import SimpleScheduler
from nl.server.completeness import CompletenessChecks
from nl.server.lookup import lookup_by_instance
from nl.server.services import cache_lookups, mount
from nl.services.health import HealthRegistry
from nl.storage.builder import build_stores
from tests.unit.services.memory_stream import call

LISTENER = 'listener: { http: { socket_address: "127.0.0.1:0" } }'
STORES = """stores: [
    { name: "CAS", memory: {} }, { name: "OTHER", memory: {} }, { name: "AC", memory: {} },
    { name: "TIERED", fast_slow: { fast: { memory: {} }, slow: { ref_store: { name: "AC" } } } },
    { name: "CHECKED", completeness_checking: {
        backend: { ref_store: { name: "AC" } }, cas_store: { ref_store: { name: "CAS" } } } },
    { name: "LINK", ref_store: { name: "CHECKED" } },
], schedulers: [{ name: "MAIN", simple: {} }]"""
ACTION = digest_of(b"an action")
OUTPUT = b"its output"
RESULT = reapi.ActionResult(
    output_files=[
        reapi.OutputFile(
            path="o", digest=reapi.Digest(hash=digest_of(OUTPUT).hash, size_bytes=digest_of(OUTPUT).size)
        )
    ]
)


class Site:
    """A config's services and lookups, over memory."""

    def __init__(self, *listeners):
        servers = ", ".join(f"{{ {LISTENER}, services: {{ {services} }} }}" for services in listeners)
        self.config = load_text(f"{{ {STORES}, servers: [{servers}] }}")
        self.graph = build_stores(self.config.stores)
        self.checks = CompletenessChecks(self.config, self.graph)
        schedulers = {"MAIN": SimpleScheduler(SimpleSchedulerOptions())}
        self.mounted = [
            mount(
                server, config=self.config, graph=self.graph, schedulers=schedulers, health=HealthRegistry(),
                checks=self.checks,
            )
            for server in self.config.servers
        ]
        self.lookup = lookup_by_instance(cache_lookups(self.config, self.graph, self.checks))
        self.lines = list(self.checks.lines())

    def service(self, listener=0):
        return next(each for each in self.mounted[listener].services if type(each).__name__ == "ActionCacheService")

    async def hits(self, *, instance="", listener=0):
        request = reapi.GetActionResultRequest(
            instance_name=instance, action_digest=reapi.Digest(hash=ACTION.hash, size_bytes=ACTION.size)
        )
        try:
            [encoded] = await call(self.service(listener), "GetActionResult", request)
        except NotFoundError:
            hit = False
        else:
            assert encoded == RESULT
            hit = True
        return hit

    async def executes_from_cache(self, *, instance=""):
        response = await self.lookup(ActionRequest(instance, ACTION, DigestFunction.SHA256))
        return response is not None and decode(reapi.ExecuteResponse, response).result == RESULT


async def check(site, *, cas="CAS", **where):
    """With the output a hit, without it none, and again."""
    for _ in range(2):
        assert not await site.hits(**where)
        assert not await site.executes_from_cache(instance=where.get("instance", ""))
        await site.graph[cas].put(digest_of(OUTPUT), OUTPUT)
        assert await site.hits(**where)
        assert await site.executes_from_cache(instance=where.get("instance", ""))
        site.graph[cas]._index.discard(digest_of(OUTPUT))


@pytest.mark.parametrize("store", ["AC", "TIERED", "CHECKED", "LINK"])
async def test_a_result_without_its_outputs_is_a_miss_whatever_store_has_it(store):
    site = Site(f'cas: [{{ cas_store: "CAS" }}], ac: [{{ ac_store: "{store}" }}]')
    await store_action_result(site.graph["AC"], ACTION, encode(RESULT))
    await check(site)
    served = site.service().statistics()
    assert ("complete" in served) == (store in ("AC", "TIERED")), "where the store has looked, nobody looks again"
    [line] = site.lines
    assert ("completeness_checking" in line) == (store in ("CHECKED", "LINK"))


async def test_the_option_turns_it_off():
    site = Site('cas: [{ cas_store: "CAS" }], ac: [{ ac_store: "AC", check_completeness: false }]')
    await store_action_result(site.graph["AC"], ACTION, encode(RESULT))
    assert await site.hits()
    assert await site.executes_from_cache()
    assert "check_completeness is false" in site.lines[0]


async def test_an_instance_without_a_cas_cannot_be_checked_and_says_so():
    site = Site('cas: [{ instance_name: "main", cas_store: "CAS" }], ac: [{ ac_store: "AC" }]')
    await store_action_result(site.graph["AC"], ACTION, encode(RESULT))
    assert await site.hits()
    assert "no cas or execution names this instance" in site.lines[0]


async def test_each_instance_is_checked_against_its_own_cas():
    site = Site(
        'cas: [{ instance_name: "a", cas_store: "CAS" }, { instance_name: "b", cas_store: "OTHER" }],'
        'ac: [{ instance_name: "a", ac_store: "AC" }, { instance_name: "b", ac_store: "AC" }]'
    )
    await store_action_result(site.graph["AC"], ACTION, encode(RESULT))
    await check(site, instance="a")
    await check(site, instance="b", cas="OTHER")
    assert [line.rsplit(maxsplit=1)[1] for line in site.lines] == ["CAS", "OTHER"]


@pytest.mark.parametrize("other", [
    'cas: [{ cas_store: "CAS" }]', 'execution: [{ cas_store: "CAS", scheduler: "MAIN" }]',
    'bytestream: [{ cas_store: "CAS" }]',
])
async def test_the_cas_may_be_on_another_listener_or_execution_s(other):
    site = Site('ac: [{ ac_store: "AC" }]', other)
    await store_action_result(site.graph["AC"], ACTION, encode(RESULT))
    await check(site)


async def test_the_cas_of_the_own_listener_goes_first():
    site = Site('cas: [{ cas_store: "OTHER" }]', 'cas: [{ cas_store: "CAS" }], ac: [{ ac_store: "AC" }]')
    await store_action_result(site.graph["AC"], ACTION, encode(RESULT))
    await check(site, listener=1)


async def test_listeners_and_execution_share_what_is_remembered():
    site = Site(*['cas: [{ cas_store: "CAS" }], ac: [{ ac_store: "AC" }]'] * 2)
    await store_action_result(site.graph["AC"], ACTION, encode(RESULT))
    await site.graph["CAS"].put(digest_of(OUTPUT), OUTPUT)
    for listener in (0, 1):
        assert await site.hits(listener=listener)
    assert await site.executes_from_cache()
    assert site.service(0).statistics()["complete"] == site.service(1).statistics()["complete"] == 3
    assert site.service(0).statistics()["remembered_results"] == 1
