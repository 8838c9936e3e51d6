"""The commands as a user meets them: real processes, exit codes, what is printed where."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nl.cli.main import nativelink_arguments

NL = (sys.executable, "-c", "from nl.cli.main import main; main()")
NATIVELINK = (sys.executable, "-c", "from nl.cli.main import nativelink; nativelink()")
GOOD = """{
  stores: [{ name: "CAS", memory: { eviction_policy: { max_bytes: "1gb" } } }, { name: "AC", memory: {} }],
  servers: [{
    listener: { http: { socket_address: "127.0.0.1:0" } },
    services: { cas: [{ cas_store: "CAS" }], ac: [{ ac_store: "AC" }], bytestream: { cas_stores: { "": "CAS" } } },
  }],
}
"""


def run(*arguments, command=NL, cwd=None):
    result = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=60, check=False, cwd=cwd,
                            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])})
    return result.returncode, result.stdout, result.stderr


def test_version_and_help():
    code, out, err = run("--version")
    assert (code, err) == (0, "")
    assert out.startswith("nl, version ")
    for help_option in ("--help", "-h"):
        code, out, err = run(help_option)
        assert (code, err) == (0, "")
        assert all(command in out for command in ("serve", "config", "stores"))
    assert run()[0] == 2


def test_help_imports_no_server():
    script = ("import sys; from nl.cli.main import run; run(['--help'], prog_name='nl'); "
              "print([name for name in ('trio', 'json5', 'nl.config', 'nl.server.main') if name in sys.modules])")
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.endswith(
        "\n[]\n")


def test_check_draws_a_good_config(tmp_path):
    (tmp_path / "good.json5").write_text(GOOD)
    code, out, err = run("config", "check", "good.json5", cwd=tmp_path)
    assert code == 0
    assert out == ("OK good.json5\nstore CAS: memory  eviction_policy.max_bytes=1 GB\nstore AC: memory\n"
                   "listener 127.0.0.1:0: cas, ac, bytestream\n  everybody may do everything\n"
                   "action results of instance '' on 127.0.0.1:0: only those whose outputs are in CAS\n")
    assert err == ("warning: good.json5: servers[0].services.bytestream is written with cas_stores, an older form; "
                   'better as a list: [{ instance_name: "main", cas_store: "CAS" }]\n')


def test_check_refuses_a_bad_config_in_one_line(tmp_path):
    (tmp_path / "bad.json5").write_text(GOOD.replace("max_bytes", "max_bite"))
    assert run("config", "check", "bad.json5", cwd=tmp_path) == (2, "", (
        "nl: bad.json5:2:56: stores[0].memory.eviction_policy.max_bite: unknown key (did you mean max_bytes?); "
        "expected one of max_bytes, evict_bytes, max_seconds, max_count\n"))


@pytest.mark.parametrize(("arguments", "message"), [
    (("config", "check", "none.json5"), "nl: none.json5: cannot be read: No such file or directory\n"),
    (("config", "check"), "nl: Missing argument 'FILE'. (see nl --help)\n"),
    (("sevre",), "nl: No such command 'sevre'. (see nl --help)\n"),
    (("--verzion",), "nl: No such option '--verzion'. Did you mean '--version'? (see nl --help)\n"),
    (("serve", "--port", "70000"),
     "nl: Invalid value for '--port': 70000 is not in the range 0<=x<=65535. (see nl --help)\n"),
    (("serve", "--max-bytes", "lots"),
     "nl: Invalid value for '--max-bytes': \"lots\" is not a size; expected bytes or a size such as \"20GB\" (see nl "
     "--help)\n"),
    (("serve", "x.json5", "--port", "1"), "nl: --port cannot be used together with a config file (see nl --help)\n"),
])
def test_mistakes_on_the_command_line_are_one_line(tmp_path, arguments, message):
    assert run(*arguments, cwd=tmp_path) == (2, "", message)


def test_stores_list_names_every_kind_with_its_distribution():
    code, out, err = run("stores", "list")
    assert err == ""
    lines = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert lines["memory"].startswith("nl ")
    assert set(lines) >= {"filesystem", "fast_slow", "ref_store", "noop", "verify"}
    assert code == (1 if "broken" in out else 0)


def test_schema_is_json():
    code, out, err = run("config", "schema")
    assert (code, err) == (0, "")
    schema = json.loads(out)
    assert schema["additionalProperties"] is False
    assert "memory" in schema["$defs"]["Store"]["properties"]


def test_reference_is_markdown():
    code, out, err = run("config", "reference")
    assert (code, err) == (0, "")
    assert out.startswith("# Configuration reference\n")
    assert "### Store kind `memory`" in out


def test_the_default_config_is_one_that_loads(tmp_path):
    code, out, err = run("config", "default", "--data-dir", str(tmp_path / "data"), "--max-bytes", "5gb")
    assert (code, err) == (0, "")
    (tmp_path / "default.json5").write_text(out)
    code, drawn, err = run("config", "check", str(tmp_path / "default.json5"))
    assert (code, err) == (0, "")
    assert f"content_path={tmp_path}/data/cas" in drawn
    assert "max_bytes=5 GB" in drawn


def test_nativelink_has_the_same_commands():
    assert run("stores", "list", command=NATIVELINK)[1] == run("stores", "list")[1]
    assert run("--version", command=NATIVELINK)[0] == 0


def test_nativelink_with_a_config_runs_a_server(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plain").write_text("{}")
    assert nativelink_arguments(["config.json5"]) == ["serve", "config.json5"]
    assert nativelink_arguments(["/etc/nl/config"]) == ["serve", "/etc/nl/config"]
    assert nativelink_arguments(["plain"]) == ["serve", "plain"]
    assert nativelink_arguments(["serve"]) == ["serve"]
    assert nativelink_arguments(["sevre"]) == ["sevre"]
    assert nativelink_arguments(["--help"]) == ["--help"]
    assert nativelink_arguments([]) == []


def test_nativelink_refuses_a_bad_config_in_one_line(tmp_path):
    (tmp_path / "bad.json5").write_text("{ stores: [ }")
    assert run("bad.json5", command=NATIVELINK, cwd=tmp_path) == (
        2, "", 'nativelink: bad.json5:1:13: is not JSON5: unexpected "}"\n')


def test_a_config_is_printed_as_a_graph(tmp_path):
    (tmp_path / "good.json5").write_text(GOOD)
    code, out, _ = run("config", "graph", "good.json5", cwd=tmp_path)
    assert code == 0
    assert out.startswith("digraph nl {") and '"listener 0" -> "store AC" [label="ac"' in out


def test_stores_are_asked_one_line_each_and_the_exit_code_tells(tmp_path):
    (tmp_path / "good.json5").write_text(GOOD)
    code, out, _ = run("stores", "check", "good.json5", cwd=tmp_path)
    assert code == 0
    assert [line.split()[:3] for line in out.splitlines()] == [["ok", "CAS", "memory:"], ["ok", "AC", "memory:"]]
    (tmp_path / "file").write_text("")
    place = f'filesystem: {{ content_path: "{tmp_path}/file/c", temp_path: "{tmp_path}/t" }}'
    (tmp_path / "bad.json5").write_text(GOOD.replace("memory: {}", place))
    code, out, err = run("stores", "check", "bad.json5", cwd=tmp_path)
    assert code == 1 and "Traceback" not in err
    assert out.splitlines()[0].startswith("ok") and out.splitlines()[1].startswith("FAILED  AC  filesystem: stores[1]")
