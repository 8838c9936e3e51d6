"""Schedulers of a config, put together and run: what stands in front really stands there."""

import pytest
import trio

from nl.blob.hashing import digest_of
from nl.cas.action_results import store_action_result
from nl.config.loader import load_text
from nl.model.digest import DigestFunction
from nl.model.execution import ActionRequest, Stage
from nl.pb import reapi
from nl.pb.codec import encode
from nl.scheduler.historical_resource import HistoricalResourceScheduler
from nl.scheduler.simple import SimpleScheduler
from nl.server.completeness import CompletenessChecks
from nl.server.schedulers import build_schedulers
from nl.storage.builder import build_stores

CONFIG = """{
    stores: [{ name: "CAS", memory: {} }, { name: "AC", memory: {} }, { name: "OWN", memory: {} }],
    schedulers: [{ name: "MAIN", %s }],
    servers: [{ listener: { http: { socket_address: "127.0.0.1:0" } }, services: {
        cas: [{ cas_store: "CAS" }], ac: [{ ac_store: "AC" }], execution: [{ cas_store: "CAS", scheduler: "MAIN" }],
    } }],
}"""
ACTION = digest_of(b"action")
OUTPUT = digest_of(b"output")


class Built:
    def __init__(self, kinds):
        self.config = load_text(CONFIG % kinds)
        self.graph = build_stores(self.config.stores)
        checks = CompletenessChecks(self.config, self.graph)
        self.scheduler = build_schedulers(self.config, self.graph, checks)["MAIN"]

    async def submit(self, *platform, **more):
        return await self.scheduler.submit(ActionRequest("", ACTION, DigestFunction.SHA256, platform=platform, **more))


@pytest.fixture
async def run():
    async with trio.open_nursery() as nursery:

        async def start(kinds):
            built = Built(kinds)
            for each in built.graph.stores:
                await nursery.start(each.store.run)
            await nursery.start(built.scheduler.run)
            return built

        yield start
        nursery.cancel_scope.cancel()


async def ended(operation):
    state = operation.state
    while state.stage in (Stage.UNKNOWN, Stage.CACHE_CHECK):
        state = await operation.wait_changed(state.version)
    return state


async def test_the_cache_that_is_named_is_looked_into_and_only_complete_results_are_hits(run):
    built = await run('cache_lookup: { ac_store: "OWN", scheduler: { simple: {} } }')
    wire = reapi.Digest(hash=OUTPUT.hash, size_bytes=OUTPUT.size)
    result = encode(reapi.ActionResult(output_files=[reapi.OutputFile(path="o", digest=wire)]))
    await store_action_result(built.graph["OWN"], ACTION, result)
    assert (await ended(await built.submit())).stage is Stage.QUEUED, "its output is not in the CAS"
    await built.scheduler.cancel(built.scheduler.operations()[0].name)
    await built.graph["CAS"].put(OUTPUT, b"output")
    state = await ended(await built.submit())
    assert state.outcome.cached


async def test_nested_kinds_each_do_their_part(run, tmp_path):
    hints = tmp_path / "hints.json"
    hints.write_text('[{"target_id": "//a", "cpu_count": 7}]')
    built = await run(f"""property_modifier: {{
        modifications: [
            {{ replace: {{ name: "CPU", new_name: "cpu_count" }} }}, {{ add: {{ name: "pool", value: "p" }} }},
            {{ remove: "junk" }},
        ],
        scheduler: {{ historical_resource: {{ hints_file: "{hints}", scheduler: {{ simple: {{
            supported_platform_properties: {{ cpu_count: "minimum", pool: "exact" }} }} }} }} }},
    }}""")
    middle = built.scheduler.inner
    assert isinstance(middle, HistoricalResourceScheduler)
    assert isinstance(middle.inner, SimpleScheduler)
    assert built.scheduler.worker_pool is middle.inner
    with built.scheduler.worker_pool.attach_worker([("cpu_count", "8"), ("pool", "p")]) as session:
        await built.submit(("CPU", "2"), ("junk", "x"), target="//a", skip_cache_lookup=True)
        assert (await session.next_update()).platform == (("cpu_count", "7"), ("pool", "p"))
