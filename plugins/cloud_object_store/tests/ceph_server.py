"""Ceph's object gateway on one node, for tests: a monitor, one storage daemon in memory, `radosgw`. Takes 15 seconds.

Needs Debian's `ceph-mon`, `ceph-osd` and `radosgw`. Nothing is changed outside of the folder given.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cloud_support import KEY, S3, SECRET
from server_process import free_port

COMMANDS = ("ceph", "ceph-authtool", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin")
CONFIG = """
[global]
fsid = {fsid}
keyring = {folder}/keyring
mon host = [v2:127.0.0.1:{v2},v1:127.0.0.1:{v1}]
mon initial members = a
public addr = 127.0.0.1
cluster addr = 127.0.0.1
run dir = {folder}/run
admin socket = {folder}/run/$name.asok
pid file = {folder}/run/$name.pid
log file = {folder}/$name.log
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
[mon]
mon data = {folder}/mon
[osd]
osd data = {folder}/osd.0
osd objectstore = memstore
memstore device bytes = 4294967296
osd class load list = *
osd class default list = *
[client.rgw.a]
rgw data = {folder}/rgw
rgw frontends = beast endpoint=127.0.0.1:{port}
rgw dynamic resharding = false
"""


def missing() -> list[str]:
    """Which of Ceph's commands are not installed."""
    return [command for command in COMMANDS if shutil.which(command) is None]


class CephServer(S3):
    """The gateway can be killed and started again; what it serves stays with the storage daemon."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._config = folder / "ceph.conf"
        port = free_port()
        for name in ("mon", "osd.0", "run", "rgw"):
            (folder / name).mkdir()
        self._config.write_text(
            CONFIG.format(fsid=uuid.uuid4(), folder=folder, v1=free_port(), v2=free_port(), port=port)
        )
        super().__init__(f"http://127.0.0.1:{port}")

    def start_cluster(self) -> None:
        """Everything behind the gateway."""
        folder, keyring, monmap = self._folder, f"{self._folder}/keyring", f"{self._folder}/monmap"
        everything = ["--cap", "mon", "allow *", "--cap", "osd", "allow *"]
        self._run("ceph-authtool", "--create-keyring", keyring, "--gen-key", "-n", "mon.", "--cap", "mon", "allow *")
        for name, caps in (("client.admin", everything), ("client.rgw.a", everything),
                           ("osd.0", ["--cap", "mon", "allow profile osd", "--cap", "osd", "allow *"])):
            self._run("ceph-authtool", keyring, "--gen-key", "-n", name, *caps)
        text = self._config.read_text()
        fsid = text.partition("fsid = ")[2].split()[0]
        self._run("monmaptool", "--create", "--clobber", "--fsid", fsid, "--addv", "a",
                  text.partition("mon host = ")[2].split()[0], monmap)
        self._run("ceph-mon", "-c", self._config, "-i", "a", "--mkfs", "--monmap", monmap, "--keyring", keyring)
        self._run("ceph-mon", "-c", self._config, "-i", "a")
        osd = str(uuid.uuid4())
        self._run("ceph", "-c", self._config, "osd", "new", osd)
        self._run("ceph", "-c", self._config, "auth", "import", "-i", keyring)
        self._run("ceph-osd", "-c", self._config, "-i", "0", "--mkfs", "--osd-uuid", osd)
        self._run("ceph", "-c", self._config, "osd", "crush", "add", "osd.0", "1.0", "root=default", "host=localhost")
        self._run("ceph-osd", "-c", self._config, "-i", "0")
        self._run("radosgw-admin", "-c", self._config, "-n", "client.rgw.a", "user", "create", "--uid=t",
                  "--display-name=t", f"--access-key={KEY}", f"--secret={SECRET}")
        assert (folder / "run").exists()

    def start(self) -> None:
        """The gateway."""
        self._run("radosgw", "-c", self._config, "-n", "client.rgw.a")
        until = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(self.url, timeout=5).close()
                return
            except urllib.error.HTTPError:
                return
            except OSError:
                assert time.monotonic() < until, (self._folder / "client.rgw.a.log").read_text()[-2000:]
                time.sleep(0.1)

    def kill(self) -> None:
        """The gateway, at once."""
        self._kill("client.rgw.a")

    def kill_all(self) -> None:
        """The cluster, too."""
        for name in ("client.rgw.a", "osd.0", "mon.a"):
            self._kill(name)

    def _kill(self, name: str) -> None:
        file = self._folder / "run" / f"{name}.pid"
        if not file.exists():
            return
        pid = int(file.read_text())
        file.unlink()
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            while Path(f"/proc/{pid}").exists():  # a daemon: not our child
                if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                    break
                time.sleep(0.02)

    def _run(self, *command: object) -> None:
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=90, check=False)
        assert done.returncode == 0, f"{command}: {done.stdout[-1000:]}{done.stderr[-2000:]}"


@contextmanager
def ceph_server(folder: Path) -> Iterator[CephServer]:
    """A gateway with its cluster."""
    server = CephServer(folder)
    try:
        server.start_cluster()
        server.start()
        server.client.create_bucket(Bucket="warm-up")  # makes the pools
        yield server
    finally:
        server.client.close()
        server.kill_all()
