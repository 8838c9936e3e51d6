"""Who may do what: rights, and the identities that have them. Pure values; `Identity.require` is the one question.

Every RPC and every HTTP route asks it, for the instance whose data it touches. How an identity is found (tokens,
certificates) is `nl.auth`'s business; without that everybody is `EVERYONE`.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass

from nl.errors import PermissionDeniedError, UnauthenticatedError

_MAX_REMEMBERED = 256
_MAX_REMEMBERED_CHARS = 200
"""Instance names whose rights an identity remembers, and how long they may be: clients may invent names, as long as a
message."""


class Right(enum.Flag):
    """What an identity may do with an instance. They do not imply each other."""

    READ_CAS = enum.auto()
    WRITE_CAS = enum.auto()
    READ_AC = enum.auto()
    WRITE_AC = enum.auto()
    EXECUTE = enum.auto()
    REGISTER_WORKERS = enum.auto()
    ADMINISTER = enum.auto()
    """See and end everybody's operations, read the status page."""

    @property
    def words(self) -> str:
        """As in configs and messages: `read_cas, write_ac`."""
        return ", ".join(str(each.name).lower() for each in type(self) if each in self)


ANY_RIGHT = Right(0)
"""Asked for: at least one right, whichever it is."""
ALL_RIGHTS = ~ANY_RIGHT


def matches(pattern: str, text: str) -> bool:
    """Whether `text` is as `pattern` says, in which `*` stands for any characters (`/` and none included)."""
    first, *rest = pattern.split("*")
    if not rest:
        return pattern == text
    *middle, last = rest
    at, end = len(first), len(text) - len(last)
    if at > end or not text.startswith(first) or not text.endswith(last):
        return False
    for part in middle:  # the leftmost is always right, so nothing is tried twice: texts are as long as peers like
        at = text.find(part, at, end)
        if at < 0:
            return False
        at += len(part)
    return True


@dataclass(frozen=True, slots=True)
class Grant:
    """Rights for the instances whose names match one of the patterns."""

    instances: tuple[str, ...]
    rights: Right


@dataclass(frozen=True, slots=True)
class PeerCertificate:
    """What the verified certificate of a TLS client says about it."""

    common_name: str
    uris: tuple[str, ...] = ()
    dns_names: tuple[str, ...] = ()
    emails: tuple[str, ...] = ()
    not_after: float = float("inf")
    """Seconds since the epoch."""


class Identity:
    """Somebody with a name and grants. `is_anonymous`: no credentials were given, and some might help.

    `is_revoked` becomes true when the credentials are taken back, and a token of a file ends at `expires_at` (seconds
    since the epoch): for streams that last longer than they should. What begins a call is looked at each time anyway.
    """

    __slots__ = ("_known", "expires_at", "grants", "is_anonymous", "is_revoked", "name")

    def __init__(
        self, name: str, grants: Iterable[Grant], *, is_anonymous: bool = False, expires_at: float = float("inf")
    ) -> None:
        self.name = name
        self.grants = tuple(grants)
        self.is_anonymous = is_anonymous
        self.is_revoked = False
        self.expires_at = expires_at
        self._known: dict[str | None, int] = {}

    def _bits(self, instance: str | None) -> int:
        bits = self._known.get(instance)
        if bits is None:
            rights = Right(0)
            for grant in self.grants:
                if instance is None or any(matches(pattern, instance) for pattern in grant.instances):
                    rights |= grant.rights
            bits = rights.value
            if instance is not None and len(instance) > _MAX_REMEMBERED_CHARS:
                return bits
            if len(self._known) >= _MAX_REMEMBERED:
                self._known.clear()
            self._known[instance] = bits
        return bits

    def rights_on(self, instance: str) -> Right:
        """All rights for one instance."""
        return Right(self._bits(instance))

    def may(self, right: Right, instance: str) -> bool:
        """Whether it has (all of) `right` for an instance."""
        wanted = right._value_
        bits = self._bits(instance)
        return bits & wanted == wanted and bits != 0

    def require(self, right: Right, instance: str | None) -> None:
        """Raises PermissionDeniedError, or UnauthenticatedError when no credentials were given, unless it `may`.

        `instance` None: for at least one instance, whichever.
        """
        wanted = right._value_
        bits = self._bits(instance)
        if bits & wanted == wanted and bits:
            return
        missing = Right(wanted & ~bits).words or "any right"
        where = f"instance {instance[:200]!r}" if instance is not None else "any instance"
        if self.is_anonymous:
            raise UnauthenticatedError(f"{missing} for {where} needs credentials; none were given")
        raise PermissionDeniedError(f"{self.name!r} does not have {missing} for {where}")

    def require_everywhere(self, right: Right, instances: Iterable[str]) -> None:
        """The same for what concerns all of these instances at once; for the instance "" if there are none."""
        for instance in sorted(instances) or ("",):
            self.require(right, instance)

    def sees(self, instance: str) -> bool:
        """Whether it may know that an instance is there: it has any right for it."""
        return self._bits(instance) != 0

    def __repr__(self) -> str:
        return f"Identity({self.name!r}, {list(self.grants)})"


EVERYONE = Identity("everyone", [Grant(("*",), ALL_RIGHTS)])
"""Whoever asks a server that knows no credentials."""
