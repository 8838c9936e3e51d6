"""Where paths stand in a JSON5 text."""

import json

from hypothesis import given
from hypothesis import strategies as st

from nl.config.fields import join
from nl.config.positions import duplicate, locate, positions

_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=10,
)


def paths(value, path=""):
    if isinstance(value, dict):
        for key, inner in value.items():
            yield join(path, key)
            yield from paths(inner, join(path, key))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield f"{path}[{i}]"
            yield from paths(inner, f"{path}[{i}]")


@given(st.dictionaries(st.text(max_size=4), _VALUES, max_size=4), st.sampled_from([None, 2]))
def test_every_path_of_any_value_is_found_in_order(value, indent):
    text = json.dumps(value, indent=indent)
    assert [path for path, _, _ in positions(text)] == list(paths(value))


@given(st.text(max_size=60))
def test_any_text_can_be_scanned(text):
    list(positions(text))
    duplicate(text)
    locate(text, "a.b")


def test_keys_and_entries_are_found_at_their_first_letter():
    text = '{\n  a: [1,\n    {"b-c": 2}],\n}'
    assert locate(text, "a") == (2, 3)
    assert locate(text, "a[0]") == (2, 7)
    assert locate(text, 'a[1]["b-c"]') == (3, 6)


def test_what_is_not_there_is_at_its_innermost_enclosing_place():
    text = "{ab: {c: 1}}"
    assert locate(text, "ab.x.y") == (1, 2)
    assert locate(text, "abc") is None
    assert locate(text, "") is None


def test_a_key_twice_is_found_however_it_is_written():
    assert duplicate("{a: 1, b: {a: 2}}") is None
    assert duplicate("{a: 1, 'a': 2}") == ("a", 7)
    assert duplicate("{a: 1, \\u0061: 2}") == ("a", 7)


def test_a_text_that_is_no_config_any_more_has_no_place():
    assert locate(", a, [1, 2], x", "a") is None
    assert list(positions("1, 2")) == []


def test_entries_of_a_list_in_a_list_are_counted_for_themselves():
    assert [path for path, _, _ in positions("{a: [[1, 2], {b: 1, c: [3, 4]}, 5]}")] == [
        "a", "a[0]", "a[0][0]", "a[0][1]", "a[1]", "a[1].b", "a[1].c", "a[1].c[0]", "a[1].c[1]", "a[2]",
    ]  # fmt: skip
