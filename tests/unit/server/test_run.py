"""How this process's workers find its listeners: by their real ports, and with a token only where one is asked for."""

import json

import pytest

from nl.config.loader import load_text
from nl.errors import ConfigError
from nl.rpc.slots import Slots
from nl.server.composition import compose
from nl.server.listeners import bind
from nl.server.run import _with_way_in

READ = {"anonymous": [{"allow": ["read"]}]}
HERE = "grpc://127.0.0.1:0"


async def way_in(endpoint, *, address="127.0.0.1:0", auth=None):
    """(the endpoint that a worker is given, the address of the listener, the process's own token)."""
    raw = {
        "stores": [{"name": "CAS", "filesystem": {"content_path": "/nowhere/c", "temp_path": "/nowhere/t"}}],
        "schedulers": [{"name": "S", "simple": {}}],
        "servers": [
            {"listener": {"http": {"socket_address": address}}, "services": {"worker_api": {"scheduler": "S"}}}
        ],
        "workers": [
            {
                "local": {
                    "name": "w", "cas_fast_slow_store": "CAS", "work_directory": "/nowhere/w",
                    "worker_api_endpoint": endpoint, "upload_action_result": {"upload_ac_results_strategy": "never"},
                }
            }
        ],
        **({"auth": auth} if auth else {}),
    }  # fmt: skip
    config = load_text(json.dumps(raw), env={})
    sockets = await bind(config.servers[0].listener.http, path="here")
    try:
        site = compose(config, [sockets], slots=Slots(10, remedy=""))
        options = _with_way_in(site, config.workers[0].local, path="workers[0]")
        return options.worker_api_endpoint, sockets.addresses[0], site.doors.worker_token
    finally:
        sockets.close()


async def test_a_port_that_was_chosen_by_the_system_is_the_one_that_the_worker_gets():
    endpoint, address, _ = await way_in({"uri": HERE})
    assert endpoint.uri == f"grpc://{address}"
    assert not address.endswith(":0")


async def test_the_process_s_own_token_is_for_workers_that_have_none_and_are_asked_for_one(tmp_path):
    endpoint, _, own = await way_in({"uri": HERE}, auth=READ)
    assert endpoint.token == own
    endpoint, _, own = await way_in({"uri": HERE})
    assert endpoint.token is None
    endpoint, _, own = await way_in({"uri": "grpc://elsewhere:1"}, auth=READ)
    assert (endpoint.token, endpoint.uri) == (None, "grpc://elsewhere:1")


@pytest.mark.parametrize("given", [{"token": "nl_given"}, {"token_file": "/nowhere/token"}])
async def test_a_worker_that_has_a_token_of_its_own_keeps_it_and_gets_no_other(given):
    endpoint, address, _ = await way_in({"uri": HERE, **given}, auth=READ)
    assert {"token": endpoint.token, "token_file": endpoint.token_file} == {"token": None, "token_file": None, **given}
    assert endpoint.uri == f"grpc://{address}"


async def test_a_worker_without_a_port_needs_a_listener_here_with_the_same_address():
    with pytest.raises(ConfigError, match=r'workers\[0\]: "grpc://127.0.0.2:0" has no port; expected one'):
        await way_in({"uri": "grpc://127.0.0.2:0"})


async def test_a_unix_socket_needs_no_port(tmp_path):
    endpoint, _, _ = await way_in({"uri": f"unix:{tmp_path}/s"})
    assert endpoint.uri == f"unix:{tmp_path}/s"
