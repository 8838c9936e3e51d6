"""What each of PyMongo's errors means, and what can go wrong besides what can with any backend."""

from __future__ import annotations

from collections.abc import Collection

from pymongo.errors import (
    AutoReconnect,
    BulkWriteError,
    ConfigurationError,
    ConnectionFailure,
    DocumentTooLarge,
    ExecutionTimeout,
    NetworkTimeout,
    OperationFailure,
    PyMongoError,
    WriteConcernError,
    WTimeoutError,
)

from nl.plugin import BackendError, FullError, RefusedError, TransientError, ValueTooLargeError

MOST_TEXT = 300
"""Characters of a server's message that are passed on."""


class LostError(BackendError):
    """The server has lost what it had of an upload, or another has tidied it up: only a new upload helps."""

    code = "FailedPrecondition"


# Numbers of MongoDB's error_codes.yml. Those that a driver may try again by MongoDB's own rules (its specifications of
# retryable reads and writes), then those that say the same of one command. Cursors (43, 175, 237) are forgotten by a
# server that starts again between two batches.
_AWAY = frozenset({6, 7, 43, 89, 91, 134, 175, 189, 237, 262, 9001, 10107, 11600, 11602, 13388, 13435, 13436})
_BUSY = frozenset({24, 46, 112, 133, 462, 11000})  # locks, conflicts, no primary, overload, two that made one document
_LATE = frozenset({50, 64, 202})  # 64 is about a write concern
_FULL = frozenset({14031, 12501})
_TOO_LARGE = frozenset({10334, 17419, 17420})
_LOGIN = frozenset({11, 13, 18, 8000})


def meaning(error: PyMongoError, secrets: Collection[str]) -> BackendError:
    """What an error of PyMongo stands for. `secrets` are not to be in its text."""
    text = said(error, secrets)
    if isinstance(error, NetworkTimeout | ExecutionTimeout | WTimeoutError):
        return TransientError(text, code="DeadlineExceeded")
    if isinstance(error, AutoReconnect | ConnectionFailure):
        return TransientError(text)
    if isinstance(error, DocumentTooLarge):
        return ValueTooLargeError(text)
    if isinstance(error, ConfigurationError) and type(error.__cause__).__module__.startswith("dns."):
        return TransientError(text)  # mongodb+srv:// asks DNS where the servers are
    if isinstance(error, ConfigurationError):
        return RefusedError(text, option="connection_string")
    if isinstance(error, OperationFailure):
        return _of_server(error, text)
    return RefusedError(text)


def _of_server(error: OperationFailure, text: str) -> BackendError:
    code, late = _code_of(error)
    if code in _FULL or "space quota" in text:
        return FullError(text)
    if code in _TOO_LARGE:
        return ValueTooLargeError(text)
    if code in _LATE or late:
        return TransientError(text, code="DeadlineExceeded")
    if code in _BUSY:
        return TransientError(text, code="Aborted")
    if code in _AWAY or error.has_error_label("RetryableWriteError") or error.has_error_label("RetryableError"):
        return TransientError(text)
    return RefusedError(text, option="connection_string" if code in _LOGIN else "")


def _code_of(error: OperationFailure) -> tuple[int | None, bool]:
    """The server's number, and whether it is about a write concern that was not met in time."""
    if not isinstance(error, BulkWriteError):
        return error.code, isinstance(error, WriteConcernError)
    for each in error.details.get("writeErrors", ()):
        return each.get("code"), False
    for each in error.details.get("writeConcernErrors", ()):
        return each.get("code"), True
    return None, False


def said(error: BaseException, secrets: Collection[str]) -> str:
    """The first line of an error's text, without what PyMongo appends: the whole reply, its view of all servers."""
    text = str(error).strip() or type(error).__name__
    if isinstance(error, BulkWriteError):
        listed = [*error.details.get("writeErrors", ()), *error.details.get("writeConcernErrors", ())]
        text = str(listed[0].get("errmsg", "")) if listed else "a bulk write failed"
    for end in (", full error:", ", Topology Description:", " (configured timeouts:"):
        text = text.partition(end)[0]
    text = text.splitlines()[0]
    for secret in secrets:
        text = text.replace(secret, "***")
    return text[:MOST_TEXT]
