"""Asks the stores of a config whether they work: what `nl stores check` prints.

Every store that stands on no other is started, asked, written to and read from, with a blob of its own that is taken
out again where the kind can do that. The others only pass on, and their health is that of those below them.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable
from dataclasses import dataclass
from math import inf
from typing import TypeVar

import trio

from nl.blob.hashing import digest_of
from nl.config.fields import child_specs
from nl.errors import (
    BlobNotFoundError,
    ConfigError,
    ExhaustedError,
    InvalidRequestError,
    NlError,
    PermissionDeniedError,
    UnavailableError,
)
from nl.model.digest import Digest
from nl.storage.builder import BuiltStore, StoreGraph
from nl.storage.capabilities import Deletes, Discards
from nl.storage.contract import Store
from nl.storage.running import running_store

TIMEOUT_S = 10.0
"""How long each question may take."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found of one store."""

    name: str
    kind: str
    works: bool
    text: str
    """One line: what works and how fast, or what does not and why."""


def stores_to_check(graph: StoreGraph) -> list[BuiltStore]:
    """Those that stand on no other."""
    return [built for built in graph if not child_specs(built.spec.options) and built.kind != "ref_store"]


async def check_store(built: BuiltStore, *, writes: bool = True) -> Finding:
    """Starts one store that stands on no other, asks it, and ends it. `writes`: also write and read."""
    finding = Finding(built.name, built.kind, False, f"it did not start within {TIMEOUT_S:g} s")
    with trio.move_on_after(TIMEOUT_S) as starting:
        try:
            async with running_store(built):
                starting.deadline = inf
                finding = await _ask(built, writes=writes)
        except ConfigError as error:
            return Finding(built.name, built.kind, False, str(error))
    return finding


async def _ask(built: BuiltStore, *, writes: bool) -> Finding:
    clock = _Stopwatch()
    try:
        await clock.time("", built.store.check())
        await clock.time("asked", built.store.has([digest_of(secrets.token_bytes(16))]))
        if writes and built.store.capability(Discards) is None:
            await _write_and_read(built.store, clock)
    except InvalidRequestError:
        clock.notes.append("takes no blobs: only asked for its health")
    except PermissionDeniedError as error:
        clock.notes.append(f"read-only: {error.message}")
    except NlError as error:
        return Finding(built.name, built.kind, False, f"{clock}{'; ' if clock.notes else ''}{error.message}")
    return Finding(built.name, built.kind, True, str(clock))


async def _write_and_read(store: Store, clock: _Stopwatch) -> None:
    blob = b"nl stores check " + secrets.token_hex(16).encode()
    digest = digest_of(blob)
    try:
        await clock.time("written", store.put(digest, blob))
        if bytes(await clock.time("read", _get(store, digest))) != blob:
            raise UnavailableError("it answers with other bytes than were written")
    finally:
        deletes = store.capability(Deletes)
        if deletes is not None:
            with trio.move_on_after(TIMEOUT_S, shield=True):
                await deletes.delete([digest])


async def _get(store: Store, digest: Digest) -> bytes:
    try:
        return bytes(await store.get(digest))
    except BlobNotFoundError:
        raise ExhaustedError("a blob was written and is gone at once: is there room for any?") from None


class _Stopwatch:
    """Times steps, and says so."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    async def time(self, what: str, step: Awaitable[T]) -> T:
        """Waits for a step, which `what` names; UnavailableError if it takes too long."""
        began = trio.current_time()
        try:
            with trio.fail_after(TIMEOUT_S):
                result = await step
        except trio.TooSlowError:
            raise UnavailableError(f"no answer within {TIMEOUT_S:g} s") from None
        if what:
            self.notes.append(f"{what} in {1000 * (trio.current_time() - began):.1f} ms")
        return result

    def __str__(self) -> str:
        return ", ".join(self.notes)
