"""The table of uses that processes share: who is alone, who tells whom, and what is believed of what stands in it."""

import errno
import fcntl
import math
import mmap
import os
import struct
import time

import pytest

from nl.stores.filesystem import uses
from nl.stores.filesystem.uses import CELLS, UseTable


@pytest.fixture
def opened(tmp_path):
    tables = []

    def open_one():
        table = UseTable()
        table.open(str(tmp_path), store="CAS")
        tables.append(table)
        return table

    yield open_one
    for table in tables:
        table.close()


def test_cells_are_those_of_the_last_hash_digits_or_of_a_checksum():
    blob = "0" * 59
    assert [UseTable.cell_of(blob + digits) for digits in ("00000", "0000a", "7ffff", "80000", "80001")] == [
        0, 10, CELLS - 1, 0, 1,
    ]  # fmt: skip
    assert UseTable.cell_of("b" + blob + "0000a") == 10
    cells = {UseTable.cell_of(f"s{name}") for name in range(1000)} | {UseTable.cell_of("s\udcff")}
    assert len(cells) > 990 and all(0 <= cell < CELLS for cell in cells)


def test_what_was_never_used_or_is_in_the_future_was_not_used():
    table = UseTable()
    now = time.monotonic()
    assert table.last(5) == -math.inf
    table.note(5, now)
    assert table.last(5) == now
    for nonsense in (now + 3600, -1.0, math.nan, math.inf):
        table.note(5, nonsense)
        assert table.last(5) == -math.inf
    table.note(5, now + 0.5)
    assert table.last(5) == now + 0.5, "another processor's clock may be a little ahead"


def test_the_first_is_alone_and_the_second_wakes_it(opened):
    one = opened()
    assert one.is_alone and one.is_complete and not one.has_company()
    two = opened()
    assert not two.is_alone and not two.is_complete
    assert one.has_company() and not two.has_company()
    one.keep_company()
    assert not one.is_alone and not one.has_company()
    one.note(7, 3.0)
    assert two.times[7] == 3.0
    assert not two.is_complete
    one.completed()
    assert two.is_complete and one.is_complete
    three = opened()
    assert not three.is_alone and three.is_complete, "nobody who is there is alone: all is told as it happens"


def test_who_comes_when_the_first_has_left_is_not_alone_while_the_second_is_there(opened):
    one, two = opened(), opened()
    one.keep_company()
    one.completed()
    one.close()
    three = opened()
    assert not three.is_alone and three.is_complete
    two.note(7, 3.0)
    assert three.times[7] == 3.0


def test_who_is_alone_again_writes_nothing_again(opened):
    one, two = opened(), opened()
    one.keep_company()
    one.completed()
    two.note(7, 3.0)
    one.close()
    two.close()
    assert one.is_alone and one.is_complete and one.times[7] == 0.0
    again = opened()
    assert again.is_alone and not again.has_company()
    assert again.times[7] == 3.0, "what was used is known until the machine starts anew"


def test_the_file_has_all_of_its_blocks_and_is_named_after_the_start_of_the_machine(opened, tmp_path):
    opened()
    [name] = os.listdir(tmp_path)
    with open("/proc/sys/kernel/random/boot_id") as file:
        assert name == f".uses-{file.read()[:8]}"
    facts = os.stat(tmp_path / name)
    assert facts.st_size == uses._BYTES == CELLS * 8 + mmap.PAGESIZE
    assert facts.st_blocks * 512 >= uses._BYTES


def test_the_table_has_the_form_that_other_versions_read(opened, tmp_path):
    """Half a million times of eight bytes, by the last hash digits, and whether somebody alone writes nothing."""
    one = opened()
    [name] = os.listdir(tmp_path)

    def read(cell):
        return struct.unpack_from("=d", (tmp_path / name).read_bytes(), cell * 8)[0]

    assert os.stat(tmp_path / name).st_size == (1 << 22) + mmap.PAGESIZE
    assert read(1 << 19) == 1.0
    two = opened()
    assert read(1 << 19) == 2.0
    two.give_up()
    assert read(1 << 19) == 3.0 and two.is_late and two.is_complete
    one.keep_company()
    one.completed()
    assert read(1 << 19) == 0.0 and not two.is_late
    two.note(UseTable.cell_of("f" * 59 + "7ffff"), 5.0)
    assert read((1 << 19) - 1) == 5.0
    two.close()
    two.note(UseTable.cell_of("f" * 59 + "7ffff"), 6.0)
    assert read((1 << 19) - 1) == 5.0, "what is closed is nobody else's any more"


def test_one_that_comes_while_another_is_waited_for_in_vain_has_company_told_as_well(opened):
    one, two = opened(), opened()
    two.give_up()
    three = opened()
    assert one.times[CELLS] == 3.0, "it is late all the same"
    assert one.has_company() and three.is_complete and not three.is_alone


def test_where_nothing_can_be_reserved_the_file_is_written(opened, tmp_path, monkeypatch):
    monkeypatch.setattr(uses, "reserve", lambda fd, *, offset, count: False)
    opened()
    [name] = os.listdir(tmp_path)
    facts = os.stat(tmp_path / name)
    assert facts.st_size == uses._BYTES and facts.st_blocks * 512 >= uses._BYTES


def test_a_file_that_is_not_whole_is_made_anew_and_tables_that_nobody_has_go(opened, tmp_path):
    opened().close()
    [name] = os.listdir(tmp_path)
    (tmp_path / name).write_bytes(b"torn")
    (tmp_path / ".uses-00000000").write_bytes(b"of an earlier start")
    living = os.open(tmp_path / ".uses-11111111", os.O_RDWR | os.O_CREAT)
    fcntl.flock(living, fcntl.LOCK_SH)
    (tmp_path / "other").write_bytes(b"")
    opened()
    os.close(living)
    held = [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
    assert not [path for path in held if ".uses-00000000" in path or ".uses-11111111" in path]
    assert sorted(os.listdir(tmp_path)) == sorted([name, ".uses-11111111", "other"])
    assert os.stat(tmp_path / name).st_size == uses._BYTES


def test_where_there_is_no_room_each_has_its_own_and_nothing_is_left(opened, tmp_path, monkeypatch, caplog):
    def refuse(fd, *, offset, count):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(uses, "reserve", refuse)
    before = len(os.listdir("/proc/self/fd"))
    table = opened()
    assert table.is_alone and table.is_complete and not table.has_company()
    assert os.listdir(tmp_path) == []
    assert len(os.listdir("/proc/self/fd")) == before
    assert f"store CAS: which blobs were used last is not shared with other processes on {tmp_path}" in caplog.text


@pytest.mark.parametrize("error", [ValueError("mmap length is greater than file size"), OSError(errno.ENOMEM, "no")])
def test_where_the_file_cannot_be_mapped_each_has_its_own_and_no_descriptor_stays_open(
    opened, tmp_path, monkeypatch, caplog, error
):
    """As if somebody had cut it short at this moment, or on a file system that cannot do it."""
    real = mmap.mmap

    def refuse(fd, length):
        if fd >= 0:
            raise error
        return real(fd, length)

    monkeypatch.setattr(mmap, "mmap", refuse)
    before = len(os.listdir("/proc/self/fd"))
    table = opened()
    assert table.is_alone and table.is_complete and not table.has_company()
    table.note(7, 3.0)
    assert table.times[7] == 3.0
    assert len(os.listdir("/proc/self/fd")) == before
    assert f"not shared with other processes on {tmp_path}: {error}" in caplog.text


def test_a_closed_table_leaves_no_descriptor(opened):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        table = opened()
        table.close()
        table.close()
    assert len(os.listdir("/proc/self/fd")) == before
