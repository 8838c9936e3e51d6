"""The house rules that a machine can check. Each tool is a test dependency; none is skipped."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent

SOURCES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "nl").rglob("*.py") if "gen" not in path.parts)

PLUGINS = sorted(str(path.parent.relative_to(ROOT)) for path in (ROOT / "plugins").glob("*/src/*/__init__.py"))

CHECKS = {
    "ruff": ["-m", "ruff", "check", "nl", "tests", "plugins", "protos"],
    "cancellation": ["-m", "flake8_async", "--enable", "ASYNC101,ASYNC102,ASYNC103,ASYNC104", *SOURCES],
    "types": ["-m", "mypy"],
    "types of plugins": ["-m", "mypy", *PLUGINS],
}


@pytest.mark.parametrize("check", CHECKS)
def test_the_tree_is_clean(check: str) -> None:
    result = subprocess.run([sys.executable, *CHECKS[check]], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, (result.stdout + result.stderr)[-6000:]


def test_imports_go_downwards_only() -> None:
    result = subprocess.run([BIN / "lint-imports"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-6000:]
