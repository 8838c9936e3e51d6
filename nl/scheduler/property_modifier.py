"""`property_modifier`: changes the platform properties of actions before the scheduler behind it sees them.

The worker gets the properties as they are then, also for its `additional_environment`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from nl.model.execution import ActionRequest, Properties
from nl.scheduler.contract import Lookup, Operation, Scheduler, SchedulerWrapper


@dataclass(frozen=True, slots=True)
class Add:
    """Sets a property, whatever it was."""

    name: str
    value: str

    def apply(self, properties: Properties) -> Properties:
        return (*_without(properties, self.name), (self.name, self.value))


@dataclass(frozen=True, slots=True)
class Remove:
    """Drops a property, if it is there."""

    name: str

    def apply(self, properties: Properties) -> Properties:
        return _without(properties, self.name)


@dataclass(frozen=True, slots=True)
class Replace:
    """Renames a property (if `value` is given, only with that value) and gives it `new_value` if there is one."""

    name: str
    new_name: str
    value: str | None = None
    new_value: str | None = None

    def apply(self, properties: Properties) -> Properties:
        found = [got for name, got in properties if name == self.name and self.value in (None, got)]
        if not found:
            return properties
        kept = [(name, got) for name, got in properties if name != self.name or self.value not in (None, got)]
        values = found if self.new_value is None else [self.new_value]
        return (*_without(tuple(kept), self.new_name), *((self.new_name, value) for value in values))


Modification = Add | Remove | Replace


def _without(properties: Properties, name: str) -> Properties:
    return tuple(each for each in properties if each[0] != name)


class PropertyModifierScheduler(SchedulerWrapper):
    """Applies the modifications in their order."""

    def __init__(self, inner: Scheduler, modifications: Sequence[Modification], *, name: str = "") -> None:
        super().__init__(inner, name=name)
        self._modifications = tuple(modifications)

    async def submit(self, request: ActionRequest, *, owner: str = "", lookup: Lookup | None = None) -> Operation:
        return await super().submit(
            replace(request, platform=self.modified(request.platform)), owner=owner, lookup=lookup
        )

    def modified(self, properties: Properties) -> Properties:
        """The properties after all modifications, sorted."""
        for each in self._modifications:
            properties = each.apply(properties)
        return tuple(sorted(properties))

    def known_properties(self) -> Sequence[str]:
        """Those of the scheduler behind, and those that are removed or renamed on the way."""
        own = {each.name for each in self._modifications if not isinstance(each, Add)}
        return sorted(own.union(super().known_properties()))
