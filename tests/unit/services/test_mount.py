"""From a listener's `services` to service objects: what is served, for which names, and what is said about it."""

import pytest

from nl.config.loader import load_text
from nl.errors import NotFoundError
from nl.pb import bytestream, longrunning, reapi
from nl.scheduler.options import SimpleSchedulerOptions
from nl.scheduler.simple import SimpleScheduler
from nl.server.completeness import CompletenessChecks
from nl.server.defaults import default_config
from nl.server.services import mount
from nl.services.health import HealthRegistry
from nl.services.limits import BATCH_BYTES
from nl.storage.builder import build_stores
from tests.unit.services.memory_stream import call

STORES = """
    stores: [{ name: "CAS", %s }, { name: "AC", memory: {} }],
    schedulers: [{ name: "MAIN", simple: {} }],
"""
EVERYTHING = """
    cas: [{ instance_name: "", cas_store: "CAS" }, { instance_name: "main", cas_store: "CAS" }],
    ac: [{ instance_name: "", ac_store: "AC" }, { instance_name: "main", ac_store: "AC" }],
    bytestream: [{ instance_name: "", cas_store: "CAS" }, { instance_name: "main", cas_store: "CAS" }],
    execution: [{ instance_name: "", cas_store: "CAS", scheduler: "MAIN" }],
    capabilities: [{ instance_name: "" }],
"""
ZERO = "0" * 64


def mounted(services=EVERYTHING, *, store="memory: {}", server=""):
    text = f'{{ {STORES % store} servers: [{{ listener: {{ http: {{ socket_address: "127.0.0.1:0" }} }}, {server} ' \
           f"services: {{ {services} }} }}] }}"
    config = load_text(text)
    schedulers = {"MAIN": SimpleScheduler(SimpleSchedulerOptions())}
    graph = build_stores(config.stores)
    return mount(
        config.servers[0], config=config, graph=graph, schedulers=schedulers, health=HealthRegistry(),
        checks=CompletenessChecks(config, graph),
    )  # fmt: skip


def service_of(found, method):
    [service] = [each for each in found.services if any(name.endswith("/" + method) for name in each.__mapping__())]
    return service


def named(name):
    """A request of each method that names an instance."""
    digest = reapi.Digest(hash=ZERO, size_bytes=1)
    prefix = f"{name}/" if name else ""
    return {
        "GetCapabilities": reapi.GetCapabilitiesRequest(instance_name=name),
        "FindMissingBlobs": reapi.FindMissingBlobsRequest(instance_name=name, blob_digests=[digest]),
        "BatchUpdateBlobs": reapi.BatchUpdateBlobsRequest(instance_name=name),
        "BatchReadBlobs": reapi.BatchReadBlobsRequest(instance_name=name, digests=[digest]),
        "GetTree": reapi.GetTreeRequest(instance_name=name, root_digest=digest),
        "GetActionResult": reapi.GetActionResultRequest(instance_name=name, action_digest=digest),
        "UpdateActionResult": reapi.UpdateActionResultRequest(
            instance_name=name, action_digest=digest, action_result=reapi.ActionResult(exit_code=1)
        ),
        "Read": bytestream.ReadRequest(resource_name=f"{prefix}blobs/{ZERO}/1"),
        "QueryWriteStatus": bytestream.QueryWriteStatusRequest(resource_name=f"{prefix}uploads/u/blobs/{ZERO}/1"),
        "Execute": reapi.ExecuteRequest(instance_name=name, action_digest=digest),
        "ListOperations": longrunning.ListOperationsRequest(name=name),
    }


async def answer(found, method, request):
    try:
        return await call(service_of(found, method), method, request)
    except Exception as error:  # noqa: BLE001  compared below
        return f"{type(error).__name__}: {error}"


@pytest.mark.parametrize("method", named(""))
@pytest.mark.parametrize("name", ["moon-outputs", "default/instance"])
async def test_every_service_serves_any_name_as_the_nameless_one_where_the_config_says_so(method, name):
    found, strict = mounted(server="any_instance_name: true,"), mounted()
    expected = await answer(found, method, named("operations" if method == "ListOperations" else "")[method])
    assert await answer(found, method, named(name)[method]) == expected
    assert f"NotFoundError: unknown instance name '{name}'" in await answer(strict, method, named(name)[method])


async def test_the_default_server_knows_moon(tmp_path):
    config = load_text(default_config(listen=["127.0.0.1"], port=0, data_dir=tmp_path, max_bytes=1 << 30))
    assert [server.any_instance_name for server in config.servers] == [True, False]


async def capabilities(found, name=""):
    request = reapi.GetCapabilitiesRequest(instance_name=name)
    [reply] = await call(service_of(found, "GetCapabilities"), "GetCapabilities", request)
    return reply.cache_capabilities


BOUNDED = 'memory: { eviction_policy: { max_bytes: "1000000" } }'


@pytest.mark.parametrize(
    ("store", "most"),
    [
        ("memory: {}", 0),
        (BOUNDED, 1_000_000 - 640),
        (f"verify: {{ backend: {{ {BOUNDED} }}, verify_size: true }}", 1_000_000 - 640),
        (f"fast_slow: {{ fast: {{ {BOUNDED} }}, slow: {{ memory: {{}} }} }}", 0),
        (f"fast_slow: {{ fast: {{ memory: {{}} }}, slow: {{ {BOUNDED} }} }}", 1_000_000 - 640),
    ],
)
async def test_the_largest_blob_that_is_announced_is_the_largest_that_the_store_takes(store, most):
    found = mounted(store=store)
    announced = await capabilities(found)
    assert announced.max_cas_blob_size_bytes == most
    assert announced.max_batch_total_size_bytes == BATCH_BYTES


@pytest.mark.parametrize("order", [("read_only: true,", ""), ("", "read_only: true,")])
async def test_each_listener_announces_what_it_does_itself(order):
    bounded = '{ name: "SMALL", memory: { eviction_policy: { max_bytes: "1000000" } } },'
    listeners = ",".join(
        f'{{ listener: {{ http: {{ socket_address: "127.0.0.1:0" }} }}, services: {{ capabilities: [{{}}], '
        f'cas: [{{ cas_store: "{"SMALL" if read_only else "CAS"}" }}], ac: [{{ ac_store: "AC", {read_only} }}] }} }}'
        for read_only in order
    )
    config = load_text(f"{{ {STORES.replace('[', '[' + bounded, 1) % 'memory: {}'} servers: [{listeners}] }}")
    graph = build_stores(config.stores)
    for server, read_only in zip(config.servers, order, strict=True):
        found = mount(
            server, config=config, graph=graph, schedulers={}, health=HealthRegistry(),
            checks=CompletenessChecks(config, graph),
        )  # fmt: skip
        announced = await capabilities(found)
        assert announced.action_cache_update_capabilities.update_enabled is not bool(read_only)
        assert bool(announced.max_cas_blob_size_bytes) is bool(read_only)


async def test_services_with_figures_are_listed_with_their_names():
    found = mounted()
    statistics = found.statistics()
    assert list(statistics) == ["build.bazel.remote.execution.v2.ActionCache", "google.bytestream.ByteStream"]
    assert statistics["build.bazel.remote.execution.v2.ActionCache"]["incomplete"] == 0
    assert statistics["google.bytestream.ByteStream"]["uploads_open"] == 0
    assert found.runnables == [service_of(found, "Read")]


async def test_only_what_is_configured_is_served():
    found = mounted('cas: [{ cas_store: "CAS" }], bytestream: [],')
    assert [name.rpartition(".")[2] for name in found.names] == [
        "ContentAddressableStorage", "Health", "ServerReflection", "ServerReflection"
    ]  # fmt: skip
    with pytest.raises(NotFoundError):
        await call(service_of(found, "FindMissingBlobs"), "FindMissingBlobs", named("x")["FindMissingBlobs"])


@pytest.mark.parametrize(
    ("store", "asked", "announced"),
    [
        ("memory: {}", False, False),
        ("memory: {}", True, True),
        ("compression: { compression_algorithm: { zstd: {} }, backend: { memory: {} } }", False, True),
        ("compression: { compression_algorithm: { lz4: {} }, backend: { memory: {} } }", False, False),
    ],
)
async def test_compressed_transfer_is_announced_where_it_is_wanted_or_spares_work(store, asked, announced):
    services = EVERYTHING.replace(
        'capabilities: [{ instance_name: "" }]',
        f'capabilities: [{{ instance_name: "", remote_cache_compression: {str(asked).lower()} }}]',
    )
    found = mounted(services, store=store)
    said = await capabilities(found)
    expected = [reapi.CompressorValue.ZSTD] if announced else []
    assert said.supported_compressors == said.supported_batch_update_compressors == expected
