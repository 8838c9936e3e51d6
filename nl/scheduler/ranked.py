"""Things in an order, in blocks that know the most that anything in them could offer, or the least that it asks. Pure.

Both sides of matching look for the first in an order that fits: a worker for the most urgent action that it has room
for, an action for the first worker that has room for it. A block in which nothing can fit is passed over as a whole, so
a search among n costs about n / `_LOAD` looks, whatever the amounts are. Bounds may be too generous (then a block is
looked through in vain, and its bound made exact), never too strict.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Generic, TypeVar

_LOAD = 64
"""A block is split at twice as many entries."""

Key = tuple[Any, ...]
"""Comparable with the others of the same collection, and no two are equal."""
Amounts = Mapping[str, int]
"""By the name of a `minimum` property."""
T = TypeVar("T")


class _Block(Generic[T]):
    __slots__ = ("bound", "items", "keys")

    def __init__(self, keys: list[Key], items: list[T], bound: dict[str, int]) -> None:
        self.keys = keys
        self.items = items
        self.bound = bound


class Ranked(Generic[T]):
    """Items by key. What bounds mean is said by the two kinds below."""

    __slots__ = ("_amounts_of", "_blocks", "_lasts")

    def __init__(self, amounts_of: Callable[[T], Amounts]) -> None:
        self._amounts_of = amounts_of
        self._blocks: list[_Block[T]] = []
        self._lasts: list[Key] = []

    def add(self, key: Key, item: T) -> None:
        """Puts the item at its place. Its key must not be there yet."""
        if not self._blocks:
            self._blocks.append(_Block([key], [item], dict(self._amounts_of(item))))
            self._lasts.append(key)
            return
        index = min(bisect_left(self._lasts, key), len(self._blocks) - 1)
        block = self._blocks[index]
        place = bisect_left(block.keys, key)
        block.keys.insert(place, key)
        block.items.insert(place, item)
        self._widen(block.bound, self._amounts_of(item))
        self._lasts[index] = block.keys[-1]
        if len(block.keys) > 2 * _LOAD:
            self._split(index)

    def remove(self, key: Key) -> None:
        """Takes out what has this key. Raises KeyError if there is none."""
        index = bisect_left(self._lasts, key)
        block = self._blocks[index] if index < len(self._blocks) else None
        place = bisect_left(block.keys, key) if block is not None else 0
        if block is None or place == len(block.keys) or block.keys[place] != key:
            raise KeyError(key)
        del block.keys[place], block.items[place]
        if block.keys:
            self._lasts[index] = block.keys[-1]
        else:
            del self._blocks[index], self._lasts[index]

    def search(self, amounts: Amounts, accept: Callable[[T], bool], *, upto: Key | None = None) -> tuple[Key, T] | None:
        """The first accepted item among those that `amounts` does not rule out, no later than `upto`, with its key."""
        for block in self._blocks:
            if upto is not None and block.keys[0] > upto:
                return None
            if self._rules_out(block.bound, amounts):
                continue
            for key, item in zip(block.keys, block.items, strict=True):
                if upto is not None and key > upto:
                    return None
                if accept(item):
                    return key, item
            block.bound = self._exact(block.items)
        return None

    def upto(self, key: Key) -> Iterator[T]:
        """The items no later than `key`, in order. Nothing may be added or removed meanwhile."""
        for block in self._blocks:
            if block.keys[-1] > key:
                yield from block.items[: bisect_right(block.keys, key)]
                return
            yield from block.items

    def __len__(self) -> int:
        return sum(len(block.keys) for block in self._blocks)

    def __bool__(self) -> bool:
        return bool(self._blocks)

    def __iter__(self) -> Iterator[T]:
        for block in self._blocks:
            yield from block.items

    def _split(self, index: int) -> None:
        block = self._blocks[index]
        half = len(block.keys) // 2
        items = block.items[half:]
        self._blocks.insert(index + 1, _Block(block.keys[half:], items, self._exact(items)))
        del block.keys[half:], block.items[half:]
        block.bound = self._exact(block.items)
        self._lasts[index : index + 1] = [block.keys[-1], self._blocks[index + 1].keys[-1]]

    def _exact(self, items: Iterable[T]) -> dict[str, int]:
        amounts = [self._amounts_of(item) for item in items]
        bound = dict(amounts[0])
        for each in amounts:
            self._widen(bound, each)
        return bound

    def _widen(self, bound: dict[str, int], amounts: Amounts) -> None:
        raise NotImplementedError

    def _rules_out(self, bound: dict[str, int], amounts: Amounts) -> bool:
        raise NotImplementedError


class RankedDemands(Ranked[T]):
    """Items that ask for amounts: a block's bound is the least of what all in it ask for."""

    __slots__ = ()

    def _widen(self, bound: dict[str, int], amounts: Amounts) -> None:
        for name in [name for name in bound if name not in amounts]:
            del bound[name]
        for name, least in bound.items():
            if amounts[name] < least:
                bound[name] = amounts[name]

    def _rules_out(self, bound: dict[str, int], amounts: Amounts) -> bool:
        return any(amounts.get(name, -1) < least for name, least in bound.items())


class RankedSupplies(Ranked[T]):
    """Items that have amounts: a block's bound is the most that one in it has. Who gets more is to be added anew."""

    __slots__ = ()

    def _widen(self, bound: dict[str, int], amounts: Amounts) -> None:
        for name, amount in amounts.items():
            if amount > bound.get(name, -1):
                bound[name] = amount

    def _rules_out(self, bound: dict[str, int], amounts: Amounts) -> bool:
        return any(bound.get(name, -1) < amount for name, amount in amounts.items())
