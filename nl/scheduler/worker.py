"""One connected worker: what it offers and what of it is in use. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from nl.scheduler.matching import Offer, Requirement, Requirements
from nl.scheduler.state import Execution, Lease, Rank

TROUBLED_AFTER = 3
"""So many different actions that it fails, one after the other, are the worker's fault."""
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0
"""A worker that is out of resources, or fails everything, gets nothing for a while, doubling from the first to the
longest pause."""
PATIENCE = 12
"""A worker that says nothing is given so many times the usual time, as long as its end of the connection answers:
how often workers speak is their own business (half of `worker_api_endpoint.timeout`)."""


@dataclass(slots=True, eq=False)
class Worker:
    """`free[name]` is what it offers minus what its leases have reserved: never less than nothing, or more than that.

    A lease is in `leases` from `reserve` until the worker reports its end, killed or not.
    """

    id: str
    offer: Offer
    max_inflight: int
    """0: unlimited."""
    last_seen: float
    reached: float = -math.inf
    """When its end of the connection last gave a sign of life."""
    serial: int = 0
    """Order of connection."""
    used: int = 0
    """When it was last given something or reported an end, by a count of such events."""
    assigned: int = 0
    """When it was last given something, by the same count."""
    virtual: float = 0.0
    """The latest tag of what it was given (order.py)."""
    leases: dict[str, Lease] = field(default_factory=dict)
    free: dict[str, int] = field(default_factory=dict)
    draining: bool = False
    """Finishes what it has and gets nothing more."""
    leaving: bool = False
    """It said so itself: what it leaves behind costs no attempt."""
    held_for: Execution | None = None
    """It gets nothing that is less urgent than this one, which needs more room than there is now."""
    paused_until: float | None = None
    why_paused: str = ""
    """What it said last, for pages."""
    refusals: int = 0
    """How often in a row it has been paused."""
    failed: set[str] = field(default_factory=set)
    """Executions that it has failed since it last completed one; the first few."""
    declared: frozenset[Requirement] = field(init=False)
    """The requirements that it meets, one by one."""

    def __post_init__(self) -> None:
        self.free = dict(self.offer.amounts)
        self.declared = self.offer.declared()

    @property
    def has_slot(self) -> bool:
        if self.draining or self.paused_until is not None:
            return False
        return not self.max_inflight or len(self.leases) < self.max_inflight

    @property
    def load(self) -> float:
        """How much of it is in use, 0 to 1: of its slots or of what it has least left of."""
        shares = [1 - self.free[name] / offered for name, offered in self.offer.amounts.items() if offered]
        if self.max_inflight:
            shares.append(len(self.leases) / self.max_inflight)
        return max(shares, default=1 - 1 / (1 + len(self.leases)))

    def is_silent(self, limit_s: float, *, now: float) -> bool:
        """Whether nothing has been heard of it for so long."""
        silent_s = now - self.last_seen
        return silent_s >= limit_s and (now - self.reached >= limit_s or silent_s >= PATIENCE * limit_s)

    def room_for(self, rank: Rank) -> Mapping[str, int] | None:
        """The amounts that are free for an execution of this rank: beside the one that it is kept for, if that goes
        first. None if there is no slot beside that.
        """
        held_for = self.held_for
        if held_for is None or rank <= held_for.rank:
            return self.free
        beside = [lease for lease in self.leases.values() if lease.beside]
        if self.max_inflight and len(beside) + 1 >= self.max_inflight:
            return None
        room = dict(self.offer.amounts)
        for taken in (held_for.needs.at_least, *(lease.reserved for lease in beside)):
            for name, amount in taken:
                room[name] -= amount
        return {name: min(room[name], free) for name, free in self.free.items()}

    def reserve(self, lease: Lease, needs: Requirements) -> None:
        lease.reserved = needs.at_least
        for name, amount in lease.reserved:
            self.free[name] -= amount
        self.leases[lease.id] = lease

    def give_back(self, lease: Lease) -> None:
        """Returns what the lease had reserved; a second time is a no-op."""
        for name, amount in lease.reserved:
            self.free[name] += amount
        lease.reserved = ()

    def pause(self, why: str, *, now: float) -> float:
        """It gets nothing for a while, longer each time. Returns the seconds."""
        self.why_paused = why
        pause = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * float(1 << min(self.refusals, 10)))
        self.refusals += 1
        self.paused_until = now + pause
        return pause

    def __repr__(self) -> str:
        slots = f"{len(self.leases)}/{self.max_inflight or 'unlimited'}"
        state = "draining " if self.draining else "paused " if self.paused_until is not None else ""
        return f"<Worker {self.id} {state}{slots} free={self.free}>"
