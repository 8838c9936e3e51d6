"""JSON web tokens (RFC 7519) of configured issuers: checked against the issuer's keys, claims mapped to grants.

PyJWT does the cryptography. What it is told here: only signatures with key pairs, only those that the config names;
issuer, audience and expiry must be there and right.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from nl.auth.grants import grant_of
from nl.auth.key_set import FetchedKeys, FileKeys, KeySource, PublicKey
from nl.auth.tokens import Found
from nl.config.auth import JwtOptions
from nl.errors import ConfigError, UnauthenticatedError, UnavailableError
from nl.model.access import Grant, Identity, matches

_MAX_NAME = 200
_BROKEN = (ValueError, TypeError, RecursionError, OverflowError)
"""What PyJWT lets through of JSON that is nested without end, of numbers without bounds."""
_PROBLEMS = {
    "ExpiredSignatureError": "it has expired",
    "ImmatureSignatureError": "it is not valid yet",
    "InvalidIssuedAtError": "it was issued in the future",
    "InvalidAudienceError": "it is for another audience",
    "InvalidIssuerError": "it is of another issuer",
    "InvalidSignatureError": "its signature is wrong",
    "InvalidAlgorithmError": "its algorithm is not taken",
    "MissingRequiredClaimError": "one of the claims exp, iss, aud is missing",
}


def require_library(path: str) -> None:
    """Raises ConfigError if what checks signatures is not installed."""
    try:
        import cryptography  # noqa: F401
        import jwt  # noqa: F401
    except ImportError:
        raise ConfigError(path, "needs PyJWT, which is not installed; expected: pip install 'nl[auth]'") from None


def looks_like_web_token(secret: bytes) -> bool:
    """Three parts with dots between them; tokens of our own have none."""
    return secret.count(b".") == 2


class Issuer:
    """One issuer: its keys, and what its tokens allow."""

    def __init__(self, options: JwtOptions, *, everybody: Sequence[Grant]) -> None:
        self.options = options
        self.keys: FileKeys | FetchedKeys = (
            FileKeys(options.jwks_file)
            if options.jwks_file is not None
            else FetchedKeys(options.jwks_url or "", interval_s=options.refresh_interval_s)
        )
        self._everybody = everybody

    def check(self, token: str, header: Mapping[str, Any]) -> Found:
        """Whose token this is. Raises UnauthenticatedError, or UnavailableError while the keys are being fetched."""
        import jwt

        options = self.options
        key = _key(self.keys, header.get("kid"), issuer=options.name)
        algorithm = header.get("alg")
        if algorithm not in options.algorithms or algorithm != (key.algorithm or algorithm):
            raise UnauthenticatedError(f"this token of {options.name} is not taken: its algorithm is not")
        try:
            claims = jwt.decode(
                token,
                key.key,
                algorithms=[algorithm],
                issuer=options.issuer,
                audience=list(options.audience),
                leeway=options.leeway_s,
                options={"require": ["exp", "iss", "aud"]},
            )
            expires_at = float(claims["exp"]) + options.leeway_s
        except (jwt.PyJWTError, *_BROKEN) as exc:
            problem = _PROBLEMS.get(type(exc).__name__, "it is malformed")
            raise UnauthenticatedError(f"this token of {options.name} is not taken: {problem}") from None
        return Found(self._identity(claims, token), expires_at)

    def _identity(self, claims: Mapping[str, Any], token: str) -> Identity:
        options = self.options
        name = _name_of(claims.get(options.name_claim), token)
        grants = [grant_of(grant) for grant in options.grants if claims_match(grant.claims, claims)]
        return Identity(f"{options.name}:{name}", [*grants, *self._everybody])


def _name_of(claim: Any, token: str) -> str:
    """What tells two holders of tokens apart: names own operations and uploads, so none is another's beginning, and
    tokens without a name have one each.
    """
    name = str(claim) if claim is not None else ""
    if 0 < len(name) <= _MAX_NAME:
        return name
    return f"{name[:_MAX_NAME]}~{hashlib.sha256((name or token).encode('utf-8', 'replace')).hexdigest()[:16]}"


def claims_match(patterns: Mapping[str, str], claims: Mapping[str, Any]) -> bool:
    """Whether each pattern matches its claim, or an element of it if it is a list. One that is missing does not."""
    return all(
        any(matches(pattern, text) for text in _texts(claims.get(name))) for name, pattern in patterns.items()
    )


def _texts(claim: Any) -> list[str]:
    if isinstance(claim, list):
        return [text for element in claim if not isinstance(element, list) for text in _texts(element)]
    if isinstance(claim, bool):
        return ["true" if claim else "false"]
    return [str(claim)] if isinstance(claim, str | int) else []


def _key(source: KeySource, kid: Any, *, issuer: str) -> PublicKey:
    keys = source.keys
    key = keys.get(str(kid)) if kid is not None else next(iter(keys.values())) if len(keys) == 1 else None
    if key is not None:
        return key
    if source.wants_other():
        raise UnavailableError(f"the keys of {issuer} are being fetched; try again in a few seconds")
    raise UnauthenticatedError(f"this token of {issuer} is not taken: its key is none of {issuer}'s")


def header_and_issuer(token: str) -> tuple[Mapping[str, Any], str]:
    """(header, claim `iss`) of a token that nobody has checked yet. Raises UnauthenticatedError if it is none."""
    import jwt

    try:
        header = jwt.get_unverified_header(token)
        issuer = jwt.decode(token, options={"verify_signature": False}).get("iss", "")
    except (jwt.PyJWTError, *_BROKEN):
        raise UnauthenticatedError("the token is malformed") from None
    return header, str(issuer)
