import os
from contextlib import suppress

import pytest
import trio

from nl.blob.file import INLINE, open_file
from nl.errors import InternalError
from nl.testing import drain


@pytest.mark.parametrize("size", [0, 1, INLINE, INLINE + 1, 1_000_000])
async def test_a_file_is_read_whole(tmp_path, size):
    data = os.urandom(size)
    (tmp_path / "file").write_bytes(data)
    async with open_file(str(tmp_path / "file")) as reader:
        assert reader.size == size
        assert await drain(reader, 70_000) == data


async def test_a_file_that_shrinks_meanwhile_is_an_error_not_a_short_read(tmp_path):
    (tmp_path / "file").write_bytes(bytes(1000))
    async with open_file(str(tmp_path / "file")) as reader:
        os.truncate(tmp_path / "file", 10)
        with pytest.raises(InternalError, match="cut short"):
            await drain(reader)


async def test_a_symlink_is_not_followed(tmp_path):
    (tmp_path / "file").write_bytes(b"secret")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    with pytest.raises(OSError):
        async with open_file(str(tmp_path / "link")):
            pass


@pytest.mark.parametrize("fails", [False, True])
async def test_a_file_is_closed_whatever_happens_while_it_is_read(tmp_path, fails):
    (tmp_path / "file").write_bytes(b"abc")
    before = os.listdir("/proc/self/fd")
    with suppress(ZeroDivisionError):
        async with open_file(str(tmp_path / "file")) as reader:
            assert reader.can_rewind
            await reader.receive_parts(1)
            if fails:
                raise ZeroDivisionError
    assert os.listdir("/proc/self/fd") == before


async def test_what_is_appended_meanwhile_is_not_read(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    async with open_file(str(tmp_path / "file")) as reader:
        with open(tmp_path / "file", "ab") as file:
            file.write(b"def")
        assert await drain(reader) == b"abc"
        assert await reader.receive_parts() == ()


@pytest.mark.parametrize(("size", "threads"), [(INLINE, 0), (INLINE + 1, 1)])
async def test_small_files_cost_no_thread(tmp_path, monkeypatch, size, threads):
    (tmp_path / "file").write_bytes(bytes(size))
    real, used = trio.to_thread.run_sync, []

    async def run_sync(*args, **options):
        used.append(args[0])
        return await real(*args, **options)

    monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)
    async with open_file(str(tmp_path / "file")) as reader:
        assert await drain(reader) == bytes(size)
    assert len(used) == threads
