"""A store kind that `nl` does not know: installed with pip, found by entry point, used, tested by its author."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nl.testing.capabilities import CapabilityConformance
from tests.support.installing import installed

ABOUT_CAPABILITIES = " or ".join(name for name in vars(CapabilityConformance) if name.startswith("test_"))
TEMPLATE = Path(__file__).parents[2] / "plugins" / "template"
CONFIG = '''{
  // A kind that nl does not bring, by itself and as a child.
  stores: [
    { name: "CAS", example_dict: { max_blobs: "2" } },
    { name: "TIERED", fast_slow: { fast: { memory: {} }, slow: { ref_store: { name: "CAS" } } } },
  ],
  servers: [{
    listener: { http: { socket_address: "127.0.0.1:0" } },
    services: { cas: { "": { cas_store: "TIERED" } } },
  }],
}'''
USE = '''
import sys
import trio
from nl.config.loader import load_file
from nl.plugin import ExhaustedError
from nl.storage.builder import build_stores


async def main():
    graph = build_stores(load_file(sys.argv[1]).stores)
    async with trio.open_nursery() as nursery:
        for built in graph.stores:
            await nursery.start(lambda task_status, store=built.store: store.run(task_status=task_status))
        await graph["TIERED"].put("a", b"through the tiers")
        print(bytes(await graph["CAS"].get("a")), graph["CAS"].statistics())
        await graph["CAS"].put("b", b"")
        try:
            await graph["CAS"].put("c", b"")
        except ExhaustedError as error:
            print(error.message)
        nursery.cancel_scope.cancel()


trio.run(main)
'''


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A folder, and the environment of a process in which the template is installed beside nl."""
    folder = tmp_path_factory.mktemp("third_party")
    _, environment = installed(TEMPLATE, folder)
    return folder, environment


def run_python(template, *arguments):
    folder, environment = template
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


def test_it_is_found_by_its_entry_point(template):
    code = (
        "from nl.config.registry import StoreKinds; kinds = StoreKinds(); print('example_dict' in kinds.names(), "
        "kinds.distribution('example_dict'), kinds.load('example_dict', 'x'))"
    )
    done = run_python(template, "-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("True")
    assert "nl-store-example" in done.stdout


def test_it_is_built_from_a_config_and_used_through_other_stores(template):
    (template[0] / "config.json5").write_text(CONFIG)
    done = run_python(template, "-c", USE, "config.json5")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "b'through the tiers' {'blobs': 1, 'max_blobs': 2}",
        "c: 'CAS' holds 2 blobs already",
    ]


def test_a_wrong_option_of_it_is_told_with_its_path(template):
    (template[0] / "wrong.json5").write_text(CONFIG.replace("max_blobs", "max_blob"))
    done = run_python(template, "-c", USE, "wrong.json5")
    assert done.returncode != 0
    assert "stores[0].example_dict" in done.stderr
    assert "max_blob" in done.stderr


def test_its_authors_six_lines_pass_the_conformance_suite(tmp_path, template):
    tests = TEMPLATE / "tests" / "test_conformance.py"
    assert len([line for line in tests.read_text().splitlines() if line.strip()]) <= 6
    copy = template[0] / "test_conformance.py"
    shutil.copy(tests, copy)
    options = ["-q", "-p", "no:cacheprovider", "--rootdir", str(template[0]), f"--basetemp={tmp_path}/t"]
    done = run_python(template, "-m", "pytest", *options, str(copy))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout
    skipped = int((re.findall(r"(\d+) skipped", done.stdout) or ["0"])[0])
    chosen = run_python(template, "-m", "pytest", "--collect-only", *options, str(copy), "-k", ABOUT_CAPABILITIES)
    assert skipped <= chosen.stdout.count("::test_"), "only what is about capabilities that it does not offer"
