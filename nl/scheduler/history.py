"""How long actions have run, to say how long others will have to wait. Pure.

By mnemonic, since targets are many and are built once; without one by what all have taken. An average in which each
action counts for an eighth of what is left: builds change.
"""

from __future__ import annotations

from collections import OrderedDict

from nl.model.execution import ActionRequest

MAX_MNEMONICS = 1024
_WEIGHT = 1 / 8


class History:
    """Seconds from being given to a worker to its answer."""

    def __init__(self) -> None:
        self._by_mnemonic: OrderedDict[str, float] = OrderedDict()
        self._overall: float | None = None

    def ran(self, request: ActionRequest, seconds: float) -> None:
        """An action has taken so long."""
        self._overall = _averaged(self._overall, seconds)
        name = request.mnemonic
        if name:
            self._by_mnemonic[name] = _averaged(self._by_mnemonic.get(name), seconds)
            self._by_mnemonic.move_to_end(name)
            if len(self._by_mnemonic) > MAX_MNEMONICS:
                self._by_mnemonic.popitem(last=False)

    def expected_s(self, request: ActionRequest) -> float | None:
        """How long it may take; None if nothing has run yet."""
        return self._by_mnemonic.get(request.mnemonic, self._overall)


def _averaged(before: float | None, seconds: float) -> float:
    return seconds if before is None else before + (seconds - before) * _WEIGHT
