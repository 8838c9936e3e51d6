"""Which listener has which door, and what is said about those without."""

import json
import logging

import pytest

from nl.config.loader import load_text
from nl.errors import ConfigError
from nl.model.access import Right
from nl.server.doors import Doors, is_reachable

CAS = {"cas": [{"cas_store": "CAS"}]}
ALL = {
    "cas": [{"cas_store": "CAS"}], "ac": [{"ac_store": "AC"}], "worker_api": {"scheduler": "S"},
    "execution": [{"cas_store": "CAS", "scheduler": "S"}],
}  # fmt: skip
READ = {"anonymous": [{"allow": ["read"]}]}


def config(*servers, **more):
    raw = {
        "stores": [{"name": name, "memory": {}} for name in ("CAS", "AC")],
        "schedulers": [{"name": "S", "simple": {}}],
        "servers": [
            {"listener": {"http": {"socket_address": address, **http}}, "services": services, **own}
            for address, http, services, own in servers
        ],
        **more,
    }
    return load_text(json.dumps(raw), source="x")


def test_a_listener_has_its_own_door_or_that_of_all():
    own = {"auth": {"anonymous": [{"allow": ["all"]}]}}
    doors = Doors(config((":1", {}, CAS, {}), (":2", {}, CAS, own), (":3", {}, CAS, {}), auth=READ))
    assert doors.at(0) is doors.at(2)
    assert not doors.at(0).authenticate("p:1", None, None).may(Right.EXECUTE, "")
    assert doors.at(1).authenticate("p:1", None, None).may(Right.EXECUTE, "")
    assert len(doors.authenticators) == 2
    doors = Doors(config((":1", {}, CAS, {}), (":2", {}, CAS, {"auth": READ})))
    assert doors.at(0) is None
    assert doors.at(1) is not None


def test_the_process_s_own_workers_come_in_by_a_token_that_changes_each_time():
    text = config((":1", {}, ALL, {}), auth=READ)
    one, two = Doors(text), Doors(text)
    header = b"Bearer " + one.worker_token.encode()
    identity = one.at(0).authenticate("p:1", None, header)
    assert identity.rights_on("main") == Right.REGISTER_WORKERS
    with pytest.raises(Exception, match="not known"):
        two.at(0).authenticate("p:1", None, header)


@pytest.mark.parametrize(
    ("address", "worker", "expected"),
    [
        ("127.0.0.1:0", ("127.0.0.1", 0), True), ("127.0.0.1:5", ("127.0.0.1", 5), True),
        ("0.0.0.0:5", ("127.0.0.1", 5), True), ("[::]:5", ("localhost", 5), True), (":5", ("localhost", 5), True),
        ("0.0.0.0:5", ("127.0.0.1", 6), False), ("0.0.0.0:5", ("elsewhere", 5), False),
        ("127.0.0.1:5", ("elsewhere", 5), False),
    ],
)  # fmt: skip
def test_that_token_is_sent_to_ones_own_listeners_only(address, worker, expected):
    assert Doors(config((address, {}, ALL, {}), auth=READ)).leads_here(*worker) is expected
    assert not Doors(config((address, {}, ALL, {}))).leads_here(*worker)


@pytest.mark.parametrize(
    ("address", "expected"),
    [("127.0.0.1:1", False), ("127.8.0.1:1", False), ("[::1]:1", False), ("0.0.0.0:1", True), ("[::]:1", True),
     ("10.0.0.1:1", True), ("[fe80::1%eth0]:1", True), ("unix:/run/nl.sock", False), ("[::ffff:127.0.0.1]:1", False)],
)  # fmt: skip
def test_loopback_and_sockets_of_files_are_not_reached_by_others(address, expected):
    assert is_reachable(address) is expected


def warnings(caplog, services, addresses, own=None, **http):
    doors = Doors(config((":1", http, services, own or {})))
    caplog.clear()
    with caplog.at_level(logging.INFO):
        doors.warn(0, addresses)
    assert all(each.levelno == logging.WARNING for each in caplog.records)
    return caplog.messages


def test_an_open_door_to_the_world_is_said_aloud_with_all_that_is_open(caplog):
    [line] = warnings(caplog, ALL, ["0.0.0.0:1", "127.0.0.1:2"])
    assert line == (
        "no authentication: everybody who reaches 0.0.0.0:1 may read and write blobs; read and WRITE action results; "
        "run actions; register workers, whose results everybody then gets. To close it: `nl token create ci --allow "
        "all --file tokens`, then `nl serve --tokens tokens`, or auth: { tokens_file: \"tokens\" } in a config file"
    )
    [line] = warnings(caplog, {"ac": [{"ac_store": "AC", "read_only": True}]}, ["[::]:1"])
    assert "may read action results. To close" in line


def test_names_that_share_an_action_cache_are_said_aloud_where_rights_should_part_them(caplog):
    names = {"ac": [{"instance_name": name, "ac_store": "AC"} for name in ("main", "pr")]}
    Doors(config((":1", {}, names, {}), auth=READ))
    [line] = caplog.messages
    assert line.startswith("the instances 'main', 'pr' keep their action results in the same store 'AC': who may write")
    caplog.clear()
    Doors(config((":1", {}, names, {})))
    Doors(config((":1", {}, ALL, {}), (":2", {}, ALL, {}), auth=READ))
    assert caplog.messages == []


def test_what_only_this_machine_reaches_is_not(caplog):
    assert warnings(caplog, ALL, ["127.0.0.1:1"]) == []
    assert warnings(caplog, ALL, ["127.0.0.1:1"], {"auth": READ}) == []


def test_a_listener_that_asks_everybody_for_a_certificate_is_not_open(caplog):
    tls = {"cert_file": "c", "key_file": "k", "client_ca_file": "a"}
    assert warnings(caplog, ALL, ["0.0.0.0:1"], tls=tls) == []
    [line] = warnings(caplog, ALL, ["0.0.0.0:1"], tls={**tls, "client_auth": "accept"})
    assert line.startswith("no authentication: everybody who reaches 0.0.0.0:1 may")


def test_a_door_that_lets_everybody_do_harm_is_said_aloud(caplog):
    tls = {"cert_file": "c", "key_file": "k"}
    anonymous = [{"allow": ["write"], "instances": ["pr"]}, {"allow": ["worker"]}]
    [line] = warnings(caplog, ALL, ["0.0.0.0:1"], {"auth": {"anonymous": anonymous}}, tls=tls)
    assert line == (
        "0.0.0.0:1: servers[0].auth.anonymous gives everybody who reaches it write_cas, write_ac, register_workers, "
        "without any credentials"
    )
    assert warnings(caplog, ALL, ["127.0.0.1:1"], {"auth": {"anonymous": anonymous}}, tls=tls) == []


def test_tokens_without_tls_are_said_aloud(caplog):
    assert warnings(caplog, ALL, ["0.0.0.0:1"], {"auth": READ}) == [
        "0.0.0.0:1 takes credentials without TLS: whoever sees the traffic can use them"
    ]
    tls = {"cert_file": "c", "key_file": "k"}
    assert warnings(caplog, ALL, ["0.0.0.0:1"], {"auth": READ}, tls=tls) == []


@pytest.mark.parametrize(
    ("auth", "message"),
    [
        ({}, "auth: lets nobody do anything; expected tokens_file, jwt, certificates or anonymous"),
        ({"anonymous": [{"allow": []}]}, r"auth.anonymous\[0\].allow: is empty"),
        ({"anonymous": [{"allow": ["reed"]}]}, r'auth.anonymous\[0\].allow\[0\]: "reed" is none of the choices \(did'),
        ({"certificates": [{"allow": ["read"], "dns": "*"}]}, "auth.certificates: never match: no listener that uses"),
        ({"jwt": [{"name": "a", "issuer": "i", "audience": ["x"], "grants": [{"allow": ["read"]}]}]},
         r"auth.jwt\[0\]: expected exactly one of jwks_url and jwks_file"),
        ({"jwt": [{"name": "a", "issuer": "i", "audience": [], "jwks_file": "f", "grants": [{"allow": ["read"]}]}]},
         r"auth.jwt\[0\].audience: is empty"),
        ({"jwt": [{"name": "a", "issuer": "i", "audience": ["x"], "jwks_url": "http://ci.example/k",
                   "grants": [{"allow": ["read"]}]}]}, r"auth.jwt\[0\].jwks_url: .* is no https address"),
        ({"jwt": [{"name": "a", "issuer": "i", "audience": ["x"], "jwks_file": "f", "algorithms": ["HS256"],
                   "grants": [{"allow": ["read"]}]}]}, r'algorithms\[0\]: "HS256" is none of the choices'),
        ({"jwt": [{"name": "a", "issuer": issuer, "audience": ["x"], "jwks_file": "f",
                   "grants": [{"allow": ["read"]}]} for issuer in "ij"]}, r"auth.jwt\[1\]: has a name or an issuer"),
        ({"jwt": [{"name": "dns", "issuer": "i", "audience": ["x"], "jwks_file": "f",
                   "grants": [{"allow": ["read"]}]}]}, r"auth.jwt\[0\]: has a name or an issuer that is taken"),
    ],
)  # fmt: skip
def test_a_section_that_cannot_be_meant_is_refused(auth, message):
    with pytest.raises(ConfigError, match=message):
        config((":1", {}, CAS, {}), auth=auth)


def test_certificates_need_one_listener_that_asks_for_them():
    grants = {"certificates": [{"allow": ["read"], "dns": "*"}]}
    tls = {"tls": {"cert_file": "c", "key_file": "k", "client_ca_file": "ca"}}
    config((":1", {}, CAS, {}), (":2", tls, CAS, {}), auth=grants)
    config((":1", tls, CAS, {}), (":2", {}, CAS, {}), auth=grants)
    with pytest.raises(ConfigError, match=r"servers\[0\].auth.certificates: never match: the listener has no tls"):
        config((":1", {}, CAS, {"auth": grants}), (":2", tls, CAS, {}))


def test_one_cache_that_can_be_written_is_enough_to_say_so(caplog):
    both = [{"ac_store": "AC", "read_only": True}, {"instance_name": "b", "ac_store": "AC"}]
    for entries in (both, both[::-1]):
        [line] = warnings(caplog, {"ac": entries}, ["[::]:1"])
        assert "may read and WRITE action results. To close" in line


@pytest.mark.parametrize(
    ("services", "what"),
    [({"cas": [{"cas_store": "CAS"}]}, "read and write blobs"), ({"health": {}}, "ask for health and services"),
     ({"bytestream": [{"cas_store": "CAS"}]}, "read and write blobs"),
     ({"execution": [{"cas_store": "CAS", "scheduler": "S"}]}, "run actions"),
     ({"worker_api": {"scheduler": "S"}}, "register workers, whose results everybody then gets")],
)  # fmt: skip
def test_what_is_open_is_named_and_nothing_else(caplog, services, what):
    [line] = warnings(caplog, services, ["[::]:1"])
    assert line.startswith(f"no authentication: everybody who reaches [::]:1 may {what}. To close it:")


def test_who_administers_a_server_has_the_right_for_every_instance_of_every_service():
    services = {
        "cas": [{"instance_name": "a", "cas_store": "CAS"}], "ac": [{"instance_name": "b", "ac_store": "AC"}],
        "bytestream": [{"instance_name": "c", "cas_store": "CAS"}],
        "execution": [{"instance_name": "d", "cas_store": "CAS", "scheduler": "S"}],
        "capabilities": [{"instance_name": "e"}],
    }  # fmt: skip
    assert Doors(config((":1", {}, services, {}), (":2", {}, CAS, {}))).instances == {*"abcde", ""}
    assert Doors(config((":1", {}, {"health": {}}, {}))).instances == {""}


def test_figures_of_doors_stand_under_their_paths():
    own = {"auth": {"anonymous": [{"allow": ["all"]}]}}
    doors = Doors(config((":1", {}, CAS, {}), (":2", {}, CAS, own), auth=READ))
    assert list(doors.statistics()) == ["auth", "servers[1].auth"]
    assert doors.statistics()["auth"] == {"tokens": 0, "remembered": 0, "failures": 0}
