"""What a command does first: the state in which whoever started the process has left it is made one to rely on."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType


def begin() -> None:
    """Opens what of the standard streams is closed, and lets signals end the process at once until somebody cares."""
    _open_closed_streams()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _end_at_once)


def _open_closed_streams() -> None:
    """With `>&-` the next file that is opened would become standard output, and get what is printed (POSIX, 2.4)."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number that is free: this one
    for name, number, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115  # as long as the process


def _end_at_once(number: int, frame: FrameType | None) -> None:
    """Nothing has begun that would need an end. As if the signal had its default, which process 1 does not have."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    os._exit(128 + number)
