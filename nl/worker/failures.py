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
    what is listed and ask again, if every violation has this form.
    """
    segment = "" if function is DigestFunction.SHA256 else f"{function.name.lower()}/"
    listed = list(dict.fromkeys(digests))
    first = ", ".join(map(str, listed[:3])) + (", ..." if len(listed) > 3 else "")
    return PreconditionError(
        f"{len(listed)} input blob{'s' if len(listed) != 1 else ''} not in the CAS: {first}",
        details=tuple(
            Violation("MISSING", f"blobs/{segment}{digest.hash}/{digest.size}") for digest in listed[:MAX_VIOLATIONS]
        ),
    )


@contextmanager
def os_errors(doing: str) -> Iterator[None]:
    """Turns an OSError of the body into an NlError: out of room, a name that no file can have, or our fault."""
    try:
        yield
    except OSError as exc:
        text = f"{doing}: {exc.strerror or exc}"
        if exc.errno in _FULL:
            raise ExhaustedError(text) from exc
        if exc.errno == errno.ENAMETOOLONG:
            raise InvalidRequestError(f"{text}: {exc.filename}") from exc
        raise InternalError(f"{text}: {exc.filename}" if exc.filename else text) from exc
