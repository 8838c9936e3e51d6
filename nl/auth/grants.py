"""From the words of a config's `allow` to rights. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from nl.config.auth import GrantOptions
from nl.model.access import ALL_RIGHTS, Grant, Right

_READ = Right.READ_CAS | Right.READ_AC
ALLOW: dict[str, Right] = {
    **{str(right.name).lower(): right for right in Right if right is not Right.EXECUTE},
    "read": _READ,
    "write": _READ | Right.WRITE_CAS | Right.WRITE_AC,
    "execute": _READ | Right.WRITE_CAS | Right.EXECUTE,
    "worker": Right.REGISTER_WORKERS,
    "admin": Right.ADMINISTER,
    "all": ALL_RIGHTS,
}
"""What may stand in `allow`, and which rights it means."""


def grant_of(options: GrantOptions) -> Grant:
    """The grant that these options write down."""
    rights = Right(0)
    for word in options.allow:
        rights |= ALLOW[word]
    return Grant(tuple(str(pattern) for pattern in options.instances), rights)


def grants_of(options: Iterable[GrantOptions]) -> list[Grant]:
    """One for each."""
    return [grant_of(each) for each in options]
