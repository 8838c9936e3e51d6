"""Plugins installed as a user does it, beside the `nl` of the tests."""

import os
import shutil
import subprocess
import sys
from pathlib import Path


def installed(plugin: Path, folder: Path) -> tuple[Path, dict[str, str]]:
    """A copy of the package is built and put with pip into a folder below `folder`, without asking an index.

    Returns where it is, and the environment of a process that finds it there.
    """
    source, target = folder / "source", folder / "site"
    shutil.copytree(plugin, source, ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(target), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return target, {**os.environ, "PYTHONPATH": str(target)}
