"""No process outlives its action, whatever it does; what was printed is kept. Real processes throughout."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from nl.worker import processes
from nl.worker.orders import Running
from tests.integration.worker_site import Site, alive, descriptors, site_with, until

DAEMON = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        {extra}
        open({pid!r}, "w").write(str(os.getpid()))
        time.sleep(1000)
    os._exit(0)
os.wait()
while not (os.path.exists({pid!r}) and open({pid!r}).read()):
    pass
print("parent done", flush=True)
"""


@pytest.fixture
async def site(tmp_path):
    async with site_with(tmp_path, "memory") as made:
        yield made


def daemon(path: Path, *, extra: str = "pass", then: str = "") -> list[str]:
    """A command that leaves a daemon (setsid, double fork) whose process id is then in `path`."""
    return ["python3", "-c", DAEMON.format(pid=str(path), extra=extra) + then]


def pid_in(path: Path) -> int:
    return int(path.read_text())


def written(path: Path) -> bool:
    return path.exists() and bool(path.read_text())


async def test_a_daemon_does_not_outlive_a_command_that_ends_well(site: Site):
    path = site.path / "pid"
    result = await site.result(daemon(path))
    assert result.exit_code == 0
    assert not alive(pid_in(path))
    assert site.supervisor.statistics()["strays_killed"] == 1


async def test_a_daemon_that_closed_nothing_does_not_hold_the_action_up(site: Site):
    """It holds stdout open: with a pipe somebody would wait for its end."""
    with trio.fail_after(20):
        result = await site.result(["sh", "-c", "sleep 1000 & setsid sleep 1000 & echo done"])
    assert await site.text(result.stdout_digest) == b"done\n"


async def test_a_daemon_that_ignores_signals_is_killed(site: Site):
    path = site.path / "pid"
    extra = "import signal; [signal.signal(n, signal.SIG_IGN) for n in (1, 2, 3, 13, 15)]"
    await site.result(daemon(path, extra=extra))
    assert not alive(pid_in(path))


async def test_a_timeout_kills_all_and_keeps_what_was_printed(site: Site):
    path = site.path / "pid"
    then = "\nprint('to stderr', file=sys.stderr, flush=True)\ntime.sleep(1000)"
    action = await site.action(daemon(path, then=then), timeout_s=3, output_paths=["out"])
    report = await site.run(action)
    assert report.response.status.code == 4
    assert "timed out after 3 seconds" in report.response.status.message
    result = report.response.result
    assert result.exit_code == 128 + signal.SIGKILL
    assert await site.text(result.stdout_digest) == b"parent done\n"
    assert await site.text(result.stderr_digest) == b"to stderr\n"
    assert not alive(pid_in(path))
    assert await site.cached(action) is None


async def test_a_kill_ends_grandchildren_and_keeps_what_was_printed(site: Site):
    path = site.path / "pid"
    running = Running()
    reports = []

    async def run() -> None:
        reports.append(await site.run(await site.action(daemon(path, then="\ntime.sleep(1000)")), running=running))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await until(lambda: bool(list(site.work.glob("*/stdout"))) and _printed(site, b"parent done\n"))
        running.kill()
    (report,) = reports
    assert report.response.status.code == 1
    assert await site.text(report.response.result.stdout_digest) == b"parent done\n"
    assert not alive(pid_in(path))


def _printed(site: Site, text: bytes) -> bool:
    return any(path.read_bytes() == text for path in site.work.glob("*/stdout"))


async def test_a_kill_before_the_command_runs_is_cancelled_too(site: Site):
    running = Running()
    running.kill()
    report = await site.run(await site.action(["/bin/true"]), running=running)
    assert report.response.status.code == 1


async def test_a_cancelled_task_has_killed_everything_when_it_ends(site: Site):
    path = site.path / "pid"
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:

            async def stop() -> None:
                await until(lambda: written(path))
                scope.cancel()

            nursery.start_soon(stop)
            nursery.start_soon(site.run, await site.action(daemon(path, then="\ntime.sleep(1000)")))
    assert scope.cancelled_caught
    assert not alive(pid_in(path))
    assert site.left() == []


async def test_a_fork_chain_that_runs_away_is_caught(site: Site):
    """Each process forks the next in a new session and exits: no group to kill, no parent that stays."""
    chain = "import os\nwhile os.fork() == 0:\n    os.setsid()\nos._exit(0)"
    with trio.fail_after(60):
        result = await site.result(["python3", "-c", chain])
    assert result.exit_code == 0


async def test_the_leader_may_end_while_its_group_goes_on(site: Site):
    path = site.path / "pid"
    await site.result(["sh", "-c", f"sleep 1000 & echo $! > {path}; exit 0"])
    assert not alive(pid_in(path))


async def test_200_mib_of_stdout_are_in_the_store_and_never_in_memory(tmp_path):
    async with site_with(tmp_path, "filesystem") as site:
        await site.result(["/bin/true"])
        before = _rss()
        peak = before
        done = False

        async def watch() -> None:
            nonlocal peak
            while not done:
                peak = max(peak, _rss())
                await trio.sleep(0.005)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            result = await site.result(["head", "-c", str(200 << 20), "/dev/zero"])
            done = True
        assert result.stdout_digest.size_bytes == 200 << 20
        assert await site.store.has([_key(result.stdout_digest)]) == [200 << 20]
        assert peak - before < 24 << 20, f"{(peak - before) >> 20} MiB more"


def _key(proto):
    from tests.integration.worker_site import digest

    return digest(proto)


def _rss() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def test_a_command_that_prints_without_end_is_ended(site: Site):
    runner = site.runner(max_printed_bytes=1 << 20)
    report = await site.run(await site.action(["yes"]), runner=runner)
    assert report.response.status.code == 8
    assert report.response.result.stdout_digest.size_bytes > 1 << 20


async def test_an_action_that_kills_its_warden_is_reported_and_leaves_nothing(site: Site):
    path = site.path / "pid"
    report = await site.run(
        await site.action(daemon(path, then="\nos.kill(os.getppid(), 9)\ntime.sleep(1000)"))
    )
    assert report.error.code == 13
    await until(lambda: not alive(pid_in(path)))
    assert (await site.result(["/bin/true"])).exit_code == 0


async def test_a_reaper_that_is_killed_is_replaced(site: Site):
    await site.result(["/bin/true"])
    reaper = await _reaper_of(site)
    os.kill(reaper, signal.SIGKILL)
    await until(lambda: site.supervisor.statistics()["reapers_started"] == 2)
    async with trio.open_nursery() as nursery:
        for n in range(4):
            nursery.start_soon(site.result, ["sh", "-c", f"exit 0 # {n}"])


async def _reaper_of(site: Site) -> int:
    for path in Path(f"/proc/{os.getpid()}/task").glob("*/children"):
        for pid in path.read_text().split():
            if "nl.worker.reaper" in Path(f"/proc/{pid}/cmdline").read_text():
                return int(pid)
    raise AssertionError("no reaper")


async def test_an_idle_warden_that_died_is_not_used(site: Site):
    pids = (await site.text((await site.result(["sh", "-c", "echo $PPID"])).stdout_digest)).split()
    os.kill(int(pids[0]), signal.SIGKILL)
    await until(lambda: not alive(int(pids[0])))
    assert (await site.result(["/bin/true"])).exit_code == 0


async def test_no_descriptor_leaks_and_no_descriptor_is_inherited(site: Site):
    await site.result(["/bin/true"])
    before = descriptors()
    for n in range(20):
        result = await site.result(["sh", "-c", f"ls /proc/self/fd # {n}"])
    assert (await site.text(result.stdout_digest)).split() == [b"0", b"1", b"2", b"3"], "3 is of ls itself"
    assert descriptors() == before


async def test_commands_run_at_the_same_time(site: Site):
    """Each waits for the other: one after the other they would never end."""
    first, second = site.path / "first", site.path / "second"
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            for mine, others in ((first, second), (second, first)):
                nursery.start_soon(
                    site.result, ["sh", "-c", f"echo > {mine}; while [ ! -e {others} ]; do sleep 0.01; done"]
                )


async def test_a_terminals_signals_are_not_the_actions(site: Site):
    """The reaper and what it starts are no members of the server's process group or session."""
    program = "import os; print(os.getsid(0) == os.getpid(), os.getpgid(0) == os.getpid())"
    result = await site.result(["python3", "-c", program])
    assert await site.text(result.stdout_digest) == b"True True\n"


async def test_signals_have_their_default_meaning_in_a_command(site: Site):
    result = await site.result(["sh", "-c", "grep -E 'Sig(Ign|Blk)' /proc/self/status"])
    for line in (await site.text(result.stdout_digest)).decode().splitlines():
        assert int(line.split()[1], 16) & ~(3 << 31) == 0, f"{line}; 32 and 33 belong to the C library"


async def test_whenever_actions_are_killed_or_cancelled_nothing_is_left(site: Site):
    """Kills and cancellations at all sorts of moments of 60 actions that each leave daemons behind."""
    chance = random.Random(7)
    marker = f"nl-chaos-{os.getpid()}"
    script = "setsid sleep 1000 & (setsid sh -c 'sleep 1000; true' &) ; echo $0 > out; sleep 0.$1; exit 0"
    before = descriptors()

    async def one(n: int) -> None:
        running = Running()
        action = await site.action(
            ["sh", "-c", script, marker, str(chance.randrange(1, 4))],
            env={"NL_MARKER": marker, "N": str(n)},
            inputs={"in": {str(n): b"x"}},
            output_paths=["out"],
        )
        with trio.move_on_after(chance.uniform(0, 1.5) if n % 3 == 0 else 60) as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(kill_later, running, n)
                report = await site.run(action, running=running)
                assert report.error is None, report.error
                nursery.cancel_scope.cancel()
        assert not scope.cancelled_caught or n % 3 == 0

    async def kill_later(running: Running, n: int) -> None:
        if n % 3 == 1:
            await trio.sleep(chance.uniform(0, 1.5))
            running.kill()

    turns = trio.CapacityLimiter(12)

    async def in_turn(n: int) -> None:
        async with turns:
            await one(n)

    async with trio.open_nursery() as nursery:
        for n in range(60):
            nursery.start_soon(in_turn, n)
    assert _marked(marker) == []
    assert site.left() == []
    idle = site.supervisor.statistics()["idle_wardens"]
    assert descriptors() <= before + idle
    assert idle <= 24


def _marked(marker: str) -> list[str]:
    """Processes with the marker in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if marker.encode() in (path / "environ").read_bytes():
                found.append((path / "cmdline").read_text())
        except (OSError, ProcessLookupError):
            continue
    return found


WORKER = """
import sys, trio, pathlib
sys.path.insert(0, {root!r})
from nl.worker.processes import Supervisor
from nl.worker.runner import Job, KillSwitch

async def main():
    supervisor = Supervisor()
    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.serve)
        job = Job({argv!r}, {{"PATH": "/usr/bin:/bin"}}, {cwd!r}, {cwd!r} + "/out", {cwd!r} + "/err", 1000, 1 << 30)
        await supervisor.run(job, switch=KillSwitch())

trio.run(main)
"""


async def test_nothing_outlives_a_server_that_is_killed(tmp_path):
    path = tmp_path / "pid"
    argv = daemon(path, then="\ntime.sleep(1000)")
    program = WORKER.format(root=str(Path(__file__).parents[2]), argv=argv, cwd=str(tmp_path))
    import sys

    process = await trio.lowlevel.open_process([sys.executable, "-c", program])
    await until(lambda: written(path))
    assert alive(pid_in(path))
    process.kill()
    await process.wait()
    await until(lambda: not alive(pid_in(path)))


async def test_an_action_that_stops_its_warden_is_killed_at_once_and_leaves_nothing(site: Site):
    marker = f"nl-stopped-{os.getpid()}"
    script = "echo before; sleep 1000 & kill -STOP $PPID; kill -STOP $PPID; sleep 1000"
    action = await site.action(["sh", "-c", script], env={"NL_MARKER": marker}, timeout_s=1000)
    with trio.fail_after(60):
        report = await site.run(action)
    assert report.response.status.code == 3
    assert "stopped the process that supervises it" in report.response.status.message
    assert await site.text(report.response.result.stdout_digest) == b"before\n"
    assert _marked(marker) == []
    assert (await site.result(["/bin/true"])).exit_code == 0


async def test_an_action_that_stops_the_reaper_holds_no_other_action_up(site: Site):
    release = site.path / "release"
    os.mkfifo(release)
    stop = "read _ _ _ reaper _ < /proc/$PPID/stat; kill -STOP $reaper; cat $0"
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(site.result, ["sh", "-c", stop, str(release)])
            # No warden is idle while the first runs, so it takes the reaper to start this one.
            await site.result(["sh", "-c", 'echo > "$0"', str(release)])


async def test_a_warden_that_an_action_stopped_ends_with_the_server(tmp_path):
    marker = f"nl-stopped-{os.getpid()}"
    argv = ["env", f"NL_MARKER={marker}", "sh", "-c", f"echo > {tmp_path}/runs; while :; do kill -STOP $PPID; done"]
    program = WORKER.format(root=str(Path(__file__).parents[2]), argv=argv, cwd=str(tmp_path))
    server = subprocess.Popen([sys.executable, "-c", program])
    try:
        await until(lambda: (tmp_path / "runs").exists() or server.poll() is not None)
    finally:
        server.kill()
        server.wait()
    await until(lambda: not _marked(marker))


async def test_wardens_that_a_burst_has_left_are_let_go(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "IDLE_S", 0.04)
    async with site_with(tmp_path, "memory") as site:
        before = descriptors()
        first, second = (str(site.path / name) for name in ("first", "second"))
        for path in (first, second):
            os.mkfifo(path)
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:  # two at the same time, as each waits for the other
                nursery.start_soon(site.result, ["sh", "-c", f"echo > {first}; cat {second}"])
                nursery.start_soon(site.result, ["sh", "-c", f"cat {first}; echo > {second}"])
        await until(lambda: site.supervisor.statistics()["idle_wardens"] == 1)
        assert descriptors() <= before + 1
        assert (await site.result(["/bin/true"])).exit_code == 0
