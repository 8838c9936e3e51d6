"""Random histories of a store, held against a dict. Part of StoreConformance."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nl.plugin import (
    CHUNK,
    EMPTY_DIGESTS,
    MAX_WHOLE,
    SMALL,
    ActionKey,
    Buffer,
    Deletes,
    Key,
    NlError,
    Store,
    UnavailableError,
    digest_of,
)
from nl.testing.forgetful import ForgetfulStoreConformance
from nl.testing.observing import find, make_blob, read, same
from nl.testing.readers import FailingReader, PartsReader, split

BLOBS: Final = [make_blob(size, seed=7) for size in (300, SMALL + 1, CHUNK + 3)]
DIGESTS: Final = [digest_of(blob) for blob in BLOBS]
CHANGEABLE: Final[list[Key]] = [ActionKey(*DIGESTS[0]), "a/name"]
"""Few keys, so that what is done to one meets what was done to it before."""
_number = st.integers(0, len(DIGESTS) + len(CHANGEABLE) - 1)
_step = st.one_of(
    *(st.tuples(st.just(what), _number, st.integers(0, 3)) for what in ("put", "get", "delete", "touch", "find")),
    st.tuples(st.just("write"), _number, st.sampled_from([1000, 7777, CHUNK])),
    st.tuples(st.sampled_from(["fail", "cancel"]), _number, st.sampled_from([0, 1, 100, 4000, SMALL, CHUNK])),
    st.tuples(st.just("range"), _number, st.tuples(st.integers(0, 6000), st.none() | st.integers(0, 6000))),
    st.tuples(st.sampled_from(["put many", "get many", "has"]), _number, st.lists(_number, max_size=6)),
    st.tuples(st.just("restart"), st.just(0), st.just(0)),
)


def histories(most: int) -> Callable[[Any], Any]:
    """Makes a test with an argument `steps` one of so many random histories."""
    settled = settings(deadline=None, max_examples=most, suppress_health_check=list(HealthCheck))
    return lambda test: settled(given(steps=st.lists(_step, min_size=15, max_size=50))(test))


class HistoryConformance(ForgetfulStoreConformance):
    """One test, of many histories. Where each takes seconds, a kind overrides it with fewer: it calls `hold`."""

    survives_restart: bool = False
    """Set to True for kinds that keep what they have when they are made anew on the same folder."""

    @histories(25)
    async def test_any_history_is_that_of_a_dict(self, tmp_path_factory: Any, steps: list[Any]) -> None:
        await self.hold(tmp_path_factory.mktemp("history"), steps)

    async def hold(self, folder: Path, steps: list[Any]) -> None:
        """Holds one history of a store against a dict."""
        async with History(self, folder) as history:
            for what, number, argument in steps:
                await history.step(what, number, argument)
            await history.compare()


class History:
    """A store and the dict that it must be equal to."""

    def __init__(self, suite: HistoryConformance, folder: Path) -> None:
        self.suite = suite
        self.folder = folder
        self.model: dict[Key, bytes] = {}
        self.store: Store
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> History:
        await self._start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def _start(self) -> None:
        self.store = await self._stack.enter_async_context(self.suite.running_store(self.folder))

    async def step(self, what: str, number: int, argument: Any) -> None:
        """One operation on both, and what it must have as a result."""
        key, value = self._pick(number, argument if isinstance(argument, int) else 0)
        method = getattr(self, "_" + what.replace(" ", "_"))
        await method(key, value, argument)

    async def compare(self) -> None:
        """Every key, in every way of asking."""
        for key in [*DIGESTS, *CHANGEABLE]:
            assert same(await find(self.store, key), self.model.get(key)), key

    def _pick(self, number: int, version: int) -> tuple[Key, bytes]:
        if number < len(DIGESTS):
            return DIGESTS[number], BLOBS[number]
        key = CHANGEABLE[number - len(DIGESTS)]
        return key, self.suite.make_value(40 + 3000 * (version % 4), seed=version % 4)

    async def _put(self, key: Key, value: bytes, _: object) -> None:
        await self.store.put(key, value)
        self.model[key] = value

    async def _write(self, key: Key, value: bytes, step: int) -> None:
        await self.store.write(key, PartsReader(split(value, step), size=-1 if step == CHUNK else None))
        self.model[key] = value

    async def _fail(self, key: Key, value: bytes, delivered: int) -> None:
        error = UnavailableError("the source broke")
        try:
            await self.store.write(key, FailingReader(split(value[:delivered], 999), error, size=len(value)))
        except UnavailableError:
            return
        raise AssertionError(f"a write of {key} whose reader raised has not failed")

    async def _cancel(self, key: Key, value: bytes, delivered: int) -> None:
        with trio.CancelScope() as scope:
            reader = _Hanging(split(value[:delivered], 999), scope, size=len(value))
            await self.store.write(key, reader)
        assert scope.cancelled_caught, f"a write of {key} that was cancelled came to an end"

    async def _delete(self, key: Key, _: bytes, __: object) -> None:
        deletes = self.store.capability(Deletes)
        if deletes is not None:
            await deletes.delete([key])
            self.model.pop(key, None)

    async def _touch(self, key: Key, _: bytes, __: object) -> None:
        await self.store.touch([key])

    async def _find(self, key: Key, _: bytes, __: object) -> None:
        assert same(await find(self.store, key), self.model.get(key)), key

    async def _get(self, key: Key, _: bytes, __: object) -> None:
        if key in self.model and len(self.model[key]) <= MAX_WHOLE:
            assert same(await self.store.get(key), self.model[key]), key

    async def _range(self, key: Key, _: bytes, argument: tuple[int, int | None]) -> None:
        if key in self.model and argument[0] <= len(self.model[key]):
            offset, length = argument
            end = None if length is None else offset + length
            got = await read(self.store, key, offset=offset, length=length)
            assert same(got, self.model[key][offset:end]), (key, argument)

    async def _has(self, key: Key, _: bytes, numbers: list[int]) -> None:
        keys = [key, *(self._pick(number, 0)[0] for number in numbers), *EMPTY_DIGESTS]
        expected = [0 if each in EMPTY_DIGESTS else len(self.model[each]) if each in self.model else None
                    for each in keys]  # fmt: skip
        assert await self.store.has(keys) == expected

    async def _put_many(self, key: Key, value: bytes, numbers: list[int]) -> None:
        blobs: list[tuple[Key, Buffer]] = [(key, value), *(self._pick(number, 1) for number in numbers)]
        assert await self.store.put_many(blobs) == [None] * len(blobs)
        self.model.update({each: bytes(data) for each, data in blobs})  # of two for one key the last

    async def _get_many(self, key: Key, _: bytes, numbers: list[int]) -> None:
        keys = [key, *(self._pick(number, 0)[0] for number in numbers)]
        for each, got in zip(keys, await self.store.get_many(keys), strict=True):
            assert same(None if isinstance(got, NlError) else bytes(got), self.model.get(each)), each

    async def _restart(self, *_: object) -> None:
        if self.suite.survives_restart:
            await self._stack.aclose()
            await self._start()
            await self.compare()


class _Hanging(PartsReader):
    """Delivers the pieces given, then cancels a scope and waits."""

    def __init__(self, parts: list[bytes], scope: trio.CancelScope, *, size: int) -> None:
        super().__init__(parts, size=size)
        self._scope = scope

    async def receive_parts(self, max_bytes: int = CHUNK) -> Any:
        if parts := await super().receive_parts(max_bytes):
            return parts
        self._scope.cancel()
        await trio.sleep_forever()
