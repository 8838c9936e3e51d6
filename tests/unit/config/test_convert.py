"""Reading typed options: what each type takes, and the exact message for what it does not."""

import dataclasses
from typing import Annotated

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nl.config.convert import convert, store_spec, struct
from nl.config.fields import (
    Conversion,
    Entries,
    Ignored,
    Unsupported,
    ZeroMeansDefault,
    child_specs,
    fields_of,
    join,
    walk,
)
from nl.config.types import EvictionPolicy, Options, Size, StoreName, Text
from nl.errors import ConfigError, PluginError
from tests.unit.config.kinds import EverythingOptions, MemOptions, PairOptions, everything, kinds


def conversion(env=None):
    return Conversion(env or {}, kinds().options)


def refusal(raw):
    with pytest.raises(ConfigError) as caught:
        everything(raw)
    return str(caught.value)


def test_nothing_given_means_the_defaults():
    assert everything({}) == EverythingOptions()


def test_every_type_takes_its_values():
    found = everything({
        "text": "$A", "literal": "$A", "count": "5", "size": "1kb", "duration": "1m", "signed": -1, "flag": "true",
        "real": 2, "choice": "b", "maybe": "1KiB", "texts": ["x", "$A"], "sizes": {"p": "1mb"}, "old_name": 9,
        "either": {"eviction_policy": {"max_count": 3}}, "class": "k",
    }, {"A": "value"})
    assert found == EverythingOptions(
        text="value", literal="$A", count=5, size=1000, duration=60.0, signed=-1.0, flag=True, real=2.0, choice="b",
        maybe=1024, texts=("x", "value"), sizes={"p": 10**6}, renamed=9,
        either=MemOptions(eviction_policy=EvictionPolicy(max_count=3)), class_="k",
    )


def test_null_is_absent_where_there_is_a_default():
    assert everything(dict.fromkeys(["text", "size", "maybe", "texts", "sizes", "either"])) == EverythingOptions()


@pytest.mark.parametrize(("raw", "message"), [
    ({"text": 1}, "here.text: 1 is not text; expected text"),
    ({"text": "$NO"}, "here.text: environment variable NO is not set; expected text"),
    ({"count": "many"}, 'here.count: "many" is not a whole number; expected a whole number'),
    ({"size": "10 gigs"}, 'here.size: "10 gigs" is not a size; expected a number of bytes or a size such as "10gb" or '
                          '"64KiB"'),
    ({"duration": "5"}, 'here.duration: "5" has no unit; expected a number of seconds or a duration such as "90s" or '
                        '"1h 30m"'),
    ({"signed": "x"}, 'here.signed: "x" is not a duration; expected a number of seconds (negative: off) or a duration '
                      'such as "90s"'),
    ({"flag": "yes"}, 'here.flag: "yes" is not true or false; expected true or false'),
    ({"real": "x"}, 'here.real: "x" is not a number; expected a number'),
    ({"choice": "B"}, 'here.choice: "B" is none of the choices; expected one of "a", "b"'),
    ({"choice": 5}, 'here.choice: 5 is none of the choices; expected one of "a", "b"'),
    ({"maybe": "?"}, 'here.maybe: "?" is not a size; expected a number of bytes or a size such as "10gb" or "64KiB"'),
    ({"texts": "x"}, 'here.texts: "x" is not a list; expected [ ... ]'),
    ({"texts": ["x", 1]}, "here.texts[1]: 1 is not text; expected text"),
    ({"sizes": ["x"]}, "here.sizes: a list is not an object; expected { ... }"),
    ({"sizes": {"container-image": -1}}, 'here.sizes["container-image"]: -1 is negative; expected a number of bytes or '
                                         'a size such as "10gb" or "64KiB"'),
    ({"either": "y"}, 'here.either: "y" is none of the choices; expected one of "x"'),
    ({"either": []}, 'here.either: a list does not fit; expected one of "x" or an object'),
    ({"either": {"x": 1}}, "here.either.x: unknown key; expected one of eviction_policy"),
    ({"renamed": 1, "old_name": 2}, "here.old_name: says the same as renamed; expected only one of the two"),
    ({"count": 13}, "here.count: is 13; expected luck"),
    ({"size": 14}, "here: is 14; expected less"),
    ({"secret": 5}, "here.secret: 5 is not text; expected text"),
    ({"size": 13}, "here: all of it is wrong; expected luck"),
    ({"either": {"eviction_policy": {"max_bytes": "1kb", "evict_bytes": "2kb"}}},
     "here.either.eviction_policy.evict_bytes: 2000 is more than max_bytes; expected at most 1000"),
    ([], "here: a list is not an object; expected { ... }"),
    ("x", 'here: "x" is not an object; expected { ... }'),
])
def test_a_bad_value_is_refused_with_its_path(raw, message):
    assert refusal(raw) == message


def test_an_unknown_key_names_the_known_ones_and_the_closest():
    with pytest.raises(ConfigError) as caught:
        struct(EvictionPolicy, {"max_bite": 1}, "stores[0].mem.eviction_policy", conversion())
    assert str(caught.value) == (
        "stores[0].mem.eviction_policy.max_bite: unknown key (did you mean max_bytes?); expected one of max_bytes, "
        "evict_bytes, max_seconds, max_count")


def test_a_missing_key_says_what_belongs_there():
    with pytest.raises(ConfigError) as caught:
        store_spec({"disk": {"content_path": "/x"}}, "stores[0]", conversion())
    assert str(caught.value) == "stores[0].disk.temp_path: missing; expected text"
    with pytest.raises(ConfigError) as caught:
        store_spec({"pair": {"left": {"mem": {}}}}, "stores[0]", conversion())
    assert str(caught.value) == "stores[0].pair.right: missing; expected a store, { <kind>: {...} }"


def test_child_stores_know_where_they_stand():
    spec = store_spec({"pair": {"left": {"mem": None}, "right": {"many": {"stores": [{"mem": {}}]}}}}, "stores[2]",
                      conversion())
    assert isinstance(spec.options, PairOptions)
    assert spec.options.left.path == "stores[2].pair.left"
    assert [(path, child.kind) for path, child in child_specs(spec.options)] == [("left", "mem"), ("right", "many")]
    assert [(path, child.path) for path, child in child_specs(spec.options.right.options)] == [
        ("stores[0]", "stores[2].pair.right.many.stores[0]")]


@pytest.mark.parametrize(("raw", "message"), [
    ({}, "x: a store has exactly one kind, found none; expected { <kind>: {...} }"),
    ({"mem": {}, "disk": {}}, "x: a store has exactly one kind, found mem, disk; expected { <kind>: {...} }"),
    ({"men": {}}, "x.men: unknown store kind (did you mean mem?); expected one of the installed kinds disk, "
                  "everything, link, many, mem, pair"),
    ([], "x: a list is not an object; expected { ... }"),
    ({"mem": 5}, "x.mem: 5 is not an object; expected { ... }"),
    ({"link": {"name": ""}}, "x.link.name: empty text; expected the name of a store"),
])
def test_a_store_has_exactly_one_known_kind(raw, message):
    with pytest.raises(ConfigError) as caught:
        store_spec(raw, "x", conversion())
    assert str(caught.value) == message


def test_names_of_stores_are_noted_with_their_paths():
    noting = conversion()
    store_spec({"pair": {"left": {"link": {"name": "A"}}, "right": {"link": {"name": "B"}}}}, "s", noting)
    assert noting.references == [("s.pair.left.link.name", "A"), ("s.pair.right.link.name", "B")]
    assert all(type(name) is StoreName for _, name in noting.references)


class Marked(Options):
    zero: Annotated[Size, ZeroMeansDefault()] = 64
    never: Annotated[Size, Unsupported("there is no such thing")] = 0
    quiet: Annotated[Size, Ignored("nothing depends on it")] = 0
    split: Annotated[tuple[Text, ...], Entries(lambda raw, path, _: [(f"{path}<{v}>", v) for v in raw], "f")] = ()


def marked(raw):
    warned = conversion()
    return struct(Marked, raw, "m", warned), warned.warnings


def test_zero_selects_the_default_where_marked():
    assert marked({"zero": 0})[0].zero == 64
    assert marked({"zero": 1})[0].zero == 1


def test_what_is_not_supported_is_refused_when_set():
    assert marked({"never": 0})[0].never == 0
    for value in (1, "1kb", {"any": "shape"}):
        with pytest.raises(ConfigError) as caught:
            marked({"never": value})
        assert str(caught.value) == (
            "m.never: not supported: there is no such thing; expected this key to be left out")


def test_what_has_no_effect_gives_a_warning_when_set():
    assert marked({"quiet": 0})[1] == []
    assert marked({"quiet": 7}) == (Marked(quiet=7), [("m.quiet", "has no effect: nothing depends on it")])


def test_entries_keep_the_paths_of_their_form():
    with pytest.raises(ConfigError, match=r"^m\.split<5>: 5 is not text; expected text$"):
        marked({"split": ["a", 5]})


def test_a_type_that_options_cannot_have_is_the_authors_fault():
    class Odd(Options):
        when: complex = 0j

    with pytest.raises(PluginError, match=r"^o\.when: the options declare the type <class 'complex'>; expected"):
        struct(Odd, {"when": 1}, "o", conversion())


def test_an_annotation_that_cannot_be_resolved_is_the_authors_fault():
    class Odd(Options):
        when: "Nowhere"  # noqa: F821

    with pytest.raises(PluginError, match="cannot be read: name 'Nowhere' is not defined"):
        fields_of(Odd)


def test_a_secret_is_not_shown():
    found = everything({"secret": "$KEY"}, {"KEY": "hunter2"})
    assert found.secret == "hunter2"
    assert "hunter2" not in repr(found)
    assert "secret='***'" in repr(found)


def test_options_are_frozen_and_keyword_only():
    options = EverythingOptions()
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.count = 5
    with pytest.raises(TypeError):
        EvictionPolicy(5)


def test_paths_quote_keys_that_are_no_names():
    assert join("a", "b_1") == "a.b_1"
    assert join("", "b") == "b"
    assert join("a", "container-image") == 'a["container-image"]'
    assert join("a", "") == 'a[""]'


def test_walk_visits_child_stores():
    spec = store_spec({"pair": {"left": {"mem": {}}, "right": {"link": {"name": "X"}}}}, "s", conversion())
    assert ("s.pair.right.link.name", "X") in list(walk(spec, "s"))


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["text", "size", "choice", "texts", "mem", "pair", "left", "right", "either", "old_name"]),
        inner, max_size=4),
    max_leaves=12,
)


@given(_JSON)
def test_any_value_converts_or_is_refused_in_one_line_with_a_path(raw):
    for annotation in (EverythingOptions, PairOptions, tuple[EvictionPolicy, ...]):
        try:
            convert(annotation, raw, "here", conversion())
        except ConfigError as exc:
            assert exc.path.startswith("here")
            assert "expected" in exc.problem
            assert "\n" not in str(exc)


def test_nothing_where_something_is_required_is_told_as_what_it_is():
    with pytest.raises(ConfigError, match=r"^s.disk.content_path: null is not text"):
        store_spec({"disk": {"content_path": None, "temp_path": "t"}}, "s", Conversion({}, kinds().options))
    with pytest.raises(ConfigError, match=r"^s.disk.content_path: missing; expected text"):
        store_spec({"disk": {"temp_path": "t"}}, "s", Conversion({}, kinds().options))


@pytest.mark.parametrize(("most", "batch", "is_taken"), [(0, 0, True), (0, 5, True), (5, 5, True), (5, 6, False)])
def test_a_batch_of_evictions_is_no_larger_than_the_whole_where_that_has_a_bound(most, batch, is_taken):
    policy = EvictionPolicy(max_bytes=most, evict_bytes=batch)
    if is_taken:
        policy.check()
    else:
        with pytest.raises(ConfigError, match="evict_bytes: 6 is more than max_bytes; expected at most 5"):
            policy.check()
