"""One task runs handlers until one of them waits: then it is that handler's own."""

import contextvars
import gc
import weakref

import pytest
import trio

from nl.rpc.leader import step

VARIABLE = contextvars.ContextVar("VARIABLE", default="outer")


async def at_once():
    VARIABLE.set("inner")


async def waits(event):
    VARIABLE.set("inner")
    await event.wait()


async def test_a_handler_that_does_not_wait_costs_no_task_and_its_context_stays_with_it():
    adopted = []
    assert await step(at_once(), lambda *each: adopted.append(each), 1, 2) is False
    assert not adopted
    assert VARIABLE.get() == "outer"


async def test_a_handler_that_waits_makes_the_task_its_own(nursery):
    event, adopted, done = trio.Event(), [], []

    async def lead():
        done.append(await step(waits(event), lambda *each: adopted.append(each), "call", "scope"))
        done.append(VARIABLE.get())

    nursery.start_soon(lead)
    await trio.testing.wait_all_tasks_blocked()
    assert adopted == [("call", "scope")]
    event.set()
    await trio.testing.wait_all_tasks_blocked()
    assert done == [True, "inner"]


async def test_errors_of_handlers_come_out_before_and_after_the_first_wait():
    async def fails(wait):
        if wait:
            await trio.sleep(0)
        raise ValueError("from the handler")

    for wait in (False, True):
        with pytest.raises(ValueError, match="from the handler"):
            await step(fails(wait), lambda *_: None, 1, 2)


async def test_a_cancelled_handler_leaves_no_garbage_behind(nursery):
    class Big:
        pass

    kept = Big()
    alive = weakref.ref(kept)

    async def holds(_):
        await trio.sleep_forever()

    async def lead(scope, each):
        with scope:
            await step(holds(each), lambda *_: None, 1, 2)

    scope = trio.CancelScope()
    nursery.start_soon(lead, scope, kept)
    del kept
    await trio.testing.wait_all_tasks_blocked()
    gc.collect()
    gc.disable()
    try:
        scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert alive() is None
    finally:
        gc.enable()
