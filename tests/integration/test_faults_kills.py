"""Fifty SIGKILLs in the middle of writes: what was acknowledged is there and right, what was not is absent or right."""

from __future__ import annotations

import random
import threading
from pathlib import Path
from typing import Any

import grpc
import trio

from tests.support.foreign import AC, BYTES, BYTESTREAM, CAS, REAPI, chunks, digest, read_name, upload_name
from tests.support.processes import Server, all_in_one

KILLS = 50
WRITERS = 4
SIZES = (500, 4096, 60_000, 300_000, 3_000_000)


class Writers:
    """Threads that upload until their server is gone, each with a connection of its own."""

    def __init__(self, server: Server, seed: int) -> None:
        self.acknowledged: list[bytes] = []
        self.attempted: list[bytes] = []
        self.actions: list[Any] = []
        self.errors: list[BaseException] = []
        self._progress = threading.Condition()
        self._target = server.target
        self._threads = [threading.Thread(target=self._run, args=(seed * WRITERS + each,)) for each in range(WRITERS)]
        for thread in self._threads:
            thread.start()

    def wait_for(self, count: int) -> None:
        with self._progress:
            assert self._progress.wait_for(lambda: len(self.acknowledged) >= count or self.errors, timeout=30)

    def join(self) -> None:
        for thread in self._threads:
            thread.join(timeout=30)
            assert not thread.is_alive(), "a call outlived its server"
        assert not self.errors, self.errors

    def _run(self, seed: int) -> None:
        choose = random.Random(seed)
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
        with grpc.insecure_channel(self._target, options=options) as channel:
            try:
                while True:
                    self._upload(channel, choose)
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    self._fail(error)
            except Exception as error:  # noqa: BLE001  shown by `join`
                self._fail(error)

    def _fail(self, error: BaseException) -> None:
        with self._progress:
            self.errors.append(error)
            self._progress.notify_all()

    def _upload(self, channel: grpc.Channel, choose: random.Random) -> None:
        size = choose.choice(SIZES)
        data = choose.randbytes(size)
        of = digest(data)
        self.attempted.append(data)
        if size <= 60_000 and choose.random() < 0.5:
            update = channel.unary_unary(CAS + "BatchUpdateBlobs", _encode, REAPI.BatchUpdateBlobsResponse.FromString)
            request = REAPI.BatchUpdateBlobsRequest()
            request.requests.add(digest=of, data=data)
            reply = update(request, timeout=30)
            assert reply.responses[0].status.code == 0, reply
        else:
            write = channel.stream_unary(BYTES + "Write", _encode, BYTESTREAM.WriteResponse.FromString)
            write(iter(chunks(upload_name(of), data, size=100_000)), timeout=30)
        with self._progress:
            self.acknowledged.append(data)
            self._progress.notify_all()
        if choose.random() < 0.3:
            result = REAPI.ActionResult(stdout_digest=of, exit_code=choose.randrange(1, 100))
            request = REAPI.UpdateActionResultRequest(action_digest=of, action_result=result)
            channel.unary_unary(AC + "UpdateActionResult", _encode, None)(request, timeout=30)
            with self._progress:
                self.actions.append(request)


def _encode(message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    return data


def verify(channel: grpc.Channel, writers: Writers) -> None:
    find = channel.unary_unary(CAS + "FindMissingBlobs", _encode, REAPI.FindMissingBlobsResponse.FromString)
    read = channel.unary_stream(BYTES + "Read", _encode, BYTESTREAM.ReadResponse.FromString)
    get = channel.unary_unary(AC + "GetActionResult", _encode, REAPI.ActionResult.FromString)
    wanted = REAPI.FindMissingBlobsRequest(blob_digests=[digest(data) for data in writers.acknowledged])
    assert not find(wanted, timeout=30).missing_blob_digests, "acknowledged, and lost"
    known = set(writers.acknowledged)
    for data in writers.attempted:
        request = BYTESTREAM.ReadRequest(resource_name=read_name(digest(data)))
        got = _read_or_none(read, request)
        assert got == data or (got is None and data not in known), "not the bytes that were sent"
    for update in writers.actions:
        request = REAPI.GetActionResultRequest(action_digest=update.action_digest)
        assert get(request, timeout=30) == update.action_result


def _read_or_none(read: Any, request: Any) -> bytes | None:
    try:
        return b"".join(reply.data for reply in read(request, timeout=30))
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.NOT_FOUND:
            return None
        raise


def temporary_files(data: Path) -> list[Path]:
    folders = [data / "cas.temp", data / "ac.temp"]
    return [path for folder in folders for path in folder.rglob("*") if path.is_file()]


async def test_fifty_kills_in_the_middle_of_writes_lose_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    choose = random.Random(20)
    data = tmp_path / "data"
    most_temporary = interrupted = total = 0
    with all_in_one(tmp_path, isolation="plain") as server:
        rounds: list[Writers] = []
        for number in range(KILLS):
            writers = Writers(server, number)
            await trio.to_thread.run_sync(writers.wait_for, choose.randrange(1, 25))
            server.kill()
            await trio.to_thread.run_sync(writers.join)
            most_temporary = max(most_temporary, len(temporary_files(data)))
            interrupted += len(writers.attempted) - len(writers.acknowledged)
            total += len(writers.acknowledged)
            rounds.append(writers)
            server.start()
            with grpc.insecure_channel(server.target) as channel:
                await trio.to_thread.run_sync(verify, channel, writers)
            writers.attempted.clear()
            writers.acknowledged = [each for each in writers.acknowledged if len(each) < 10_000]
        with grpc.insecure_channel(server.target) as channel:
            for writers in rounds:
                await trio.to_thread.run_sync(verify, channel, writers)
        with trio.fail_after(120):
            while len(temporary_files(data)) > 2:  # the session files of the living process
                await trio.sleep(0.05)
        assert "is corrupt" not in server.log_text()
    print(f"{KILLS} kills, {total} acknowledged, {interrupted} interrupted, at most {most_temporary} temporary files")
    assert interrupted > KILLS, "the kills did not come in the middle of writes"
    assert most_temporary < 100
