"""One bucket as a store uses it: client, threads, retries, uploads; connected when the store starts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TypeVar, TypeVarTuple

import trio

from nl.plugin import Backend, BackendError, ConfigError, InternalError, RefusedError
from nl_cloud_object_store.client import ObjectClient
from nl_cloud_object_store.download import Fetcher
from nl_cloud_object_store.options import CloudObjectStoreOptions
from nl_cloud_object_store.parts import Budget
from nl_cloud_object_store.providers import PROVIDERS
from nl_cloud_object_store.sweep import Sweeper
from nl_cloud_object_store.threads import ImpatientThreads
from nl_cloud_object_store.upload import Uploader

log = logging.getLogger("nl.stores.cloud_object_store")

PROBE_S = 15.0
"""Between looks at a server that could not be reached when the store started."""
CHECKED_S = 30.0
"""For so long a health check need not ask again: probes come every few seconds, and requests cost money."""
T = TypeVar("T")
Args = TypeVarTuple("Args")


class Connection:
    """Everything between a store and its provider."""

    def __init__(self, options: CloudObjectStoreOptions, name: str) -> None:
        self._options = options
        self._name = name
        self._threads = ImpatientThreads(options.max_threads)
        self._policy = options.retry.policy()
        self._budget = Budget(options.max_upload_memory)
        self._client: ObjectClient | None = None
        self._uploads: Uploader | None = None
        self._sweeper: Sweeper | None = None
        self._checked_until = 0.0
        self.backend = Backend(name, log, what="bucket")
        self.fetcher = Fetcher(self._threads, self._policy)

    @property
    def client(self) -> ObjectClient:
        """The provider's client, once `run` has begun."""
        if self._client is None:
            raise InternalError(f"the store {self._name!r} has not been started")
        return self._client

    @property
    def uploads(self) -> Uploader:
        """How objects are written, once `run` has begun."""
        if self._uploads is None:
            raise InternalError(f"the store {self._name!r} has not been started")
        return self._uploads

    async def look(self, function: Callable[[*Args], T], *args: *Args) -> T:
        """A request that changes nothing, tried again as configured. Raises BackendError."""
        return await self._policy.run(lambda: self._threads.look(function, *args))

    async def change(self, function: Callable[[*Args], T], *args: *Args) -> T:
        """A request that changes something, likewise; a cancelled caller waits for its end."""
        return await self._policy.run(lambda: self._threads.change(function, *args))

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Connects, looks whether bucket and credentials are right, and tidies up in the background.

        Raises ConfigError in one line if they are wrong. A server that cannot be reached is only logged: it may come
        back, and until then requests are answered UNAVAILABLE.
        """
        options = self._options
        try:
            client = await trio.to_thread.run_sync(PROVIDERS[options.provider].connect, options)
        except RefusedError as error:
            raise ConfigError(error.option, str(error)) from error
        try:
            await self._serve(client, task_status)
        finally:
            client.close()

    async def _serve(self, client: ObjectClient, task_status: trio.TaskStatus[None]) -> None:
        options = self._options
        self._client = client
        self._sweeper = Sweeper(client, threads=self._threads, prefix=options.key_prefix)
        at_once = min(options.parts_at_once, 2 if client.IN_ORDER else options.max_threads + 1)
        self._uploads = Uploader(
            client, threads=self._threads, policy=self._policy, budget=self._budget, sweeper=self._sweeper,
            part=options.part_size, at_once=at_once,
        )
        await self.backend.reach(self._probe, every_s=PROBE_S, task_status=task_status)
        await self._sweeper.run()

    async def check(self) -> None:
        """Raises the NlError that a request would meet now. A good answer is believed for CHECKED_S."""
        if trio.current_time() < self._checked_until:
            return
        try:
            await self._probe()
        except BackendError as error:
            raise self.backend.translated(error) from error
        self._checked_until = trio.current_time() + CHECKED_S

    async def _probe(self) -> None:
        await self._threads.look(self.client.probe, self._options.key_prefix)

    def statistics(self) -> Mapping[str, int | float | str]:
        """For the store's."""
        return {
            "failed": self.backend.failed,
            "retries": self._policy.retries,
            "threads_busy": self._threads.limiter.borrowed_tokens,
            "upload_memory": self._budget.used,
            "uploads_to_abort": self._sweeper.pending + self.uploads.late if self._sweeper is not None else 0,
        }
