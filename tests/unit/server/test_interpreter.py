"""Threads that compute give way to the loop soon."""

import sys

import pytest

from nl.server.interpreter import TURN_S, take_short_turns


def test_turns_are_a_millisecond():
    before = sys.getswitchinterval()
    try:
        take_short_turns()
        assert sys.getswitchinterval() == pytest.approx(TURN_S) == pytest.approx(0.001)
    finally:
        sys.setswitchinterval(before)
