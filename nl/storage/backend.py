"""A backend that is far away, a database or an object store: what goes wrong with it, and what a store then says.

A kind turns whatever its driver raises into a BackendError where it enters. `RetryPolicy` goes by its `code`, a store's
`Backend` makes of it what the Store contract calls it, and tells the log what needs somebody's hand.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import trio

from nl.errors import ConfigError, ExhaustedError, NlError, TooLargeError, UnavailableError

COMPLAIN_S = 60.0
"""Between log lines about what needs somebody's hand."""


class BackendError(Exception):
    """A request failed. The text is one line without secrets.

    `code` is the name of a gRPC status as NativeLink's `retry_on_errors` writes it; it decides about another attempt.
    """

    code: str = "Unavailable"

    def translated(self, store: str) -> NlError:
        """The contract's name for it."""
        return UnavailableError(f"store {store}: {self}")


class TransientError(BackendError):
    """Trying again may help: no connection, a broken one, a server that starts, throttles, or takes too long."""

    def __init__(self, text: str, *, code: str = "Unavailable") -> None:
        super().__init__(text)
        self.code = code


class FullError(BackendError):
    """There is no room: memory, the disk, or a quota."""

    code = "OutOfRange"

    def translated(self, store: str) -> NlError:
        return ExhaustedError(f"store {store}: {self}")


class ValueTooLargeError(BackendError):
    """The backend takes no values of that size."""

    code = "OutOfRange"

    def translated(self, store: str) -> NlError:
        return TooLargeError(f"store {store}: {self}")


class RefusedError(BackendError):
    """The backend refuses, and will refuse again: a wrong password, no permission, the wrong kind of server.

    `option` names the option at fault, if it is clear which one is.
    """

    code = "PermissionDenied"

    def __init__(self, text: str, *, option: str = "") -> None:
        super().__init__(text)
        self.option = option

    def translated(self, store: str) -> NlError:
        failure = super().translated(store)
        failure.retryable = False
        return failure


class Backend:
    """What one store says of its backend: to its callers, and in the log. For the task of its loop."""

    def __init__(self, store: str, log: logging.Logger, *, what: str = "server") -> None:
        """`store` is the store's name, `what` the backend's kind in one word, for messages."""
        self._store = store
        self._log = log
        self._what = what
        self._complained = -COMPLAIN_S
        self.failed = 0
        """Errors that callers were told of so far."""

    def translated(self, error: BackendError) -> NlError:
        """The contract's name for an error that a caller is told of; what will not pass is logged, too."""
        self.failed += 1
        if isinstance(error, RefusedError):
            self.complain(str(error))
        return error.translated(self._store)

    def complain(self, text: str) -> None:
        """A log line about what only somebody can mend; one a minute, whatever comes in between."""
        now = trio.current_time()
        if now - self._complained >= COMPLAIN_S:
            self._complained = now
            self._log.error("store %s: %s", self._store, text)

    async def reach(
        self, probe: Callable[[], Awaitable[object]], *, every_s: float, task_status: trio.TaskStatus[None]
    ) -> None:
        """For the beginning of `run`: the store is started whether `probe` reaches the backend or not, which may be
        away for a while; returns once it was reached, after further looks `every_s` apart.

        `probe` raises BackendError. Raises ConfigError, in one line, if the backend refuses at the first look: that
        needs somebody's hand. Later it is an error in the log, since the server is running.
        """
        try:
            await probe()
        except RefusedError as error:
            raise ConfigError(error.option, str(error)) from error
        except BackendError as error:
            self._log.warning("the store %s starts without its %s: %s", self._store, self._what, error)
        else:
            return task_status.started()
        task_status.started()
        await self._reach_later(probe, every_s)

    async def _reach_later(self, probe: Callable[[], Awaitable[object]], every_s: float) -> None:
        while True:
            await trio.sleep(every_s)
            try:
                await probe()
            except RefusedError as error:
                return self._log.error(
                    "the store %s can be reached, and cannot be used: %s", self._store, error
                )
            except BackendError:
                continue
            return self._log.info("the store %s has reached its %s", self._store, self._what)
