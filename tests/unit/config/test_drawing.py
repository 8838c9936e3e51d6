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


def test_who_may_do_what_is_drawn_under_each_listener():
    auth = {
        "tokens_file": "/etc/nl/tokens",
        "jwt": [{
            "name": "github", "issuer": "https://i", "audience": ["nl"], "jwks_url": "https://i/keys",
            "grants": [{"claims": {"ref": "main", "repository": "a/*"}, "allow": ["write"], "instances": ["main"]},
                       {"allow": ["read"]}],
        }],
        "certificates": [{"uri": "spiffe://a/*", "common_name": "x", "allow": ["worker", "read"]},
                         {"dns": "*.a", "email": "*@a", "allow": ["all"], "instances": [""]}],
        "anonymous": [{"allow": ["read_cas"], "instances": ["a", "b"]}],
    }  # fmt: skip
    tls = {"cert_file": "c", "key_file": "k", "client_ca_file": "ca"}
    servers = [{"listener": {"http": {"socket_address": ":1", "tls": tls}}, "services": {}, "auth": auth},
               {"listener": {"http": {"socket_address": ":2"}}, "services": {}}]  # fmt: skip
    assert draw(load_value({"servers": servers}, env={}, kinds=kinds())) == """\
listener :1 with TLS: no services
  tokens of /etc/nl/tokens
  web tokens of github (ref=main repository=a/*): write for 'main'
  web tokens of github (all): read for '*'
  certificates (uri=spiffe://a/* cn=x): worker, read for '*'
  certificates (dns=*.a email=*@a): all for ''
  everybody: read_cas for 'a', 'b'
listener :2: no services
  everybody may do everything"""
