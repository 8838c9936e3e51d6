"""From origins to addresses: the system's resolver, asked without blocking the loop.

Not here: when names are looked up again (pool.py), and which address is tried first (dial.py).
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import trio
from grpclib.const import Status

from nl.rpc.errors import NotProcessed
from nl.rpc.origin import Origin

MAX_ADDRESSES = 64
"""Of one name. More is a mistake, or somebody else's load balancing."""


@dataclass(frozen=True, slots=True)
class Address:
    """One place where an origin may be listening. Equal ones are the same place of the same origin."""

    origin: Origin
    family: int = 0
    sockaddr: Any = None
    """For `connect()`; None if the origin opens its own streams."""

    @property
    def text(self) -> str:
        """For messages and statistics: `127.0.0.1:50051`, `[::1]:50051`, `unix:/run/nl`."""
        if self.sockaddr is None:
            return self.origin.name
        if self.family == socket.AF_UNIX:
            return self.origin.name
        host, port = self.sockaddr[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def resolve(origins: Sequence[Origin], *, timeout: float) -> list[Address]:
    """The addresses of all origins, in their order, none twice. NotProcessed if there is not one.

    Names are looked up at once. A name that cannot be resolved is only an error if no other can.
    """
    found: dict[Origin, list[Address]] = {}
    problems: list[str] = []

    async def one(origin: Origin) -> None:
        try:
            with trio.fail_after(timeout):
                found[origin] = await _addresses(origin)
        except trio.TooSlowError:
            problems.append(f"{origin.name}: no answer within {timeout:g} s")
        except OSError as exc:
            problems.append(f"{origin.name}: {exc.strerror or exc}")
        except UnicodeError as exc:  # IDNA: an empty label, or one that is too long
            problems.append(f"{origin.name}: {exc}")

    async with trio.open_nursery() as nursery:
        for origin in origins:
            nursery.start_soon(one, origin)
    addresses = [address for origin in origins for address in found.get(origin, ())]
    if not addresses:
        raise NotProcessed(Status.UNAVAILABLE, f"cannot resolve {'; '.join(problems) or 'any address'}")
    return addresses


async def _addresses(origin: Origin) -> list[Address]:
    target = origin.target
    if target is None:
        return [Address(origin)]
    if target.path:
        return [Address(origin, socket.AF_UNIX, target.path)]
    infos = await trio.socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    unique = dict.fromkeys((int(family), sockaddr) for family, _, _, _, sockaddr in infos)
    return interleaved([Address(origin, family, sockaddr) for family, sockaddr in unique])[:MAX_ADDRESSES]


def interleaved(addresses: Sequence[Address]) -> list[Address]:
    """IPv6 and IPv4 in turns, beginning with what the system prefers (RFC 8305, section 4): one broken family costs one
    step, not one for each of its addresses.
    """
    families: dict[int, list[Address]] = {}
    for address in addresses:
        families.setdefault(address.family, []).append(address)
    columns = list(families.values())
    return [column[row] for row in range(max(map(len, columns), default=0)) for column in columns if row < len(column)]
