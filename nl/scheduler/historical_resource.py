"""`historical_resource`: raises what actions ask for to what such actions have needed before.

Hints come from a file that somebody else writes, by target and mnemonic of the action (RequestMetadata). The file is
read again while the server runs; one that cannot be used is logged, and the hints of before stay.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import trio

from nl.model.execution import ActionRequest, Properties
from nl.scheduler.contract import Lookup, Operation, Scheduler, SchedulerWrapper

log = logging.getLogger("nl.scheduler.historical_resource")

MAX_FILE = 16 * 1024 * 1024
_U64 = 1 << 64


@dataclass(frozen=True, slots=True)
class Hint:
    """What an action needs at least. None: nothing is known."""

    cpu_count: int | None = None
    memory_kb: int | None = None


class Hints:
    """By target and mnemonic, by target alone, by mnemonic alone; the first of these that is there counts."""

    def __init__(self, entries: Mapping[tuple[str, str], Hint]) -> None:
        self._entries = entries

    @classmethod
    def parse(cls, text: str) -> Hints:
        """From `[...]` or `{"hints": [...]}` of `{target_id?, action_mnemonic?, cpu_count?, memory_kb? | memory_mib?}`.

        Raises ValueError, whose text says what is wrong. Entries without target and mnemonic are left out.
        """
        given = json.loads(text)
        if isinstance(given, dict):
            given = given.get("hints")
        if not isinstance(given, list):
            raise ValueError('expected a list of hints, or {"hints": [...]}')
        entries: dict[tuple[str, str], Hint] = {}
        for index, entry in enumerate(given):
            if not isinstance(entry, dict):
                raise ValueError(f"hint {index} is not an object")
            key = (_text(entry, "target_id", index), _text(entry, "action_mnemonic", index))
            memory_mib = _number(entry, "memory_mib", index)
            memory_kb = _number(entry, "memory_kb", index)
            if memory_kb is None and memory_mib is not None:
                memory_kb = memory_mib * 1024
            if any(key):
                entries.setdefault(key, Hint(_number(entry, "cpu_count", index), memory_kb))
        return cls(entries)

    def find(self, target: str, mnemonic: str) -> Hint | None:
        entries = self._entries
        both = entries.get((target, mnemonic)) if target and mnemonic else None
        return both or (entries.get((target, "")) if target else None) or (
            entries.get(("", mnemonic)) if mnemonic else None
        )

    def __len__(self) -> int:
        return len(self._entries)


def _text(entry: dict[str, Any], key: str, index: int) -> str:
    value = entry.get(key) or ""
    if not isinstance(value, str):
        raise ValueError(f"{key} of hint {index} is not text")
    return value


def _number(entry: dict[str, Any], key: str, index: int) -> int | None:
    value = entry.get(key)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < _U64):
        raise ValueError(f"{key} of hint {index} is not a whole number (0 to 2^64-1)")
    return value


def raised(properties: Properties, name: str, least: int | None) -> Properties:
    """The properties with `name` at least so large; never lowered, and left alone if its value is no number."""
    if least is None:
        return properties
    given = [value for each, value in properties if each == name]
    if any(not (value.isascii() and value.isdecimal()) for value in given):
        return properties
    most = max([least, *(int(value[:21]) for value in given)])
    return tuple(sorted([*(each for each in properties if each[0] != name), (name, str(most))]))


class HistoricalResourceScheduler(SchedulerWrapper):
    """See the module's docstring. Names of properties are those of `simple`'s `minimum` kind, usually."""

    def __init__(
        self, inner: Scheduler, *, hints_file: str, refresh_s: float, cpu_name: str, memory_name: str, name: str = ""
    ) -> None:
        super().__init__(inner, name=name)
        self._file = hints_file
        self._refresh_s = refresh_s
        self._cpu_name = cpu_name
        self._memory_name = memory_name
        self._limiter = trio.CapacityLimiter(1)
        self.hints = Hints({})

    async def background(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Reads the file, now and again, until cancelled."""
        await self.read()
        task_status.started()
        while self._refresh_s:
            await trio.sleep(self._refresh_s)
            await self.read()

    async def read(self) -> None:
        """Takes the hints of the file, if it can be used."""
        try:
            self.hints = await trio.to_thread.run_sync(self._parsed, limiter=self._limiter)
        except (OSError, ValueError) as exc:
            log.warning("%s: the hints file %s cannot be used, %d hints stay: %s", self.name, self._file,
                        len(self.hints), exc)  # fmt: skip

    def _parsed(self) -> Hints:
        with open(self._file, encoding="utf-8") as file:
            text = file.read(MAX_FILE + 1)
        if len(text) > MAX_FILE:
            raise ValueError(f"it is longer than {MAX_FILE} characters")
        return Hints.parse(text)

    async def submit(self, request: ActionRequest, *, owner: str = "", lookup: Lookup | None = None) -> Operation:
        hint = self.hints.find(request.target, request.mnemonic)
        if hint is not None:
            request = replace(request, platform=self.raised(request.platform, hint))
        return await super().submit(request, owner=owner, lookup=lookup)

    def raised(self, properties: Properties, hint: Hint) -> Properties:
        """The properties with what the hint says, as far as the scheduler behind knows the names."""
        known = super().known_properties()
        for name, least in ((self._cpu_name, hint.cpu_count), (self._memory_name, hint.memory_kb)):
            if name in known:
                properties = raised(properties, name, least)
        return properties

    def known_properties(self) -> Sequence[str]:
        return sorted({self._cpu_name, self._memory_name}.union(super().known_properties()))

    def statistics(self) -> Mapping[str, int | float | str]:
        return {**super().statistics(), "hints": len(self.hints)}
