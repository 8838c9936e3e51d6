"""Wrong credentials, counted by address: so that guesses cost little CPU time and few log lines.

Guessing itself is no danger (a token has 256 bits). What costs is to check web tokens, so those that were wrong are
counted: while more than ten a second come from an address, its connections that have sent some get no more checked.
Others behind the same address do: to begin a connection costs more than a check. Tokens of a file, and credentials that
were right before, are never held up.
"""

from __future__ import annotations

import ipaddress
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

_log = logging.getLogger("nl.auth")
BURST = 100
REFILL_S = 0.1
"""So many failures at once, and one more after each of these spans."""
MAX_ADDRESSES = 1024
"""How many are remembered; the longest unheard of is forgotten first."""
FREE = 3
"""So many wrong ones from a connection are checked whatever its neighbours do ..."""
MAX_CONNECTIONS = 4096
"""... and so many connections that have sent some are remembered."""
LOG_S = 60.0
"""An address gets one log line in this time ..."""
MAX_LINES = 20
"""... and all together so many."""


@dataclass(slots=True)
class _Failures:
    level: float = 0.0
    at: float = 0.0
    count: int = 0
    logged: float = float("-inf")


class FailureThrottle:
    """The failures of each address. IPv6 addresses count by their /64, of which each host has one to itself."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._addresses: OrderedDict[str, _Failures] = OrderedDict()
        self._connections: OrderedDict[str, int] = OrderedDict()
        self._lines: list[float] = []
        self.total = 0

    def is_blocked(self, peer: str) -> bool:
        """Whether what this peer (`host:port`) sends is not worth the work of checking it now."""
        if self._connections.get(peer, 0) < FREE:
            return False
        failures = self._addresses.get(address_of(peer))
        if failures is None:
            return False
        return failures.level - (self._clock() - failures.at) / REFILL_S > BURST - 1

    def checked_in_vain(self, peer: str) -> None:
        """Counts what it has cost to find out that something is wrong."""
        now, failures = self._clock(), self._of(peer)
        failures.level = min(max(failures.level - (now - failures.at) / REFILL_S, 0.0) + 1, BURST)
        failures.at = now
        self._connections[peer] = self._connections.pop(peer, 0) + 1
        if len(self._connections) > MAX_CONNECTIONS:
            self._connections.popitem(last=False)

    def failed(self, peer: str, reason: str) -> None:
        """Counts a failure, and says so in the log if that is not too much."""
        now, address, failures = self._clock(), address_of(peer), self._of(peer)
        self.total += 1
        failures.count += 1
        self._lines = [at for at in self._lines if now - at < LOG_S]
        if now - failures.logged >= LOG_S and len(self._lines) < MAX_LINES:
            self._lines.append(now)
            more = f" ({failures.count} times since the last such line)" if failures.count > 1 else ""
            _log.warning("wrong credentials from %s: %s%s", address, reason, more)
            failures.logged, failures.count = now, 0

    def _of(self, peer: str) -> _Failures:
        address = address_of(peer)
        failures = self._addresses.pop(address, None) or _Failures(at=self._clock())
        self._addresses[address] = failures
        if len(self._addresses) > MAX_ADDRESSES:
            self._addresses.popitem(last=False)
        return failures


def address_of(peer: str) -> str:
    """What is counted for a peer: its host without the port, its network for IPv6."""
    host, colon, port = peer.rpartition(":")
    if not colon or not port.isdigit():
        return peer
    try:
        address = ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)
