"""From a listener's `services` to service objects: what is served, for which names, and what is said about it."""

import pytest

from nl.config.loader import load_text
from nl.errors import NotFoundError
from nl.pb import bytestream, longrunning, reapi
from nl.scheduler.options import SimpleSchedulerOptions
from nl.scheduler.simple import SimpleScheduler
from nl.server.completeness import CompletenessChecks
from nl.server.defaults import default_config
from nl.server.descriptors import transfers_within
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


def mounted(services=EVERYTHING, *, store="memory: {}", server="", more=""):
    text = f'{{ {STORES % store} servers: [{{ listener: {{ http: {{ socket_address: "127.0.0.1:0" }} }}, {server} ' \
           f"services: {{ {services} }} }}], {more} }}"
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


async def test_what_the_config_says_of_uploads_reaches_the_service():
    found = mounted('bytestream: [{ cas_store: "CAS", persist_stream_on_disconnect_timeout_s: 7, '
                    'idle_upload_timeout_s: 8 }, { instance_name: "b", cas_store: "CAS" }],')  # fmt: skip
    instances = service_of(found, "Read")._instances._instances
    times = {name: (each.persist_stream_on_disconnect_timeout_s, each.idle_upload_timeout_s)
             for name, each in instances.items()}  # fmt: skip
    assert times == {"": (7.0, 8.0), "b": (60.0, 300.0)}


@pytest.mark.parametrize("listeners", [1, 2, 3])
async def test_listeners_with_uploads_share_the_files_that_there_may_be(monkeypatch, listeners):
    monkeypatch.setattr("nl.server.services.resource.getrlimit", lambda which: (4096, 1 << 20))
    other = '{ listener: { http: { socket_address: "127.0.0.1:0" } }, services: { %s } }'
    servers = [other % 'bytestream: [{ cas_store: "CAS" }]'] * listeners + [other % 'cas: [{ cas_store: "CAS" }]']
    config = load_text(f"{{ {STORES % 'memory: {}'} servers: [{', '.join(servers)}] }}")
    graph = build_stores(config.stores)
    found = mount(config.servers[0], config=config, graph=graph, schedulers={}, health=HealthRegistry(),
                  checks=CompletenessChecks(config, graph))  # fmt: skip
    service = service_of(found, "Read")
    assert service._slots.most == service._sender.max_open == transfers_within(4096) // listeners


async def test_contents_are_inlined_from_the_cas_of_the_same_name_and_read_only_is_read_only():
    found = mounted("""
        cas: [{ cas_store: "CAS" }],
        ac: [{ ac_store: "AC", read_only: true }, { instance_name: "b", ac_store: "AC", check_completeness: false }],
    """)
    instances = service_of(found, "GetActionResult")._instances._instances
    assert (instances[""].read_only, instances["b"].read_only) == (True, False)
    assert instances[""].cas is not None
    assert instances["b"].cas is None
    assert instances[""].completeness is not None
    assert instances["b"].completeness is None


async def test_workers_need_the_right_for_the_instances_of_their_scheduler_on_all_listeners():
    listener = '{ listener: { http: { socket_address: "127.0.0.1:0" } }, services: { %s } }'
    servers = [
        listener % 'worker_api: { scheduler: "MAIN" }',
        listener % 'execution: [{ instance_name: "a", cas_store: "CAS", scheduler: "MAIN" }, '
                   '{ instance_name: "b", cas_store: "CAS", scheduler: "OTHER" }]',
        listener % 'execution: [{ instance_name: "c", cas_store: "CAS", scheduler: "MAIN" }]',
    ]  # fmt: skip
    stores = (STORES % "memory: {}").replace("schedulers: [", 'schedulers: [{ name: "OTHER", simple: {} },')
    config = load_text(f"{{ {stores} servers: [{', '.join(servers)}] }}")
    graph = build_stores(config.stores)
    schedulers = {name: SimpleScheduler(SimpleSchedulerOptions()) for name in ("MAIN", "OTHER")}
    found = mount(config.servers[0], config=config, graph=graph, schedulers=schedulers, health=HealthRegistry(),
                  checks=CompletenessChecks(config, graph))  # fmt: skip
    service = service_of(found, "ConnectWorker")
    assert service._instances == {"a", "c"}
    assert service._workers is schedulers["MAIN"]


async def described(services, name=""):
    found = mounted(services)
    request = reapi.GetCapabilitiesRequest(instance_name=name)
    [reply] = await call(service_of(found, "GetCapabilities"), "GetCapabilities", request)
    return reply


CAPABILITIES = 'capabilities: [{ instance_name: "" }],'
EXECUTION = 'execution: [{ cas_store: "CAS", scheduler: "MAIN" }],'


@pytest.mark.parametrize(
    ("services", "executes", "properties"),
    [
        (CAPABILITIES, False, []), (CAPABILITIES + EXECUTION, True, ["mtime", "unix_mode"]),
        ('capabilities: [{ remote_execution: { scheduler: "MAIN" } }],', True, []),
    ],
)  # fmt: skip
async def test_execution_is_announced_where_it_is_served_or_said_to_be(services, executes, properties):
    said = (await described(services)).execution_capabilities
    assert (said is not None) is executes
    assert said is None or said.supported_node_properties == properties


@pytest.mark.parametrize(
    ("services", "updates", "batch"),
    [
        (CAPABILITIES, False, 0), (CAPABILITIES + 'cas: [{ cas_store: "CAS" }],', False, BATCH_BYTES),
        (CAPABILITIES + 'ac: [{ ac_store: "AC" }],', True, 0),
        (CAPABILITIES + 'ac: [{ ac_store: "AC", read_only: true }],', False, 0),
    ],
)  # fmt: skip
async def test_only_what_is_there_is_announced(services, updates, batch):
    said = (await described(services)).cache_capabilities
    assert said.action_cache_update_capabilities.update_enabled is updates
    assert said.max_batch_total_size_bytes == batch


async def test_every_service_that_is_mounted_is_known_to_health_and_to_reflection():
    health = HealthRegistry()
    config = load_text(f'{{ {STORES % "memory: {}"} servers: [{{ listener: {{ http: {{ socket_address: ":1" }} }}, '
                       f'services: {{ cas: [{{ cas_store: "CAS" }}] }} }}] }}')  # fmt: skip
    graph = build_stores(config.stores)
    found = mount(config.servers[0], config=config, graph=graph, schedulers={}, health=health,
                  checks=CompletenessChecks(config, graph))  # fmt: skip
    cas = "build.bazel.remote.execution.v2.ContentAddressableStorage"
    assert health.snapshot() == {"": False, cas: False}
    reflection = service_of(found, "ServerReflectionInfo")
    assert reflection._service_names == sorted([cas, "grpc.health.v1.Health"])


async def test_each_listener_may_hold_a_file_however_few_there_are(monkeypatch):
    monkeypatch.setattr("nl.server.services.resource.getrlimit", lambda which: (2, 2))
    service = service_of(mounted(), "Read")
    assert service._slots.most == service._sender.max_open == 1
