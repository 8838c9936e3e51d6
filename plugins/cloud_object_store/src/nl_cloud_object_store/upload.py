"""Writing an object: small ones in one request, large ones as a multipart upload in bounded memory.

An object appears when its last request succeeds, whole. Whatever ends a multipart upload before (the reader, the
server, cancellation) is followed by its abort; one that does not succeed at once is left to the sweeper.
"""

from __future__ import annotations

import functools
import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import trio

from nl.plugin import BackendError, PromisedSource, RetryPolicy, Threads, ValueTooLargeError
from nl_cloud_object_store.client import Bytes, ObjectClient, ObjectMissingError, UploadGoneError
from nl_cloud_object_store.parts import Budget, Buffers, Reservation, part_size
from nl_cloud_object_store.sweep import Sweeper
from nl_cloud_object_store.threads import GRACE_S

FRESH_STARTS = 2
"""How often an upload begins again that the server has forgotten."""


class Multipart:
    """The thread's side of a multipart upload.

    A request may still run in its thread when the caller is gone. After `give_up`, the thread whose request ends aborts
    what it has begun or added to: a server may keep a part that comes after the abort.
    """

    def __init__(self, client: ObjectClient, key: str, *, left_over: Callable[[str, str], None]) -> None:
        """`left_over` is called, in any thread, with the key and the id of an upload that could not be aborted."""
        self._client = client
        self._left_over = left_over
        self._lock = threading.Lock()
        self._given_up = False
        self.under_way = 0
        """Requests that have begun and not ended."""
        self.key = key
        self.id: str | None = None
        self.tags: dict[int, str] = {}

    def create(self) -> None:
        """Begins the upload."""
        with self._request():
            self.id = self._client.create_upload(self.key)

    def send(self, number: int, data: Bytes, offset: int) -> None:
        """Sends a part, or sends it again."""
        assert self.id is not None
        with self._request():
            self.tags[number] = self._client.upload_part(self.key, self.id, number, data, offset)

    def complete(self) -> None:
        """Makes the object of all parts."""
        assert self.id is not None
        self._client.complete_upload(self.key, self.id, [self.tags[number] for number in sorted(self.tags)])

    def give_up(self) -> str | None:
        """No more is wanted; the id of what is to be aborted, if there is something."""
        with self._lock:
            self._given_up = True
            return self.id

    @contextmanager
    def _request(self) -> Iterator[None]:
        with self._lock:
            self.under_way += 1
        try:
            yield
        finally:
            with self._lock:
                late = self._given_up
                if not late:
                    self.under_way -= 1
            if late:
                self._abort_late()
                with self._lock:
                    self.under_way -= 1

    def _abort_late(self) -> None:
        if self.id is None:
            return
        try:
            self._client.abort_upload(self.key, self.id)
        except BackendError:
            self._left_over(self.key, self.id)


class Uploader:
    """Writes objects. All methods raise BackendError, and what a reader raises as it is."""

    def __init__(
        self, client: ObjectClient, *, threads: Threads, policy: RetryPolicy, budget: Budget, sweeper: Sweeper,
        part: int, at_once: int,
    ) -> None:
        """`part`: what is larger goes in parts of at least this size (bytes); `at_once`: parts of one upload."""
        self._client = client
        self._threads = threads
        self._policy = policy
        self._budget = budget
        self._sweeper = sweeper
        self._at_once = at_once
        self._buffers = Buffers(at_once)
        self._late: list[Multipart] = []
        self.part = part
        """Objects up to this many bytes go in one request."""

    @property
    def late(self) -> int:
        """Uploads that were given up while a request of theirs went on, which their thread aborts when it ends."""
        self._late = [each for each in self._late if each.under_way]
        return len(self._late)

    async def put(self, key: str, data: Bytes, *, replace: bool) -> None:
        """One request. `data` must not change, even if the caller is cancelled.

        `replace`: the object may have another value, so a cancelled caller waits, lest this one overtakes the next.
        """
        hop = self._threads.change if replace else self._threads.look
        await self._policy.run(lambda: hop(self._client.put, key, data))

    async def write(self, key: str, source: PromisedSource, *, replace: bool) -> None:
        """Everything that the source has. Where the server has lost what it had of the upload, and the source can, it
        begins again.
        """
        for _ in range(FRESH_STARTS):
            try:
                return await self._write(key, source, replace=replace)
            except UploadGoneError:
                if not await source.start_again():
                    raise
        return await self._write(key, source, replace=replace)

    async def _write(self, key: str, source: PromisedSource, *, replace: bool) -> None:
        size = source.size
        most, granule = self._client.MAX_PARTS, self._client.GRANULE
        room = size if 0 <= size <= self.part else part_size(size, smallest=self.part, most=most, granule=granule)
        if room > self._client.MAX_PART:
            raise ValueTooLargeError(f"{key}: {size} bytes are more than an object can have")
        held = await self._budget.reserve(room)
        try:
            first = await source.take(self._buffers.take(room))
            if source.ended:
                await self.put(key, first, replace=replace)
            else:
                with self._buffers.in_use():
                    upload = Multipart(self._client, key, left_over=self._sweeper.add_from_thread)
                    await self._multipart(upload, source, room=room, first=first, held=held, replace=replace)
        finally:
            held.release()

    async def _multipart(
        self, upload: Multipart, source: PromisedSource, *, room: int, first: bytearray, held: Reservation,
        replace: bool,
    ) -> None:
        try:
            await self._policy.run(lambda: self._threads.change(upload.create))
            await self._send_all(upload, source, room=room, first=first, held=held)
            await self._complete(upload, source, replace=replace)
        except BaseException:
            with trio.move_on_after(GRACE_S, shield=True):
                await self._abort(upload)
            raise

    async def _send_all(
        self, upload: Multipart, source: PromisedSource, *, room: int, first: bytearray, held: Reservation
    ) -> None:
        """Takes and sends part after part, at most `at_once` under way, the one that is being taken included."""
        failed: list[Exception] = []
        places = trio.Semaphore(self._at_once - 1)
        arrived = trio.Event()  # the part before the one that is started next
        arrived.set()
        async with trio.open_nursery() as nursery:

            async def send(
                number: int, data: bytearray, held: Reservation, before: trio.Event, after: trio.Event
            ) -> None:
                try:
                    if self._client.IN_ORDER:
                        await before.wait()
                    offset = room * (number - 1)
                    await self._policy.run(lambda: self._threads.change(upload.send, number, data, offset))
                    self._buffers.give_back(data)
                    after.set()
                except BackendError as error:
                    failed.append(error)
                    nursery.cancel_scope.cancel()
                finally:
                    held.release()
                    places.release()

            def start(number: int, data: bytearray, held: Reservation) -> None:
                nonlocal arrived
                before, arrived = arrived, trio.Event()
                nursery.start_soon(send, number, data, held, before, arrived)

            try:
                start(1, first, held)
                for number in itertools.count(2):
                    if source.ended:
                        break
                    await places.acquire()
                    await self._take_and_send(source, room, functools.partial(start, number))
            except Exception as error:  # noqa: BLE001 - raised below, outside of the nursery that would wrap it
                failed.append(error)
                nursery.cancel_scope.cancel()
        if failed:
            try:
                raise failed[0]
            finally:
                failed.clear()  # a circle: the error knows these frames, and they the parts

    async def _take_and_send(
        self, source: PromisedSource, room: int, send: Callable[[bytearray, Reservation], None]
    ) -> None:
        held = await self._budget.reserve(room)
        data = bytearray()
        try:
            data = await source.take(self._buffers.take(room))
        finally:
            if not data:  # the reader raised, or the last part was full and the size not known beforehand
                held.release()
        if data:
            send(data, held)

    async def _complete(self, upload: Multipart, source: PromisedSource, *, replace: bool) -> None:
        """The last request. Where its answer is lost, asking again finds no upload, and perhaps the object. So it is
        where another has written the same blob meanwhile and the server then forgot the parts of all others (Azure).
        """
        lost = not replace

        async def attempt() -> None:
            nonlocal lost
            try:
                await self._threads.change(upload.complete)
            except UploadGoneError:
                if not lost or not await self._is_there(upload.key, source.taken):
                    raise
            except BackendError:
                lost = True
                raise

        await self._policy.run(attempt)

    async def _is_there(self, key: str, size: int) -> bool:
        try:
            info = await self._threads.look(self._client.head, key)
        except ObjectMissingError:
            return False
        return info.size == size

    async def _abort(self, upload: Multipart) -> None:
        id = upload.give_up()
        if upload.under_way:
            self._late = [each for each in (*self._late, upload) if each.under_way]
        if id is None:
            return
        done = False
        try:
            await self._threads.look(self._client.abort_upload, upload.key, id)
            done = True
        except BackendError:
            pass  # the sweeper goes on trying
        finally:
            if not done:
                self._sweeper.add(upload.key, id)
