"""The configs in configs/, and what each needs to be read."""

from __future__ import annotations

from pathlib import Path

import pytest

from nl.config.registry import PLUGINS, StoreKinds

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.json5"))
VARIABLES = {"WORKER_NAME": "worker-1", "NL_BUCKET": "a-bucket"}
"""Environment variables that examples have no defaults for."""


def need_kinds_of(path: Path) -> None:
    """Skips the test if the example names a kind of a plugin that is not installed (`./dev test` installs ours)."""
    installed = StoreKinds().names()
    for kind, distribution in PLUGINS.items():
        if f"{kind}:" in path.read_text() and kind not in installed:
            pytest.skip(f"{distribution} is not installed")
