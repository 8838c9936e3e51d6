import os

import pytest

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
