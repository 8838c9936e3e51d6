"""SIGTERM and SIGINT: finish and go, then stop at once, then end.

While the server starts there is nothing to finish, and the first one stops everything. What is stopped still closes
files, kills its processes and removes what it has made; if even that takes too long, one signal more ends the process
as the commands' own handlers do (nl.cli.process), which are back by then.
"""

from __future__ import annotations

import logging
import signal

import trio

log = logging.getLogger("nl.server")


class StopSignals:
    """`asked` is set when the server shall finish what it does and go; `stopping` is cancelled when at once."""

    def __init__(self, stopping: trio.CancelScope) -> None:
        self.asked = trio.Event()
        self._stopping = stopping
        self._serving = False

    def serving(self) -> None:
        """From now on there is somebody who waits for `asked`."""
        self._serving = True

    async def watch(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Takes signals until cancelled."""
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            task_status.started()
            async for number in signals:
                name = signal.Signals(number).name
                if not self._serving:
                    log.info("Process terminated via %s while it was starting", name)
                    self._stopping.cancel()
                elif not self.asked.is_set():
                    log.info("Process terminated via %s, finishing what is running", name)
                    self.asked.set()
                else:
                    log.warning("%s again: stopping at once", name)
                    self._stopping.cancel()
