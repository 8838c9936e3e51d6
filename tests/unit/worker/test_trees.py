"""Trees: exact records, every directory once, parents before children, equal content gives equal bytes."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nl.blob.hashing import digest_of
from nl.errors import InvalidRequestError
from nl.model.digest import Digest, DigestFunction
from nl.pb import reapi
from nl.pb.codec import decode, encode
from nl.worker.files import Hashed, hash_file
from nl.worker.trees import DirectoryScanner, tree_bytes

SHA256 = DigestFunction.SHA256
NAMES = st.text("ab\u00e9\U0001f600\uffee", min_size=1, max_size=2)
LAYOUTS = st.recursive(st.binary(max_size=2), lambda inner: st.dictionaries(NAMES, inner, max_size=3), max_leaves=12)


def make(path: Path, layout) -> None:
    if isinstance(layout, dict):
        path.mkdir()
        for name, item in layout.items():
            make(path / name, item)
    else:
        path.write_bytes(layout)


def scan(path: Path):
    def hash_path(where: str) -> Hashed:
        return hash_file(where, SHA256)

    return DirectoryScanner(str(path), function=SHA256, properties=frozenset(), hash_path=hash_path).scan(str(path))


def content(directory: reapi.Directory, known: dict) -> dict:
    found = {node.name: node.digest.hash for node in directory.files}
    for node in directory.directories:
        found[node.name] = content(known[node.digest.hash], known)
    return found


def expected(layout) -> object:
    if isinstance(layout, dict):
        return {name: expected(item) for name, item in layout.items()}
    return digest_of(layout).hash


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(layout=st.dictionaries(NAMES, LAYOUTS, max_size=4))
def test_a_tree_holds_what_the_directory_holds_in_canonical_order(layout, tmp_path_factory):
    path = tmp_path_factory.mktemp("t") / "root"
    make(path, layout)
    found = scan(path)
    data = tree_bytes(found)
    tree = decode(reapi.Tree, data)
    assert encode(tree) == data or not tree.root.files + tree.root.directories
    everything = [tree.root, *tree.children]
    digests = [digest_of(encode(directory)).hash for directory in everything]
    assert len(set(digests)) == len(digests)
    known = dict(zip(digests, everything, strict=True))
    assert content(tree.root, known) == expected(layout)
    place = {hash: at for at, hash in enumerate(digests)}
    for at, directory in enumerate(everything):
        names = [node.name.encode() for node in directory.directories]
        assert names == sorted(names)
        files = [node.name.encode() for node in directory.files]
        assert files == sorted(files)
        assert all(place[node.digest.hash] > at for node in directory.directories)


def test_an_empty_directory_is_a_tree_with_an_empty_root(tmp_path):
    (tmp_path / "d").mkdir()
    found = scan(tmp_path / "d")
    assert found.root == Digest("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", 0)
    assert tree_bytes(found) == b"\x0a\x00"


def test_a_name_that_is_not_utf8_is_refused(tmp_path):
    (tmp_path / "d").mkdir()
    Path(bytes(tmp_path / "d").decode() + "/\udcff").touch()
    with pytest.raises(InvalidRequestError, match="not UTF-8"):
        scan(tmp_path / "d")


@pytest.fixture
def deep_path() -> Iterator[Path]:
    """Not below `tmp_path`: pytest removes that with shutil.rmtree, now or runs later, and rmtree recurses."""
    path = Path(tempfile.mkdtemp(prefix="nl-deep-"))
    yield path
    subprocess.run(["rm", "-rf", path], check=True)


def test_a_deep_directory_needs_no_recursion(deep_path):
    deep = deep_path
    for _ in range(1000):
        deep = deep / "x"
        deep.mkdir()
    assert len(scan(deep_path).blobs) == 1001
