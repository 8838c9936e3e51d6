"""The client for Google Cloud Storage, over its JSON interface. Blocking; see `client.ObjectClient`.

An upload in parts is a resumable session: the parts go in order, in multiples of 256 KiB, and whoever does not know
what has arrived asks. What is left over at the end goes with the last request. Sessions that nobody completes cost
nothing, and are gone after a week.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar
from urllib.parse import parse_qs, quote, urlencode, urlsplit

from nl.plugin import BackendError, FullError, RefusedError, TransientError, ValueTooLargeError
from nl_cloud_object_store.client import (
    Bytes,
    ListedObject,
    ObjectBody,
    ObjectChangedError,
    ObjectClient,
    ObjectInfo,
    ObjectMissingError,
    ObjectPage,
    UploadGoneError,
    UploadsPage,
)
from nl_cloud_object_store.gcs_auth import Credentials
from nl_cloud_object_store.http import (
    NOT_UNDERSTOOD,
    Answer,
    Http,
    HttpBody,
    one_line,
    range_header,
    seconds_of,
    size_of_whole,
    understood,
)

_KIB = 1024
_ARRIVED = re.compile(r"bytes=0-(\d+)").fullmatch
_MORE = 308
"""Status: the session goes on."""
_ABORTED = 499
_THROTTLED = {"rateLimitExceeded", "userRateLimitExceeded"}
_FULL = {"quotaExceeded", "storageQuotaExceeded", "dailyLimitExceeded"}


@dataclass(frozen=True, slots=True, kw_only=True)
class GcsSettings:
    """Where the bucket is."""

    bucket: str
    endpoint: str = ""
    """By default Google's own."""


class GcsClient(ObjectClient):
    """One bucket."""

    MAX_PART: ClassVar[int] = 5 * _KIB**3
    MAX_PARTS: ClassVar[int] = 100_000
    GRANULE: ClassVar[int] = 256 * _KIB
    IN_ORDER: ClassVar[bool] = True

    def __init__(self, settings: GcsSettings, http: Http, credentials: Credentials) -> None:
        self._bucket = settings.bucket
        self._base = (settings.endpoint or "https://storage.googleapis.com").rstrip("/")
        self._http = http
        self._credentials = credentials
        self._doubtful: set[str] = set()
        """Sessions of which it is not known what has arrived. Those that end leave it."""

    def probe(self, prefix: str) -> None:
        try:
            self.list_page(prefix, "", 1)
        except ObjectMissingError as error:
            raise RefusedError(f"the bucket {self._bucket} does not exist", option="bucket") from error

    def list_page(self, prefix: str, cursor: str, limit: int) -> ObjectPage:
        asked = {"prefix": prefix, "maxResults": str(limit), "fields": "items(name,size,timeCreated),nextPageToken"}
        reply = self._ask("GET", "/storage/v1", "", {**asked, "pageToken": cursor} if cursor else asked)
        with understood(f"bucket {self._bucket}"):
            told = json.loads(reply.data)
            found = [ListedObject(str(each["name"]), int(each["size"]), _seconds(each["timeCreated"]))
                     for each in told.get("items", ())]
            return ObjectPage(found, str(told.get("nextPageToken", "")))

    def head(self, key: str) -> ObjectInfo:
        reply = self._ask("GET", "/storage/v1", key, {"fields": "size,generation,timeCreated"})
        with understood(key):
            told = json.loads(reply.data)
            return ObjectInfo(int(told["size"]), str(told["generation"]), _seconds(told["timeCreated"]))

    def get(self, key: str, *, span: tuple[int, int] | None = None, etag: str | None = None) -> ObjectBody:
        asked = {"alt": "media"} if etag is None else {"alt": "media", "ifGenerationMatch": etag}
        headers = {} if span is None else {"Range": range_header(span)}
        url = self._address("/download/storage/v1", key, asked)
        self._credentials.sign("GET", url, headers)
        reply = self._http.open(url, headers)
        try:
            if reply.status >= 300:
                raise self._error(self._http.whole(reply, key), key)
            generation = reply.headers.get("x-goog-generation", "")
            if etag is not None and generation != etag:  # emulators know no conditions
                raise ObjectChangedError(f"{key} has been replaced")
            size = size_of_whole(reply.status, reply.headers, span, key)
            with understood(key):
                info = ObjectInfo(size, generation, seconds_of(reply.headers.get("Last-Modified")))
            return HttpBody(reply, info, key)
        except BaseException:
            reply.close()
            raise

    def put(self, key: str, data: Bytes) -> None:
        reply = self._begin(key, "media", data)
        if _size(reply) != len(data):  # a proxy's page, and not the word of who has the object
            raise TransientError(f"bucket {self._bucket}, {key}: the answer ({reply.status}) names no object")

    def create_upload(self, key: str) -> str:
        reply = self._begin(key, "resumable", b"")
        asked = parse_qs(urlsplit(reply.headers.get("Location", "")).query)
        if "upload_id" not in asked:
            raise TransientError(f"bucket {self._bucket}, {key}: the answer has no session")
        return asked["upload_id"][0]

    def _begin(self, key: str, kind: str, body: Bytes) -> Answer:
        """The request that makes an object or a session."""
        try:
            return self._ask("POST", "/upload/storage/v1", "", {"uploadType": kind, "name": key}, body=body)
        except ObjectMissingError as error:
            raise RefusedError(f"the bucket {self._bucket} does not exist", option="bucket") from error

    def upload_part(self, key: str, upload: str, number: int, data: Bytes, offset: int) -> str:
        """Sends what is whole of the part; the tag has the rest of it."""
        whole = len(data) - len(data) % self.GRANULE
        end = offset + whole
        at = self._arrived(key, upload) if upload in self._doubtful else offset
        if not offset <= at <= end:
            raise UploadGoneError(f"{key}: {at} bytes have arrived; expected {offset} to {end}")
        rest = bytes(data[whole:])
        while at < end:
            # Views are released whatever happens: an error's traceback would keep them, and the buffer is used again.
            with memoryview(data) as view, view[at - offset : whole] as piece:
                reply = self._session(key, upload, piece, f"bytes {at}-{end - 1}/*")
            came = _after(reply)
            if not at < came <= end:
                self._doubtful.add(upload)
                raise TransientError(f"{key}: {came} bytes have arrived after {at}; expected more")
            at = came
        self._doubtful.discard(upload)
        return f"{end}:{rest.decode('latin-1')}"

    def complete_upload(self, key: str, upload: str, tags: Sequence[str]) -> None:
        place, _, rest = tags[-1].partition(":")
        tail, at = rest.encode("latin-1"), int(place)
        total = at + len(tail)
        if upload in self._doubtful and (arrived := self._arrived(key, upload, total)) != at:
            if arrived == total:
                return self._doubtful.discard(upload)
            raise UploadGoneError(f"{key}: {arrived} bytes have arrived; expected {at}")
        reply = self._session(key, upload, tail, f"bytes {at}-{total - 1}/{total}" if tail else f"bytes */{total}")
        if reply.status == _MORE or _size(reply) != total:
            raise UploadGoneError(f"{key}: the object has not {total} bytes")
        self._doubtful.discard(upload)

    def abort_upload(self, key: str, upload: str) -> None:
        asked = {"uploadType": "resumable", "name": key, "upload_id": upload}
        try:
            self._ask("DELETE", "/upload/storage/v1", "", asked, fine=(_ABORTED,))
        except (ObjectMissingError, UploadGoneError):
            pass  # aborted or completed before
        self._doubtful.discard(upload)

    def open_uploads(self, prefix: str, after: tuple[str, str] | None = None) -> UploadsPage:
        """None that anybody would have to abort: see the module."""
        return UploadsPage([], None)

    def delete(self, key: str) -> None:
        try:
            self._ask("DELETE", "/storage/v1", key, {})
        except ObjectMissingError:
            pass

    def close(self) -> None:
        self._http.close()

    def _arrived(self, key: str, upload: str, total: int = -1) -> int:
        """How many bytes a session has. One that is complete has `total`, or is gone."""
        reply = self._session(key, upload, b"", "bytes */*")
        if reply.status == _MORE:
            return _after(reply)
        if _size(reply) != total:
            raise UploadGoneError(f"{key}: the session has ended with {_size(reply)} bytes")
        return total

    def _session(self, key: str, upload: str, body: Bytes | memoryview, place: str) -> Answer:
        """A request of a session. One that fails leaves it open what has arrived."""
        asked = {"uploadType": "resumable", "name": key, "upload_id": upload}
        try:
            return self._ask("PUT", "/upload/storage/v1", "", asked, body=body, place=place, fine=(_MORE,))
        except ObjectMissingError as error:
            self._doubtful.discard(upload)
            raise UploadGoneError(str(error)) from error
        except BackendError:
            self._doubtful.add(upload)
            raise

    def _ask(
        self, method: str, service: str, key: str, asked: Mapping[str, str], *, body: Bytes | memoryview | None = None,
        place: str = "", fine: Sequence[int] = (),
    ) -> Answer:
        headers = {} if body is None else {"Content-Type": "application/octet-stream", "Content-Length": str(len(body))}
        if place:
            headers["Content-Range"] = place
        url = self._address(service, key, asked)
        self._credentials.sign(method, url, headers)
        reply = self._http.ask(method, url, headers, body)
        if not 200 <= reply.status < 300 and reply.status not in fine:
            raise self._error(reply, key or asked.get("name", ""))
        return reply

    def _address(self, service: str, key: str, asked: Mapping[str, str]) -> str:
        path = f"{self._base}{service}/b/{quote(self._bucket, safe='')}/o" + (f"/{quote(key, safe='')}" if key else "")
        return f"{path}?{urlencode(asked)}" if asked else path

    def _error(self, reply: Answer, key: str) -> BackendError:
        """What an answer that is none means."""
        status = reply.status
        reason, message = _told(reply.data)
        said = f"bucket {self._bucket}" + (f", {key}" if key else "") + f": {status}: {message}"
        if status == 404:
            return ObjectMissingError(said)
        if status == 410:
            return UploadGoneError(said)
        if status in (304, 412, 416):
            return ObjectChangedError(said)
        if status == 429 or reason in _THROTTLED:
            return TransientError(said, code="ResourceExhausted")
        if status == 413:
            return ValueTooLargeError(said)
        if status == 507 or reason in _FULL:
            return FullError(said)
        if status >= 500 or status in (101, 408):
            return TransientError(said)
        if status == 401:
            return RefusedError(f"bucket {self._bucket}: the credentials are refused: {message}")
        if status == 403:
            return RefusedError(f"{said} (needed: storage.objects.get, list, create and delete)")
        return RefusedError(said)


def _after(reply: Answer) -> int:
    found = _ARRIVED(reply.headers.get("Range", ""))
    return int(found[1]) + 1 if found else 0


def _size(reply: Answer) -> int:
    try:
        return int(json.loads(reply.data)["size"])
    except NOT_UNDERSTOOD:
        return -1


def _seconds(date: str) -> float:
    return datetime.fromisoformat(date).timestamp()


def _told(body: bytes) -> tuple[str, str]:
    """The reason's code and its sentence in an error's body."""
    try:
        error: Any = json.loads(body)["error"]
        reasons = error.get("errors") or [{}]
        return str(reasons[0].get("reason", "")), one_line(error.get("message") or "no reason given")
    except NOT_UNDERSTOOD:
        return "", one_line(body[:300].decode("utf-8", "replace")) if body else "no reason given"
