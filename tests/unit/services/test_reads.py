"""A Read holds a file only while its client takes what is in it."""

import hashlib
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from nl.blob.reader import BytesReader
from nl.errors import BlobNotFoundError
from nl.model.digest import Digest
from nl.pb.codec.wire import read_varint
from nl.services.reads import PATIENCE_S, ReadSender

DATA = bytes(range(256)) * 4096
DIGEST = Digest(hashlib.sha256(DATA).hexdigest(), len(DATA))


class Files:
    """A store that counts the files that are open."""

    def __init__(self):
        self.now = self.most = self.times = 0
        self.missing = False

    @asynccontextmanager
    async def open(self, key, *, offset=0, length=None):
        if self.missing:
            raise BlobNotFoundError(key)
        self.times += 1
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            yield BytesReader(memoryview(DATA)[offset : None if length is None else offset + length])
        finally:
            self.now -= 1


class Client:
    """The client's end of a Read: gives credit, and takes what comes."""

    def __init__(self, credit=0):
        self.credit = credit
        self.got = b""
        self.is_stuck = False
        self._changed = trio.Event()

    def give(self, credit):
        self.credit += credit
        self._changed.set()
        self._changed = trio.Event()

    @property
    def send_credit(self):
        return self.credit

    async def wait_send_credit(self):
        while not self.credit:
            await self._changed.wait()
        return self.credit

    async def send_parts(self, parts):
        data = b"".join(parts)
        size = len(data) + 5  # with the prefix of a gRPC message
        while self.credit < size or self.is_stuck:
            await self._changed.wait()
        self.credit -= size
        self.got += data


def content(got):
    """The data of the ReadResponses in it."""
    data, at = b"", 0
    while at < len(got):
        assert got[at] == 0x52
        size, at = (got[at + 1], at + 2) if got[at + 1] < 128 else read_varint(got, at + 2, got[at + 1])
        data += got[at : at + size]
        at += size
    return data


def sending(sender, client, files, *, offset=0, limit=0):
    async def send():
        await sender.send(client, files, DIGEST, offset=offset, limit=limit)

    return send


async def test_no_file_is_opened_before_there_is_credit(autojump_clock):
    files, sender, clients = Files(), ReadSender(10), [Client() for _ in range(50)]
    async with trio.open_nursery() as nursery:
        for client in clients:
            nursery.start_soon(sending(sender, client, files))
        await trio.sleep(1000)
        assert files.times == 0
        clients[7].give(1 << 30)
        await trio.testing.wait_all_tasks_blocked()
        assert content(clients[7].got) == DATA
        assert (files.times, files.now) == (1, 0)
        nursery.cancel_scope.cancel()


async def test_a_file_is_closed_when_credit_is_long_in_coming_and_reading_goes_on_where_it_was(autojump_clock):
    files, sender, client = Files(), ReadSender(10), Client(100_000)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sending(sender, client, files, offset=10, limit=len(DATA) - 20))
        await trio.testing.wait_all_tasks_blocked()
        assert files.now == 1
        await trio.sleep(PATIENCE_S + 0.1)
        assert (files.now, sender.open) == (0, 0)
        client.give(1 << 30)
    assert content(client.got) == DATA[10:-10]
    assert (files.times, sender.reopened) == (2, 1)


@pytest.mark.parametrize("credit", [1024 + 8, 16_000, 16_391, 16_393, 16_394, 100_000])
async def test_credit_is_used_up_so_that_what_is_left_over_keeps_no_file_open(credit, autojump_clock):
    files, sender, client = Files(), ReadSender(10), Client(credit)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sending(sender, client, files))
        await trio.sleep(PATIENCE_S + 0.1)
        assert (files.now, files.times) == (0, 1)
        nursery.cancel_scope.cancel()


async def test_a_client_that_is_only_slow_has_its_file_opened_once(autojump_clock):
    files, sender, client = Files(), ReadSender(10), Client(10_000)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sending(sender, client, files))
        while len(client.got) < len(DATA):
            await trio.sleep(PATIENCE_S / 2)
            client.give(100_000)
    assert content(client.got) == DATA
    assert files.times == 1


async def test_clients_that_take_nothing_hold_no_more_files_than_there_may_be(autojump_clock):
    files, sender = Files(), ReadSender(5)
    clients = [Client(1 << 30) for _ in range(100)]
    for client in clients:
        client.is_stuck = True  # credit is there, and yet nothing leaves
    async with trio.open_nursery() as nursery:
        for client in clients:
            nursery.start_soon(sending(sender, client, files))
        await trio.testing.wait_all_tasks_blocked()
        assert (files.now, sender.open, files.times) == (5, 5, 100)
        for client in clients:
            client.is_stuck = False
            client.give(0)
    assert all(content(client.got) == DATA for client in clients)
    assert (files.now, sender.open) == (0, 0)


@pytest.mark.parametrize("most", [0, 5])
@pytest.mark.parametrize(("offset", "limit"), [(0, 0), (5, 0), (0, 1), (len(DATA), 0), (len(DATA) - 1, 100)])
async def test_ranges_are_the_same_with_and_without_an_open_file(most, offset, limit, autojump_clock):
    files, client = Files(), Client(1 << 30)
    await ReadSender(most).send(client, files, DIGEST, offset=offset, limit=limit)
    assert content(client.got) == DATA[offset : offset + limit if limit else None]


@pytest.mark.parametrize("most", [0, 5])
async def test_what_is_missing_is_said_to_be_whatever_is_asked_for(most, autojump_clock):
    files, client = Files(), Client(1 << 30)
    files.missing = True
    for offset in (0, len(DATA)):
        with pytest.raises(BlobNotFoundError):
            await ReadSender(most).send(client, files, DIGEST, offset=offset, limit=0)


async def test_where_many_wait_for_credit_none_keeps_its_file_and_buffer(nursery, monkeypatch):
    monkeypatch.setattr("nl.services.reads.MAX_PATIENT", 3)
    sender, files = ReadSender(1000), Files()
    clients = [Client(20_000) for _ in range(10)]
    for client in clients:
        client.is_stuck = True
        nursery.start_soon(sending(sender, client, files))
    await trio.testing.wait_all_tasks_blocked()
    assert files.now == 10
    for client in clients:
        client.is_stuck = False
        client.give(0)
    await trio.testing.wait_all_tasks_blocked()
    assert files.now == 3
    for client in clients:
        client.give(2 * len(DATA))
    await trio.testing.wait_all_tasks_blocked()
    assert all(content(client.got) == DATA for client in clients)
    assert files.now == sender.open == 0
