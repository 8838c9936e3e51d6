"""Operations, for those who may know of them: whoever made one, and who may administer its instance.

Another's operation is NOT_FOUND, as one that never was: names tell nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from nl.errors import NotFoundError
from nl.model.access import EVERYONE, Identity, Right
from nl.scheduler.contract import Operation, Scheduler


class OperationFinder:
    """The operations of several instances, by name."""

    def __init__(self, schedulers: Mapping[str, Scheduler]) -> None:
        self._schedulers = dict(schedulers)

    def find(self, identity: Identity, name: str) -> tuple[Scheduler, Operation]:
        """The operation with its scheduler.

        Raises NotFoundError, or what `Identity.require` raises for those who may not execute on its instance.
        """
        instance = name.rpartition("/")[0]
        owner = None
        if identity is not EVERYONE and not identity.may(Right.ADMINISTER, instance):
            identity.require(Right.EXECUTE, instance)
            owner = identity.name
        scheduler = self._schedulers.get(instance)
        if scheduler is None:
            raise NotFoundError(f"operation {name[:300]!r} not found: no such instance")
        return scheduler, scheduler.operation(name, owner=owner)

    def listed(self, identity: Identity, instance: str | None) -> Iterator[Operation]:
        """Those of one instance, or of all, the oldest first."""
        found = [
            operation
            for scheduler in dict.fromkeys(self._schedulers.values())
            for operation in scheduler.operations()
            if instance in (None, operation.request.instance_name) and _sees(identity, operation)
        ]
        return iter(sorted(found, key=lambda operation: operation.number))


def _sees(identity: Identity, operation: Operation) -> bool:
    instance = operation.request.instance_name
    if identity.may(Right.ADMINISTER, instance):
        return True
    return operation.owner == identity.name and identity.may(Right.EXECUTE, instance)
