"""One collection as a store uses it: client, threads, retries; looked at when the store starts, then tidied up."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from datetime import UTC
from typing import Any, Concatenate, ParamSpec, TypeVar

import trio
from bson.codec_options import CodecOptions, DatetimeConversion
from pymongo import MongoClient
from pymongo.errors import PyMongoError

from nl.plugin import Backend, BackendError, InternalError, RefusedError, Threads
from nl_mongo_store.connection_string import given, secrets_of
from nl_mongo_store.documents import Document, Documents
from nl_mongo_store.errors import meaning, said
from nl_mongo_store.keys import Names
from nl_mongo_store.options import MongoStoreOptions
from nl_mongo_store.sweep import EVERY_S, prepare, sweep

log = logging.getLogger("nl.stores.mongo_store")

PROBE_S = 5.0
"""Between looks at a server that could not be reached when the store started."""
CLOSE_S = 5.0
"""How long the end of a store waits for its client."""
T = TypeVar("T")
P = ParamSpec("P")
Request = Callable[Concatenate[Documents, P], T]


class Connection:
    """Everything between a store and its servers."""

    def __init__(self, options: MongoStoreOptions, name: str) -> None:
        self._options = options
        self._name = name
        self._secrets = secrets_of(options.connection_string)
        self._threads = Threads(options.threads)
        self._policy = options.retry.policy()
        self._lock = threading.Lock()
        self._client: MongoClient[Document] | None = None
        self._documents: Documents | None = None
        self._running = False
        self.backend = Backend(name, log)
        self.names = Names(options.prefix)

    @property
    def retries(self) -> int:
        """How often a request was made again so far."""
        return self._policy.retries

    async def look(self, request: Request[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """A request that changes nothing, tried again as configured. Raises BackendError."""
        return await self._policy.run(lambda: self._threads.look(lambda: self._call(request, *args, **kwargs)))

    async def change(self, request: Request[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """A request that changes something, likewise; a cancelled caller waits for its end."""
        return await self._policy.run(lambda: self._threads.change(lambda: self._call(request, *args, **kwargs)))

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Looks whether the servers are what the options say, and tidies up in the background.

        Raises ConfigError in one line if they are not. A server that cannot be reached is only logged: it may come
        back, and until then requests are answered UNAVAILABLE.
        """
        logging.getLogger("pymongo").setLevel(logging.WARNING)  # at DEBUG, each request as text, with its payload
        self._running = True
        try:
            await self.backend.reach(self._ping, every_s=PROBE_S, task_status=task_status)
            await self._tidy_up()
        finally:
            self._running = False
            with trio.move_on_after(CLOSE_S, shield=True):
                await trio.to_thread.run_sync(self._close, abandon_on_cancel=True)

    async def check(self) -> None:
        """Raises the NlError that a request would meet now."""
        try:
            await self._ping()
        except BackendError as error:
            raise self.backend.translated(error) from error

    async def _ping(self) -> None:
        await self._threads.look(lambda: self._call(Documents.ping))

    def statistics(self) -> Mapping[str, int | float | str]:
        """For the store's."""
        return {
            "collection": f"{self._options.database}.{self._options.cas_collection}",
            "failed": self.backend.failed,
            "retries": self.retries,
            "threads_busy": self._threads.limiter.borrowed_tokens,
            "requests_waiting": self._threads.limiter.statistics().tasks_waiting,
        }

    async def _tidy_up(self) -> None:
        """For as long as the store runs. Whatever fails is left for the next time."""
        if self._options.key_ttl_s:
            await self._try(prepare, "make the index of the field `used`, without which expiry takes long")
        while True:
            while await self._try(sweep, "tidy up"):
                pass
            await trio.sleep(EVERY_S)
            await self._try(Documents.ping, "ask for the server's time")

    async def _try(self, request: Callable[[Documents], T], what: str) -> T | None:
        try:
            return await self._threads.look(lambda: self._call(request))  # may be left at any point, as by a killed one
        except BackendError as error:
            log.info("the store %s cannot %s: %s", self._name, what, error)
            return None

    # ---------------------------------------------------------------------------------------------------- in threads

    def _call(self, request: Request[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return request(self._connected(), *args, **kwargs)
        except PyMongoError as error:
            raise meaning(error, self._secrets) from error

    def _connected(self) -> Documents:
        with self._lock:
            if self._documents is None:
                if not self._running:
                    raise InternalError(f"the store {self._name!r} has not been started")
                self._documents = self._connect()
            return self._documents

    def _connect(self) -> Documents:
        """Makes the client, which connects by itself when it is used, now and whenever it is needed again."""
        options = self._options
        said_already = given(options.connection_string)
        settings: dict[str, Any] = {
            "appName": "nl", "maxPoolSize": options.threads, "socketTimeoutMS": options.request_timeout_ms,
            "connectTimeoutMS": options.connect_timeout_ms, "serverSelectionTimeoutMS": options.connect_timeout_ms,
            "retryReads": False, "retryWrites": False,  # all is tried again here, and all may be
        }  # fmt: skip
        settings = {name: value for name, value in settings.items() if name.lower() not in said_already}
        try:
            self._client = MongoClient(options.connection_string, connect=False, **settings)
        except (ValueError, OSError) as error:  # a file that TLS needs, a value of an option
            raise RefusedError(said(error, self._secrets), option="connection_string") from error
        clamp = DatetimeConversion.DATETIME_CLAMP  # others' documents may have dates that Python has not
        codec: CodecOptions[Document] = CodecOptions(tz_aware=True, tzinfo=UTC, datetime_conversion=clamp)
        database = self._client.get_database(options.database, codec_options=codec)
        collection = database.get_collection(options.cas_collection, write_concern=options.write_concern)
        return Documents(collection, self.names, ttl_s=options.key_ttl_s)

    def _close(self) -> None:
        with self._lock:
            client, self._client, self._documents = self._client, None, None
        if client is not None:
            client.close()
