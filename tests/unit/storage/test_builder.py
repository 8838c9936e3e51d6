"""Building the stores of a config: order, names, contexts, refusals."""

from importlib import metadata

import pytest

from nl.config.loader import load_value
from nl.config.registry import GROUP, StoreKinds
from nl.errors import ConfigError, InternalError, PluginError
from nl.model.digest import Digest
from nl.storage.builder import build_stores
from nl.storage.coder_memory import CoderMemory
from tests.unit.storage import kinds as classes

WORKER = {"local": {"cas_fast_slow_store": "A", "work_directory": "/w"}}
HELLO = Digest("2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824", 5)


def kinds():
    names = ("Plain", "Pair", "Several", "Link", "Eager", "Refusing", "Crashing", "Impostor", "Lazy",
             "Vague", "Lacking")
    return StoreKinds(metadata.EntryPoint(name.lower(), f"{classes.__name__}:{name}", GROUP) for name in names)


def build(coder_memory=None, /, **stores):
    found = kinds()
    config = load_value({"stores": [{"name": name, **spec} for name, spec in stores.items()], "workers": [WORKER]},
                        env={}, kinds=found)
    return build_stores(config.stores, kinds=found, coder_memory=coder_memory)


def test_children_are_built_before_their_parents_and_named_by_their_fields():
    graph = build(A={"pair": {"left": {"plain": {}}, "right": {"several": {"stores": [{"plain": {}}, {"plain": {}}]}}}})
    assert [(built.name, built.kind) for built in graph] == [
        ("A.left", "plain"), ("A.right.stores[0]", "plain"), ("A.right.stores[1]", "plain"), ("A.right", "several"),
        ("A", "pair")]
    assert graph["A"].left is graph["A.left"]
    assert graph["A"].right.children == [graph["A.right.stores[0]"], graph["A.right.stores[1]"]]
    assert [built.spec.path for built in graph][:2] == ["stores[0].pair.left", "stores[0].pair.right.several.stores[0]"]
    assert [built.store.context.name for built in graph] == [built.name for built in graph]


def test_stores_that_are_referred_to_come_before_those_that_refer_to_them():
    graph = build(A={"pair": {"left": {"link": {"name": "C"}}, "right": {"link": {"name": "B"}}}},
                  B={"link": {"name": "C"}}, C={"plain": {}}, D={"plain": {}})
    assert [built.name for built in graph] == ["C", "B", "A.left", "A.right", "A", "D"]
    assert graph["A"].left.context.lookup("C") is graph["C"]
    assert "C" in graph
    assert "X" not in graph
    assert len(graph) == 6
    assert repr(graph).startswith("<StoreGraph C: plain, B: link,")


def test_a_store_cannot_be_looked_up_in_a_constructor():
    with pytest.raises(PluginError, match="^stores\\[0\\].eager: the store kind eager from .* cannot be made: "
                                          "InternalError: store A asked for the store B in its constructor; expected "
                                          "in run$"):
        build(A={"eager": {"name": "B"}}, B={"plain": {}})


def test_a_context_answers_only_for_its_own_children_and_in_time():
    inner = {"pair": {"left": {"plain": {}}, "right": {"plain": {}}}}
    graph = build(A={"pair": {"left": {"plain": {}}, "right": inner}})
    pair = graph["A"]
    assert pair.context.child(pair.options.left) is pair.left
    with pytest.raises(InternalError, match=r"^store A asked for a child that is not a field of its options$"):
        pair.context.child(pair.right.options.left)
    with pytest.raises(InternalError, match=r"^store A asked for the store Z, which the config does not have$"):
        pair.context.lookup("Z")


@pytest.mark.parametrize(("spec", "kind", "message"), [
    ({"refusing": {"limit": 3}}, ConfigError,
     "stores[0].pair.left.refusing.limit: 3 is too little; expected at least 5"),
    ({"lacking": {}}, PluginError, "needs a library that is not here"),
    ({"vague": {}}, ConfigError, "stores[0].pair.left.vague: is no good"),
    ({"crashing": {}}, PluginError,
     "stores[0].pair.left.crashing: the store kind crashing from an unknown distribution (crashing = "
     "tests.unit.storage.kinds:Crashing) cannot be made: RuntimeError: boom"),
    ({"impostor": {}}, PluginError,
     "stores[0].pair.left.impostor: the store kind impostor from an unknown distribution (impostor = "
     "tests.unit.storage.kinds:Impostor) makes Impostor; expected a subclass of nl.plugin.Store"),
])
def test_a_store_that_cannot_be_built_is_reported_with_its_path(spec, kind, message):
    with pytest.raises(ConfigError) as caught:
        build(A={"pair": {"left": spec, "right": {"plain": {}}}})
    assert type(caught.value) is kind
    assert str(caught.value) == message


async def test_built_in_kinds_build_and_work():
    found = StoreKinds()
    config = load_value({
        "stores": [{"name": "A", "ref_store": {"name": "B"}}, {"name": "B", "memory": {}}], "workers": [WORKER],
    }, env={}, kinds=found)
    graph = build_stores(config.stores, kinds=found)
    await graph["A"].put(HELLO, b"hello")
    assert bytes(await graph["B"].get(HELLO)) == b"hello"


def test_children_are_made_while_their_parents_are_and_never_later():
    lazy = build(A={"lazy": {"left": {"plain": {}}, "right": {"plain": {}}}})["A"]
    with pytest.raises(InternalError, match=r"^store A asked for A\.right after its constructor$"):
        lazy.context.child(lazy.options.right)


def test_what_nobody_refers_to_is_built_in_the_order_of_the_config():
    graph = build(**{name: {"plain": {}} for name in "BAC"})
    assert [built.name for built in graph.stores] == ["B", "A", "C"]
    assert repr(graph["A"].context) == "<StoreContext of A>"


def test_all_stores_of_a_config_share_the_memory_for_coders():
    stores = {"A": {"pair": {"left": {"plain": {}}, "right": {"plain": {}}}}, "B": {"plain": {}}}
    for given in (None, CoderMemory(1000)):
        graph = build(given, **stores)
        assert {id(built.store.context.coder_memory) for built in graph} == {id(graph.coder_memory)}
        assert graph.coder_memory is given or given is None
