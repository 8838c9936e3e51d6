"""A store kind that `nl` does not know: installed with pip, found by its entry point, used, and tested by its author."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TEMPLATE = Path(__file__).parents[2] / "plugins" / "template"
USE_FROM_CONFIG = '''
import sys
import trio
from nl.config.document import read_config
from nl.storage.builder import build_stores
from nl.testing import started
from nl.plugin import BytesReader
'''


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The environment of a process in which the template is installed beside nl."""
    folder = tmp_path_factory.mktemp("third_party")
    source, target = folder / "source", folder / "site"
    shutil.copytree(TEMPLATE, source, ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(target), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, {**os.environ, "PYTHONPATH": str(target)}


def run_python(installed, *arguments):
    folder, environment = installed
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


def test_it_is_found_by_its_entry_point(installed):
    code = (
        "from nl.config.registry import StoreKinds; kinds = StoreKinds(); print('example_dict' in kinds.names(), "
        "kinds.distribution('example_dict'), kinds.load('example_dict', 'x'))"
    )
    done = run_python(installed, "-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("True")
    assert "nl-store-example" in done.stdout


def test_its_authors_six_lines_pass_the_conformance_suite(installed):
    tests = TEMPLATE / "tests" / "test_conformance.py"
    assert len([line for line in tests.read_text().splitlines() if line.strip()]) <= 6
    copy = installed[0] / "test_conformance.py"
    shutil.copy(tests, copy)
    done = run_python(installed, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(installed[0]), str(copy))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout
    assert "skipped" not in done.stdout
