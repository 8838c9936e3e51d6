"""One hostile client of each kind at full speed: another one's calls go on, and the server's memory stays bounded.

The bounds on time are wide, since they must hold on a loaded machine, too; those on memory are the promises. For the
exact figures: `./dev bench hostile`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from nl.server.defaults import default_config
from tests.support.bystander import beside
from tests.support.hostile import KINDS
from tests.support.processes import Server, free_port, serving

MAX_HELD = 64
"""MiB that all clients together may make the listener hold."""
POOLS = 16
"""MiB that are nobody's: pooled receive buffers (8), what lies freed between what is in use, the bystander's share."""
HELD = MAX_HELD * 1.1 + POOLS
GROWTH = {"idle_connections": 20, "unread_replies": HELD, "pinned_buffers": HELD, "window_herd": HELD}
"""How many MiB the server may grow meanwhile. Idle connections: 16 KiB each, of 1,000, and some for the rest."""
SOME = 40
KEPT = {"idle_connections": 20, "unread_replies": HELD, "pinned_buffers": HELD, "window_herd": HELD}
"""How much of that it may still have a second after the hostile client has gone."""
LITTLE = 20
CALLS_S = 2.0
"""The p99 of the bystander's calls, on a machine that may be doing much else."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    port = free_port()
    config = json.loads(default_config(listen=["127.0.0.1"], port=port, data_dir=tmp_path / "data", max_bytes=1 << 30))
    config["servers"][0]["listener"]["http"]["connections"] = {"max_held_bytes": f"{MAX_HELD}MiB"}
    file = tmp_path / "held.json5"
    file.write_text(json.dumps(config))
    with serving(["serve", str(file)], port=port, log=tmp_path / "server.log") as running:
        yield running


@pytest.mark.parametrize("kind", KINDS)
def test_a_hostile_client_harms_nobody_else(kind: str, server: Server) -> None:
    found = beside(kind, server, seconds=1)
    print(found)
    assert found.errors == ()
    assert found.p99_ms < CALLS_S * 1e3, found
    assert found.connecting_ms < 5 * CALLS_S * 1e3, found
    assert found.rss_peak - found.rss_before < GROWTH.get(kind, SOME), found
    assert found.rss_after - found.rss_before < KEPT.get(kind, LITTLE), found
    assert "Traceback" not in server.log_text()


def test_readers_without_a_window_hold_no_files(server: Server) -> None:
    """500 of them: what is open is their ten connections."""
    idle = beside(None, server, seconds=0.1).descriptors_peak
    assert beside("zero_window_readers", server, seconds=2).descriptors_peak < idle + 30
