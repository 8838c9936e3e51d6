"""Keys: which of them are equal, and the texts that stand for them."""

import hashlib
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nl.errors import InvalidRequestError
from nl.model.digest import MAX_SIZE, MAX_TEXT, ActionKey, Digest, DigestFunction, key_of_text, key_text

SHA256, BLAKE3 = DigestFunction
H = "ab" * 32
functions = st.sampled_from(DigestFunction)
digests = st.builds(Digest, st.just(H), st.integers(0, MAX_SIZE), functions)
keys = st.one_of(digests, digests.map(lambda digest: ActionKey(*digest)), st.text(), digests.map(key_text))


def test_a_digest_and_the_action_key_of_equal_text_are_different_keys():
    digest, action = Digest(H, 5), ActionKey(H, 5)
    assert digest != action
    assert len({digest: 1, action: 2, str(digest): 3}) == 3
    assert str(digest) == str(action)


def test_digests_of_two_functions_are_different_keys_and_so_are_their_actions():
    assert len({kind(H, 5, function) for kind in (Digest, ActionKey) for function in DigestFunction}) == 4


def test_an_action_key_is_made_of_a_digest_or_of_itself():
    for function in DigestFunction:
        action = ActionKey(*Digest(H, 5, function))
        assert action == ActionKey(*action) == ActionKey(H, 5, function)


@given(keys, keys)
@example("a" * 300 + "1", "a" * 300 + "2")
@example("", "~")
@example("\ud800", "%ED%A0%80")
def test_no_two_keys_have_the_same_text(one, other):
    texts = key_text(one), key_text(other)
    assert (texts[0] == texts[1]) == (one == other)
    for text in texts:
        assert text.isascii() and 0 < len(text) <= MAX_TEXT
        assert not set(text) & set("/\\. \0") - {"."} and text[0] != "."


def test_a_string_that_is_what_a_longer_one_was_cut_to_has_a_text_of_its_own():
    long = "a" * 300
    cut = key_text(long)
    assert len(cut) == MAX_TEXT
    alike = cut[1:]
    assert key_text(alike) not in {cut, f"~{alike}"}
    assert key_text(key_text(alike)[1:]) != key_text(alike)
    assert [key_of_text(key_text(key)) for key in (long, alike)] == [None, None]


@pytest.mark.parametrize(
    "key",
    ["a" * 254, "a" * 188 + "~~" + "f" * 63 + "g", "a" * 188 + "~-" + "f" * 64, "a" * 187 + "~~" + "f" * 64,
     "a" * 188 + "~~" + "F" * 64, "n", "instance/action cache"],
)  # fmt: skip
def test_what_does_not_look_cut_has_the_text_that_it_always_had(key):
    assert key_text(key) == "~" + quote(key, safe="")
    assert key_of_text(key_text(key)) == key


def test_a_text_that_is_cut_is_what_it_always_was():
    assert key_text("/" * 300) == "~" + ("%2F" * 100)[:188] + "~~" + hashlib.sha256(b"/" * 300).hexdigest()


@given(keys)
@example("a" * 300)
@example("~~")
def test_a_key_is_read_back_from_its_text_unless_that_had_to_be_cut_short(key):
    text = key_text(key)
    found = key_of_text(text)
    if isinstance(key, str) and len(text) == MAX_TEXT and found is None:
        return
    assert found == key
    assert type(found) is type(key)


@given(st.text() | st.text("~%ED\x80") | st.text("%8E0").map("~{}".format))
@example("~%80")
def test_what_is_no_text_of_a_key_is_none(text):
    key = key_of_text(text)
    assert key is None or key_text(key) == text


@given(digests)
def test_a_digest_is_read_back_from_its_text(digest):
    assert Digest.parse_name(key_text(digest)) == digest


@pytest.mark.parametrize("text", [H, f"{H}-", f"{H}-05", f"{H}-5.ac", f"{H}-5.blake3.blake3", f"{H}-5.sha1", f"~{H}-5",
                                  f"{H.upper()}-5", f"{H}-{MAX_SIZE + 1}", f"{H}-5.blake", ".blake3", ""])
def test_what_is_no_text_of_a_digest_is_none(text):
    assert Digest.parse_name(text) is None


def test_parsed_digests_have_the_function_that_was_asked_for():
    assert Digest.parse(H, 5, BLAKE3) == Digest(H, 5, BLAKE3) != Digest.parse(H, 5, SHA256)
    for hash, size in ((H[1:], 5), (H.upper(), 5), (H, -1), (H, MAX_SIZE + 1)):
        with pytest.raises(InvalidRequestError):
            Digest.parse(hash, size, SHA256)
