"""What a provider supplies: the requests of an object store, blocking, and what can go wrong with them.

All methods of an `ObjectClient` are called in threads, many at once. They make one attempt each, with timeouts of their
own, and raise nothing but BackendError: who retries, when and for how long is not their business.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

from nl.plugin import BackendError

Bytes = bytes | bytearray


class ObjectMissingError(BackendError):
    """There is no such object."""

    code = "NotFound"


class ObjectChangedError(BackendError):
    """The object is not the one that the request's condition named."""

    code = "FailedPrecondition"


class UploadGoneError(BackendError):
    """The multipart upload does not exist: completed or aborted before."""

    code = "NotFound"


class ObjectInfo(NamedTuple):
    """What a provider says of an object."""

    size: int
    """Bytes."""
    etag: str
    """Changes when the object is replaced."""
    modified: float
    """When it was written, in seconds since 1970, by the provider's clock."""


class OpenUpload(NamedTuple):
    """A multipart upload that has neither been completed nor aborted."""

    key: str
    upload: str
    started: float
    """Seconds since 1970, by the provider's clock."""


class UploadsPage(NamedTuple):
    """One answer to the question for open uploads."""

    uploads: list[OpenUpload]
    after: tuple[str, str] | None
    """Key and upload where the next page begins; None on the last one."""


class ListedObject(NamedTuple):
    """What a listing says of an object."""

    key: str
    size: int
    """Bytes."""
    modified: float
    """When it was written, in seconds since 1970, by the provider's clock."""


class ObjectPage(NamedTuple):
    """Some of the objects, and where to go on: an empty cursor is the end."""

    objects: Sequence[ListedObject]
    cursor: str


class ObjectBody(ABC):
    """The bytes of a response that are still to come."""

    info: ObjectInfo

    @abstractmethod
    def read(self, count: int) -> bytes:
        """The next bytes: at least one, at most `count` (the caller asks for no more than there are).

        Raises TransientError when the connection breaks.
        """

    @abstractmethod
    def close(self) -> None:
        """Ends the response, read or not. Does not block; never called while `read` runs."""


class ObjectClient(ABC):
    """The requests, for one bucket."""

    MAX_PART: ClassVar[int] = 5 * 1024 * 1024 * 1024
    """No part of a multipart upload may be larger (bytes). None but the last is smaller than 5 MiB: S3 wants that."""
    MAX_PARTS: ClassVar[int] = 10_000
    GRANULE: ClassVar[int] = 1
    """All parts but the last are multiples of this (bytes)."""
    IN_ORDER: ClassVar[bool] = False
    """Whether a part can only be sent when the one before has arrived."""

    @abstractmethod
    def probe(self, prefix: str) -> None:
        """One cheap request that shows whether the bucket is there and the credentials are right."""

    @abstractmethod
    def list_page(self, prefix: str, cursor: str, limit: int) -> ObjectPage:
        """The next objects under `prefix`, at most `limit`, from where the cursor of an earlier page says."""

    @abstractmethod
    def head(self, key: str) -> ObjectInfo:
        """Raises ObjectMissingError."""

    @abstractmethod
    def get(self, key: str, *, span: tuple[int, int] | None = None, etag: str | None = None) -> ObjectBody:
        """A body that delivers the whole object, or of it `span` = (offset, count), which lies within.

        Raises ObjectMissingError, and ObjectChangedError unless the object has `etag` (where one is given) and is as
        large as `span` needs.
        """

    @abstractmethod
    def put(self, key: str, data: Bytes) -> None:
        """Makes or replaces an object, whole or not at all."""

    @abstractmethod
    def create_upload(self, key: str) -> str:
        """Begins a multipart upload; its id."""

    @abstractmethod
    def upload_part(self, key: str, upload: str, number: int, data: Bytes, offset: int) -> str:
        """Sends part `number` (from 1), or sends it again; the tag by which `complete_upload` knows it. In the object
        it begins at `offset` (bytes). Raises UploadGoneError.
        """

    @abstractmethod
    def complete_upload(self, key: str, upload: str, tags: Sequence[str]) -> None:
        """Makes the object of the parts whose tags these are, in order. Raises UploadGoneError."""

    @abstractmethod
    def abort_upload(self, key: str, upload: str) -> None:
        """Forgets an upload and its parts. One that does not exist is no error."""

    @abstractmethod
    def open_uploads(self, prefix: str, after: tuple[str, str] | None = None) -> UploadsPage:
        """Multipart uploads under way or forgotten, in order, a page of them: the first, or that behind `after`."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Deletes an object. One that does not exist is no error."""

    @abstractmethod
    def close(self) -> None:
        """Closes idle connections."""
