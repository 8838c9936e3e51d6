"""Running a server for a test, and calling it from foreign (blocking) clients in threads."""

from contextlib import asynccontextmanager

import trio

from nl.rpc.options import ServerOptions
from nl.rpc.server import Server


@asynccontextmanager
async def serving(*services, options=None, http1=None):
    """Yields (server, port); everything ends with the block."""
    server = Server(services, options=options or ServerOptions(), http1=http1)
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve, listeners)
        try:
            yield server, port
        finally:
            nursery.cancel_scope.cancel()


async def in_thread(function, *args):
    """Runs blocking client code; the test's cancellation does not wait for it."""
    return await trio.to_thread.run_sync(function, *args, abandon_on_cancel=True)
