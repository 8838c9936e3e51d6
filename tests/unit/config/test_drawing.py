"""The drawing of a config, literally."""

from nl.config.drawing import draw, draw_store
from nl.config.loader import load_value
from nl.config.registry import StoreKinds
from tests.unit.config.kinds import kinds

CONFIG = {
    "stores": [
        {"name": "CAS", "pair": {
            "left": {"disk": {"content_path": "/data/cas", "temp_path": "/data/tmp",
                              "eviction_policy": {"max_bytes": "10gb", "max_seconds": "1d 12h"}}},
            "right": {"many": {"stores": [{"mem": {}}, {"link": {"name": "AC"}}]}},
            "mode": "get",
        }},
        {"name": "AC", "mem": {}},
    ],
    "schedulers": [{"name": "MAIN", "simple": {}}],
    "workers": [{"local": {"cas_fast_slow_store": "CAS", "work_directory": "/work"}}],
    "servers": [
        {"name": "public",
         "listener": {"http": {"socket_address": ":50051", "tls": {"cert_file": "c", "key_file": "k"}}},
         "services": {"cas": [{"cas_store": "CAS"}], "capabilities": [], "fetch": {}}},
        {"listener": {"http": {"socket_address": "127.0.0.1:50061"}}, "services": {}},
    ],
}
DRAWING = """\
store CAS: pair  mode=get
├─ left: disk  content_path=/data/cas  temp_path=/data/tmp  eviction_policy.max_bytes=10 GB  \
eviction_policy.max_seconds=1d 12h
└─ right: many
   ├─ stores[0]: mem
   └─ stores[1]: link  name -> AC
store AC: mem
scheduler MAIN: simple
listener :50051 (public) with TLS: cas, capabilities
  everybody may do everything
listener 127.0.0.1:50061: no services
  everybody may do everything
worker 0: store CAS, work in /work, scheduler at grpc://127.0.0.1:50061"""


def test_a_secret_is_not_drawn():
    config = load_value({"stores": [{"name": "E", "everything": {"secret": "hunter2", "size": "1mb", "flag": True}}],
                         "servers": CONFIG["servers"][1:]}, env={}, kinds=kinds())
    assert draw(config).splitlines()[0] == "store E: everything  secret=***  size=1 MB  flag=true"


def test_a_config_is_drawn_as_trees_listeners_and_workers():
    config = load_value(CONFIG, env={}, kinds=kinds())
    assert draw(config) == DRAWING
    assert draw_store("AC", config.store("AC")) == "AC: mem"


def test_a_store_behind_the_network_shows_where():
    endpoints = [{"address": "grpc://one:1", "token": "secret"}, {"address": "grpc://two:2"}]
    config = load_value(
        {"stores": [{"name": "A", "grpc": {"endpoints": endpoints, "store_type": "cas"}}],
         "servers": [{"listener": {"http": {"socket_address": "127.0.0.1:1"}}, "services": {}}]},
        env={}, kinds=StoreKinds.built_in(), on_warning=print,
    )
    assert draw_store("A", config.stores[0].spec) == "A: grpc  endpoints -> grpc://one:1, grpc://two:2  store_type=cas"
