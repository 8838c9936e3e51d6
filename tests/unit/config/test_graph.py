"""The picture of a config: what is in it, and that Graphviz takes it."""

import os
import re
import shutil
import subprocess

import pytest

from nl.config.graph import graph
from nl.config.loader import load_file, load_value
from tests.support.examples import CONFIGS, VARIABLES, need_kinds_of
from tests.unit.config.kinds import kinds
from tests.unit.config.test_drawing import CONFIG


def edges(text):
    return re.findall(r'^  "(.*)" -> "(.*)" \[label="(.*)", style=(\w+)\];$', text, re.MULTILINE)


def test_listeners_lead_to_stores_children_and_references():
    text = graph(load_value(CONFIG, env={}, kinds=kinds()))
    assert edges(text) == [
        ("listener 0", "store CAS", "cas", "solid"),
        ("worker 0", "store CAS", "", "solid"),
        ("store CAS", "store CAS.left", "", "solid"),
        ("store CAS", "store CAS.right", "", "solid"),
        ("store CAS.right", "store CAS.right.stores[0]", "", "solid"),
        ("store CAS.right", "store CAS.right.stores[1]", "", "solid"),
        ("store CAS.right.stores[1]", "store AC", "", "dashed"),
    ]
    assert '"store CAS.left" [shape=cylinder, label="left\\ndisk\\ncontent_path=/data/cas' in text


def test_a_store_that_several_services_use_has_one_edge_from_their_listener():
    services = {"cas": [{"cas_store": "CAS"}], "bytestream": [{"cas_store": "CAS"}]}
    config = {**CONFIG, "servers": [{**CONFIG["servers"][0], "services": services}, CONFIG["servers"][1]]}
    text = graph(load_value(config, env={}, kinds=kinds()))
    assert [edge for edge in edges(text) if edge[0] == "listener 0"] == [
        ("listener 0", "store CAS", "cas, bytestream", "solid")
    ]


def test_secrets_stay_out_of_the_picture_and_quotes_do_not_end_a_label():
    config = load_value({"stores": [{"name": "E", "everything": {"secret": "hunter2", "text": 'a "b" \\ c'}}],
                         "servers": CONFIG["servers"][1:]}, env={}, kinds=kinds())
    text = graph(config)
    assert "hunter2" not in text
    assert r'a \"b\" \\ c' in text


@pytest.mark.skipif(shutil.which("dot") is None, reason="needs Graphviz: ./dev test installs it as root")
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_graphviz_draws_every_example(path):
    need_kinds_of(path)
    config = load_file(str(path), env={**os.environ, **VARIABLES}, on_warning=lambda line: None)
    done = subprocess.run(["dot", "-Tsvg"], input=graph(config), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert all(f">{server.listener.http.socket_address}" in done.stdout for server in config.servers)
