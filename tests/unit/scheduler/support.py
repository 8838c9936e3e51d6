"""What tests of the scheduler share: requests, a running scheduler, a worker that is a plain object."""

from contextlib import asynccontextmanager

import trio

from nl.model.digest import Digest, DigestFunction
from nl.model.execution import ActionRequest
from nl.scheduler.options import SimpleSchedulerOptions
from nl.scheduler.simple import SimpleScheduler


def request(number=1, *platform, **more):
    more.setdefault("instance_name", "main")
    return ActionRequest(
        action_digest=Digest(f"{number:064x}", 1), digest_function=DigestFunction.SHA256, platform=platform, **more
    )


@asynccontextmanager
async def running(lookup=None, clock=trio.current_time, **options):
    options.setdefault("worker_timeout_s", 1e9)
    scheduler = SimpleScheduler(SimpleSchedulerOptions(**options), lookup=lookup, name="test", clock=clock)
    async with trio.open_nursery() as nursery:
        await nursery.start(scheduler.run)
        yield scheduler
        nursery.cancel_scope.cancel()


async def finished(operation):
    with operation.watched():
        state = operation.state
        while not state.done:
            state = await operation.wait_changed(state.version)
    return state
