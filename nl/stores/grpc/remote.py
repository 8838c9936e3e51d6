"""The servers of one store, called: a channel, what every call carries, and what is done when one fails.

A call that fails is sent again as the retry policy says; when it is not, its failure becomes an NlError that names the
store, the server and what was asked. Not here: which calls there are (`methods`), what they are for.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, nullcontext
from typing import Any

import trio
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from nl.plugin import Buffer, NlError, UnavailableError
from nl.rpc.channel import Channel
from nl.rpc.client_stream import ClientStream
from nl.stores.grpc.failures import Failure, Headers, error_of, without
from nl.stores.grpc.methods import Method


class Retrying:
    """How often one operation has failed so far. `failed` waits before the next attempt, or says that there is none."""

    __slots__ = ("_method", "_remote", "_retries", "_what")

    def __init__(self, remote: Remote, method: Method, what: str = "") -> None:
        self._remote = remote
        self._method = method
        self._what = what
        self._retries = 0

    def progressed(self) -> None:
        """Something was achieved: failures are counted anew."""
        self._retries = 0

    def error_of(self, failure: Failure) -> NlError:
        """The failure as the store's caller is told."""
        return self._remote.error_of(failure, self._method, self._what)

    async def failed(self, failure: Failure) -> None:
        """Returns when the operation may be tried again; raises the failure as an NlError if it may not."""
        pause = self._remote.pause(failure, self._method, retries=self._retries)
        if pause is None:
            raise self.error_of(failure) from failure.error
        self._retries += 1
        self._remote.retries += 1
        await trio.sleep(pause)


class Remote:
    """The servers of one store. Usable while `opened` lasts."""

    def __init__(
        self,
        *,
        name: str,
        instance: str,
        addresses: Sequence[str],
        timeout_s: float,
        max_calls: int,
        policy: Any,
        headers: Headers,
        secrets: Callable[[], Collection[str]],
    ) -> None:
        self.name = name
        self.instance = instance
        self.where = ", ".join(addresses)
        self.timeout_s = timeout_s
        self.calls = 0
        self.retries = 0
        self.failures = 0
        self._headers = headers
        self._secrets = secrets
        self._policy = policy
        self._turns = trio.Semaphore(max_calls) if max_calls else nullcontext()
        self._channel: Channel | None = None

    @asynccontextmanager
    async def opened(self, channel: Channel) -> AsyncIterator[None]:
        """Calls go over `channel` while the block lasts."""
        async with channel:
            self._channel = channel
            try:
                yield
            finally:
                self._channel = None

    @property
    def connections(self) -> int:
        """Open now."""
        return self._channel.statistics().connections if self._channel is not None else 0

    # -- one attempt -------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def calling(self, method: Method, extra: Headers = (), *, timeout: float | None = None) -> AsyncIterator[Any]:
        """One call, from waiting for its turn to its end. What goes wrong with it is raised as a Failure."""
        stream: ClientStream | None = None
        async with self._turns:
            self.calls += 1
            if self._channel is None:
                raise UnavailableError(f"the grpc store {self.name!r} is not running")
            try:
                async with self._channel.request(
                    method.path, method.cardinality, None, method.reply, timeout=timeout, metadata=self._merged(extra)
                ) as stream:
                    yield stream
            except GRPCError as exc:
                raise Failure(exc, stream.peer if stream is not None else "", extra) from exc

    def _merged(self, extra: Headers) -> Headers:
        if not extra:
            return self._headers
        names = {name for name, _ in extra}
        return (*extra, *(each for each in self._headers if each[0] not in names))

    @contextmanager
    def progress(self) -> Iterator[None]:
        """Around each wait of a stream: a server that does nothing for `timeout_s` fails the call."""
        if not self.timeout_s:
            yield
            return
        with trio.move_on_after(self.timeout_s) as scope:
            yield
        if scope.cancelled_caught:
            raise GRPCError(Status.DEADLINE_EXCEEDED, f"nothing moved for {self.timeout_s:g} s (rpc_timeout_s)")

    # -- whole operations --------------------------------------------------------------------------------------------

    async def ask(self, method: Method, parts: Sequence[Buffer], extra: Headers = (), *, what: str = "") -> Any:
        """A call with one request and one reply, sent again where that may help. Raises NlErrors.

        The buffers must not change meanwhile.
        """
        retrying = Retrying(self, method, what)
        while True:
            try:
                return await self.ask_once(method, parts, extra)
            except Failure as failure:
                await retrying.failed(failure)

    async def ask_once(
        self, method: Method, parts: Sequence[Buffer], extra: Headers = (), *, timeout_s: float | None = None
    ) -> Any:
        """The same, once. Raises Failure."""
        async with self.calling(method, extra, timeout=timeout_s or self.timeout_s or None) as stream:
            await stream.send_parts(parts, end=True)
            reply = await stream.recv_message()
        return reply

    # -- failures ----------------------------------------------------------------------------------------------------

    def pause(self, failure: Failure, method: Method, *, retries: int) -> float | None:
        """Seconds until the next attempt; None if there is to be none. A second one that ran out of time is the last:
        a server that never answers would cost every caller the time limit six times.
        """
        if failure.status is Status.DEADLINE_EXCEEDED and retries:
            return None
        pause: float | None = self._policy.pause(
            failure.error, method=method.path, retries=retries, uniform=random.uniform
        )
        return pause

    def error_of(self, failure: Failure, method: Method, what: str = "") -> NlError:
        """A failure as the store's caller is told."""
        self.failures += 1
        where = f"the grpc store {self.name!r} ({failure.peer or self.where})"
        secrets = self._secrets_in(failure)
        return error_of(
            failure.error, where=where, method=method, instance=self.instance, what=what, secrets=secrets
        )

    def said(self, failure: Failure) -> str:
        """What the server says of it, without the secrets, should it repeat them."""
        return without(failure.error.message or "", self._secrets_in(failure))

    def error_of_blob(self, code: int, message: str, method: Method, what: str, headers: Headers = ()) -> NlError:
        """The same for one blob of a batch, whose call had these headers from the request that caused it."""
        try:
            status = Status(code)
        except ValueError:
            status = Status.UNKNOWN
        return self.error_of(Failure(GRPCError(status, message), headers=headers), method, what)

    def _secrets_in(self, failure: Failure) -> list[str]:
        sent = [word for _, value in failure.headers if isinstance(value, str) for word in (value, *value.split())]
        return [*self._secrets(), *sent]

    def stopping(self) -> NlError:
        """For whoever waits when the store ends."""
        return UnavailableError(f"the grpc store {self.name!r} is stopping")
