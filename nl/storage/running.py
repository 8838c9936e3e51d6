"""The life of a config's stores: started children first, ended parents first, and none of them ends the server.

A store that batches writes has to flush when it ends, into a backend that still works: so each is cancelled, and waited
for, before what it stands on. A store whose background work fails is one line in the log, with its place in the config;
from then on it answers UNAVAILABLE, and whatever else the server has goes on.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import NoReturn

import trio

from nl.blob.reader import Reader
from nl.blob.slice import Opened
from nl.config.fields import join
from nl.config.registry import first_line
from nl.errors import ConfigError, PluginError, UnavailableError
from nl.storage.builder import BuiltStore, StoreGraph
from nl.storage.capabilities import Deletes, EncodedBlobs, LocalFiles, Scans
from nl.storage.contract import Store
from nl.storage.wrapper import StoreWrapper

_log = logging.getLogger(__name__)
_OPERATIONS = ("has", "touch", "get", "get_many", "put", "put_many", "write", "check")
_CAPABILITIES: tuple[type[object], ...] = (LocalFiles, Deletes, Scans, EncodedBlobs)
_ASYNC_OFFERS = ("link_files", "adopt_file", "delete", "scan", "write_encoded")


@asynccontextmanager
async def running_stores(graph: StoreGraph) -> AsyncIterator[None]:
    """Runs the stores of a graph while the block lasts.

    Raises ConfigError, with its place, for what a store finds wrong with its options, and PluginError for whatever else
    keeps one from starting. Leaving the block ends them one by one; being cancelled ends all at once.
    """
    failure: ConfigError | None = None
    async with AsyncExitStack() as stack:
        try:
            for built in graph:
                nursery = await stack.enter_async_context(trio.open_nursery())
                stack.callback(nursery.cancel_scope.cancel)
                await _start(built, nursery)
        except ConfigError as error:
            failure = error
        else:
            yield
    if failure is not None:  # raised here, outside of the nurseries that would each wrap it
        raise failure


@asynccontextmanager
async def running_store(built: BuiltStore) -> AsyncIterator[None]:
    """Runs one store that needs no other; see `running_stores`."""
    async with running_stores(StoreGraph([built])):
        yield


async def _start(built: BuiltStore, nursery: trio.Nursery) -> None:
    place = join(built.spec.path, built.kind)
    try:
        await nursery.start(_run, built, place)
    except ConfigError as error:
        if isinstance(error, PluginError):
            raise
        raise ConfigError(f"{place}.{error.path}" if error.path else place, error.problem) from error


async def _run(built: BuiltStore, place: str, *, task_status: trio.TaskStatus[None]) -> None:
    """`run` of one store, until it is cancelled; its failure ends here."""
    status = _Status(task_status)
    try:
        await built.store.run(task_status=status)
    except Exception as error:  # foreign code: whatever it raises is reported with its place
        if isinstance(error, ConfigError) and not status.is_started:
            raise
        _fail(built, place, error, started=status.is_started)
    except BaseExceptionGroup as group:  # errors beside a cancellation: that goes on
        errors, rest = group.split(Exception)
        if errors is not None:
            _log.error("%s: %s while the store was ending", place, _said(errors))
        if rest is not None:
            raise rest from None
    else:
        if not status.is_started:
            raise PluginError(place, f"the store kind {built.kind} ended before it was ready")


class _Status(trio.TaskStatus[None]):
    """Passes `started` on and remembers it."""

    def __init__(self, inner: trio.TaskStatus[None]) -> None:
        self._inner = inner
        self.is_started = False

    def started(self, value: None = None) -> None:
        self.is_started = True
        self._inner.started()


def _fail(built: BuiltStore, place: str, error: Exception, *, started: bool) -> None:
    if not started:
        raise PluginError(place, f"the store kind {built.kind} cannot start: {_said(error)}") from error
    _log.error(
        "%s: the store %s has failed and is unavailable until the server is started again: %s",
        place, built.name, _said(error), exc_info=error if _log.isEnabledFor(logging.DEBUG) else None,
    )  # fmt: skip
    close_down(built.store, f"the store {built.name} has failed ({_said(error)}); the server has to be started again")


def _said(error: Exception) -> str:
    """The first error of a group, as one line."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {first_line(error)}"


def close_down(store: Store, reason: str) -> None:
    """Makes a store answer UnavailableError from now on, whatever it is asked.

    Its operations are covered by attributes of the object, so that one that works pays nothing for this; so are those
    of the capabilities that it has handed out, unless they are its backend's own, which works for others.
    """

    async def refuse(*_: object, **__: object) -> NoReturn:
        raise UnavailableError(reason)

    def refuse_to_open(*_: object, **__: object) -> Opened:
        return Opened(find)

    def find() -> Reader:
        raise UnavailableError(reason)

    for offered in _own_offers(store):  # callers have asked for them already
        for name in _ASYNC_OFFERS:
            if hasattr(offered, name):
                setattr(offered, name, refuse)
        if hasattr(offered, "open_encoded"):
            offered.open_encoded = refuse_to_open
    for name in _OPERATIONS:
        setattr(store, name, refuse)
    store.open = refuse_to_open  # type: ignore[method-assign]


def _own_offers(store: Store) -> Iterator[object]:
    for kind in _CAPABILITIES:
        offered = store.capability(kind)
        is_passed_on = isinstance(store, StoreWrapper) and offered is store.backend.capability(kind)
        if offered is not None and not is_passed_on:
            yield offered
