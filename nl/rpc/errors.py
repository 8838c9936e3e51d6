"""A call's errors on the client's side: what was certainly not processed, and NlErrors for those who speak no gRPC.

Not here: which status an error becomes on the wire, and what trailers say (status.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from grpclib.const import Status
from grpclib.exceptions import GRPCError, StreamTerminatedError

from nl import errors
from nl.errors import Code, NlError
from nl.pb.codec import DecodeError
from nl.rpc.contract import TransportLost


class NotProcessed(GRPCError):
    """The server has not begun with this call: whatever it does, it may be sent again.

    No connection could be made, the stream was refused (REFUSED_STREAM), or it lies above the last stream of a GOAWAY.
    """


_CLASSES: dict[Code, type[NlError]] = {
    each.code: each
    for each in (
        errors.InvalidRequestError, errors.NotFoundError, errors.PreconditionError, errors.PermissionDeniedError,
        errors.ExhaustedError, errors.UnavailableError, errors.DeadlineError, errors.CancelledError,
        errors.UnimplementedError, errors.RangeError,
    )
}  # fmt: skip


def error_of(error: GRPCError, where: str) -> NlError:
    """A call's failure as the taxonomy has it; `where` begins the message."""
    code = Code(error.status.value)
    return _CLASSES.get(code, NlError)(f"{where}: {error.message or error.status.name}", code=code)


@contextmanager
def translated(where: str) -> Iterator[None]:
    """Failures of calls to `where` (`scheduler at host:port`) become NlErrors of the same code."""
    try:
        yield
    except GRPCError as exc:
        raise error_of(exc, where) from exc
    except (TransportLost, StreamTerminatedError) as exc:
        raise errors.UnavailableError(f"{where}: {str(exc) or type(exc).__name__}") from exc
    except DecodeError as exc:
        raise NlError(f"{where} sent what cannot be decoded: {exc}", code=Code.INTERNAL) from exc


class OnlyGrpcErrors:
    """Around what reads a server's answer: what it makes of us becomes a GRPCError, for it is not the caller's mistake.

    A class, and used again and again: a generator would cost several times as much, and every call waits here.
    """

    __slots__ = ("_method",)

    def __init__(self, method: str) -> None:
        self._method = method

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            return
        if isinstance(error, NlError):
            status = Status.INTERNAL if error.code == Code.INVALID_ARGUMENT else Status(int(error.code))
            raise GRPCError(status, f"reply of {self._method}: {error.message}") from error
        if isinstance(error, DecodeError):
            raise GRPCError(Status.INTERNAL, f"reply of {self._method} cannot be decoded: {error}") from error
        if isinstance(error, TransportLost):
            raise GRPCError(Status.UNAVAILABLE, f"connection lost: {error}") from error
