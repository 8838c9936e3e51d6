"""Reading what files a Tree names, however its bytes come and are written."""

import random
import tracemalloc
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nl.blob.hashing import digest_of
from nl.cas.file_digests import FileDigests
from nl.cas.packed import PackedDigests
from nl.errors import InvalidRequestError
from nl.model.digest import Digest, DigestFunction
from nl.pb import reapi
from nl.pb.codec import DecodeError, decode, encode, varint

SHA256 = DigestFunction.SHA256
UNKNOWN = b"\xfa\x01\x03abc" + b"\x98\x06\x05"  # field 31, bytes; field 99, a varint


def d(text, size=None):
    digest = digest_of(text.encode())
    return reapi.Digest(hash=digest.hash, size_bytes=len(text) if size is None else size)


def own(digest):
    return Digest(digest.hash, digest.size_bytes, SHA256)


def read(encoded, *, is_tree=True, step=None):
    files = FileDigests(digest_of(encoded), is_tree=is_tree)
    step = step or max(len(encoded), 1)
    for at in range(0, len(encoded), step):
        files.feed(encoded[at : at + step])
    found = list(files.finish())
    return (found, files.directories) if not is_tree else found


NAMES = st.one_of(st.text(min_size=1, max_size=12), st.sampled_from(["x" * 127, "x" * 128, "y" * 2_000]))
DIGESTS = st.builds(d, st.text(max_size=5), st.sampled_from([0, 1, 127, 128, 300, 2**31, 2**62]))
FILES = st.builds(reapi.FileNode, name=NAMES, digest=DIGESTS, is_executable=st.booleans())
SUBS = st.builds(reapi.DirectoryNode, name=NAMES, digest=DIGESTS)
LINKS = st.builds(reapi.SymlinkNode, name=NAMES, target=NAMES)
DIRECTORIES = st.builds(
    reapi.Directory, files=st.lists(FILES, max_size=5), directories=st.lists(SUBS, max_size=3),
    symlinks=st.lists(LINKS, max_size=2),
)


TREES = st.builds(reapi.Tree, root=st.none() | DIRECTORIES, children=st.lists(DIRECTORIES, max_size=4))


@given(TREES, st.integers(1, 90))
def test_files_of_a_tree_are_those_that_decoding_finds(tree, step):
    directories = ([tree.root] if tree.root is not None else []) + tree.children
    expected = [own(file.digest) for directory in directories for file in directory.files]
    encoded = encode(tree)
    assert read(encoded) == expected
    assert read(encoded, step=step) == expected
    assert read(UNKNOWN + encoded + UNKNOWN, step=step) == expected


@given(DIRECTORIES, st.integers(1, 90))
def test_files_and_subdirectories_of_a_directory(directory, step):
    encoded = encode(directory)
    expected = [own(file.digest) for file in directory.files], [own(node.digest) for node in directory.directories]
    assert read(encoded, is_tree=False, step=step) == expected
    assert read(encoded + UNKNOWN, is_tree=False, step=step) == expected


def field(tag, body):
    return bytes([tag]) + varint(len(body)) + body


def test_nodes_that_are_written_in_another_order_are_read_all_the_same():
    file = reapi.FileNode(name="a", digest=d("a"), is_executable=True)
    name, digest = field(0x0A, b"a"), field(0x12, encode(file.digest))
    hash, size = field(0x0A, file.digest.hash.encode()), b"\x10\x01"
    nodes = [
        encode(file), digest + name, b"\x20\x01" + name + digest, name + UNKNOWN + digest, name + digest + UNKNOWN,
        name + field(0x12, size + hash), name + field(0x12, hash) + field(0x12, size),
    ]
    directory = b"".join(field(0x0A, node) for node in nodes)
    for step in (1, 7, 1000):
        assert read(field(0x0A, directory), step=step) == [own(file.digest)] * len(nodes)
        assert read(field(0x12, directory) + field(0x0A, directory), step=step) == [own(file.digest)] * 2 * len(nodes)


def test_a_later_digest_in_a_node_counts_as_in_any_protobuf():
    node = field(0x0A, b"a") + field(0x12, encode(d("first"))) + field(0x12, encode(d("other")))
    assert read(field(0x0A, field(0x0A, node))) == [own(d("other"))]


ONE = encode(reapi.Tree(root=reapi.Directory(files=[reapi.FileNode(name="a", digest=d("a"))])))


@pytest.mark.parametrize("encoded", [
    b"\xff", b"\xffno tree", b"\x0a", b"\x0a\x05abc", ONE[:-1], ONE[:10], ONE + b"\x0a", ONE + b"\x00",
    b"\x0a" + varint(len(ONE) - 10) + ONE[2:],  # the directory ends inside of a node
    field(0x0A, field(0x0A, b"\xff")), field(0x0A, b"\x0a\xff\xff\xff\xff\xff\xff"), b"\x0c", b"\x0b" * 200,
    field(0x0A, field(0x0A, field(0x0A, b"a"))),
    *(
        encode(reapi.Tree(root=reapi.Directory(files=[reapi.FileNode(name="a", digest=digest)])))
        for digest in (
            reapi.Digest(hash="A" * 64, size_bytes=1), reapi.Digest(hash="g" * 64, size_bytes=1),
            reapi.Digest(hash="a" * 63, size_bytes=1), reapi.Digest(hash="a" * 62 + "  ", size_bytes=1),
            reapi.Digest(hash="a" * 64, size_bytes=-1),
        )
    ),
])
@pytest.mark.parametrize("step", [1, 3, 1000])
def test_what_is_no_tree_is_said_so(encoded, step):
    with pytest.raises(InvalidRequestError):
        read(encoded, step=step)


@given(st.binary(max_size=200), st.integers(1, 50))
def test_garbage_is_never_anything_else_than_an_error_or_digests(data, step):
    for encoded in (data, ONE[: len(data) % len(ONE)] + data):
        try:
            read(encoded, step=step)
        except InvalidRequestError:
            pass


def test_a_field_without_end_is_not_gathered():
    files = FileDigests(Digest("a" * 64, 2**40), is_tree=True)
    with pytest.raises(InvalidRequestError):
        files.feed(b"\x0a\xff\xff\xff\xff\x07\x0a\xff\xff\xff\x7f")
        for _ in range(100):
            files.feed(bytes(64 * 1024))


def test_what_is_kept_of_a_large_tree_is_forty_bytes_a_file():
    nodes = [reapi.FileNode(name=f"file{n}.o", digest=d(str(n))) for n in range(10_000)]
    encoded = encode(reapi.Tree(root=reapi.Directory(files=nodes)))
    digest = digest_of(encoded)
    tracemalloc.start()
    files = FileDigests(digest, is_tree=True)
    for at in range(0, len(encoded), 64 * 1024):
        files.feed(encoded[at : at + 64 * 1024])
    packed = files.finish()
    del files
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(packed) == 10_000
    assert kept < 50 * 10_000
    assert random.choice(list(packed)).function is SHA256


def test_packing_and_unpacking_give_the_same_digests():
    for function in DigestFunction:
        digests = [digest_of(b"%d" % n, function) for n in range(5)] + [Digest("0" * 64, 2**63 - 1, function)]
        packed = PackedDigests.of(digests, function)
        assert list(packed) == digests
        assert len(packed) == 6


@pytest.mark.parametrize("function", list(DigestFunction))
def test_files_and_subdirectories_have_the_digest_function_of_what_names_them(function):
    nodes = [reapi.FileNode(name="a", digest=d("a")), reapi.FileNode(name="b", digest=d("b"), node_properties=(
        reapi.NodeProperties(properties=[reapi.NodeProperty(name="c", value="d")])))]  # the short way and the long one
    directory = reapi.Directory(files=nodes, directories=[reapi.DirectoryNode(name="s", digest=d("s"))])
    for encoded, is_tree in ((encode(directory), False), (encode(reapi.Tree(children=[directory])), True)):
        files = FileDigests(digest_of(encoded, function), is_tree=is_tree)
        files.feed(encoded)
        expected = [Digest(d(name).hash, 1, function) for name in "abs"]
        assert list(files.finish()) == expected[:2]
        assert files.directories == ([] if is_tree else expected[2:])


@pytest.mark.parametrize(("is_tree", "kind"), [(True, "Tree"), (False, "Directory")])
def test_an_error_names_what_is_wrong_and_what_it_should_have_been(is_tree, kind):
    digest = digest_of(b"x")
    for encoded, problem in (
        (b"\xff" * 20, f"^{digest} is not a {kind}: "), (b"\x0a\x05a", f"^{digest} is not a {kind}: truncated"),
    ):  # fmt: skip
        files = FileDigests(digest, is_tree=is_tree)
        with pytest.raises(InvalidRequestError, match=problem):
            files.feed(encoded)
            files.finish()
    bad = encode(reapi.Directory(files=[reapi.FileNode(name="f", digest=reapi.Digest(hash="A" * 64, size_bytes=1))]))
    files = FileDigests(digest, is_tree=is_tree)
    with pytest.raises(InvalidRequestError, match=f"^{kind.lower()} {digest}: 'f': invalid digest hash"):
        files.feed(field(0x0A, bad) if is_tree else bad)


@pytest.mark.parametrize(("room", "is_taken"), [(0, True), (1, False)])
def test_a_single_field_may_have_a_mebibyte(room, is_taken):
    """A record, its head and what the part brings besides: so much is gathered, and not a byte more."""
    node = field(0x0A, field(0x0A, b"n" * (1 << 20)) + field(0x12, encode(d("a"))))
    most = 1 << 20
    files = FileDigests(digest_of(node), is_tree=False)
    if is_taken:
        files.feed(node[:most])
        files.feed(node[most:])
        assert list(files.finish()) == [own(d("a"))]
    else:
        with pytest.raises(InvalidRequestError, match=f"has a field of more than {most} bytes"):
            files.feed(node[: most + room])


def decoded(encoded):
    """What the decoder says that a Directory names; None if it is none."""
    try:
        directory = decode(reapi.Directory, encoded)
        return [
            Digest.parse(node.digest.hash, node.digest.size_bytes, SHA256)
            for node in (*directory.files, *directory.directories)
        ]
    except (DecodeError, InvalidRequestError, AttributeError):
        return None


def read_or_none(encoded):
    try:
        files, directories = read(encoded, is_tree=False)
    except InvalidRequestError:
        return None
    return files + directories


@pytest.mark.parametrize("executable", [True, False])
@pytest.mark.parametrize("size", [5, 300, 2**62])
def test_a_node_with_any_byte_changed_or_cut_off_is_what_the_decoder_says(size, executable):
    """The quick way takes nothing that the other refuses, and finds nothing else."""
    for name in ("n", "n" * 60):  # a length of one byte, and one of two
        node = field(0x0A, encode(reapi.FileNode(name=name, digest=d("a", size), is_executable=executable)))
        sub = encode(reapi.Directory(directories=[reapi.DirectoryNode(name="s", digest=d("b"))]))
        text = range(node.index(b"n"), node.index(b"n") + len(name))  # what is in a name is not looked at
        for at in (at for at in range(1, len(node)) if at not in text):
            for value in {node[at] ^ 1 << bit for bit in range(8)} | {0, 0x7F, 0x80, 0xFF, node[at] + 1 & 0xFF}:
                encoded = node[:at] + bytes([value]) + node[at + 1 :]
                assert read_or_none(encoded) == decoded(encoded), (at, value)
                assert read_or_none(encoded + node + sub) == decoded(encoded + node + sub), (at, value)
        for at in range(len(node)):
            assert read_or_none(node + node[:at]) == decoded(node + node[:at]), at


def test_no_few_bytes_are_anything_else_than_the_decoder_says():
    for length in range(5):
        for few in product(b"\x0a\x12\x10\x20\x40\x01\x00\x80", repeat=length):
            assert read_or_none(bytes(few)) == decoded(bytes(few)), bytes(few)


def test_empty_directories_hide_nothing_wherever_they_stand():
    empty, full = reapi.Directory(), reapi.Directory(files=[reapi.FileNode(name="a", digest=d("a"))])
    for children in ([empty, full], [full, empty], [empty, empty, full, empty, full]):
        for root in (None, empty, full):
            expected = [own(d("a"))] * (children.count(full) + (root is full))
            for step in (1, 5, 1000):
                assert read(encode(reapi.Tree(root=root, children=children)), step=step) == expected


def test_nodes_of_any_length_are_read_either_way():
    """Lengths have one byte up to 127: both ways of reading a node have to know that."""
    for length in (*range(1, 260), 16_200, 16_384, 17_000):
        node = reapi.FileNode(name="n" * length, digest=d("a"))
        odd = field(0x0A, encode(node) + b"\xfa\x01\0")  # an unknown field, which the quick way leaves to the other
        directory = field(0x0A, encode(node)) + odd
        assert read(directory + UNKNOWN, is_tree=False) == ([own(d("a"))] * 2, [])
        sub = encode(reapi.Directory(directories=[reapi.DirectoryNode(name="n" * length, digest=d("b"))]))
        assert read(sub + directory, is_tree=False) == ([own(d("a"))] * 2, [own(d("b"))])
        assert read(field(0x0A, directory) + field(0x12, sub)) == [own(d("a"))] * 2


def test_a_directory_that_ends_before_its_length_says_is_truncated():
    body = encode(reapi.Directory(files=[reapi.FileNode(name="a", digest=d("a"))]))
    for missing in (1, 5, 500):
        cut = b"\x0a" + varint(len(body) + missing) + body
        for encoded in (cut, field(0x12, body) + cut):
            with pytest.raises(InvalidRequestError, match="truncated"):
                read(encoded)


def test_what_everybody_writes_is_read_the_quick_way():
    """Any other way is right as well, and takes twenty times as long: 100,000 files stop the loop for a second."""

    class Noting(FileDigests):
        decoded = 0

        def _node(self, record, *, is_file):
            self.decoded += is_file
            super()._node(record, is_file=is_file)

    nodes = [
        reapi.FileNode(name="n" * length, digest=d("a", size=size), is_executable=executable)
        for length in (1, 40, 41, 42, 43, 44, 45, 100, 127)
        for size in (1, 127, 128, 300, 2**31, 2**62)
        for executable in (False, True)
    ]
    encoded = encode(reapi.Tree(root=reapi.Directory(files=nodes)))
    files = Noting(digest_of(encoded), is_tree=True)
    files.feed(encoded)
    assert [digest.size for digest in files.finish()] == [node.digest.size_bytes for node in nodes]
    assert files.decoded == 0
    in_parts = Noting(digest_of(encoded), is_tree=True)
    for at in range(0, len(encoded), 1000):
        in_parts.feed(encoded[at : at + 1000])
    assert len(in_parts.finish()) == len(nodes)
    assert in_parts.decoded == 0, "a node that comes in two parts is put together first"
