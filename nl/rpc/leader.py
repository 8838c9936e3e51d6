"""Leader and followers: the task that reads a connection runs the handlers of the requests it has read.

A task costs several times as much as a small request. So the leader, the task that reads, drives each handler's
coroutine by hand as far as it gets without waiting; one that never waits costs no task at all. When a handler does
wait, the leader becomes that call's own task, with its cancel scope and its context, and another leader takes over the
reading. From then on `step` only passes on what trio sends and throws.
"""

from __future__ import annotations

import contextvars
import types
from collections.abc import Callable, Coroutine, Generator
from typing import Any, TypeVar

import trio

A = TypeVar("A")
B = TypeVar("B")


@types.coroutine
def step(
    handler: Coroutine[Any, Any, None], adopt: Callable[[A, B], None], one: A, two: B
) -> Generator[Any, Any, bool]:
    """Runs a handler as far as it gets without waiting; True if this task has become its own, and it is done.

    `adopt(one, two)` is called at the handler's first wait. The handler runs in a copy of the context, which becomes
    the task's then: what a handler sets in context variables stays with its call.
    """
    context = contextvars.copy_context()
    try:
        trap = context.run(handler.send, None)
    except StopIteration:
        return False
    trio.lowlevel.current_task().context = context
    adopt(one, two)
    try:
        while True:
            try:
                value = yield trap
            except BaseException as exc:  # noqa: BLE001, ASYNC103  # trio's Cancelled above all: it is the handler's
                trap = handler.throw(exc)
            else:
                try:
                    trap = handler.send(value)
                finally:
                    value = None  # which may be the error that ends this: frame and error would keep each other alive
    except StopIteration:
        return True
