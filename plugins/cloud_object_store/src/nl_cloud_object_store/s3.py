"""The client for whatever speaks S3, on boto3. Blocking; see `client.ObjectClient`.

botocore makes one attempt per call (`retry` has the others, in which no thread is held), computes no checksums that
many servers do not know, and is kept quiet: its logs repeat requests.
"""

from __future__ import annotations

import functools
import logging
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from nl.plugin import RefusedError, TransientError
from nl_cloud_object_store import s3_errors
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

_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)").fullmatch
PAGE = 1000
"""Open uploads in one answer; no server gives more."""
_SESSIONS = threading.Lock()
"""Making sessions and clients is not thread-safe in boto3; using clients is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Settings:
    """Where the bucket is and how to talk to it. None means: as boto3's own configuration has it."""

    bucket: str
    region: str | None = None
    endpoint: str | None = None
    path_style: bool = False
    access_key_id: str | None = None
    secret_access_key: str | None = None
    ca_file: str | None = None
    insecure_allow_http: bool = False
    connections: int = 16
    """Idle ones to keep."""
    connect_timeout: float = 5.0
    read_timeout: float = 60.0


class S3Client(ObjectClient):
    """One bucket."""

    def __init__(self, settings: S3Settings) -> None:
        """Imports boto3 and finds credentials: to be called in a thread. Raises as its methods do."""
        self._settings = settings
        self._bucket = settings.bucket
        with _SESSIONS, self._translated():
            self._client = _connect(settings)
        url = self._client.meta.endpoint_url
        if url.startswith("http://") and not settings.insecure_allow_http:
            raise RefusedError(f"{url} is not encrypted; expected https, or insecure_allow_http: true",
                               option="endpoint" if settings.endpoint else "insecure_allow_http")

    @contextmanager
    def _translated(self, key: str = "") -> Iterator[None]:
        try:
            yield
        except s3_errors.FOREIGN as error:
            raise s3_errors.translate(error, bucket=self._bucket, key=key) from error

    def probe(self, prefix: str) -> None:
        with self._translated():
            self._client.list_objects_v2(Bucket=self._bucket, Prefix=prefix, MaxKeys=1)

    def list_page(self, prefix: str, cursor: str, limit: int) -> ObjectPage:
        # The last key is the cursor: tokens live for a while only. Some servers know neither MaxKeys nor StartAfter.
        asked = {"StartAfter": cursor} if cursor else {}
        with self._translated():
            reply = self._client.list_objects_v2(Bucket=self._bucket, Prefix=prefix, MaxKeys=limit, **asked)
        found = [ListedObject(each["Key"], int(each["Size"]), each["LastModified"].timestamp())
                 for each in reply.get("Contents", ()) if each["Key"] > cursor]
        more = len(found) > limit or (reply.get("IsTruncated") and found)
        del found[limit:]
        return ObjectPage(found, found[-1].key if more else "")

    def head(self, key: str) -> ObjectInfo:
        with self._translated(key):
            return _info(self._client.head_object(Bucket=self._bucket, Key=key))

    def get(self, key: str, *, span: tuple[int, int] | None = None, etag: str | None = None) -> ObjectBody:
        asked: dict[str, str] = {}
        if span is not None:
            asked["Range"] = f"bytes={span[0]}-{sum(span) - 1}"
        if etag is not None:
            asked["IfMatch"] = etag
        with self._translated(key):
            reply = self._client.get_object(Bucket=self._bucket, Key=key, **asked)
        body = S3Body(self, reply, key)
        try:
            if etag is not None and body.info.etag != etag:  # some servers know no conditions
                raise ObjectChangedError(f"{key} has been replaced")
            if span is not None:
                body.cut(*span, reply.get("ContentRange"))
        except BaseException:
            body.close()
            raise
        return body

    def put(self, key: str, data: Bytes) -> None:
        with self._translated(key):
            self._client.put_object(Bucket=self._bucket, Key=key, Body=data)

    def create_upload(self, key: str) -> str:
        with self._translated(key):
            return str(self._client.create_multipart_upload(Bucket=self._bucket, Key=key)["UploadId"])

    def upload_part(self, key: str, upload: str, number: int, data: Bytes, offset: int) -> str:
        with self._translated(key):
            reply = self._client.upload_part(
                Bucket=self._bucket, Key=key, UploadId=upload, PartNumber=number, Body=data
            )
        return str(reply["ETag"])

    def complete_upload(self, key: str, upload: str, tags: Sequence[str]) -> None:
        parts = [{"PartNumber": number, "ETag": tag} for number, tag in enumerate(tags, 1)]
        with self._translated(key):
            self._client.complete_multipart_upload(
                Bucket=self._bucket, Key=key, UploadId=upload, MultipartUpload={"Parts": parts}
            )

    def abort_upload(self, key: str, upload: str) -> None:
        try:
            with self._translated(key):
                self._client.abort_multipart_upload(Bucket=self._bucket, Key=key, UploadId=upload)
        except (ObjectMissingError, UploadGoneError):
            pass  # aborted or completed before: there is nothing left

    def open_uploads(self, prefix: str, after: tuple[str, str] | None = None) -> UploadsPage:
        asked: dict[str, str | int] = {"Prefix": prefix, "MaxUploads": PAGE}
        if after is not None:
            asked["KeyMarker"], asked["UploadIdMarker"] = after
        try:
            with self._translated():
                reply = self._client.list_multipart_uploads(Bucket=self._bucket, **asked)
        except UploadGoneError:  # rclone's way of saying that there has never been one
            return UploadsPage([], None)
        found = [OpenUpload(each["Key"], each["UploadId"], each["Initiated"].timestamp())
                 for each in reply.get("Uploads", ())]
        if not reply.get("IsTruncated"):
            return UploadsPage(found, None)
        return UploadsPage(found, (reply.get("NextKeyMarker", ""), reply.get("NextUploadIdMarker", "")))

    def delete(self, key: str) -> None:
        # One at a time: the request for many is not known everywhere, and wants a checksum that differs by server.
        try:
            with self._translated(key):
                self._client.delete_object(Bucket=self._bucket, Key=key)
        except ObjectMissingError:
            pass  # some servers say so

    def close(self) -> None:
        self._client.close()


class S3Body(ObjectBody):
    """The body of one GetObject."""

    def __init__(self, client: S3Client, reply: dict[str, Any], key: str) -> None:
        self.info = _info(reply)
        self._body = reply["Body"]
        self._client = client
        self._key = key

    def cut(self, offset: int, count: int, told: str | None) -> None:
        """Puts the body at `offset` of an object whose server was asked for `count` bytes from there.

        `told` is its Content-Range. A server without ranges sends everything: the beginning is skipped.
        """
        if told is not None and (found := _RANGE(told)):
            first, last, total = map(int, found.groups())
            if (first, last) != (offset, offset + count - 1):
                raise ObjectChangedError(f"{self._key} has {total} bytes; expected at least {offset + count}")
            self.info = self.info._replace(size=total)
        elif self.info.size == count:  # a range whose header is missing; the whole is what was counted on
            self.info = self.info._replace(size=max(self.info.size, offset + count))
        elif self.info.size >= offset + count:
            while offset:
                offset -= len(self.read(min(offset, 1 << 20)))
        else:
            raise ObjectChangedError(f"{self._key} has {self.info.size} bytes; expected at least {offset + count}")

    def read(self, count: int) -> bytes:
        with self._client._translated(self._key):
            data: bytes = self._body.read(count)
        if not data:
            raise TransientError(f"{self._key}: the answer ended early")
        return data

    def close(self) -> None:
        self._body.close()


def _info(reply: dict[str, Any]) -> ObjectInfo:
    modified = reply.get("LastModified")
    written = modified.timestamp() if modified else 0.0
    return ObjectInfo(int(reply["ContentLength"]), str(reply.get("ETag", "")), written)


def _connect(settings: S3Settings) -> Any:
    import boto3
    from botocore.config import Config

    for name in ("boto3", "botocore", "urllib3"):
        logging.getLogger(name).setLevel(logging.ERROR)
    config = Config(
        connect_timeout=settings.connect_timeout,
        read_timeout=settings.read_timeout,
        retries={"mode": "standard", "total_max_attempts": 1},
        max_pool_connections=settings.connections,
        tcp_keepalive=True,
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"addressing_style": "path"} if settings.path_style else {},
    )
    session = boto3.session.Session(
        botocore_session=_session(),
        aws_access_key_id=settings.access_key_id,
        aws_secret_access_key=settings.secret_access_key,
        region_name=settings.region,
    )
    return session.client("s3", endpoint_url=settings.endpoint, verify=settings.ca_file, config=config)


def _session() -> Any:
    """A session that shares the descriptions of services (megabytes of JSON) with all others. Under _SESSIONS."""
    import botocore.session

    session = botocore.session.get_session()
    session.register_component("data_loader", _shared_loader())
    return session


@functools.cache
def _shared_loader() -> Any:
    import botocore.loaders

    return botocore.loaders.create_loader()
