"""File names and index keys alone: each key has one name, each name leads back to its key, and to nobody else's."""

from urllib.parse import quote

import pytest

from nl.plugin import ActionKey, Digest, DigestFunction, ForeignKey
from nl.stores.filesystem import names

SHA256, BLAKE3 = DigestFunction.SHA256, DigestFunction.BLAKE3
HASHES = [letter * 64 for letter in "abcdef0"]  # some begin like the letters that stand before other keys
LENGTHS = (62, 63, 64, 65, 85, 86, 255, 256)
TEXTS = ["", "%", ".", ".x", "a b", "\udcff", *(letter * length for letter in "abswé/" for length in LENGTHS)]


def folder_of(key):
    return "blobs" if names.is_in_blobs(key) else "actions" if names.is_in_actions(key) else "texts"


@pytest.mark.parametrize("function", DigestFunction)
@pytest.mark.parametrize("hash", HASHES)
def test_the_index_key_of_a_hash_leads_to_its_file_and_back(hash, function):
    suffix = ".blake3" if function is BLAKE3 else ""
    name = f"{hash}-7{suffix}"
    digest, action, foreign = Digest(hash, 7, function), ActionKey(hash, 7, function), ForeignKey(hash, 7, function)
    blob, result, wrong = names.index_key(digest), names.index_key(action), names.index_key(foreign)
    assert len({blob, result, wrong}) == 3
    assert [names.file_name(key, 7) for key in (blob, result, wrong)] == [name] * 3
    assert [folder_of(key) for key in (blob, result, wrong)] == ["blobs", "actions", "blobs"]
    assert [names.is_blob(key) for key in (blob, result, wrong)] == [True, False, False]
    assert [names.is_in_actions(key) for key in (blob, result, wrong)] == [False, True, False]
    assert names.key_in_blobs(name, 7) == names.key_in_executables(name, 7) == blob
    assert names.key_in_blobs(name, 8) == wrong
    assert names.key_in_executables(name, 8) is None
    assert names.key_in_actions(name, 8) == result
    assert names.asked_in_blobs(name) == (digest, action)
    assert names.asked_in_actions(name) == (action,)


@pytest.mark.parametrize("text", TEXTS)
def test_the_index_key_of_a_text_leads_to_its_file_whatever_its_length(text):
    key, name = names.index_key(text), names.name_of_text(text)
    assert not names.is_blob(key)
    assert folder_of(key) == "texts"
    assert names.file_name(key, 7) == name
    assert names.key_in_texts(name, 7) == key
    asked = names.asked_in_texts(name)
    assert asked == (None if len(quote(text, safe="", errors="surrogatepass")) > 255 else (text,))


def test_a_name_is_as_long_as_a_file_system_takes():
    assert names.name_of_text("x" * 255) == "x" * 255
    assert names.name_of_text("x" * 256).startswith("%%")
    assert len(names.name_of_text("x" * 256)) == 66


@pytest.mark.parametrize("name", ["notes.txt", "", "a" * 64, f"{'a' * 63}-1", f"{'a' * 64}-1.sha1", f"{'A' * 64}-1"])
def test_what_is_not_named_after_a_digest_is_nobodys(name):
    assert names.key_in_blobs(name, 1) is None
    assert names.key_in_actions(name, 1) is None
    assert names.key_in_executables(name, 1) is None
    assert names.asked_in_blobs(name) == names.asked_in_actions(name) == ()


def test_hidden_files_are_no_values():
    assert names.key_in_texts(".session", 1) is None
    assert names.key_in_texts("%2Esession", 1) is not None


def test_only_blobs_of_other_functions_may_have_an_unmarked_name():
    assert names.unmarked_key(Digest("a" * 64, 1, BLAKE3)) == names.index_key(Digest("a" * 64, 1))
    assert names.unmarked_key(Digest("a" * 64, 1)) is None


def test_an_older_caches_action_result_is_the_file_of_another_size_of_any_function():
    for function in DigestFunction:
        key = names.legacy_action_key(ActionKey("a" * 64, 142, function))
        assert key == names.key_in_blobs(f"{'a' * 64}-142", 20)
