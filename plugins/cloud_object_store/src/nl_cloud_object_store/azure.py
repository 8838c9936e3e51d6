"""The client for Azure's block blobs, over plain HTTP. Blocking; see `client.ObjectClient`.

An upload is a list of blocks under names that begin with its id. Azure has no request that forgets blocks: those that
nobody has made a blob of are gone after a week, and whoever completes the blob before drops those of all others.
"""

from __future__ import annotations

import base64
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar
from urllib.parse import urlencode, urlsplit
from xml.etree import ElementTree

from nl.plugin import BackendError, FullError, RefusedError, TransientError, ValueTooLargeError
from nl_cloud_object_store.azure_auth import (
    Authorization,
    SharedAccessSignature,
    find_authorization,
    quoted,
    standard_headers,
)
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

_MIB = 1024 * 1024
_PROBE = "nl-probe"
"""A blob that need not be there: to be told so takes the right to read, and no other."""
_CONTAINER = {"ContainerNotFound", "ContainerDisabled", "InvalidResourceName", "AccountIsDisabled", "ResourceNotFound"}
_GONE = {"InvalidBlockList", "InvalidBlockId"}
_TOO_LARGE = {"RequestBodyTooLarge", "BlockCountExceedsLimit", "BlockListTooLong"}
_AGAIN = {"ContainerBeingDeleted", "OperationTimedOut", "ServerBusy", "InternalError", "Md5Mismatch"}


_DONE = {"PUT": 201, "DELETE": 202}
"""The status of success, where it is not 200."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AzureSettings:
    """Where the container is and how to talk to it."""

    account: str
    container: str
    endpoint: str = ""
    """The account's address, or the container's; by default Azure's own."""
    sas_url: str = ""
    """The container's address with a signature."""

    @property
    def url(self) -> str:
        """The container's address."""
        if self.sas_url:
            parts = urlsplit(self.sas_url)
            return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
        base = (self.endpoint or f"https://{self.account}.blob.core.windows.net").rstrip("/")
        return base if base.endswith(f"/{self.container}") else f"{base}/{quoted(self.container)}"


class AzureClient(ObjectClient):
    """One container."""

    MAX_PART: ClassVar[int] = 4000 * _MIB
    MAX_PARTS: ClassVar[int] = 50_000

    def __init__(self, settings: AzureSettings, http: Http) -> None:
        """Finds credentials. Raises as its methods do."""
        self._container = settings.container
        self._url = settings.url
        self._http = http
        self._authorization: Authorization = (
            SharedAccessSignature(urlsplit(settings.sas_url).query) if settings.sas_url
            else find_authorization(settings.account)
        )

    def probe(self, prefix: str) -> None:
        try:
            self.head(prefix + _PROBE)
        except ObjectMissingError:
            pass

    def list_page(self, prefix: str, cursor: str, limit: int) -> ObjectPage:
        asked = {"restype": "container", "comp": "list", "prefix": prefix, "maxresults": str(limit)}
        reply = self._ask("GET", "", {**asked, "marker": cursor} if cursor else asked)
        with understood(f"container {self._container}"):
            tree = ElementTree.fromstring(reply.data)
            if tree.tag != "EnumerationResults":
                raise ValueError("it is no listing")
            found = [_listed(blob) for blob in tree.iterfind("Blobs/Blob")]
            return ObjectPage(found, tree.findtext("NextMarker") or "")

    def head(self, key: str) -> ObjectInfo:
        headers = self._ask("HEAD", key).headers
        with understood(key):
            return _info(headers, int(headers["Content-Length"]))

    def get(self, key: str, *, span: tuple[int, int] | None = None, etag: str | None = None) -> ObjectBody:
        headers = standard_headers(None)
        if span is not None:
            headers["Range"] = range_header(span)
        if etag is not None:
            headers["If-Match"] = etag
        url = self._authorization.sign("GET", self._address(key, {}), headers)
        reply = self._http.open(url, headers)
        try:
            if reply.status >= 300:
                raise self._error(self._http.whole(reply, key), key)
            with understood(key):
                info = _info(reply.headers, size_of_whole(reply.status, reply.headers, span, key))
            return HttpBody(reply, info, key)
        except BaseException:
            reply.close()
            raise

    def put(self, key: str, data: Bytes) -> None:
        self._ask("PUT", key, body=data, more={"x-ms-blob-type": "BlockBlob"})

    def create_upload(self, key: str) -> str:
        return uuid.uuid4().hex

    def upload_part(self, key: str, upload: str, number: int, data: Bytes, offset: int) -> str:
        block = base64.b64encode(f"{upload}{number:06d}".encode()).decode()  # all of the same length: Azure wants that
        self._ask("PUT", key, {"comp": "block", "blockid": block}, body=data)
        return block

    def complete_upload(self, key: str, upload: str, tags: Sequence[str]) -> None:
        blocks = "".join(f"<Uncommitted>{tag}</Uncommitted>" for tag in tags)
        body = f'<?xml version="1.0" encoding="utf-8"?><BlockList>{blocks}</BlockList>'.encode()
        self._ask("PUT", key, {"comp": "blocklist"}, body=body)

    def abort_upload(self, key: str, upload: str) -> None:
        """Azure does it: see the module."""

    def open_uploads(self, prefix: str, after: tuple[str, str] | None = None) -> UploadsPage:
        """None that anybody would have to abort."""
        return UploadsPage([], None)

    def delete(self, key: str) -> None:
        try:
            self._ask("DELETE", key)
        except ObjectMissingError:
            pass

    def close(self) -> None:
        self._http.close()

    def _ask(
        self, method: str, key: str, asked: Mapping[str, str] | None = None, *, body: Bytes | None = None,
        more: Mapping[str, str] | None = None,
    ) -> Answer:
        headers = {**standard_headers(None if body is None else len(body)), **(more or {})}
        if body is not None:
            headers["Content-Type"] = "application/octet-stream"
        url = self._authorization.sign(method, self._address(key, asked or {}), headers)
        reply = self._http.ask(method, url, headers, body)
        if reply.status >= 300:
            raise self._error(reply, key)
        if reply.status != _DONE.get(method, 200):  # a proxy's page, and not the word of who has the object
            raise TransientError(f"container {self._container}: the answer to {method} has status {reply.status}")
        return reply

    def _address(self, key: str, asked: Mapping[str, str]) -> str:
        path = f"{self._url}/{quoted(key)}" if key else self._url
        return f"{path}?{urlencode(asked)}" if asked else path

    def _error(self, reply: Answer, key: str) -> BackendError:
        """What an answer that is none means. Azure says it in a header, and why in the body."""
        status, code = reply.status, reply.headers.get("x-ms-error-code", "")
        where = f"container {self._container}" + (f", {key}" if key else "")
        said = f"{where}: {code or status}: {_reason(reply.data)}"
        if code in _CONTAINER:
            return RefusedError(f"the container {self._container} does not exist ({code})", option="container")
        if code in _GONE:
            return UploadGoneError(said)
        if status == 404:
            return ObjectMissingError(said)
        if status in (412, 416):
            return ObjectChangedError(said)
        if status == 429 or code == "ServerBusy":
            return TransientError(said, code="ResourceExhausted")
        if status == 413 or code in _TOO_LARGE:
            return ValueTooLargeError(said)
        if status == 507:
            return FullError(said)
        if status >= 500 or status == 408 or code in _AGAIN:
            return TransientError(said)
        if status in (401, 403):
            return RefusedError(f"container {self._container}: the credentials are refused ({code or status}: "
                                f"{_reason(reply.data)})")
        return RefusedError(said)


def _info(headers: Any, size: int) -> ObjectInfo:
    return ObjectInfo(size, headers.get("ETag", ""), seconds_of(headers.get("Last-Modified")))


def _listed(blob: ElementTree.Element) -> ListedObject:
    size = int(blob.findtext("Properties/Content-Length") or 0)
    return ListedObject(blob.findtext("Name") or "", size, seconds_of(blob.findtext("Properties/Last-Modified")))


def _reason(body: bytes) -> str:
    """The sentence in an error's body. What follows it may quote the request."""
    try:
        text = ElementTree.fromstring(body.lstrip(b"\xef\xbb\xbf")).findtext("Message")
    except NOT_UNDERSTOOD:
        text = None
    return one_line(text.splitlines()[0]) if text else "no reason given"
