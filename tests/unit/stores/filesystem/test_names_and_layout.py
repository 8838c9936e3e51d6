"""Where files lie, that no key leaves its folder, and what a store says when its folders will not do."""

import os
import stat
import subprocess

import pytest

from nl.blob.hashing import digest_of
from nl.plugin import ActionKey, BlobNotFoundError, BytesReader, ConfigError, Digest, InternalError, InvalidRequestError
from nl.stores.filesystem import FilesystemOptions, FilesystemStore
from nl.stores.filesystem.names import name_of, name_of_text
from nl.testing import BareContext, make_blob, read, started

from .conftest import Place, put

TRAVERSING = ["..", ".", "/", "../x", "a/../../x", "/etc/passwd", "\0", ".hidden", "\n", "a" * 5000, "é" * 200, "%", ""]


@pytest.mark.parametrize("key", TRAVERSING)
def test_every_text_becomes_a_plain_file_name(key):
    name = name_of_text(key)
    assert 0 < len(name) <= 255
    assert "/" not in name and "\0" not in name and not name.startswith(".")


def test_different_texts_have_different_names():
    keys = [*TRAVERSING, "a%20b", "a b", "%25", "%%", "%2E", "a" * 5001, "%%" + "0" * 64, "\udcff", "ÿ"]
    assert len({name_of_text(key) for key in keys}) == len(keys)


@pytest.mark.parametrize(
    "hash", ["../../etc/passwd", "", "ab" * 31, "AB" * 32, "ab" * 32 + "/", "ab" * 32 + "\n", "٣" * 64]
)
def test_a_malformed_hash_is_no_file_name(hash):
    for key in (Digest(hash, 3), ActionKey(hash, 3)):
        with pytest.raises(InvalidRequestError, match="64 lower-case hex"):
            name_of(key)


async def test_files_lie_where_the_layout_says(place):
    async with place.running() as store:
        digest = await put(store, b"blob")
        await store.put(ActionKey(digest.hash, 4), b"result")
        await store.put("some name", b"value")
        assert place.file(digest).read_bytes() == b"blob"
        assert (place.content / "a" / f"{digest.hash}-4").read_bytes() == b"result"
        assert (place.content / "s" / "some%20name").read_bytes() == b"value"
        assert stat.S_IMODE(place.file(digest).stat().st_mode) == 0o444
        assert place.temp_files() == []


async def test_blobs_are_readable_by_all_whatever_the_umask(place):
    before = os.umask(0o077)
    try:
        async with place.running() as store:
            digest = await put(store, b"blob")
            assert stat.S_IMODE(place.file(digest).stat().st_mode) == 0o444
            assert await store.get(digest) == b"blob"
    finally:
        os.umask(before)


async def test_blobs_of_the_oldest_layout_are_found(place):
    digest = digest_of(b"old")
    place.content.mkdir()
    (place.content / str(digest)).write_bytes(b"old")
    (place.content / "README").write_bytes(b"not a blob")
    async with place.running() as store:
        assert await store.get(digest) == b"old"
        assert (place.content / "README").read_bytes() == b"not a blob"


async def test_action_results_of_an_older_cache_are_found_in_the_folder_of_blobs(place):
    key = ActionKey("ab" * 32, 142)
    (place.content / "d").mkdir(parents=True)
    (place.content / "d" / str(key)).write_bytes(b"an old action result")
    async with place.running() as store:
        assert await store.has([key, Digest(*key[:2])]) == [20, None]
        assert await store.get(key) == b"an old action result"
        await store.put(key, b"a new one")
        assert await store.get(key) == b"a new one"
        assert await store.has([key]) == [9]


async def test_files_that_are_not_of_the_cache_are_left_alone(place, caplog):
    (place.content / "d").mkdir(parents=True)
    (place.content / "d" / "notes.txt").write_bytes(b"mine")
    (place.content / "d" / "folder").mkdir()
    os.symlink("/etc/passwd", place.content / "d" / str(digest_of(b"link")))
    async with place.running(policy={"max_bytes": 8192}) as store:
        for number in range(5):
            await put(store, b"%d" % number)
        with pytest.raises(BlobNotFoundError):
            await store.get(digest_of(b"link"))
        assert store.statistics()["blobs"] == 2
    assert (place.content / "d" / "notes.txt").read_bytes() == b"mine"
    assert "notes.txt is not a file of this cache" in caplog.text


async def test_a_store_that_does_not_run_says_so(place):
    store = FilesystemStore(place.options(), BareContext("CAS"))
    digest = digest_of(b"x")
    for attempt in (store.has([digest]), store.get(digest), store.put(digest, b"x")):
        with pytest.raises(InternalError, match="'CAS' is used while it is not running"):
            await attempt


async def test_a_stopped_store_leaves_no_descriptor_open(place):
    before = os.listdir("/proc/self/fd")
    async with place.running() as store:
        digest = await put(store, b"x")
        await store.get(digest)
    assert len(os.listdir("/proc/self/fd")) <= len(before)


async def test_statistics_and_repr_tell_the_truth(place):
    async with place.running(policy={"max_bytes": 1 << 20}) as store:
        digest = await put(store, b"x")
        await store.get(digest)
        with pytest.raises(BlobNotFoundError):
            await store.get(digest_of(b"y"))
        facts = store.statistics()
        expected = {"blobs": 1, "bytes": 4096, "max_bytes": 1 << 20, "hits": 1, "misses": 1, "written_blobs": 1}
        assert {name: facts[name] for name in expected} == expected
        assert "1 blobs" in repr(store) and str(place.content) in repr(store) and "CAS" in repr(store)


@pytest.fixture
def mount(tmp_path):
    """A small file system of its own."""
    path = tmp_path / "mount"
    path.mkdir()
    if os.geteuid() != 0 or subprocess.call(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(path)]):
        pytest.skip("NOT TESTED: mounting a tmpfs needs root and CAP_SYS_ADMIN")
    yield path
    subprocess.check_call(["umount", "-l", str(path)])


async def _start(content, temp):
    options = FilesystemOptions(content_path=str(content), temp_path=str(temp))
    with pytest.raises((ConfigError, ExceptionGroup)) as caught:
        async with started(FilesystemStore(options, BareContext("CAS"))):
            pass
    error = caught.value
    while isinstance(error, ExceptionGroup):
        [error] = error.exceptions
    assert isinstance(error, ConfigError)
    return str(error)


async def test_a_temp_folder_on_another_file_system_is_replaced_by_one_that_works(tmp_path, mount, caplog):
    options = FilesystemOptions(content_path=str(tmp_path / "content"), temp_path=str(mount / "temp"))
    data = make_blob(200_000)
    digest = digest_of(data)
    async with started(FilesystemStore(options, BareContext("CAS"))) as store:
        await store.write(digest, BytesReader(data))
        assert await read(store, digest) == data
    assert f"using {tmp_path / 'content' / '.temp'} instead" in caplog.text and str(mount / "temp") in caplog.text
    assert sorted(os.listdir(tmp_path / "content" / "d")) == [str(digest)]
    assert os.listdir(mount / "temp") == []


async def test_a_mount_point_may_be_the_content_folder(tmp_path, mount):
    place = Place(tmp_path)
    place.content, place.temp = mount, mount / "temp"
    async with place.running() as store:
        digest = await put(store, b"x")
        assert await store.get(digest) == b"x"
        assert sorted(name for name in os.listdir(mount) if name[0] == ".") == [".corrupt", ".exec", ".lock"]


async def test_a_path_that_is_no_folder_is_refused_at_start(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    text = await _start(tmp_path / "file", tmp_path / "temp")
    assert str(tmp_path / "file") in text


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"content_path": "", "temp_path": "/t"}, "content_path"),
        ({"content_path": "/c", "temp_path": ""}, "temp_path"),
        ({"content_path": "/c", "temp_path": "/c/"}, "temp_path"),
        ({"content_path": "/c", "temp_path": "/t", "block_size": 0}, "block_size"),
        ({"content_path": "/c", "temp_path": "/t", "read_buffer_size": 0}, "read_buffer_size"),
    ],
)
def test_options_that_make_no_sense_are_refused(fields, path):
    with pytest.raises(ConfigError) as caught:
        FilesystemOptions(**fields).check()
    assert caught.value.path == path
