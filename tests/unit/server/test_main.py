"""What `nl serve` tells its user to copy."""

import socket
from pathlib import Path
from types import SimpleNamespace

import pytest

from nl.errors import ConfigError
from nl.server.main import BUILT_IN, _config_error, _placed, _print_flags, _reachable, _serve


@pytest.mark.parametrize(
    ("bound", "shown"),
    [
        ("127.0.0.1:50051", "127.0.0.1:50051"),
        ("[::1]:50051", "[::1]:50051"),
        ("0.0.0.0:50051", f"{socket.gethostname()}:50051"),
        ("[::]:1", f"{socket.gethostname()}:1"),
    ],
)
def test_an_address_of_all_interfaces_is_shown_as_other_machines_write_it(bound, shown):
    assert _reachable(bound) == shown


class Endpoint:
    """A listener, as far as its flags are printed."""

    def __init__(self, *addresses, execution=()):
        self.addresses = addresses
        self.config = SimpleNamespace(services=SimpleNamespace(execution=execution))


def printed(capfd, *endpoints, **more):
    _print_flags(endpoints, directory=Path("/data"), **more)
    return capfd.readouterr().out


def test_the_flags_name_where_actions_are_run_and_what_else_leads_there(capfd):
    out = printed(capfd, Endpoint("127.0.0.1:1", "unix:/run/nl.sock", execution=[1]), Endpoint("127.0.0.1:9"))
    assert "nl is ready; blobs and results are kept in /data\n" in out
    assert "    bazel test //... --remote_executor=grpc://127.0.0.1:1\n" in out
    assert "    bazel test //... --remote_cache=grpc://127.0.0.1:1\n" in out
    assert "  Also at unix:/run/nl.sock\n" in out
    assert ":9" not in out
    assert "NL_TOKEN" not in out
    assert "\x1b" not in out, "it is no terminal"


def test_the_flags_ask_for_a_token_where_the_server_does(capfd):
    out = printed(capfd, Endpoint("127.0.0.1:1", execution=[1]), asks_for_tokens=True)
    token = ' "--remote_header=authorization=Bearer $NL_TOKEN"\n'
    assert out.count(f"grpc://127.0.0.1:1{token}") == 2
    assert "Also at" not in out


@pytest.mark.parametrize(
    ("errors", "is_config"),
    [
        ([ConfigError("a", "x")], True),
        ([ExceptionGroup("", [ConfigError("a", "x")])], True),
        ([ConfigError("a", "x"), ConfigError("b", "y")], True),
        ([ConfigError("a", "x"), ValueError()], False),
        ([ValueError()], False),
        ([ExceptionGroup("", [ConfigError("a", "x"), KeyError()])], False),
    ],
)
def test_only_what_the_user_can_mend_is_told_in_one_line(errors, is_config):
    found = _config_error(BaseExceptionGroup("", errors))
    assert (found is not None) is is_config
    assert found is None or found.path == "a"


def test_what_is_wrong_is_placed_in_the_file_that_the_user_has(tmp_path):
    path = tmp_path / "x.json5"
    path.write_text("{\n  stores: 5\n}")
    placed = _placed(ConfigError("stores", "is wrong"), str(path))
    assert str(placed) == f"{path}:2:3: stores: is wrong"
    assert str(_placed(ConfigError("stores", "is wrong"), BUILT_IN)) == f"{BUILT_IN}: stores: is wrong"


def test_a_config_without_anything_to_run_is_refused():
    with pytest.raises(ConfigError, match="servers: is empty, and there are no workers; expected at least one"):
        _serve(SimpleNamespace(servers=(), workers=()), source="x")
