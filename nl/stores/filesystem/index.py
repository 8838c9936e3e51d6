"""The index: which files the folder has, how large they are, when they were used. Pure; knows no file and no clock.

A file is a row of a few arrays, found by its key through a dict: 270 bytes each, of which half is the key, none of
which the garbage collector ever looks at. (An object for each would take 700, and its pauses would grow with their
number.) The number of the row is the file's *slot*; it may be another file's after the next removal, so nobody keeps a
slot over an await.

Rules for this file: `bytes` is always the sum of the costs of all entries, executable variants included.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator, Sequence

from nl.plugin import Digest
from nl.stores.filesystem.names import IndexKey, index_key
from nl.stores.filesystem.use_order import UseOrder
from nl.stores.filesystem.uses import UseTable


class Index:
    """All entries. `block_size` is what sizes are rounded up to when they are added up.

    `shared` is what all processes know of their uses: each use is noted there, too.
    """

    def __init__(self, block_size: int, shared: UseTable) -> None:
        self.slots: dict[IndexKey, int] = {}
        self.executables: dict[IndexKey, int] = {}
        """Variants, by the keys of their blobs. They have no place in the order of use: they go with their blobs."""
        self.sizes = array("Q")
        self.used = array("d")
        """When each file was last used, on the clock of time.monotonic(): below zero if before the machine started."""
        self.cells = array("I")
        self.order = UseOrder(self.used)
        self.bytes = 0
        self.moved = 0
        """How often the oldest was not, because another process had used it."""
        self._inodes = array("Q")
        self._mtimes = array("q")
        self._rounds = array("B")
        self._round = 0
        self._keys: list[IndexKey] = []
        self._free: list[int] = []
        self._block_size = block_size
        self.shared = shared

    def __len__(self) -> int:
        return len(self.slots)

    @property
    def is_alone(self) -> bool:
        """Whether no other process is on the folder, as far as this one knows yet."""
        return self.shared.is_alone

    # Sizes

    def cost(self, size: int) -> int:
        """What a file of `size` bytes counts for."""
        return -(-size // self._block_size) * self._block_size

    def most_that_costs(self, limit: int) -> int:
        """The largest size whose cost is at most `limit`."""
        return limit // self._block_size * self._block_size

    # Finding

    def blob(self, digest: Digest) -> int | None:
        """The slot of a blob that has the size of its digest."""
        slot = self.slots.get(index_key(digest))
        return slot if slot is not None and self.sizes[slot] == digest.size else None

    def executable(self, digest: Digest) -> int | None:
        """The slot of a blob's executable variant."""
        slot = self.executables.get(index_key(digest))
        return slot if slot is not None and self.sizes[slot] == digest.size else None

    def key_at(self, slot: int) -> IndexKey:
        """The key of a file."""
        return self._keys[slot]

    # Adding and removing

    def add(self, key: IndexKey, size: int, *, used: float) -> int:
        """Adds or replaces an entry, used right now. Returns its slot."""
        slot = self.add_found(key, size, used=used)
        self.order.note(slot, used)
        return slot

    def add_late(self, key: IndexKey, size: int, *, used: float) -> int:
        """Adds or replaces an entry that is learned of late. Returns its slot."""
        slot = self.add_found(key, size, used=used)
        self.order.move(slot, used)
        return slot

    def add_found(self, key: IndexKey, size: int, *, used: float) -> int:
        """Adds or replaces an entry that was used some time ago; the caller tells the order of it. Returns its slot."""
        if key in self.slots:
            self.remove(key)
        slot = self.slots[key] = self._row(key, size, used)
        return slot

    def remove(self, key: IndexKey) -> bool:
        """Takes an entry out; False if there is none."""
        slot = self.slots.pop(key, None)
        if slot is not None:
            self._forget(slot)
        return slot is not None

    def add_executable(self, key: IndexKey, size: int) -> int:
        """Adds or replaces the executable variant of a blob. Returns its slot."""
        self.remove_executable(key)
        slot = self.executables[key] = self._row(key, size, 0.0)
        return slot

    def remove_executable(self, key: IndexKey) -> bool:
        """Takes an executable variant out; False if there is none."""
        slot = self.executables.pop(key, None)
        if slot is not None:
            self._forget(slot)
        return slot is not None

    def clear(self) -> None:
        """Forgets everything."""
        self.slots.clear()
        self.executables.clear()
        self.order.clear()
        for row in (self.sizes, self.used, self.cells, self._inodes, self._mtimes, self._rounds):
            del row[:]
        self._keys.clear()
        self._free.clear()
        self.bytes = 0

    # Use

    def touch(self, slot: int, now: float) -> None:
        """Makes an entry the most recently used, for all processes. `now` is time.monotonic()."""
        self.used[slot] = now
        if not self.shared.is_alone:
            self.shared.times[self.cells[slot]] = now
        self.order.note(slot, now)
        self.order.sweep(len(self.slots))

    def touch_all(self, slots: Sequence[int], now: float) -> None:
        """Makes entries the most recently used, for all processes: 0.1 us each, and half of it where there is one."""
        used = self.used
        for slot in slots:
            used[slot] = now
        if not self.shared.is_alone:
            cells, shared = self.cells, self.shared.times
            for slot in slots:
                shared[cells[slot]] = now
        self.order.note_all(slots, now)
        self.order.sweep(len(self.slots))

    def tell_keys(self, keys: Sequence[IndexKey], now: float) -> None:
        """Tells that keys are being asked for, whether their files are there or not: also this process, if it is alone,
        since what is not in the index yet may get there with an earlier time.
        """
        times, cell_of = self.shared.times, self.shared.cell_of
        for key in keys:
            times[cell_of(key)] = now

    def tell_uses(self, since: float) -> Iterator[None]:
        """Tells all processes of the uses since then, a slice for each step; the caller may wait between."""
        for slots in self.order.used_since(since):
            shared = self.shared.times
            for slot in slots:
                cell = self.cells[slot]
                shared[cell] = max(shared[cell], self.used[slot])
            yield

    def oldest(self) -> int | None:
        """The slot that no process has used for the longest time. None: there is none, or ask again (`is_empty`)."""
        slot = self.order.oldest()
        if slot is None:
            return None
        elsewhere = self.shared.last(self.cells[slot])
        if elsewhere <= self.used[slot]:
            return slot
        self.used[slot] = elsewhere
        self.order.move(slot, elsewhere)
        self.moved += 1
        return None

    @property
    def is_empty(self) -> bool:
        """Whether `oldest` has nothing more to tell."""
        return self.order.is_empty

    def last_used(self, slot: int) -> float:
        """When any process has used a file last."""
        return max(self.used[slot], self.shared.last(self.cells[slot]))

    # Identity

    def know(self, slot: int, *, inode: int, mtime_ns: int) -> None:
        """Remembers the identity that the file had when its bytes were right; inode 0 for none."""
        self._inodes[slot] = inode
        self._mtimes[slot] = mtime_ns

    def is_known(self, slot: int) -> bool:
        """Whether the file's bytes were ever found right."""
        return self._inodes[slot] != 0

    def identity(self, slot: int) -> tuple[int, int]:
        """Inode and mtime of the file when its bytes were right; inode 0 if they never were."""
        return self._inodes[slot], self._mtimes[slot]

    def is_known_as(self, slot: int, *, inode: int, mtime_ns: int, size: int) -> bool:
        """Whether a file with this identity is the one whose bytes were last known to be right."""
        return self._inodes[slot] == inode and self._mtimes[slot] == mtime_ns and self.sizes[slot] == size

    # Rounds: which entries a scan has seen

    def begin_round(self) -> None:
        """From now on, what is added or seen counts as seen in this round."""
        self._round = self._round % 255 + 1

    def see(self, slot: int) -> None:
        """An entry was found to be there."""
        self._rounds[slot] = self._round

    def unseen(self) -> Iterator[list[tuple[IndexKey, bool]]]:
        """Keys of what was not seen since the round began, and whether they are of variants, in groups of slots.

        The caller may wait and remove between groups.
        """
        for entries, is_executable in ((self.slots, False), (self.executables, True)):
            for start in range(0, len(self._keys), 4096):
                rounds = self._rounds[start : start + 4096].tobytes()
                if rounds.count(self._round) == len(rounds):
                    continue
                keys = [self._keys[start + at] for at, seen in enumerate(rounds) if seen != self._round]
                yield [
                    (key, is_executable) for key in keys
                    if (slot := entries.get(key)) is not None and self._rounds[slot] != self._round
                ]  # fmt: skip

    def _row(self, key: IndexKey, size: int, used: float) -> int:
        self.bytes += self.cost(size)
        cell = self.shared.cell_of(key)
        if self._free:
            slot = self._free.pop()
            self.sizes[slot], self.used[slot], self.cells[slot], self._keys[slot] = size, used, cell, key
        else:
            slot = len(self._keys)
            self.sizes.append(size)
            self.used.append(used)
            self.cells.append(cell)
            self._inodes.append(0)
            self._mtimes.append(0)
            self._rounds.append(0)
            self._keys.append(key)
        self._rounds[slot] = self._round
        return slot

    def _forget(self, slot: int) -> None:
        self.bytes -= self.cost(self.sizes[slot])
        self.used[slot] = math.nan  # No line of the order is of this time.
        self._inodes[slot] = 0
        self._mtimes[slot] = 0
        self._rounds[slot] = 0
        self._keys[slot] = ""
        self._free.append(slot)

    def __repr__(self) -> str:
        return f"<Index {len(self.slots)} blobs, {len(self.executables)} executables, {self.bytes} bytes>"
