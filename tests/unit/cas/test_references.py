"""What a hit must still have in the CAS."""

import pytest

from nl.cas.references import direct_references, root_digests, tree_digests
from nl.errors import InvalidRequestError
from nl.model.digest import Digest, DigestFunction
from nl.pb import reapi

SHA256 = DigestFunction.SHA256


def d(letter, size=1):
    return reapi.Digest(hash=letter * 64, size_bytes=size)


def test_everything_a_result_names_is_found_once():
    result = reapi.ActionResult(
        output_files=[reapi.OutputFile(path="a", digest=d("a")), reapi.OutputFile(path="b", digest=d("a"))],
        output_directories=[reapi.OutputDirectory(path="t", tree_digest=d("b"), root_directory_digest=d("c"))],
        stdout_digest=d("d"),
        stderr_digest=d("e"),
    )
    assert direct_references(result, SHA256) == [Digest(letter * 64, 1) for letter in "abcde"]
    assert tree_digests(result, SHA256) == [Digest("b" * 64, 1)]
    assert root_digests(result, SHA256) == []


def test_a_result_that_names_nothing_refers_to_nothing():
    assert direct_references(reapi.ActionResult(exit_code=1, stdout_raw=b"x"), SHA256) == []


def test_an_output_directory_may_have_a_root_alone():
    result = reapi.ActionResult(output_directories=[reapi.OutputDirectory(path="t", root_directory_digest=d("c"))])
    assert direct_references(result, SHA256) == [Digest("c" * 64, 1)]
    assert tree_digests(result, SHA256) == []
    assert root_digests(result, SHA256) == [Digest("c" * 64, 1)]


def test_malformed_references_say_where():
    with pytest.raises(InvalidRequestError, match="output file 'a'"):
        direct_references(reapi.ActionResult(output_files=[reapi.OutputFile(path="a", digest=d("A"))]), SHA256)
    with pytest.raises(InvalidRequestError, match="output directory 't': the digest is not set"):
        direct_references(reapi.ActionResult(output_directories=[reapi.OutputDirectory(path="t")]), SHA256)


def test_a_file_whose_content_is_in_the_result_refers_to_nothing_unless_it_has_a_digest_too():
    inlined = reapi.OutputFile(path="a", contents=b"content")
    both = reapi.OutputFile(path="b", contents=b"content", digest=d("b"))
    assert direct_references(reapi.ActionResult(output_files=[inlined, both]), SHA256) == [Digest("b" * 64, 1)]
    with pytest.raises(InvalidRequestError, match="output file 'c': the digest is not set"):
        direct_references(reapi.ActionResult(output_files=[reapi.OutputFile(path="c")]), SHA256)


def test_what_is_below_a_directory_is_told_by_its_tree_if_it_has_one_and_else_by_its_root():
    result = reapi.ActionResult(output_directories=[
        reapi.OutputDirectory(path="both", tree_digest=d("a"), root_directory_digest=d("b")),
        reapi.OutputDirectory(path="root", root_directory_digest=d("b")),
        reapi.OutputDirectory(path="again", root_directory_digest=d("b")),
        reapi.OutputDirectory(path="tree", tree_digest=d("a")),
    ])  # fmt: skip
    assert direct_references(result, SHA256) == [Digest("a" * 64, 1), Digest("b" * 64, 1)]
    assert tree_digests(result, SHA256) == [Digest("a" * 64, 1)]
    assert root_digests(result, SHA256) == [Digest("b" * 64, 1)]


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_what_was_printed_is_a_reference_of_either_sort(name):
    result = reapi.ActionResult(**{f"{name}_digest": d("a")})
    assert direct_references(result, DigestFunction.BLAKE3) == [Digest("a" * 64, 1, DigestFunction.BLAKE3)]
    with pytest.raises(InvalidRequestError, match=name):
        direct_references(reapi.ActionResult(**{f"{name}_digest": d("A")}), SHA256)
