"""What the first signal does, the second, and one that comes while the server still starts."""

import logging
import os
import signal

import pytest
import trio

from nl.server.signals import StopSignals

SIGNALS = [signal.SIGTERM, signal.SIGINT]


@pytest.mark.parametrize("number", SIGNALS)
async def test_the_first_asks_to_finish_and_the_second_stops_at_once(number, caplog):
    caplog.set_level(logging.INFO, "nl.server")
    with trio.fail_after(60), trio.CancelScope() as everything:
        async with trio.open_nursery() as nursery:
            signals = StopSignals(everything)
            await nursery.start(signals.watch)
            signals.serving()
            assert not signals.asked.is_set()
            os.kill(os.getpid(), number)
            await signals.asked.wait()
            assert not everything.cancel_called
            os.kill(os.getpid(), number)
            await trio.sleep_forever()
    assert everything.cancelled_caught
    name = signal.Signals(number).name
    assert caplog.messages == [
        f"Process terminated via {name}, finishing what is running", f"{name} again: stopping at once"
    ]  # fmt: skip
    assert [record.levelno for record in caplog.records] == [logging.INFO, logging.WARNING]


@pytest.mark.parametrize("number", SIGNALS)
async def test_one_that_comes_while_the_server_starts_ends_everything(number, caplog):
    caplog.set_level(logging.INFO, "nl.server")
    with trio.fail_after(60), trio.CancelScope() as everything:
        async with trio.open_nursery() as nursery:
            signals = StopSignals(everything)
            await nursery.start(signals.watch)
            os.kill(os.getpid(), number)
            await trio.sleep_forever()
    assert everything.cancelled_caught
    assert not signals.asked.is_set()
    assert caplog.messages == [f"Process terminated via {signal.Signals(number).name} while it was starting"]
