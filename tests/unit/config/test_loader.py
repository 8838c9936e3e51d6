"""Whole configs: what loads, and the one line for what does not."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nl.config.loader import MAX_CONFIG_BYTES, in_file, load_file, load_text, load_value, parse
from nl.errors import ConfigError, PluginError
from tests.unit.config.kinds import kinds

DATA = Path(__file__).parents[2] / "data" / "configs"
SCHEDULER_KINDS = "expected one of simple, cache_lookup, property_modifier, historical_resource, grpc"
SERVER = {"listener": {"http": {"socket_address": "127.0.0.1:50051"}}, "services": {}}
MEMORY = {"name": "M", "mem": {}}
SCHEDULER = {"name": "S", "simple": {}}
WORKER = {"cas_fast_slow_store": "M", "work_directory": "/w"}


def load(raw, env=None, warnings=None):
    return load_value(raw, env=env or {}, kinds=kinds(), on_warning=(warnings or []).append
                      if warnings is None else warnings.append)


def refusal(raw):
    with pytest.raises(ConfigError) as caught:
        load(raw)
    return str(caught.value)


def services(**entries):
    return {"stores": [MEMORY, {"name": "N", "mem": {}}], "schedulers": [SCHEDULER],
            "servers": [{**SERVER, "services": entries}]}


def worker(**options):
    return {"stores": [MEMORY], "workers": [{"local": {**WORKER, **options}}]}


# ------------------------------------------------------------------------------------------------ the owner's configs


def test_a_worker_with_a_plain_store_and_no_endpoint():
    config = load_file(DATA / "seed_worker_shared_cas.json5", env={"WORKER_NAME": "worker-7"}, on_warning=pytest.fail)
    local = config.workers[0].local
    assert local.name == "worker-7"
    assert local.work_directory == "/tmp/worker-7/work"
    assert local.worker_api_endpoint.uri == "grpc://127.0.0.1:50061"
    assert local.worker_api_endpoint.address == ("127.0.0.1", 50061, False)
    assert {name: source.values for name, source in local.platform_properties.items()} == {
        "cpu_count": ("2",), "memory_gb": ("2",)}
    assert config.servers == ()
    assert config.store("SHARED_CAS").options.temp_path == "/tmp/worker-7/temp"
    assert config.store("SHARED_CAS").options.eviction_policy.max_bytes == 10**10


def test_a_cache_with_the_older_bytestream_form_and_empty_services():
    warnings = []
    config = load_file(DATA / "seed_cas.json5", env={}, on_warning=warnings.append)
    served = config.servers[0].services
    assert [(entry.instance_name, entry.cas_store) for entry in served.bytestream] == [("", "CAS_MAIN_STORE")]
    assert served.capabilities == ()
    assert served.fetch == served.push == ()
    assert served.execution is None
    assert config.servers[0].listener.http.address == ("0.0.0.0", 50051)
    assert warnings == [
        f"{DATA}/seed_cas.json5: servers[0].services.bytestream is written with cas_stores, an older form; better as a "
        'list: [{ instance_name: "main", cas_store: "CAS" }]']


def test_a_scheduler_with_its_properties():
    config = load_file(DATA / "seed_scheduler.json5", env={}, on_warning=pytest.fail)
    (scheduler,) = config.schedulers
    assert scheduler.spec.options.supported_platform_properties["container-image"] == "priority"
    assert config.servers[0].services.capabilities[0].remote_execution.scheduler == "MAIN_SCHEDULER"
    assert config.servers[1].services.worker_api.scheduler == "MAIN_SCHEDULER"
    assert config.servers[1].services.health.path == "/status"


def test_a_worker_with_a_fast_and_a_slow_store():
    config = load_file(DATA / "seed_worker.json5", env={"SCHEDULER_ENDPOINT": "scheduler"}, on_warning=pytest.fail)
    local = config.workers[0].local
    assert local.worker_api_endpoint.address == ("scheduler", 50061, False)
    assert local.platform_properties["cpu_count"].query_cmd == "nproc"
    assert local.upload_action_result.ac_store == "GRPC_LOCAL_AC_STORE"
    assert config.store("WORKER_FAST_SLOW_STORE").options.slow.options.name == "GRPC_LOCAL_STORE"
    remote = config.store("GRPC_LOCAL_STORE").options
    assert [str(each.target) for each in remote.endpoints] == ["127.0.0.1:50051"]
    assert remote.store_type == "cas"


# --------------------------------------------------------------------------------------------------------- older forms


def test_stores_schedulers_and_services_load_in_the_older_map_form():
    warnings = []
    older = load({
        "stores": {"M": {"mem": {}}, "N": {"disk": {"content_path": "/c", "temp_path": "/t"}}},
        "schedulers": {"S": {"simple": {}}},
        "servers": [{**SERVER, "services": {
            "cas": {"": {"cas_store": "M"}, "two": {"cas_store": "N"}},
            "capabilities": {"": {"remote_execution": {"scheduler": "S"}}},
            "bytestream": {"cas_stores": {"": "M"}, "max_bytes_per_stream": "1KiB",
                           "persist_stream_on_disconnect_timeout": "5s"},
        }}],
    }, warnings=warnings)
    assert [store.name for store in older.stores] == ["M", "N"]
    served = older.servers[0].services
    assert [(entry.instance_name, entry.cas_store) for entry in served.cas] == [("", "M"), ("two", "N")]
    assert served.bytestream[0].max_bytes_per_stream == 1024
    assert served.bytestream[0].persist_stream_on_disconnect_timeout_s == 5.0
    assert warnings == [
        'stores is written as a map of names, an older form; better as a list: [{ name: "X", <kind>: {...} }]',
        'schedulers is written as a map of names, an older form; better as a list: [{ name: "X", <kind>: {...} }]',
        'servers[0].services.cas is written as a map of instances, an older form; better as a list: '
        '[{ instance_name: "main", ... }]',
        'servers[0].services.capabilities is written as a map of instances, an older form; better as a list: '
        '[{ instance_name: "main", ... }]',
        'servers[0].services.bytestream is written with cas_stores, an older form; better as a list: '
        '[{ instance_name: "main", cas_store: "CAS" }]',
        'servers[0].services.bytestream.cas_stores[""].max_bytes_per_stream has no effect: messages are as large as '
        "what the client has room for",
    ]


def test_a_message_size_at_the_bytestream_service_points_to_the_listener():
    warnings = []
    load(services(bytestream={"cas_stores": {}, "max_decoding_message_size": 5}), warnings=warnings)
    assert warnings[0] == ("servers[0].services.bytestream.max_decoding_message_size has no effect here; set it in the "
                           "listener's http section")


@pytest.mark.parametrize(("raw", "message"), [
    (services(cas={"": "M"}), 'servers[0].services.cas[""]: not an object; expected a list of { instance_name, ... } '
                              "at servers[0].services.cas"),
    (services(cas={"cas_store": "M"}), "servers[0].services.cas.cas_store: not an object; expected a list of "
                                       "{ instance_name, ... } at servers[0].services.cas"),
    (services(cas={"a": {"instance_name": "a", "cas_store": "M"}}),
     "servers[0].services.cas.a.instance_name: says the name twice; expected it only as the key"),
    (services(cas=5), "servers[0].services.cas: neither a list nor an object; expected a list of "
                      "{ instance_name, ... }"),
    (services(bytestream={"cas_stores": {"": "M"}, "max": 1}),
     "servers[0].services.bytestream.max: unknown key; expected one of cas_stores, max_bytes_per_stream, "
     "persist_stream_on_disconnect_timeout_s, max_decoding_message_size"),
    (services(bytestream={"cas_stores": {"": "X"}}),
     'servers[0].services.bytestream.cas_stores[""].cas_store: there is no store "X"; expected one of M, N'),
    ({"stores": {"M": {"name": "M", "mem": {}}}, "servers": [SERVER]},
     "stores.M.name: says the name twice; expected it only as the key"),
])
def test_older_forms_are_refused_at_their_own_paths(raw, message):
    assert refusal(raw) == message


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(("raw", "message"), [
    ({}, "the config has nothing to run; expected servers, workers or both"),
    ({"server": []}, "server: unknown key (did you mean servers?); expected one of stores, schedulers, workers, "
                     "servers, global, auth, experimental_origin_events"),
    ({"servers": [{}]}, "servers[0].listener: missing; expected an object"),
    ({"servers": [{"listener": {"http": {}}, "services": {}}]},
     "servers[0].listener.http.socket_address: missing; expected text"),
    ({"servers": [{"listener": {"http": {"socket_address": "x"}}, "services": {}}]},
     'servers[0].listener.http.socket_address: "x" is not an address; expected host:port such as "127.0.0.1:50051" or '
     '"[::]:50051", or unix:/path'),
    ({"servers": [{"listener": {"http": {"socket_address": "a:99999"}}, "services": {}}]},
     'servers[0].listener.http.socket_address: "a:99999" has a port above 65535; expected host:port'),
    ({"servers": [{"listener": SERVER["listener"]}]}, "servers[0].services: missing; expected an object"),
    ({"servers": [SERVER, SERVER]},
     "servers[1].listener.http.socket_address: servers[0] listens there already; expected another address"),
    ({"stores": [{"mem": {}}]}, "stores[0].name: missing; expected text"),
    ({"stores": [{"name": "", "mem": {}}]}, "stores[0].name: not a name; expected text that is not empty"),
    ({"stores": [{"name": "X"}]},
     "stores[0]: a store has exactly one kind, found none; expected { <kind>: {...} }"),
    ({"stores": [MEMORY, MEMORY], "servers": [SERVER]},
     'stores[1].name: "M" is already the name of stores[0]; expected another name'),
    ({"schedulers": [SCHEDULER, SCHEDULER], "servers": [SERVER]},
     'schedulers[1].name: "S" is already the name of schedulers[0]; expected another name'),
    ({"stores": [MEMORY], "workers": [{"local": {**WORKER, "name": "w"}}, {"local": {**WORKER, "name": "w"}}]},
     'workers[1].local.name: "w" is already the name of workers[0]; expected another name'),
    (services(cas=[{"cas_store": "MM"}]),
     'servers[0].services.cas[0].cas_store: there is no store "MM" (did you mean M?); expected one of M, N'),
    (services(worker_api={"scheduler": "X"}),
     'servers[0].services.worker_api.scheduler: there is no scheduler "X"; expected one of S'),
    ({"servers": [{**SERVER, "services": {"worker_api": {"scheduler": "X"}}}]},
     'servers[0].services.worker_api.scheduler: there is no scheduler "X"; there are no schedulers'),
    (services(cas=[{"cas_store": "M"}], ac=[{"ac_store": "M"}]),
     "servers[0].services.ac[0].ac_store: CAS and AC use the same store 'M' in the config; expected a store of its own "
     "for each"),
    (services(cas=[{"cas_store": "M"}, {"cas_store": "N"}]),
     'servers[0].services.cas[1].instance_name: "" has an entry already; expected one per instance'),
    (services(fetch=[{"fetch_store": "M"}]),
     "servers[0].services.fetch: not supported: the Remote Asset API is not served; expected this key to be left out"),
    (services(experimental_bep={"store": "M"}),
     "servers[0].services.experimental_bep: not supported: build events are not stored; expected this key to be left "
     "out"),
    (services(cas=[{"cas_store": "M", "experimental_chunking": {"index_store": "N"}}]),
     "servers[0].services.cas[0].experimental_chunking: not supported: blobs are not split into chunks; expected this "
     "key to be left out"),
    (services(experimental_prometheus={}),
     "servers[0].services.experimental_prometheus: unknown key (did you mean "
     "experimental_bep?); expected one of cas, ac, capabilities, execution, "
     "bytestream, fetch, push, worker_api, experimental_bep, admin, health"),
    ({"servers": [SERVER], "experimental_origin_events": {"publisher": {"store": "X"}}},
     "experimental_origin_events: not supported: origin events are not published; expected this key to be left out"),
    ({"servers": [SERVER], "schedulers": [{"name": "S", "grpc": {
        "endpoint": {"address": "grpc://x:1"}, "retry": {"delay": -1}}}]},
     "schedulers[0].grpc.retry.delay: -1 is negative; expected 0 or more seconds"),
    ({"servers": [{**SERVER, "services": {"worker_api": {"scheduler": "S"}}}], "schedulers": [
        {"name": "S", "property_modifier": {"scheduler": {"grpc": {"endpoint": {"address": "grpc://x:1"}}}}}]},
     'servers[0].services.worker_api.scheduler: "S" is the scheduler of another server, where its workers connect; '
     "expected one with a simple scheduler behind it"),
    ({"servers": [SERVER], "schedulers": [{"name": "S", "simpel": {}}]},
     f"schedulers[0].simpel: unknown scheduler kind (did you mean simple?); {SCHEDULER_KINDS}"),
    ({"servers": [SERVER], "schedulers": [{"name": "S"}]},
     f"schedulers[0]: a scheduler has exactly one kind, found none; {SCHEDULER_KINDS}"),
    ({"servers": [SERVER], "schedulers": [{"name": "S", "cache_lookup": {"ac_store": "A"}}]},
     "schedulers[0].cache_lookup.scheduler: missing; expected { <kind>: {...} }"),
    ({"servers": [SERVER], "schedulers": [
        {"name": "S", "cache_lookup": {"ac_store": "X", "scheduler": {"simple": {}}}}]},
     'schedulers[0].cache_lookup.ac_store: there is no store "X"; there are no stores'),
    ({"servers": [SERVER], "schedulers": [{"name": "S", "property_modifier": {
        "modifications": [{"add": {"name": "a", "value": "b"}, "remove": "c"}], "scheduler": {"simple": {}}}}]},
     "schedulers[0].property_modifier.modifications[0]: expected exactly one of add, remove and replace"),
    ({"servers": [SERVER], "schedulers": [{"name": "S", "property_modifier": {"scheduler": {
        "historical_resource": {"hints_file": "h", "scheduler": {"simple": {"worker_timeout_s": "x"}}}}}}]},
     "schedulers[0].property_modifier.scheduler.historical_resource.scheduler.simple.worker_timeout_s: \"x\" is not a "
     "duration; expected a number of seconds or a duration such as \"90s\" or \"1h 30m\""),
    ({"schedulers": [{"name": "S", "simple": {"supported_platform_properties": {"cpu-count": "min"}}}]},
     'schedulers[0].simple.supported_platform_properties["cpu-count"]: "min" is none of the choices (did you mean '
     'minimum?); expected one of "minimum", "exact", "priority", "ignore"'),
    ({"schedulers": [{"name": "S", "simple": {"experimental_backend": {"redis": {"redis_store": "R"}}}}]},
     'schedulers[0].simple.experimental_backend: an object is none of the choices; expected one of "memory"'),
    (worker(platform_properties={"cpu": {}}),
     "workers[0].local.platform_properties.cpu: expected exactly one of values and query_cmd"),
    (worker(additional_environment={"A": "timeout"}),
     'workers[0].local.additional_environment.A: "timeout" is none of the choices (did you mean timeout_millis?); '
     'expected one of "from_environment", "timeout_millis", "side_channel_file", "action_directory"'),
    (worker(use_mount_namespace=True),
     "workers[0].local.use_mount_namespace: is only possible with use_namespaces: true"),
    (worker(use_namespaces=True, isolation={"kind": "uid"}),
     'workers[0].local.use_namespaces: contradicts isolation.kind: "uid"'),
    (worker(isolation={"hidden_paths": ["home"]}),
     'workers[0].local.isolation.hidden_paths[0]: "home" is not absolute; expected a path that begins with /'),
    (worker(isolation={"first_uid": 0}),
     "workers[0].local.isolation.first_uid: 448 uids from 0 on; expected at least one, none of them 0, below 2**32"),
    (worker(worker_api_endpoint={"uri": "scheduler:50061"}),
     'workers[0].local.worker_api_endpoint.uri: "scheduler:50061" is not an address; expected grpc://host:port, '
     "grpcs://host:port or unix:/path"),
    ({"workers": [{"local": WORKER}]},
     'workers[0].local.cas_fast_slow_store: there is no store "M"; there are no stores'),
    ({"workers": [{"remote": {}}]}, "workers[0].remote: unknown key; expected one of local"),
    ({"servers": [{**SERVER, "listener": {"http": {"socket_address": ":1", "tls": {
        "cert_file": "c", "key_file": "k", "client_crl_file": "r"}}}}]},
     "servers[0].listener.http.tls.client_crl_file: set without client_ca_file; expected both or neither"),
    ({"servers": [{**SERVER, "listener": {"http": {"socket_address": ":1", "compression": {}}}}]},
     "servers[0].listener.http.compression.accepted_compression_algorithms: missing; expected a list"),
    ({"servers": [SERVER], "global": {"max_open_files": "lots"}},
     'global.max_open_files: "lots" is not a whole number; expected a whole number'),
])
def test_a_wrong_config_is_refused_in_one_line(raw, message):
    assert refusal(raw) == message


def test_stores_that_refer_to_each_other_in_a_circle_are_refused():
    def link(name, target):
        return {"name": name, "link": {"name": target}}

    assert refusal({"servers": [SERVER], "stores": [link("A", "A")]}) == (
        "stores[0].link.name: stores refer to each other in a circle, A -> A; expected an end somewhere")
    assert refusal({"servers": [SERVER], "stores": [
        link("IN", "A"),
        {"name": "A", "pair": {"left": {"mem": {}}, "right": {"link": {"name": "B"}}}},
        {"name": "B", "many": {"by_name": {"x": {"link": {"name": "A"}}}}},
    ]}) == ("stores[2].many.by_name.x.link.name: stores refer to each other in a circle, A -> B -> A; expected an end "
            "somewhere")


def test_a_store_may_be_named_before_it_is_defined_and_more_than_once():
    load({"servers": [SERVER], "stores": [
        {"name": "A", "pair": {"left": {"link": {"name": "B"}}, "right": {"link": {"name": "B"}}}},
        {**MEMORY, "name": "B"},
    ]})


def test_cas_and_ac_may_share_a_store_between_instances():
    load(services(cas=[{"cas_store": "M"}], ac=[{"ac_store": "M", "instance_name": "other"}]))


def test_what_has_no_effect_is_warned_of_and_loads():
    warnings = []
    server = {**SERVER, "services": {"health": {"timeout_seconds": 9}}}
    load({**worker(directory_cache={}), "servers": [server]}, warnings=warnings)
    assert warnings == [
        "workers[0].local.directory_cache has no effect: inputs are hard-linked file by file",
        "servers[0].services.health.timeout_seconds has no effect: health is known, not tried out",
    ]


@pytest.mark.parametrize(("text", "address"), [
    ("127.0.0.1:50051", ("127.0.0.1", 50051)), ("0.0.0.0:1", ("0.0.0.0", 1)), ("[::]:50051", ("::", 50051)),
    ("[::1]:0", ("::1", 0)), (":8080", ("0.0.0.0", 8080)), ("localhost:50051", ("localhost", 50051)),
    ("cache.example.com:443", ("cache.example.com", 443)), ("${PORT_ADDRESS:-:7}", ("0.0.0.0", 7)),
    ("unix:/run/nl.sock", ("unix:/run/nl.sock", 0)),
])
def test_listeners_take_any_usual_address(text, address):
    config = load({"servers": [{**SERVER, "listener": {"http": {"socket_address": text}}}]})
    assert config.servers[0].listener.http.address == address


@pytest.mark.parametrize(
    "text", ["", "1", "::1:5", "a b:5", "host:", "host:x", "host:-1", "[::1]", "http://x:1", "a:٣"])
def test_other_addresses_are_refused(text):
    assert refusal({"servers": [{**SERVER, "listener": {"http": {"socket_address": text}}}]}).startswith(
        f'servers[0].listener.http.socket_address: "{text}" is not an address; expected host:port')


@pytest.mark.parametrize(("uri", "address"), [
    ("grpc://h:1", ("h", 1, False)), ("grpcs://h:1/", ("h", 1, True)), ("http://[::1]:5", ("::1", 5, False)),
    ("https://h", ("h", 443, True)), ("grpc://h", ("h", 80, False)),
    ("unix:/run/nl.sock", ("unix:/run/nl.sock", 0, False)), ("unix:///run/nl.sock", ("unix:/run/nl.sock", 0, False)),
])
def test_workers_take_any_usual_endpoint(uri, address):
    config = load(worker(worker_api_endpoint={"uri": uri}))
    assert config.workers[0].local.worker_api_endpoint.address == address


def test_a_worker_has_nativelinks_defaults():
    local = load(worker()).workers[0].local
    assert (local.max_action_timeout_s, local.max_upload_timeout_s, local.max_cleanup_wait_s) == (1200, 600, 30)
    assert local.max_cleanup_backoff_ms == 500
    assert local.upload_action_result.upload_ac_results_strategy == "success_only"
    assert local.upload_action_result.ac_store is None


def test_older_names_of_options_load():
    local = load(worker(max_action_timeout="5m", max_upload_timeout=0)).workers[0].local
    assert (local.max_action_timeout_s, local.max_upload_timeout_s) == (300.0, 600.0)


# ------------------------------------------------------------------------------------------------- files and positions


TEXT = """\
// a comment { with: [braces
{
  stores: [
    { name: 'A', mem: {} }, /* [ */
    {
      name: "B",
      "disk": { content_path: "/a,b", temp_path: "}", read_buffer_size: "1 gig" },
    },
  ],
  servers: [],
}
"""


def refused_text(text):
    with pytest.raises(ConfigError) as caught:
        load_text(text, source="x.json5", env={}, kinds=kinds())
    return str(caught.value)


def test_errors_in_files_have_line_and_column():
    assert refused_text(TEXT).startswith(
        'x.json5:7:55: stores[1].disk.read_buffer_size: "1 gig" is not a size; expected')
    assert refused_text(TEXT.replace("'A'", "'B'").replace("1 gig", "1gb")) == (
        'x.json5:6:7: stores[1].name: "B" is already the name of stores[0]; expected another name')


def test_what_is_missing_is_reported_at_what_should_have_it():
    assert refused_text(TEXT.replace('temp_path: "}", ', "")).startswith(
        "x.json5:7:7: stores[1].disk.temp_path: missing; expected text")


def test_a_key_that_is_there_twice_is_refused():
    assert refused_text("{stores: [],\n servers: [{}, {a: 1, b: {}, 'a': 2}]}") == (
        "x.json5:2:30: servers[1].a: this key is there twice; expected it once")


@pytest.mark.parametrize(("text", "message"), [
    ("", "x.json5: is empty; expected a JSON5 object"),
    ("  \n", "x.json5: is empty; expected a JSON5 object"),
    ("[]", "x.json5: is not an object; expected { stores: [...], servers: [...] }"),
    ("{a: }", 'x.json5:1:5: is not JSON5: unexpected "}"'),
    ("{\n  a: 1\n  b: 2\n}", 'x.json5:3:3: is not JSON5: unexpected "b"'),
    ("{a: 1", "x.json5:1:6: is not JSON5: unexpected end of input"),
    ("// only a comment", "x.json5:1:18: is not JSON5: unexpected end of input"),
])
def test_what_is_no_json5_is_refused_with_its_place(text, message):
    assert refused_text(text) == message


def test_a_config_nested_beyond_reason_is_refused():
    assert refused_text("{stores: " + "[" * 5000 + "]" * 5000 + "}") == "x.json5: is nested too deeply"


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    for path, problem in ((tmp_path / "none.json5", "cannot be read: No such file or directory"),
                          (tmp_path, "cannot be read: Is a directory")):
        with pytest.raises(ConfigError, match=f"^{re.escape(str(path))}: {problem}$"):
            load_file(path)


def test_a_file_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "x.json5"
    path.write_bytes(b"{a: '\xff'}")
    with pytest.raises(ConfigError, match="is not UTF-8 at byte 5; expected JSON5 text"):
        load_file(path)


def test_a_huge_file_is_refused(tmp_path):
    path = tmp_path / "x.json5"
    path.write_bytes(b" " * (MAX_CONFIG_BYTES + 1))
    with pytest.raises(ConfigError, match=f"is larger than {MAX_CONFIG_BYTES} bytes"):
        load_file(path)


def test_an_error_found_later_gets_its_place_in_the_file(tmp_path):
    path = tmp_path / "x.json5"
    path.write_text(TEXT)
    assert str(in_file(ConfigError("stores[1].disk", "is full"), path)) == f"{path}:7:7: stores[1].disk: is full"
    assert str(in_file(ConfigError("stores[1].disk", "is full", source=str(path)), path)).startswith(f"{path}:7:7: ")
    assert str(in_file(ConfigError("", "is odd"), path)) == f"{path}: is odd"
    assert str(in_file(ConfigError("a", "is odd", source="else:1"), path)) == "else:1: a: is odd"
    path.unlink()
    assert str(in_file(PluginError("stores[1]", "is gone"), path)) == f"{path}: stores[1]: is gone"
    assert type(in_file(PluginError("stores[1]", "is gone"), path)) is PluginError


def test_json_is_json5():
    assert parse(json.dumps(worker())) == worker()


def test_escaped_surrogate_pairs_are_one_character():
    assert parse(json.dumps({"name 😀": ["😀", "\ud800"]})) == {"name 😀": ["😀", "\ufffd"]}


def test_variables_come_from_the_environment_of_the_process(monkeypatch):
    monkeypatch.setenv("WORK_HERE", "/here")
    config = load_value(worker(work_directory="$WORK_HERE"), kinds=kinds())
    assert config.workers[0].local.work_directory == "/here"


def test_an_environment_that_is_given_is_the_only_one_also_when_it_is_empty(monkeypatch):
    monkeypatch.setenv("WORK_HERE", "/here")
    value = worker(work_directory="${WORK_HERE:-/there}")
    for env in ({}, {"OTHER": "x"}):
        assert load_value(value, env=env, kinds=kinds()).workers[0].local.work_directory == "/there"
    assert load_text(json.dumps(value), env={}, kinds=kinds()).workers[0].local.work_directory == "/there"


@given(at=st.integers(0, len(TEXT)), cut=st.integers(0, 12),
       put=st.text(max_size=6) | st.sampled_from(["{", "]", ",", "'", "/*", "$"]))
def test_a_damaged_config_loads_or_is_refused_in_one_line(at, cut, put):
    damaged = TEXT[:at] + put + TEXT[at + cut:]
    try:
        load_text(damaged, source="x.json5", env={}, kinds=kinds(), on_warning=lambda line: None)
    except ConfigError as exc:
        assert str(exc).startswith("x.json5")
        assert str(exc).isprintable() or not put.isprintable()
        assert "\n" not in str(exc)
