"""Actions that mean harm, one after the other on a real worker, and what came of each. A program, not a test.

`python -m tests.integration.escapes DIRECTORY` prints a JSON object: the kind of isolation, what is said of those that
are not possible, and by escape's name true (it was held) or what went wrong. Some run at a time, so that each has
neighbours. They are methods of `Escapes`; `HOLDS` says which kinds each must be held by.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import tempfile
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

from nl.blob.hashing import digest_of
from nl.config.workers import IsolationOptions
from nl.errors import ConfigError
from nl.pb import reapi
from nl.worker.isolation import IsolatedRunner, Surroundings
from nl.worker.processes import Supervisor
from tests.integration.worker_site import Site, alive, let_others_in, site_with, until

EVERYWHERE = frozenset({"sandbox", "uid", "plain"})
CONFINED = frozenset({"sandbox", "uid"})
SANDBOX = frozenset({"sandbox"})
HOLDS: dict[str, frozenset[str]] = {}
AT_ONCE = 4
PATIENCE_S = 120
Escape = Callable[["Escapes"], Awaitable[None]]


def held_by(kinds: frozenset[str]) -> Callable[[Escape], Escape]:
    """Notes which kinds of isolation hold an escape."""

    def note(escape: Escape) -> Escape:
        HOLDS[escape.__name__] = kinds
        return escape

    return note


class Escapes:
    """Each method is one escape; it raises AssertionError if it got out."""

    def __init__(self, site: Site, path: Path) -> None:
        self.site = site
        self.path = path

    async def python(self, program: str, **how: object) -> tuple[int, str]:
        """Runs a Python program as an action: its exit code, and what it printed."""
        report = await self.site.run(await self.site.action(["python3", "-c", program], **how))
        assert report.error is None, report.error
        result = report.response.result
        return result.exit_code, (await self.site.text(result.stdout_digest)).decode(errors="replace")

    async def shell(self, script: str, **how: object) -> str:
        """Runs a shell script as an action: what it printed."""
        result = await self.site.result(["sh", "-c", script], **how)
        return (await self.site.text(result.stdout_digest)).decode(errors="replace")

    async def unhurt(self, data: bytes) -> None:
        """The store and the next action have the input as it was."""
        assert await self.site.store.get(digest_of(data)) == data
        assert await self.shell("cat in", inputs={"in": data}) == data.decode()

    # ---- inputs

    @held_by(EVERYWHERE)
    async def overwrites_an_input(self) -> None:
        await self.shell("chmod u+w in; printf EVIL > in; true", inputs={"in": b"good1"})
        await self.unhurt(b"good1")

    @held_by(EVERYWHERE)
    async def overwrites_an_input_and_puts_its_times_back(self) -> None:
        script = "touch -r in ref; chmod u+w in; printf EVIL > in; touch -r ref in; chmod 444 in; true"
        await self.shell(script, inputs={"in": b"good"})
        await self.unhurt(b"good")

    @held_by(EVERYWHERE)
    async def makes_an_input_unreadable(self) -> None:
        await self.shell("chmod 000 in; true", inputs={"in": b"precious"})
        await self.unhurt(b"precious")

    @held_by(EVERYWHERE)
    async def writes_to_an_input_through_a_mapping(self) -> None:
        program = (
            "import os, mmap\n"
            "try:\n"
            "    os.chmod('in', 0o644)\n"
            "    fd = os.open('in', os.O_RDWR)\n"
            "    mmap.mmap(fd, 0)[0:4] = b'EVIL'\n"
            "except OSError: pass"
        )
        await self.python(program, inputs={"in": b"mapped"})
        await self.unhurt(b"mapped")

    @held_by(EVERYWHERE)
    async def changes_an_input_while_another_action_reads_it(self) -> None:
        data, other = b"shared by two", {}

        async def read() -> None:
            script = "touch ready; sleep 1; cat in"
            other["read"] = await self.shell(script, inputs={"in": data})

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await until(lambda: self.directories_with("ready") != [])
            await self.shell("chmod u+w in; printf EVIL > in; true", inputs={"in": data})
        assert other["read"] == data.decode()

    @held_by(SANDBOX)
    async def locks_an_input_that_another_action_has_too(self) -> None:
        data, got = b"locked by one", []
        hold = "import fcntl, time\nf = open('in')\nfcntl.flock(f, fcntl.LOCK_EX)\nopen('held', 'w')\ntime.sleep(1000)"
        attempt = "import fcntl\nfcntl.flock(open('in'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
        async with trio.open_nursery() as nursery:
            action = await self.site.action(["python3", "-c", hold], inputs={"in": data})
            nursery.start_soon(self.site.run, action)
            await until(lambda: self.directories_with("held") != [])
            got.append(await self.python(attempt, inputs={"in": data}))
            nursery.cancel_scope.cancel()
        assert got[0][0] == 0

    # ---- secrets

    @held_by(EVERYWHERE)
    async def reads_the_servers_environment(self) -> None:
        printed = await self.shell("for p in /proc/[0-9]*; do tr '\\0' '\\n' < $p/environ; done 2>/dev/null; true")
        assert "swordfish" not in printed
        assert os.environ["NL_SECRET"] == "swordfish", "it is there"

    @held_by(SANDBOX)
    async def reads_a_file_that_the_config_names(self) -> None:
        assert "swordfish" not in await self.shell(f"cat {self.path}/secret 2>&1; true")

    @held_by(SANDBOX)
    async def looks_into_the_store(self) -> None:
        await self.site.put(b"somebody's")
        assert "yes" not in await self.shell(f"ls {self.path}/content/d/* >/dev/null 2>&1 && echo yes; true")

    @held_by(CONFINED)
    async def looks_into_another_actions_folder(self) -> None:
        action = await self.site.action(["sh", "-c", "echo swordfish > mine; sleep 1000"])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.site.run, action)
            await until(lambda: self.directories_with("mine") != [])
            mine = self.directories_with("mine")[0]
            printed = await self.shell(f"cat {mine}/*/mine {self.path}/work/*/*/mine ../../*/*/mine 2>&1; true")
            nursery.cancel_scope.cancel()
        assert "swordfish" not in printed

    @held_by(CONFINED)
    async def opens_descriptors_of_its_parents(self) -> None:
        assert await self.shell("for p in 1 $PPID; do ls /proc/$p/fd/; done 2>/dev/null; true") == ""
        assert (await self.shell("ls /proc/self/fd")).split() == ["0", "1", "2", "3"], "3 is of ls itself"

    # ---- processes

    @held_by(CONFINED)
    async def kills_everything_that_it_can(self) -> None:
        await self.python("import os\nos.kill(-1, 9)")
        await self.python("import os\nfor pid in (os.getppid(), 1):\n  try: os.kill(pid, 9)\n  except OSError: pass")

    @held_by(CONFINED)
    async def stops_its_supervisor_to_live_for_ever(self) -> None:
        script = "kill -STOP $PPID; echo $$; exec sleep 1000"
        report = await self.site.run(await self.site.action(["sh", "-c", script], timeout_s=2))
        assert report.response.status.code == 4, report.response.status
        assert not self.processes_of(report.response.result)

    @held_by(CONFINED)
    async def traces_its_parents(self) -> None:
        program = (
            "import ctypes, os\n"
            "libc = ctypes.CDLL(None)\n"
            "for pid in {1, os.getppid()}:\n"
            "    print(libc.ptrace(16, pid, 0, 0))\n"
            "    try: open(f'/proc/{pid}/mem', 'r+b'); print('mem')\n"
            "    except OSError: pass\n"
        )
        code, printed = await self.python(program)
        assert code == 0 and set(printed.split()) == {"-1"}, printed

    @held_by(EVERYWHERE)
    async def leaves_a_daemon(self) -> None:
        marker = self.marker()
        await self.shell(f"setsid sh -c 'exec -a {marker} sleep 1000' & (setsid sleep 1001 {marker} &) ; true",
                         env={"NL_MARK": marker})
        assert self.marked(marker) == []

    @held_by(EVERYWHERE)
    async def forks_as_fast_as_it_can(self) -> None:
        marker = self.marker()
        program = (
            "import os, time\n"
            "for depth in range(6):\n"  # 3**5 processes at most
            "    if all(os.fork() for _ in range(2)): break\n"
            "os.setsid() if os.getpgid(0) != os.getpid() else None\n"
            "time.sleep(1000)"
        )
        action = await self.site.action(["python3", "-c", program], timeout_s=3, env={"NL_MARK": marker})
        report = await self.site.run(action)
        assert report.response.status.code == 4, report.response.status
        assert self.marked(marker) == []

    @held_by(EVERYWHERE)
    async def runs_away_by_forking_in_a_chain(self) -> None:
        marker = self.marker()
        await self.python("import os\nfor _ in range(200):\n    if os.fork(): os._exit(0)\n    os.setsid()\n"
                          "import time; time.sleep(1000)", env={"NL_MARK": marker})
        assert self.marked(marker) == []

    # ---- the machine

    @held_by(SANDBOX)
    async def writes_outside_of_its_folder(self) -> None:
        places = f"/usr /etc /var/lib /sys /dev {self.path} {self.path}/content {self.path}/work /tmp /var/tmp /run"
        await self.shell(f"for p in {places} / ..; do touch $p/nl-escape; done 2>/dev/null; true")
        for place in (*places.split(), "/"):
            assert not os.path.exists(f"{place}/nl-escape"), place

    @held_by(CONFINED)
    async def writes_to_what_root_owns(self) -> None:
        targets = "/usr/nl-escape /etc/passwd /proc/sys/kernel/core_pattern /proc/sysrq-trigger"
        printed = await self.shell(f"for p in {targets}; do (: >> $p) 2>/dev/null && echo $p; done; true")
        assert printed == ""

    @held_by(CONFINED)
    async def finds_what_an_earlier_action_has_left(self) -> None:
        leave = "import os\nfor p in ('/tmp', '/var/tmp', '/dev/shm'):\n    open(p + '/nl-left', 'w').write('x')"
        assert (await self.python(leave))[0] == 0
        assert await self.shell("ls /tmp/nl-left /var/tmp/nl-left /dev/shm/nl-left 2>/dev/null; true") == ""
        code, _ = await self.python("import ctypes; assert ctypes.CDLL(None).shmget(0x4e4c, 4096, 0o1666) >= 0")
        assert code == 0
        code, _ = await self.python("import ctypes; assert ctypes.CDLL(None).shmget(0x4e4c, 4096, 0o666) < 0")
        assert code == 0

    @held_by(SANDBOX)
    async def takes_the_masks_away(self) -> None:
        unmask = f"umount -l {self.path} /tmp {self.path}/work {self.path}/content /run"
        script = f"for m in $(echo {unmask}); do umount -l $m; unshare -Urm umount -l $m; done 2>/dev/null; "
        script += f"unshare -Urm sh -c '{unmask}; cat {self.path}/secret' 2>/dev/null; cat {self.path}/secret 2>&1; :"
        assert "swordfish" not in await self.shell(script)

    @held_by(CONFINED)
    async def makes_a_device(self) -> None:
        disk = os.stat("/").st_dev
        program = (
            "import os, stat\n"
            f"for kind, device in ((stat.S_IFBLK, {disk}), (stat.S_IFCHR, os.makedev(1, 1))):\n"
            "    try: os.mknod('device', kind | 0o666, device); print('made')\n"
            "    except OSError: pass"
        )
        assert (await self.python(program, output_paths=["device"])) == (0, "")

    @held_by(CONFINED)
    async def has_no_rights_to_gain(self) -> None:
        printed = await self.shell("grep -E 'CapEff|CapPrm|CapAmb|NoNewPrivs' /proc/self/status")
        values = dict(line.split(":\t") for line in printed.splitlines())
        assert int(values.pop("NoNewPrivs")) == 1
        assert all(int(value, 16) == 0 for value in values.values()), values

    @held_by(SANDBOX)
    async def reaches_the_server_by_the_network(self) -> None:
        with socket.socket() as tcp, socket.socket(socket.AF_UNIX) as unix:
            tcp.bind(("127.0.0.1", 0))
            unix.bind(f"\0nl-escape-{os.getpid()}")
            tcp.listen()
            unix.listen()
            servers = [(int(each.family), each.getsockname()) for each in (tcp, unix)]
            program = (
                "import socket\n"
                f"for family, address in {servers!r}:\n"
                "    try: socket.socket(family).connect(address); print('connected')\n"
                "    except OSError: pass\n"
                "here = socket.create_server(('127.0.0.1', 0)); socket.create_connection(here.getsockname())"
            )
            assert await self.python(program) == (0, "")

    # ---- files

    @held_by(CONFINED)
    async def puts_a_fifo_where_the_worker_reads(self) -> None:
        script = "cd ..; rm -f stdout stderr; mkfifo stdout stderr side_channel; chmod 000 .; true"
        with trio.fail_after(60):
            await self.shell(script)

    @held_by(EVERYWHERE)
    async def declares_a_link_to_a_secret_as_output(self) -> None:
        inside = f"ln -s {self.path}/secret out; ln -s {self.path} dir"
        action = await self.site.action(["sh", "-c", inside], output_paths=["out", "dir/secret"])
        report = await self.site.run(action)
        assert report.error is None
        for file in report.response.result.output_files if report.response.result else []:
            assert b"swordfish" not in await self.site.text(file.digest)

    @held_by(CONFINED)
    async def puts_a_link_in_the_place_of_its_input_root(self) -> None:
        script = f"cd ..; mv work other && ln -s {self.path} work; true"
        report = await self.site.run(await self.site.action(["sh", "-c", script], output_paths=["secret"]))
        assert report.response.result.output_files == []

    @held_by(CONFINED)
    async def links_a_foreign_file_into_its_outputs(self) -> None:
        script = f"ln {self.path}/secret out || ln /etc/shadow out; chmod 777 out; true"
        report = await self.site.run(await self.site.action(["sh", "-c", script], output_paths=["out"]))
        assert report.response.result.output_files == []

    @held_by(EVERYWHERE)
    async def leaves_names_and_depths_that_are_hard_to_remove(self) -> None:
        program = (
            "import os\n"
            "for _ in range(700):\n"
            "    os.mkdir('d' * 100); os.chdir('d' * 100)\n"
            "os.mkdir(b'\\xff\\n'); os.mkdir(b'\\xff\\n/x'); os.chmod(b'\\xff\\n', 0)"
        )
        assert (await self.python(program))[0] == 0

    @held_by(EVERYWHERE)
    async def takes_the_rights_of_its_own_folder_away(self) -> None:
        report = await self.site.run(await self.site.action(["sh", "-c", "mkdir d; chmod 000 d ."]))
        assert report is not None

    # ---- helpers

    def directories_with(self, name: str) -> list[str]:
        """Directories of actions that have made a file of this name; others come and go meanwhile."""
        each = [f"{self.site.work}/{entry}" for entry in os.listdir(self.site.work)]
        return [path for path in each if any(os.path.exists(f"{path}/{at}/{name}") for at in ("work", "upper"))]

    def marker(self) -> str:
        return f"nl-escape-{os.getpid()}-{len(os.listdir('/proc'))}-{os.urandom(4).hex()}"

    def marked(self, marker: str) -> list[str]:
        """Processes with the marker in their environment."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                if marker.encode() in (path / "environ").read_bytes():
                    found.append((path / "cmdline").read_text())
            except OSError:
                continue
        return found

    def processes_of(self, result: reapi.ActionResult) -> list[int]:
        """Processes that were started by whoever is called `sleep 1000`, still there."""
        return [
            int(path.name)
            for path in Path("/proc").glob("[0-9]*")
            if _command(path) == b"sleep\x001000\x00" and alive(int(path.name)) and _parent(path) in _own()
        ]


def _command(path: Path) -> bytes:
    try:
        return (path / "cmdline").read_bytes()
    except OSError:
        return b""


def _parent(path: Path) -> int:
    try:
        return int((path / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _own() -> set[int]:
    """This process and all below it."""
    parents = {int(path.name): _parent(path) for path in Path("/proc").glob("[0-9]*")}
    own = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in own} - own:
        own |= more
    return own


async def run(path: Path) -> dict[str, object]:
    """All escapes that the kind must hold; by name True or what went wrong."""
    (path / "secret").write_text("swordfish")
    (path / "secret").chmod(0o600)
    let_others_in(path)
    found: dict[str, object] = {"refused": await refused(path)}
    async with site_with(path, "filesystem", isolation=IsolationOptions()) as site:
        found["kind"] = site.commands.kind
        escapes = Escapes(site, path)
        left = iter([name for name, kinds in HOLDS.items() if site.commands.kind in kinds])

        async def some() -> None:
            for name in left:
                found[name] = await what_came_of(escapes, name)

        async with trio.open_nursery() as nursery:
            for _ in range(AT_ONCE):
                nursery.start_soon(some)
    return found


async def what_came_of(escapes: Escapes, name: str) -> bool | str:
    """Tries one escape, and then whether the worker runs the next action."""
    try:
        with trio.fail_after(PATIENCE_S):
            await getattr(escapes, name)()
            assert (await escapes.site.result(["sh", "-c", f"exit 3 # {name}"])).exit_code == 3
    except Exception:  # noqa: BLE001
        return traceback.format_exc()[-1500:]
    return True


async def refused(path: Path) -> dict[str, str]:
    """By kind of isolation that is not possible here: the error that it is when the config names it."""
    said = {}
    for kind in ("sandbox", "uid"):
        around = Surroundings("workers[0].local.isolation", "w")
        runner = IsolatedRunner(
            IsolationOptions(kind=kind), supervisor=Supervisor(), work_directory=f"{path}/tried", surroundings=around
        )
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(runner.serve)
                nursery.cancel_scope.cancel()
        except* ConfigError as group:
            said[kind] = str(group.exceptions[0].exceptions[0])
    return said


if __name__ == "__main__":
    print(json.dumps(trio.run(run, Path(tempfile.mkdtemp(dir=sys.argv[1])))))
