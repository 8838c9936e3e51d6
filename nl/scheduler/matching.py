"""Which worker could take which action: what platform properties mean. Pure; not here: what is free now (pool.py).

The kinds (`supported_platform_properties`):

* `exact`: the worker declares that value; a worker that declares the empty value takes any.
* `minimum`: a whole number; the worker has at least that much free, and it is reserved while the action runs.
* `priority`: the worker declares the name; the value is information for whoever runs the action.
* `ignore`: never restricts.
* Names that are not configured but that some worker has declared count as `exact`. Names nobody knows are rejected
  (REAPI A.7 rule 18) as soon as there has been a worker that could have told.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from nl.errors import FieldViolation, InvalidRequestError
from nl.model.execution import Properties

MAX_LEARNED_NAMES = 4096
"""Bound on the property names remembered from workers."""
MAX_MEMO = 4096
"""Bound on property lists whose requirements are remembered."""
MAX_PROPERTIES = 256
MAX_PROPERTY_CHARS = 16 * 1024
"""Bounds on one action's properties: requirements are kept and compared, so they have to stay small."""
_U64 = 1 << 64


class PropertyKind(enum.StrEnum):
    """How a platform property restricts the choice of worker."""

    EXACT = "exact"
    MINIMUM = "minimum"
    PRIORITY = "priority"
    IGNORE = "ignore"


Requirement = tuple[str, str | None] | None
"""One requirement: a property's value, or its name (None: whatever the value), or nothing at all."""


def alternatives(requirement: Requirement) -> tuple[Requirement, ...]:
    """What a worker may declare to meet it: a value itself, or the empty value, which stands for any."""
    if requirement is None or not requirement[1]:
        return (requirement,)
    return (requirement, (requirement[0], ""))


@dataclass(frozen=True, slots=True)
class Requirements:
    """What an action asks of a worker. Hashable; equal requirements are one shape."""

    equal: tuple[tuple[str, str], ...] = ()
    at_least: tuple[tuple[str, int], ...] = ()
    present: tuple[str, ...] = ()
    timeout_s: float = 0.0
    """How long the worker has to let it run; 0: the action does not say."""

    def one_by_one(self) -> list[Requirement]:
        """What it asks for, but for how much."""
        names = [(name, None) for name in self.present] + [(name, None) for name, _ in self.at_least]
        return [*self.equal, *names]

    def parts(self) -> list[Requirements]:
        """What it asks for, each by itself."""
        parts = [Requirements(equal=(item,)) for item in self.equal]
        parts += [Requirements(at_least=(bound,)) for bound in self.at_least]
        parts += [Requirements(present=(name,)) for name in self.present]
        return parts + ([Requirements(timeout_s=self.timeout_s)] if self.timeout_s else [])

    def __str__(self) -> str:
        parts = [f"{name}={value}" for name, value in self.equal]
        parts += [f"{name}>={amount}" for name, amount in self.at_least]
        parts += [f"{name}=*" for name in self.present]
        parts += [f"a time limit of {self.timeout_s:g} s"] if self.timeout_s else []
        return ", ".join(parts) or "no properties"


def _canonical(name: str, value: str) -> str:
    """OSFamily is written `linux` in the lexicon of REAPI and `Linux` by some clients: one meaning."""
    return value.lower() if name == "OSFamily" else value


def _amount(name: str, value: str) -> int:
    if not (value.isascii() and value.isdecimal() and int(value[:21]) < _U64):
        problem = f"platform property {name!r} has value {value[:80]!r}; expected a whole number (0 to 2^64-1)"
        raise InvalidRequestError(problem, details=(FieldViolation("platform.properties", problem),))
    return int(value)


@dataclass(frozen=True, slots=True)
class Offer:
    """What a worker declares."""

    values: Mapping[str, frozenset[str]]
    amounts: Mapping[str, int]
    max_timeout_s: float = math.inf
    """The longest time limit that it lets an action have."""

    def meets(self, needs: Requirements) -> bool:
        """Whether an idle worker with this offer could take it."""
        values = self.values
        for name, value in needs.equal:
            have = values.get(name, ())
            if value not in have and "" not in have:
                return False
        amounts = self.amounts
        for name, amount in needs.at_least:
            if amounts.get(name, -1) < amount:
                return False
        return needs.timeout_s <= self.max_timeout_s and all(name in values for name in needs.present)

    def lacks(self, needs: Requirements) -> str | None:
        """The first requirement that an idle worker with this offer does not meet, as text; None if it meets all."""
        return next((str(part) for part in needs.parts() if not self.meets(part)), None)

    def declared(self) -> frozenset[Requirement]:
        """The requirements that it meets, one by one; those of values by the value that is declared."""
        names: set[Requirement] = {(name, None) for name in self.values}
        return frozenset(names.union(((name, value) for name, got in self.values.items() for value in got), (None,)))

    def __hash__(self) -> int:
        return hash((frozenset(self.values.items()), frozenset(self.amounts.items()), self.max_timeout_s))


class PropertyRules:
    """Turns property lists of actions into requirements and those of workers into offers."""

    def __init__(
        self, kinds: Mapping[str, str], *, implied: Mapping[str, tuple[str, ...]], reject_unknown: bool = True
    ) -> None:
        self._kinds = {name: PropertyKind(kind) for name, kind in kinds.items()}
        self._implied = implied
        self._learned: set[str] = set(implied)
        self._reject_unknown = reject_unknown
        self._any_worker_seen = False
        self._longest_timeout_s = math.inf
        self._memo: dict[Properties, Requirements] = {}

    def known_names(self) -> list[str]:
        return sorted(self._kinds.keys() | self._learned)

    def requirements(self, platform: Properties, *, timeout_s: float | None = None) -> Requirements:
        """Raises InvalidRequestError for a name that nobody knows, for a `minimum` that is not a number, and for a time
        limit above what any worker has allowed so far.
        """
        if timeout_s and timeout_s > self._longest_timeout_s:
            raise InvalidRequestError(
                f"Action.timeout of {timeout_s:g} s is above what the workers allow: at most "
                f"{self._longest_timeout_s:g} s"
            )
        needs = self._memo.get(platform)
        if needs is None:
            chars = sum(len(name) + len(value) for name, value in platform)
            if len(platform) > MAX_PROPERTIES or chars > MAX_PROPERTY_CHARS:
                raise InvalidRequestError(
                    f"{len(platform)} platform properties of {chars} characters are too many: "
                    f"at most {MAX_PROPERTIES} of {MAX_PROPERTY_CHARS} together"
                )
            needs = self._parse(platform)
            if len(self._memo) >= MAX_MEMO:
                self._memo.clear()
            self._memo[platform] = needs
        return replace(needs, timeout_s=timeout_s) if timeout_s else needs

    def _parse(self, platform: Properties) -> Requirements:
        equal: set[tuple[str, str]] = set()
        at_least: dict[str, int] = {}
        present: set[str] = set()
        for name, value in platform:
            match self._kinds.get(name):
                case None:
                    if self._is_known(name):
                        equal.add((name, _canonical(name, value)))
                case PropertyKind.EXACT:
                    equal.add((name, _canonical(name, value)))
                case PropertyKind.MINIMUM:
                    at_least[name] = max(at_least.get(name, 0), _amount(name, value))
                case PropertyKind.PRIORITY:
                    present.add(name)
                case PropertyKind.IGNORE:
                    pass
        return Requirements(tuple(sorted(equal)), tuple(sorted(at_least.items())), tuple(sorted(present)))

    def _is_known(self, name: str) -> bool:
        if name in self._learned:
            return True
        if not self._reject_unknown:
            return False
        if not self._any_worker_seen:
            return True  # nobody could have told yet; the grace period for unmatched actions ends the wait
        problem = f"unknown platform property {name[:200]!r}; known here: {', '.join(self.known_names()) or 'none'}"
        raise InvalidRequestError(problem, details=(FieldViolation("platform.properties", problem),))

    def offer(self, properties: Iterable[tuple[str, str]], *, max_timeout_s: float = math.inf) -> Offer:
        """What a worker with these properties can take; remembers the names. Raises InvalidRequestError."""
        values: dict[str, set[str]] = {}
        amounts: dict[str, int] = {}
        for name, value in properties:
            values.setdefault(name, set()).add(_canonical(name, value))
            if self._kinds.get(name) is PropertyKind.MINIMUM:
                amounts[name] = max(amounts.get(name, 0), _amount(name, value))
        for name, defaults in self._implied.items():
            values.setdefault(name, set(defaults))
        if len(self._learned) + len(values) <= MAX_LEARNED_NAMES:
            self._learned.update(values)
        self._longest_timeout_s = max(max_timeout_s, self._longest_timeout_s if self._any_worker_seen else 0.0)
        self._any_worker_seen = True
        self._memo.clear()
        return Offer({name: frozenset(got) for name, got in values.items()}, amounts, max_timeout_s)
