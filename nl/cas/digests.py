"""From the digests in messages to our own: one meaning and one wording, whoever reads them."""

from __future__ import annotations

from nl.errors import InvalidRequestError
from nl.model.digest import Digest, DigestFunction
from nl.pb import reapi


def parse_digest(digest: reapi.Digest | None, function: DigestFunction, what: str) -> Digest:
    """A digest from a message; InvalidRequestError starts with `what` if it is absent or malformed."""
    if digest is None:
        raise InvalidRequestError(f"{what}: the digest is not set")
    try:
        return Digest.parse(digest.hash, digest.size_bytes, function)
    except InvalidRequestError as exc:
        raise InvalidRequestError(f"{what}: {exc.message}") from None
