"""Plain HTTP for providers without a client library worth its weight: one attempt each, on urllib3. Blocking.

What goes wrong below the answers is translated here; what an answer means is the provider's business.
"""

from __future__ import annotations

import logging
import re
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from typing import Any, NamedTuple, cast

from nl.plugin import RefusedError, TransientError
from nl_cloud_object_store.client import Bytes, ObjectBody, ObjectChangedError, ObjectInfo

MAX_ANSWER = 16 * 1024 * 1024
"""Bytes of an answer that is taken whole: a page of a listing, with a thousand long names, is a few million."""
MAX_ERROR = 64 * 1024
"""Of an answer that is an error, the rest is left."""
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)", re.ASCII).fullmatch
_LENGTH = re.compile(r"\d{1,18}", re.ASCII).fullmatch


class Answer(NamedTuple):
    """An answer with all of its body."""

    status: int
    headers: Mapping[str, str]
    data: bytes


class Http:
    """Requests over a pool of connections."""

    def __init__(
        self, *, connections: int, connect_timeout: float, read_timeout: float, ca_file: str | None
    ) -> None:
        """`connections`: idle ones to keep; `ca_file`: authorities to trust in place of the system's."""
        import urllib3

        logging.getLogger("urllib3").setLevel(logging.ERROR)  # its logs have addresses, and these may have secrets
        options: dict[str, Any] = {"ca_certs": ca_file} if ca_file else {}
        keep_alive = [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1), (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
        self._patience = read_timeout
        self._pool = urllib3.PoolManager(
            maxsize=connections, retries=False, socket_options=keep_alive,
            timeout=urllib3.Timeout(connect=connect_timeout, read=read_timeout), **options,
        )

    def ask(
        self, method: str, url: str, headers: Mapping[str, str], body: Bytes | memoryview | None = None
    ) -> Answer:
        """The whole answer, whatever its status; of an error that is longer than any has use for, its beginning.

        TransientError for one that has no end: it is in memory, and a thread waits for it.
        """
        with translated(method):
            reply = self._pool.request(
                method, url, headers=headers, body=cast("bytes | None", body), redirect=False, preload_content=False
            )
        return self.whole(reply, method)

    def whole(self, reply: Any, what: str) -> Answer:
        """All of an answer whose body is still to come, likewise. Closes it."""
        until, data = time.monotonic() + self._patience, bytearray()
        most = MAX_ANSWER if reply.status < 300 else MAX_ERROR
        try:
            with translated(what):
                while len(data) < most and (piece := reply.read1(most - len(data), decode_content=False)):
                    data += piece
                    if time.monotonic() > until:
                        raise TransientError(f"{what}: the answer takes too long", code="DeadlineExceeded")
                if len(data) == MAX_ANSWER:
                    raise TransientError(f"{what}: the answer has more than {MAX_ANSWER} bytes")
                if len(data) < most:
                    reply.release_conn()
        finally:
            reply.close()
        return Answer(reply.status, reply.headers, bytes(data))

    def open(self, url: str, headers: Mapping[str, str]) -> Any:
        """The answer to a GET, with its body still to come."""
        with translated("GET"):
            return self._pool.request("GET", url, headers=headers, redirect=False, preload_content=False)

    def close(self) -> None:
        """Closes idle connections."""
        self._pool.clear()


class HttpBody(ObjectBody):
    """The body of an answer to a GET."""

    def __init__(self, reply: Any, info: ObjectInfo, what: str) -> None:
        self.info = info
        self._reply = reply
        self._what = what

    def read(self, count: int) -> bytes:
        with translated(self._what):
            data: bytes = self._reply.read(count, decode_content=False)
        if not data:
            raise TransientError(f"{self._what}: the answer ended early")
        return data

    def close(self) -> None:
        self._reply.close()


def range_header(span: tuple[int, int]) -> str:
    """What asks for `span` = (offset, count)."""
    return f"bytes={span[0]}-{sum(span) - 1}"


def size_of_whole(status: int, headers: Mapping[str, str], span: tuple[int, int] | None, what: str) -> int:
    """The size of an object of which `span` was asked for, by the answer's headers.

    Raises ObjectChangedError if the answer is not the whole span.
    """
    if span is None:
        length = headers.get("Content-Length", "")
        if status != 200 or not _LENGTH(length):
            raise TransientError(f"{what}: the answer ({status}) does not say how long it is")
        return int(length)
    found = _RANGE(headers.get("Content-Range", ""))
    if status != 206 or found is None:
        raise TransientError(f"{what}: a range was asked for, and the answer ({status}) is none")
    first, last, total = map(int, found.groups())
    if (first, last) != (span[0], sum(span) - 1):
        raise ObjectChangedError(f"{what} has {total} bytes; expected at least {sum(span)}")
    return total


NOT_UNDERSTOOD = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError, SyntaxError)
"""What the readers of JSON, XML and dates raise of what is none, nested without end, or has numbers without bounds."""


@contextmanager
def understood(what: str) -> Iterator[None]:
    """Around the reading of an answer: what the provider would not say (a proxy's page) may be something else soon."""
    try:
        yield
    except NOT_UNDERSTOOD as error:
        raise TransientError(f"{what}: the answer cannot be understood: {one_line(error)}") from error


def seconds_of(date: str | None) -> float:
    """An HTTP date, in seconds since 1970; 0 if there is none."""
    return parsedate_to_datetime(date).timestamp() if date else 0.0


def one_line(error: object) -> str:
    """What an error says, on one line that is not too long."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Errors of the connection as those of `client`."""
    from urllib3 import exceptions as urllib3

    try:
        yield
    except (urllib3.HTTPError, HTTPException, OSError) as error:
        line = f"{what}: {one_line(error)}"
        if isinstance(error, urllib3.SSLError) and "CERTIFICATE_VERIFY_FAILED" in line:
            raise RefusedError(f"the server's certificate is not trusted: {one_line(error)}") from error
        if isinstance(error, urllib3.LocationParseError):
            raise RefusedError("the server's address is none", option="endpoint") from error
        timeout = isinstance(error, urllib3.TimeoutError) and not isinstance(error, urllib3.NewConnectionError)
        raise TransientError(line, code="DeadlineExceeded" if timeout else "Unavailable") from error
