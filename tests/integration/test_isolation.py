"""Actions that mean harm, on machines of every kind: none gets out, and the worker runs the next one.

The machines are made of this one (`tests/support/machines.py`), the actions are in `escapes.py`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from nl.config.workers import IsolationOptions
from nl.errors import ConfigError
from nl.pb import reapi
from nl.worker.isolation import IsolatedRunner, Surroundings
from nl.worker.processes import Supervisor
from nl.worker.runner import Job, KillSwitch
from tests.integration.escapes import HOLDS
from tests.integration.worker_site import Site, site_with
from tests.support import machines

STRONGEST = {
    "root": "sandbox",
    "root without namespaces": "uid",
    "user": "sandbox",
    "user without namespaces": "plain",
}


@pytest.fixture(scope="session")
def open_folder() -> Iterator[Path]:
    """A folder that all users may work in."""
    with tempfile.TemporaryDirectory(prefix="nl-isolation-") as name:
        Path(name).chmod(0o1777)
        yield Path(name)


def on_machine(kind: str, *command: str, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
    """Runs Python on a machine of a kind."""
    python = sys.executable
    return subprocess.run(
        [python, "-m", "tests.support.machines", kind, python, *command],
        cwd=machines.ROOT, env={**os.environ, "NL_SECRET": "swordfish"}, timeout=timeout_s, check=False,
        capture_output=True, text=True,
    )  # fmt: skip


def needs_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("machines of other kinds can only be made by root")


def needs_namespaces(kind: str) -> None:
    """Skips where this machine lets nobody have what the strongest kind needs."""
    probe = "import ctypes, os; raise SystemExit(ctypes.CDLL(None, use_errno=True).unshare(0x10020000) != 0)"
    if STRONGEST[kind] == "sandbox" and on_machine(kind, "-c", probe).returncode:
        pytest.skip(f"no namespaces for a {kind} here: the kernel, or the container that this runs in, forbids it")


@pytest.fixture(scope="session", params=machines.KINDS)
def escapes(request: pytest.FixtureRequest, open_folder: Path) -> dict[str, object]:
    """What came of each escape on a machine of one kind, and the kind of isolation there."""
    needs_root()
    needs_namespaces(request.param)
    done = on_machine(request.param, "-m", "tests.integration.escapes", str(open_folder))
    assert done.returncode == 0, done.stderr[-3000:]
    return {"machine": request.param, **json.loads(done.stdout)}


def test_the_strongest_kind_that_the_machine_allows_is_chosen(escapes: dict[str, object]) -> None:
    assert escapes["kind"] == STRONGEST[str(escapes["machine"])]


@pytest.mark.parametrize("name", HOLDS)
def test_no_action_gets_out(escapes: dict[str, object], name: str) -> None:
    if escapes["kind"] in HOLDS[name]:
        assert escapes[name] is True, escapes[name]


def test_a_kind_that_is_named_and_not_possible_is_one_line_of_error(escapes: dict[str, object]) -> None:
    refused = escapes["refused"]
    assert isinstance(refused, dict)
    possible = {"root": {"sandbox", "uid"}, "root without namespaces": {"uid"}, "user": {"sandbox"}}
    assert {"sandbox", "uid"} - set(refused) == possible.get(str(escapes["machine"]), set())
    for kind, said in refused.items():
        assert said.startswith(f'workers[0].local.isolation.kind: "{kind}" is not possible here: {kind}: ')
        assert "\n" not in said


# ---- what a sandbox is like from inside


@pytest.fixture(params=["sandbox", "uid"])
async def site(request: pytest.FixtureRequest, tmp_path: Path):
    needs_root()
    needs_namespaces("root")
    async with site_with(tmp_path, "filesystem", isolation=IsolationOptions(kind=request.param)) as made:
        yield made


@pytest.fixture
async def sandbox(tmp_path: Path):
    needs_root()
    needs_namespaces("root")
    async with site_with(tmp_path, "filesystem", isolation=IsolationOptions(kind="sandbox")) as made:
        yield made


async def contents(site: Site, proto: reapi.Digest | None) -> dict[str, str]:
    """Files, links and directories of a Directory, by path."""
    found = {}
    directory = reapi.Directory.parse(await site.text(proto)) if proto is not None else reapi.Directory()
    for file in directory.files:
        found[file.name] = (await site.text(file.digest)).decode()
    for link in directory.symlinks:
        found[link.name] = f"-> {link.target}"
    for child in directory.directories:
        found |= {f"{child.name}/{name}": text for name, text in (await contents(site, child.digest)).items()} or {
            f"{child.name}/": ""
        }
    return found


async def test_whatever_an_action_does_to_its_input_root_is_what_is_collected(sandbox: Site):
    """An overlay tells it by whiteouts and opaque directories; what is collected is as if there had been none."""
    script = """
        rm -r gone; rm -r anew; mkdir anew; echo 1 > anew/only
        rm -r dir-to-file; echo 2 > dir-to-file
        rm file-to-dir; mkdir file-to-dir; echo 3 > file-to-dir/x
        rm file-to-link; ln -s kept/a file-to-link
        chmod u+w kept/a; echo more >> kept/a; chmod 755 kept/b; rm kept/c
        mkdir -p kept/new/deep; echo 4 > kept/new/deep/f
        rm link; echo 5 > link; mv renamed renamed-too; mkdir made; mv made/ moved
        rm -r twice; mkdir twice; rm -r twice; mkdir twice; touch twice/t
    """
    inputs = {
        "gone": {"f": b"x", "d": {"g": b"x"}}, "anew": {"old": b"x", "d": {"o": b"x"}}, "dir-to-file": {"f": b"x"},
        "file-to-dir": b"x", "file-to-link": b"x", "kept": {"a": b"a", "b": b"b", "c": b"c", "d": {"e": b"e"}},
        "link": "kept/a", "renamed": b"r", "twice": {"u": b"x"},
    }  # fmt: skip
    result = await sandbox.result(["sh", "-ec", script], inputs=inputs, output_paths=["."],
                                  output_directory_format=reapi.CommandOutputDirectoryFormat(1))
    (output,) = result.output_directories
    assert await contents(sandbox, output.root_directory_digest) == {
        "anew/only": "1\n", "dir-to-file": "2\n", "file-to-dir/x": "3\n", "file-to-link": "-> kept/a",
        "kept/a": "amore\n", "kept/b": "b", "kept/d/e": "e", "kept/new/deep/f": "4\n", "link": "5\n",
        "renamed-too": "r", "moved/": "", "twice/t": "",
    }  # fmt: skip
    next_one = await sandbox.result(["cat", "kept/a"], inputs=inputs)
    assert await sandbox.text(next_one.stdout_digest) == b"a"


async def test_inputs_can_be_changed_in_place_as_on_any_machine(sandbox: Site):
    script = "test -O in -a -O dir/f; chmod u+w in; touch dir/f; echo new > in; ln dir/f linked; echo 1 > dir/g; cat in"
    result = await sandbox.result(["sh", "-ec", script], inputs={"in": b"old", "dir": {"f": b"f"}})
    assert await sandbox.text(result.stdout_digest) == b"new\n"


async def test_an_action_that_asks_for_the_network_has_it(sandbox: Site):
    count = ["sh", "-c", "grep -c : /proc/net/dev"]
    alone = await sandbox.result(count)
    assert await sandbox.text(alone.stdout_digest) == b"1\n", "lo"
    properties = reapi.Platform(properties=[reapi.PlatformProperty(name="requires-network", value="1")])
    asking = await sandbox.result(["sh", "-c", "readlink /proc/self/ns/net"], platform=properties)
    assert await sandbox.text(asking.stdout_digest) == os.readlink("/proc/self/ns/net").encode() + b"\n"


async def test_the_input_root_can_be_the_root_directory(tmp_path: Path):
    needs_root()
    needs_namespaces("root")
    busybox = _static_program()
    async with site_with(tmp_path, "filesystem", isolation=IsolationOptions(kind="sandbox", rootfs=True)) as site:
        result = await site.result(["/bin/program"], inputs={"bin": {"program": (busybox,)}})
        assert result.exit_code == 0
        assert (await site.run(await site.action(["/bin/sh"]))).response.result.exit_code == 127


def _static_program() -> bytes:
    """The smallest program: an ELF file of which Linux needs nothing else, that exits with 0."""
    import platform
    import struct

    code = {
        "x86_64": (62, b"\x31\xff\xb8\x3c\x00\x00\x00\x0f\x05"),
        "aarch64": (183, b"\x00\x00\x80\xd2\xa8\x0b\x80\xd2\x01\x00\x00\xd4"),
    }
    if platform.machine() not in code:
        pytest.skip(f"no program for {platform.machine()} is written down here")
    machine, text = code[platform.machine()]
    base, start = 0x400000, 64 + 56
    size = start + len(text)
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 2, machine, 1, base + start, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    return header + struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, 4096) + text


async def test_resources_used_and_strays_are_told_of_confined_actions_too(site: Site):
    before = site.supervisor.statistics()["strays_killed"]
    script = "i=0; while [ $i -lt 30000 ]; do i=$((i+1)); done; sleep 1000 & exit 0"
    report = await site.run(await site.action(["sh", "-c", script]))
    assert report.usage.cpu_time_ms > 0
    assert report.usage.peak_memory_kb > 0
    assert site.supervisor.statistics()["strays_killed"] == before + 1


async def test_a_command_that_is_not_there_ends_as_in_a_shell(site: Site):
    result = await site.result(["/nonexistent/program"])
    assert result.exit_code == 127
    assert b"cannot execute '/nonexistent/program'" in await site.text(result.stderr_digest)
    assert (await site.result(["/etc/passwd"])).exit_code == 126


async def test_what_is_printed_before_a_time_limit_is_kept(site: Site):
    report = await site.run(await site.action(["sh", "-c", "echo begun; sleep 1000"], timeout_s=2, output_paths=["x"]))
    assert report.response.status.code == 4
    assert await site.text(report.response.result.stdout_digest) == b"begun\n"


@pytest.mark.parametrize("isolated", [True, False])
async def test_a_command_may_open_as_many_files_as_the_server_at_its_start(tmp_path: Path, isolated: bool):
    """The server has raised its own soft limit; programs that close all that they might have open would take long."""
    supervisor = Supervisor(open_files=77)
    where = "workers[0].local.isolation", "w"
    options = IsolationOptions(kind=None if isolated else "plain")
    runner = IsolatedRunner(
        options, supervisor=supervisor, work_directory=str(tmp_path / "work"), surroundings=Surroundings(*where)
    )
    directory = tmp_path / "work" / "action"
    (directory / "work").mkdir(parents=True)
    async with trio.open_nursery() as nursery:
        await nursery.start(runner.serve)
        async with runner.place(str(directory)) as place:
            streams = f"{directory}/out", f"{directory}/err"
            job = Job(["/bin/sh", "-c", "ulimit -n"], {}, f"{directory}/work", *streams, 60, 1 << 20, place=place)
            ended = await runner.run(job, switch=KillSwitch())
        nursery.cancel_scope.cancel()
    assert ended.exit_code == 0
    assert (directory / "out").read_text() == "77\n"


async def test_two_servers_do_not_lend_the_same_uid(tmp_path: Path):
    from nl.worker.uids import UidPool

    pools = [UidPool(70000, 2, lock_file=str(tmp_path / "lock")) for _ in range(2)]
    for pool in pools:
        pool.open()
    async with pools[0].lent() as first, pools[1].lent() as second:
        assert {first, second} == {70000, 70001}
        with trio.move_on_after(0.05) as scope:
            async with pools[0].lent():
                pass
        assert scope.cancelled_caught, "both are lent"
    async with pools[0].lent() as first, pools[0].lent() as second:
        assert {first, second} == {70000, 70001}
    for pool in pools:
        pool.close()


async def test_a_work_directory_that_other_users_cannot_reach_is_told(tmp_path: Path):
    needs_root()
    (tmp_path / "closed").mkdir(mode=0o700)
    runner = IsolatedRunner(
        IsolationOptions(kind="uid"),
        supervisor=Supervisor(),
        work_directory=str(tmp_path / "closed" / "work"),
        surroundings=Surroundings("workers[0].local.isolation", "w"),
    )
    why = "other users may not enter .*, which the work directory is in"
    with pytest.RaisesGroup(pytest.RaisesExc(ConfigError, match=why)):
        await runner.serve()
