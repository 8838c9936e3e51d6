"""What is shipped in configs/ is true: every example loads and builds, and the reference is that of the source."""

import re
from pathlib import Path

import json5
import pytest

from nl.config.convert import Conversion, store_spec
from nl.config.loader import load_file
from nl.config.reference import config_reference
from nl.config.registry import PLUGINS, StoreKinds
from nl.storage.builder import build_stores
from tests.support.examples import CONFIGS as EXAMPLES
from tests.support.examples import VARIABLES, need_kinds_of

CONFIGS = Path(__file__).parents[2] / "configs"
PASSWORDS = {"REDIS_PASSWORD": "secret", "MONGO_PASSWORD": "secret"}
PLUGIN_FOLDERS = ("cloud_object_store", "mongo_store", "redis_store")
PAGES = [CONFIGS.parent / "plugins" / folder / "README.md" for folder in PLUGIN_FOLDERS]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_loads_and_its_stores_build_without_a_warning(path, tmp_path):
    need_kinds_of(path)
    kinds = StoreKinds()
    env = {"NL_DATA_DIR": str(tmp_path / "data"), **VARIABLES}
    config = load_file(path, env=env, kinds=kinds, on_warning=pytest.fail)
    graph = build_stores(config.stores, kinds=kinds)
    assert {store.name for store in config.stores} <= {built.name for built in graph}
    assert not (tmp_path / "data").exists(), "building stores must not touch the disk"


def test_the_examples_name_a_home_where_no_data_directory_is_given(tmp_path):
    config = load_file(CONFIGS / "all_in_one.json5", env={"HOME": str(tmp_path)}, kinds=StoreKinds.built_in())
    assert config.workers[0].local.work_directory == f"{tmp_path}/.cache/nl/work"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.parent.name)
def test_the_examples_on_a_plugins_page_can_be_read(path):
    kinds = StoreKinds()
    examples = re.findall(r"^    \{ name: .*?\} \}$", path.read_text(), re.MULTILINE | re.DOTALL)
    assert examples, "expected one, indented by four spaces, that begins with { name:"
    for example in map(json5.loads, examples):
        del example["name"]
        (kind,) = example
        if kind in PLUGINS and kind not in kinds.names():
            pytest.skip(f"{PLUGINS[kind]} is not installed")
        assert store_spec(example, "example", Conversion(PASSWORDS, kinds.options)).kind == kind


def test_the_reference_is_that_of_the_source():
    kinds = StoreKinds.of_project()
    if missing := sorted({PLUGINS[kind] for kind in PLUGINS if kind not in kinds.names()}):
        pytest.skip(f"not installed: {', '.join(missing)} (./dev test installs them)")
    written = (CONFIGS / "REFERENCE.md").read_text()
    assert written == config_reference(kinds), "run: nl config reference > configs/REFERENCE.md"
