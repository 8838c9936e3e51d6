"""The servers that `./dev bench` starts, each a process of its own, of this checkout or of another one."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import trustme

from tests.support.processes import ROOT, free_port, python_of, rss_mib, serving, wait_until_listening

TRANSPORTS = {
    "nl": "tests.bench.transport_nl",
    "grpcio.aio": "tests.bench.transport_grpcio",
    "grpclib": "tests.bench.transport_grpclib",
}
KINDS = ("memory", "filesystem")


@dataclass(frozen=True)
class Running:
    """Where a server answers. With `tls_target`, its clients trust `ca_file`."""

    target: str
    pid: int | str
    tls_target: str | None = None
    ca_file: str = ""


class Certificates:
    """A certificate for 127.0.0.1 and the authority that has signed it, made for this run."""

    def __init__(self, directory: Path) -> None:
        self.ca_file, self.cert_file, self.key_file = (str(directory / name) for name in ("ca", "cert", "key"))
        authority = trustme.CA()
        own = authority.issue_cert("127.0.0.1")
        authority.cert_pem.write_to_path(self.ca_file)
        own.private_key_pem.write_to_path(self.key_file)
        own.cert_chain_pems[0].write_to_path(self.cert_file)


@contextmanager
def transport_server(label: str, *, root: Path = ROOT) -> Iterator[Running]:
    """One of the twins of the trivial service. Ours, of this checkout, listens with TLS besides."""
    with tempfile.TemporaryDirectory(prefix="nl-bench-") as name:
        ports, more = [free_port()], []
        if label == "nl" and root == ROOT:
            certificates = Certificates(Path(name))
            ports.append(free_port())
            more = [str(ports[1]), certificates.cert_file, certificates.key_file]
        command = [python_of(root), "-m", TRANSPORTS[label], str(ports[0]), *more]
        process = subprocess.Popen(command, cwd=root)
        try:
            for port in ports:
                wait_until_listening(port)
            target, *secure = (f"127.0.0.1:{port}" for port in ports)
            if secure:
                yield Running(target, process.pid, secure[0], certificates.ca_file)
            else:
                yield Running(target, process.pid)
        finally:
            process.terminate()
            process.wait(10)


def full_config(kind: str, directory: Path, *, root: Path, port: int, tls_port: int, tls: Certificates) -> str:
    """What `nl serve` runs without a file, on one kind of store, with a second public listener that speaks TLS."""
    command = [python_of(root), "-m", "nl.cli", "config", "default", "--port", str(port),
               "--data-dir", str(directory / "data")]
    printed = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout
    config = json.loads(printed)
    if kind == "memory":
        memory = {"memory": {"eviction_policy": {"max_bytes": "20gb"}}}
        config["stores"] = [{"name": name, **memory} for name in ("CAS", "AC")]
        del config["workers"]  # a worker links its inputs out of files
    public = config["servers"][0]
    listener = {
        "socket_address": f"127.0.0.1:{tls_port}", "tls": {"cert_file": tls.cert_file, "key_file": tls.key_file}
    }
    config["servers"].append({**public, "name": "secure", "listener": {"http": listener}})
    return json.dumps(config)


@contextmanager
def full_stack(kind: str, *, root: Path = ROOT) -> Iterator[Running]:
    """`nl serve` on memory or filesystem stores. The filesystem one also executes."""
    with tempfile.TemporaryDirectory(prefix="nl-bench-") as name:
        directory, port, tls_port = Path(name), free_port(), free_port()
        certificates = Certificates(directory)
        file = directory / "bench.json5"
        file.write_text(
            full_config(kind, directory, root=root, port=port, tls_port=tls_port, tls=certificates)
        )
        log, environment = directory / "server.log", {"NL_LOG_LEVEL": "warn"}
        with serving(["serve", str(file)], port=port, log=log, env=environment, root=root) as server:
            print(f"  ready after {server.ready_after_s:.2f} s, idle RSS {rss_mib(server.pid):.0f} MiB", flush=True)
            yield Running(server.target, server.pid, f"127.0.0.1:{tls_port}", certificates.ca_file)
