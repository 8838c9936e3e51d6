"""Store kinds as plugins: found by entry points of installed distributions, refused by name when unusable."""

import re
import sys

import pytest

from nl.config.convert import store_spec
from nl.config.fields import Conversion
from nl.config.registry import StoreKinds
from nl.errors import ConfigError, PluginError

MODULE = """
from nl.config.types import Options, Text
class MyOptions(Options):
    path: Text = "p"
class Good:
    Options = MyOptions
    def __init__(self, options, context): pass
class Optionless:
    def __init__(self, options, context): pass
class WrongOptions:
    Options = dict
    def __init__(self, options, context): pass
class OneArgument:
    Options = MyOptions
    def __init__(self, options): pass
class KeywordOnly:
    Options = MyOptions
    def __init__(self, options, *, context): pass
def function(options, context): pass
"""
UNREADABLE = """
from __future__ import annotations
from nl.config.types import Options
class MyOptions(Options):
    path: Nowhere
class Store:
    Options = MyOptions
    def __init__(self, options, context): pass
"""
ABSTRACT = """
from nl.plugin import Options, Store
class NoOptions(Options):
    pass
class Unfinished(Store):
    Options = NoOptions
    async def has(self, keys): return []
    async def get(self, key): return b""
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Puts a distribution with modules and entry points on the path, as pip would."""

    def put(name, entry_points, **modules):
        root = tmp_path / name
        info = root / f"{name.replace('-', '_')}-1.2.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
        lines = "".join(f"{key} = {value}\n" for key, value in entry_points.items())
        (info / "entry_points.txt").write_text(f"[nl.stores]\n{lines}")
        for module, text in modules.items():
            (root / f"{module}.py").write_text(text)
            monkeypatch.delitem(sys.modules, module, raising=False)
        monkeypatch.syspath_prepend(root)

    yield put
    for module in [name for name in sys.modules if name.startswith("plug_")]:
        del sys.modules[module]


def refusal(kind):
    with pytest.raises(ConfigError) as caught:
        store_spec({kind: {}}, "stores[3]", Conversion({}, StoreKinds().options))
    return caught.value


def test_an_installed_distribution_brings_a_kind(install):
    install("nl-store-good", {"good": "plug_good:Good"}, plug_good=MODULE)
    kinds = StoreKinds()
    assert "good" in kinds.names()
    assert kinds.distribution("good") == "nl-store-good 1.2"
    spec = store_spec({"good": {"path": "/x"}}, "stores[0]", Conversion({}, kinds.options))
    assert spec.options.path == "/x"
    assert kinds.load("good", "") is kinds.load("good", "")


def test_a_kind_is_imported_only_when_a_config_names_it(install):
    install("nl-store-boom", {"boom": "plug_boom:Boom"}, plug_boom="raise SystemError('not today')")
    kinds = StoreKinds()
    assert "boom" in kinds.names()
    assert "plug_boom" not in sys.modules
    kinds.load("noop", "")


@pytest.mark.parametrize(("value", "problem"), [
    ("plug_bad:Missing", "cannot be loaded from nl-store-bad 1.2 (bad = plug_bad:Missing): AttributeError: module "
                         "'plug_bad' has no attribute 'Missing'"),
    ("plug_nowhere:X", "cannot be loaded from nl-store-bad 1.2 (bad = plug_nowhere:X): ModuleNotFoundError: No module "
                       "named 'plug_nowhere'"),
    ("plug_boom:X", "cannot be loaded from nl-store-bad 1.2 (bad = plug_boom:X): ZeroDivisionError: division by zero"),
    ("plug_bad:Optionless", "from nl-store-bad 1.2 (bad = plug_bad:Optionless) has no class attribute Options; "
                            "expected a subclass of nl.plugin.Options"),
    ("plug_bad:WrongOptions", "from nl-store-bad 1.2 (bad = plug_bad:WrongOptions) has no class attribute Options; "
                              "expected a subclass of nl.plugin.Options"),
    ("plug_bad:OneArgument", "from nl-store-bad 1.2 (bad = plug_bad:OneArgument) has a constructor "
                             "OneArgument(options); expected (options, context)"),
    ("plug_bad:KeywordOnly", "from nl-store-bad 1.2 (bad = plug_bad:KeywordOnly) has a constructor "
                             "KeywordOnly(options, *, context); expected (options, context)"),
    ("plug_unreadable:Store", "from nl-store-bad 1.2 (bad = plug_unreadable:Store) has unreadable options: the options "
                              "plug_unreadable.MyOptions cannot be read: name 'Nowhere' is not defined"),
    ("plug_abstract:Unfinished", "from nl-store-bad 1.2 (bad = plug_abstract:Unfinished) lacks methods; expected open, "
                                 "put, write"),
])
def test_an_unusable_kind_names_distribution_entry_point_and_path(install, value, problem):
    install("nl-store-bad", {"bad": value}, plug_bad=MODULE, plug_boom="1 / 0", plug_abstract=ABSTRACT,
            plug_unreadable=UNREADABLE)
    error = refusal("bad")
    assert type(error) is PluginError
    assert str(error) == f"stores[3].bad: the store kind bad {problem}"


def test_a_function_is_no_store_kind(install):
    install("nl-store-bad", {"bad": "plug_bad:function"}, plug_bad=MODULE)
    assert re.fullmatch(r"stores\[3\]\.bad: the store kind bad from nl-store-bad 1\.2 \(bad = plug_bad:function\) is "
                        r"<function function at 0x[0-9a-f]+>; expected a subclass of nl\.plugin\.Store",
                        str(refusal("bad")))


def test_a_kind_that_two_distributions_offer_is_refused(install):
    install("nl-store-one", {"same": "plug_one:Good"}, plug_one=MODULE)
    install("nl-store-two", {"same": "plug_two:Good"}, plug_two=MODULE)
    error = refusal("same")
    assert type(error) is PluginError
    assert str(error) == ("stores[3].same: the store kind same is offered twice, by nl-store-one 1.2 (same = "
                          "plug_one:Good) and nl-store-two 1.2 (same = plug_two:Good); uninstall one of them")


def test_a_plugin_cannot_replace_a_built_in_kind(install):
    install("nl-store-thief", {"memory": "plug_thief:Good"}, plug_thief=MODULE)
    assert "the store kind memory is offered twice, by nl " in str(refusal("memory"))
    assert StoreKinds.built_in().load("memory", "").origin.startswith("nl ")


def test_an_unknown_kind_lists_what_is_installed():
    error = refusal("memmory")
    assert type(error) is ConfigError
    assert str(error) == ("stores[3].memmory: unknown store kind (did you mean memory?); expected one of the installed "
                          f"kinds {', '.join(StoreKinds().names())}")


def test_kinds_of_nativelink_that_are_absent_say_where_they_come_from():
    with pytest.raises(ConfigError) as caught:
        StoreKinds.built_in().load("ontap_s3_existence_cache", "stores[3].ontap_s3_existence_cache")
    assert str(caught.value).startswith(
        "stores[3].ontap_s3_existence_cache: the store kind ontap_s3_existence_cache is not installed: it comes with "
        "the plugin nl-cloud-object-store; expected one of the installed kinds ")


def test_the_built_in_kinds_register_like_any_other():
    assert set(StoreKinds.built_in().names()) >= {
        "memory", "filesystem", "fast_slow", "ref_store", "noop", "verify", "completeness_checking"}
