"""A bucket in memory, in place of a provider's: it says what it was asked, fails as it is told, and may be held up."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from nl_cloud_object_store.client import (
    Bytes,
    ListedObject,
    ObjectBody,
    ObjectChangedError,
    ObjectClient,
    ObjectInfo,
    ObjectMissingError,
    ObjectPage,
    OpenUpload,
    UploadGoneError,
    UploadsPage,
)

MIB = 1024 * 1024


class Body(ObjectBody):
    def __init__(self, client: Bucket, data: bytes, info: ObjectInfo) -> None:
        self._client, self._data, self.info = client, data, info
        client.open_bodies += 1

    def read(self, count: int) -> bytes:
        self._client.fail("read")
        count = min(count, self._client.most_per_read)
        data, self._data = self._data[:count], self._data[count:]
        return data

    def close(self) -> None:
        self._client.open_bodies -= 1


class Bucket(ObjectClient):
    """`asked` are the names of the requests; `errors` are raised, the first one first, by the request of that name."""

    def __init__(self) -> None:
        self.objects: dict[str, tuple[bytes, str, float]] = {}
        self.uploads: dict[str, dict[int, bytes]] = {}
        self.offsets: dict[str, dict[int, int]] = {}
        self.asked: list[str] = []
        self.keys: list[str] = []
        self.errors: dict[str, list[Exception]] = {}
        self.before: dict[str, Callable[[], None]] = {}
        self.listed: list[OpenUpload] = []
        self.open_bodies = 0
        self.most_per_read = 1 << 40
        """Bytes that a body gives at once."""
        self.closed = False
        self._lock = threading.Lock()
        self._count = 0

    def fail(self, name: str, key: str = "") -> None:
        with self._lock:
            self.asked.append(name)
            self.keys.append(key)
            error = self.errors[name].pop(0) if self.errors.get(name) else None
        if name in self.before:
            self.before[name]()
        if error is not None:
            raise error

    def store(self, key: str, data: bytes, *, age: float = 0.0) -> None:
        self._count += 1
        self.objects[key] = (data, f"etag{self._count}", time.time() - age)

    def probe(self, prefix: str) -> None:
        self.fail("probe")

    def list_page(self, prefix: str, cursor: str, limit: int) -> ObjectPage:
        self.fail(f"list {limit}")
        names = sorted(name for name in self.objects if name.startswith(prefix) and name > cursor)
        some = [ListedObject(name, len(self.objects[name][0]), self.objects[name][2]) for name in names[:limit]]
        return ObjectPage(some, names[limit - 1] if len(names) > limit else "")

    def _info(self, key: str) -> ObjectInfo:
        if key not in self.objects:
            raise ObjectMissingError(f"{key} is not there")
        data, etag, modified = self.objects[key]
        return ObjectInfo(len(data), etag, modified)

    def head(self, key: str) -> ObjectInfo:
        self.fail("head", key)
        return self._info(key)

    def get(self, key: str, *, span: tuple[int, int] | None = None, etag: str | None = None) -> ObjectBody:
        self.fail("get" if span is None else f"get {span[0]}+{span[1]}", key)
        info = self._info(key)
        if (etag is not None and etag != info.etag) or (span is not None and sum(span) > info.size):
            raise ObjectChangedError(f"{key} is another one")
        data = self.objects[key][0]
        return Body(self, data if span is None else data[span[0] : sum(span)], info)

    def put(self, key: str, data: Bytes) -> None:
        self.fail("put", key)
        self.store(key, bytes(data))

    def create_upload(self, key: str) -> str:
        self.fail("create", key)
        self._count += 1
        self.uploads[f"{key}#{self._count}"] = {}
        return f"{key}#{self._count}"

    def upload_part(self, key: str, upload: str, number: int, data: Bytes, offset: int) -> str:
        self.fail(f"part {number}", key)
        self.offsets.setdefault(upload, {})[number] = offset
        if upload not in self.uploads:
            raise UploadGoneError(f"{upload} is gone")
        self.uploads[upload][number] = bytes(data)
        return f"tag{number}"

    def complete_upload(self, key: str, upload: str, tags: Sequence[str]) -> None:
        self.fail("complete", key)
        if upload not in self.uploads:
            raise UploadGoneError(f"{upload} is gone")
        parts = self.uploads.pop(upload)
        assert list(tags) == [f"tag{number}" for number in sorted(parts)]
        assert all(len(parts[number]) >= 5 * MIB for number in sorted(parts)[:-1])
        begins = [sum(len(parts[each]) for each in parts if each < number) for number in sorted(parts)]
        assert [self.offsets[upload][number] for number in sorted(parts)] == begins
        self.store(key, b"".join(parts[number] for number in sorted(parts)))

    def abort_upload(self, key: str, upload: str) -> None:
        self.fail("abort", key)
        self.uploads.pop(upload, None)

    def open_uploads(self, prefix: str, after: tuple[str, str] | None = None) -> UploadsPage:
        self.fail("open uploads")
        start = 0 if after is None else int(after[1])
        more = start + 2 < len(self.listed)
        return UploadsPage(self.listed[start : start + 2], ("", str(start + 2)) if more else None)

    def delete(self, key: str) -> None:
        self.fail("delete", key)
        self.objects.pop(key, None)

    def close(self) -> None:
        self.closed = True

    def took(self, *names: str) -> list[str]:
        """What was asked since the last time, without what concerns the start."""
        asked = [name for name in self.asked if name not in ("probe", "open uploads") or name in names]
        self.asked.clear()
        return asked
