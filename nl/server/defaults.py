"""The config of `nl serve` without a file: a cache, a scheduler and one worker in one process, on loopback.

It is a config like any other, so the built-in server and a written one cannot drift apart. Run
`nl config default` for its text, to start a file of one's own from.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nl.config.listeners import UNIX

WORKER_API = "127.0.0.1:0"
"""Any free port: a worker of the same config that names the same address is told the real one."""


def default_data_directory() -> Path:
    """`$XDG_DATA_HOME/nl`, or `~/.local/share/nl` (XDG Base Directory Specification)."""
    root = os.environ.get("XDG_DATA_HOME", "")
    return (Path(root) if os.path.isabs(root) else Path.home() / ".local" / "share") / "nl"


def _store(name: str, directory: Path, max_bytes: int) -> dict[str, Any]:
    content = _literal(directory / name)
    policy = {"max_bytes": max_bytes}
    return {
        "filesystem": {"content_path": content, "temp_path": f"{content}.temp", "eviction_policy": policy},
    }


def _literal(text: Path | str) -> str:
    return str(text).replace("$", "$$")  # in a config, `$` begins a variable


def socket_address(listen: str, port: int) -> str:
    """What `--listen` says, as a config says it: an IP, a name, either with a port of its own, or `unix:/path`."""
    if listen.startswith(UNIX) or re.fullmatch(r"(\[.*\]|[^:\[\]]*):[0-9]+", listen):
        return listen
    return f"[{listen}]:{port}" if ":" in listen and not listen.startswith("[") else f"{listen}:{port}"


def _public(name: str, address: str) -> dict[str, Any]:
    return {
        "name": name,
        "listener": {"http": {"socket_address": _literal(address)}},
        "any_instance_name": True,
        "services": {
            "cas": [{"cas_store": "CAS"}],
            "ac": [{"ac_store": "AC"}],
            "bytestream": [{"cas_store": "CAS"}],
            "execution": [{"cas_store": "CAS", "scheduler": "MAIN"}],
            "capabilities": [{"remote_execution": {"scheduler": "MAIN"}, "remote_cache_compression": True}],
            "health": {},
        },
    }


def default_config(
    *,
    listen: Sequence[str],
    port: int,
    data_dir: Path,
    max_bytes: int,
    tokens: str | None = None,
    isolation: str | None = None,
) -> str:
    """JSON5 text. `max_bytes` bounds the blobs; action results get a twentieth of it on top.

    `tokens` is a file of tokens; without one everybody may do everything. `isolation` is the kind of the worker's;
    without one the strongest that the machine allows.
    """
    cores = os.cpu_count() or 1
    worker: dict[str, Any] = {
        "name": "local",
        "worker_api_endpoint": {"uri": f"grpc://{WORKER_API}"},
        "cas_fast_slow_store": "CAS",
        "upload_action_result": {"ac_store": "AC"},
        "work_directory": _literal(data_dir / "work"),
        "max_inflight_tasks": cores,
        "platform_properties": {
            "cpu_count": {"values": [str(cores)]},
            "OSFamily": {"values": ["linux"]},
            "ISA": {"values": [_isa()]},
            "container-image": {"values": [""]},
            "Pool": {"values": [""]},
        },
    }
    if isolation is not None:
        worker["isolation"] = {"kind": isolation}
    ac_bytes = max(max_bytes // 20, 1 << 20) if max_bytes else 0
    config: dict[str, Any] = {
        "stores": [
            {"name": "CAS", **_store("cas", data_dir, max_bytes)},
            {
                "name": "AC",
                "completeness_checking": {
                    "backend": _store("ac", data_dir, ac_bytes),
                    "cas_store": {"ref_store": {"name": "CAS"}},
                },
            },
        ],
        "schedulers": [
            {
                "name": "MAIN",
                "simple": {
                    "supported_platform_properties": {
                        "cpu_count": "minimum",
                        "OSFamily": "exact",
                        "ISA": "exact",
                        "container-image": "ignore",
                        "Pool": "ignore",
                        "requires-network": "ignore",
                    }
                },
            }
        ],
        "workers": [{"local": worker}],
        "servers": [
            *(_public(f"public {i}" if i else "public", socket_address(each, port)) for i, each in enumerate(listen)),
            {
                "name": "workers",
                "listener": {"http": {"socket_address": WORKER_API}},
                "services": {"worker_api": {"scheduler": "MAIN"}, "health": {}},
            },
        ],
    }
    if tokens is not None:
        config["auth"] = {"tokens_file": _literal(Path(tokens).absolute())}
    return json.dumps(config, indent=2)


def _isa() -> str:
    """The machine's instruction set, by the names of REAPI's platform lexicon."""
    machine = os.uname().machine
    return {"x86_64": "x86-64", "aarch64": "arm-a64"}.get(machine, machine)
