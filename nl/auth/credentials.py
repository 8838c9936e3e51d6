"""What an `authorization` header carries (RFC 6750, RFC 7617). Pure; nothing that was sent is ever in a message."""

from __future__ import annotations

import base64

from nl.errors import UnauthenticatedError


def secret_of(header: bytes) -> bytes:
    """The token of `Bearer TOKEN`, or the password of `Basic`, whose user name does not matter.

    Tools that only know URLs, .netrc files or user names and passwords send the latter, and each wants some user name.
    Raises UnauthenticatedError for anything else.
    """
    scheme, _, value = header.strip().partition(b" ")
    value = value.strip()
    match scheme.lower():
        case b"bearer":
            secret = value
            if b" " in value or b"," in value:
                raise UnauthenticatedError("the authorization header has more than one token")
        case b"basic":
            secret = _password(value)
        case _:
            raise UnauthenticatedError("the authorization header is neither Bearer nor Basic")
    if not secret:
        raise UnauthenticatedError("the authorization header has no token")
    return secret


def _password(value: bytes) -> bytes:
    try:
        pair = base64.b64decode(value + b"=" * (-len(value) % 4), validate=True)
    except ValueError:
        raise UnauthenticatedError("the authorization header is Basic, but not base64") from None
    return pair.partition(b":")[2]
