"""How a worker's failures become errors with a code: missing blobs as clients want them told, OSError translated."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from nl.errors import ExhaustedError, InternalError, InvalidRequestError, PreconditionError, Violation
from nl.model.digest import Digest, DigestFunction

MAX_VIOLATIONS = 16_384
"""More would not fit into a message: some 120 bytes each, 4 MiB in all. The rest shows at the next try."""
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM})


def missing_blobs(digests: Iterable[Digest], function: DigestFunction) -> PreconditionError:
    """FAILED_PRECONDITION with one MISSING violation per blob (REAPI, ExecuteResponse.status).

    The subject has no instance name; functions that share a hash length with SHA256 are named in it. Clients upload
    what is listed and ask again, if every violation has this form. The message is what people look for: the usual
    cause, where clients have uploaded everything, is a worker with a store of its own.
    """
    segment = "" if function is DigestFunction.SHA256 else f"{function.name.lower()}/"
    listed = list(dict.fromkeys(digests))
    more = f" ({len(listed)} input blobs are missing, this one among them.)" if len(listed) > 1 else ""
    return PreconditionError(
        f"Object {listed[0]} not found in either fast or slow store. If using multiple workers, ensure all workers "
        f"share the same CAS storage path.{more}",
        details=tuple(
            Violation("MISSING", f"blobs/{segment}{digest.hash}/{digest.size}") for digest in listed[:MAX_VIOLATIONS]
        ),
    )


@contextmanager
def os_errors(doing: str, *, full: str = "") -> Iterator[None]:
    """Turns an OSError of the body into an NlError: out of room, a name that no file can have, or our fault.

    `full` is what to do where the disk is full.
    """
    try:
        yield
    except OSError as exc:
        text = f"{doing}: {exc.strerror or exc}"
        if exc.errno in _FULL:
            advice = f"; {full}" if full and exc.errno in (errno.ENOSPC, errno.EDQUOT) else ""
            raise ExhaustedError(text + advice) from exc
        if exc.errno == errno.ENAMETOOLONG:
            raise InvalidRequestError(f"{text}: {exc.filename}") from exc
        raise InternalError(f"{text}: {exc.filename}" if exc.filename else text) from exc
