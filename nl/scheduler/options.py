"""What a `simple` scheduler is built from: plain values, already parsed. Not here: reading them from a config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Literal

AllocationStrategy = Literal["least_recently_used", "most_recently_used", "round_robin", "least_loaded"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SimpleSchedulerOptions:
    """Times are seconds. Field names are the config keys where such a key exists."""

    supported_platform_properties: Mapping[str, str] = field(default_factory=dict)
    """Property name -> `exact`, `minimum`, `priority` or `ignore`."""
    allocation_strategy: AllocationStrategy = "least_recently_used"
    retain_completed_for_s: float = 60.0
    """How long a finished operation can still be asked for."""
    client_action_timeout_s: float = 60.0
    """How long an operation goes on with nobody listening."""
    worker_timeout_s: float = 5.0
    """A worker that says nothing for this long is removed."""
    max_action_executing_timeout_s: float = 0.0
    """An action that executes longer is killed and tried again; 0: no limit here (workers have their own)."""
    unacknowledged_kill_timeout_s: float = 60.0
    """A worker that does not report the end of a killed action within this time is removed."""
    max_job_retries: int = 3
    """How often an action may fail for reasons of the worker's before it fails for good."""
    max_lost_workers: int = 3
    """So many workers lost in a row while they ran one action are that action's fault; 0: they never are."""
    priority_ageing_s: float = 600.0
    """How long an action waits behind those of a higher priority at most, before it goes with them; 0: for ever."""
    worker_match_logging_interval_s: float = 10.0
    """How often the reasons for waiting are logged; 0 or less: never."""
    max_operations: int = 100_000
    """Bound on operations that are not finished; beyond it Execute is RESOURCE_EXHAUSTED."""
    max_retained_bytes: int = 256 * 1024 * 1024
    """Bound on the responses kept for `retain_completed_for_s`; beyond it the oldest go early."""
    unmatched_grace_s: float = 300.0
    """An action that no connected worker could ever run fails after waiting this long; 0: it waits for ever.

    Five minutes let a fleet scale up from nothing or a worker restart, and still end a build within a coffee break
    instead of never."""
    unknown_platform_properties: Literal["reject", "ignore"] = "reject"
    """What to do with a property name that is neither configured nor declared by any worker seen so far."""
    implied_platform_properties: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: {"OSFamily": ("linux",)})
    """What a worker counts as declaring unless it declares the name itself: `OSFamily=linux` matches by default."""

    @classmethod
    def from_config(cls, section: object) -> SimpleSchedulerOptions:
        """Takes over every field that a config section has under the same name; the others keep their defaults."""
        names = [each.name for each in fields(cls) if hasattr(section, each.name)]
        return cls(**{name: getattr(section, name) for name in names})
