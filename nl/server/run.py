"""The nursery tree: stores > schedulers > listeners > workers, and how it stops.

Starting goes from the outside in: what is started may use what is outside of it. Stopping goes the other way round,
each step with a deadline: health says NOT_SERVING, workers finish what they run, listeners let their calls finish
(GOAWAY), then schedulers and stores end. What signals mean at which time: signals.py.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import NamedTuple

import trio

from nl.config.document import Config
from nl.config.listeners import UNIX
from nl.config.paths import private_paths
from nl.config.workers import LocalWorkerOptions
from nl.errors import ConfigError
from nl.server.composition import Composition, Endpoint, compose
from nl.server.descriptors import allow_open_files, connection_slots, open_files_allowed
from nl.server.listeners import Bound, bind
from nl.server.memory import MemoryReturner
from nl.server.signals import StopSignals
from nl.storage.running import running_stores
from nl.worker.agent import Worker
from nl.worker.local import local_worker

log = logging.getLogger("nl.server")
OnReady = Callable[[Sequence[Endpoint]], None]

WORKER_GRACE_S = 30.0
"""How long running actions may take to finish after a signal."""
LISTENER_GRACE_S = 10.0
"""How long calls may take to finish once the workers have stopped."""


class Around(NamedTuple):
    """What the process was started with, and actions are not to see or to be run with."""

    file: str | None
    """The config's absolute path."""
    open_files: int
    """The soft limit (RLIMIT_NOFILE) before it was raised."""


async def run(config: Config, *, on_ready: OnReady | None = None, file: str | None = None) -> None:
    """Serves a config until SIGTERM or SIGINT. `on_ready` is called when every listener accepts; `file` is the absolute
    path of the config.

    Raises ConfigError for what only starting can show: an address in use, a folder that cannot be made.
    """
    async with AsyncExitStack() as cleanup, trio.open_nursery() as everything:
        signals = StopSignals(everything.cancel_scope)
        await everything.start(signals.watch)
        found = open_files_allowed()
        slots = connection_slots(allow_open_files(config.global_.max_open_files))
        site = compose(config, await _bind_all(config, cleanup), slots=slots)
        async with running_stores(site.graph), trio.open_nursery() as schedulers:
            for scheduler in site.schedulers.values():
                await schedulers.start(scheduler.run)
            for authenticator in site.doors.authenticators:
                await schedulers.start(authenticator.run)
            await _serve(site, signals=signals, on_ready=on_ready, around=Around(file, found))
            schedulers.cancel_scope.cancel()
        everything.cancel_scope.cancel()
    log.info("Successfully shut down")


async def _bind_all(config: Config, cleanup: AsyncExitStack) -> list[Bound]:
    """Every socket is bound before anything is started, so that a wrong address costs nothing."""
    bound = []
    for index, server in enumerate(config.servers):
        sockets = await bind(server.listener.http, path=f"servers[{index}].listener.http.socket_address")
        cleanup.callback(sockets.close)
        bound.append(sockets)
    return bound


async def _serve(
    site: Composition, *, signals: StopSignals, on_ready: OnReady | None, around: Around
) -> None:
    """Listeners, and workers inside of them. Returns when a signal has stopped both."""
    async with trio.open_nursery() as background, trio.open_nursery() as serving:
        await background.start(MemoryReturner().run)
        for index, endpoint in enumerate(site.endpoints):
            site.doors.warn(index, endpoint.addresses)
            for part in endpoint.mounted.runnables:
                await background.start(part.run)
            await serving.start(endpoint.server.serve, endpoint.bound.sockets)
            log.info("Ready, listening on %s", ", ".join(endpoint.addresses))
        async with trio.open_nursery() as working:
            workers = await _start_workers(site, working, around)
            site.health.set_serving(True)
            signals.serving()
            if on_ready is not None:
                on_ready(site.endpoints)
            await signals.asked.wait()
            site.health.set_serving(False)
            for scheduler in site.schedulers.values():
                scheduler.stop_admission()
            await _finish(site, workers)
            working.cancel_scope.cancel()
        for scheduler in site.schedulers.values():
            scheduler.shut_down()  # remote workers are sent away, waiting clients are answered
        site.health.close()
        await _stop_listeners(site.endpoints)
        serving.cancel_scope.cancel()
        background.cancel_scope.cancel()


async def _start_workers(site: Composition, nursery: trio.Nursery, around: Around) -> list[Worker]:
    secrets = [*private_paths(site.config), *([around.file] if around.file is not None else [])]
    workers = []
    for index, entry in enumerate(site.config.workers):
        options = _with_way_in(site, entry.local, path=f"workers[{index}].local.worker_api_endpoint.uri")
        worker = local_worker(options, index=index, store_named=site.graph.__getitem__, secrets=secrets,
                              open_files=around.open_files)
        await nursery.start(worker.run)
        workers.append(worker)
    return workers


def _with_way_in(site: Composition, options: LocalWorkerOptions, *, path: str) -> LocalWorkerOptions:
    """A worker that names an address of this config whose port is 0 gets the port that it really has.

    One that names a listener of this process where credentials are asked for, and has none, gets the process's own.
    """
    real = {each.config.listener.http.address: each.addresses[0] for each in site.endpoints}
    endpoint = options.worker_api_endpoint
    host, port, tls = endpoint.address
    if endpoint.token is None and endpoint.token_file is None and site.doors.leads_here(host, port):
        endpoint = replace(endpoint, token=site.doors.worker_token)
    if not port and not host.startswith(UNIX):
        if (host, port) not in real:
            problem = f'"{endpoint.uri}" has no port; expected one, or a listener here with the same address'
            raise ConfigError(path, problem)
        endpoint = replace(endpoint, uri=f"grpc{'s' if tls else ''}://{real[host, port]}")
    return replace(options, worker_api_endpoint=endpoint)


async def _finish(site: Composition, workers: list[Worker]) -> None:
    """Lets end what runs, on workers here and elsewhere."""
    async with trio.open_nursery() as nursery:
        for scheduler in site.schedulers.values():
            nursery.start_soon(scheduler.finish)
        for worker in workers:
            nursery.start_soon(worker.shutdown, WORKER_GRACE_S)


async def _stop_listeners(endpoints: Sequence[Endpoint]) -> None:
    async with trio.open_nursery() as nursery:
        for endpoint in endpoints:
            nursery.start_soon(endpoint.server.shutdown, LISTENER_GRACE_S)
