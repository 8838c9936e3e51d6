"""A `local` worker put together from its config. Nothing is started here."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import replace

from nl.config.workers import IsolationOptions, LocalWorkerOptions
from nl.storage.contract import Store
from nl.worker.action import ActionRunner
from nl.worker.actions import Actions
from nl.worker.agent import Connect, Worker
from nl.worker.connection import connector
from nl.worker.environment import has_side_channel
from nl.worker.isolation import IsolatedRunner, Surroundings
from nl.worker.processes import Supervisor
from nl.worker.results import ResultKeeper

log = logging.getLogger("nl.worker")


def wanted_isolation(options: LocalWorkerOptions) -> IsolationOptions:
    """The isolation, with what NativeLink's options say of it: a sandbox without a mount namespace would be none."""
    named = options.use_namespaces or options.use_mount_namespace
    return replace(options.isolation, kind="sandbox") if named else options.isolation


def local_worker(
    options: LocalWorkerOptions,
    *,
    index: int,
    store_named: Callable[[str], Store],
    connect: Connect | None = None,
    secrets: Sequence[str] = (),
    open_files: int = 0,
) -> Worker:
    """The worker that is `workers[index].local`.

    `store_named` finds a store by its configured name; `connect` replaces the way to the scheduler that
    `worker_api_endpoint` tells; `secrets` are paths that no action may look into; `open_files` is how many files an
    action may open, 0 for as many as this process may. Raises ConfigError if the options contradict each other.
    """
    store = store_named(options.cas_fast_slow_store)
    upload = options.upload_action_result
    name = options.name or f"worker_{index}"
    if not upload.ac_store and upload.upload_ac_results_strategy != "never":
        log.warning(
            "worker '%s' writes no results to an action cache, so nothing that it executes is ever a cache hit: set "
            'workers[%d].local.upload_action_result.ac_store (or upload_ac_results_strategy: "never")', name, index
        )
    historical = upload.historical_results_store
    keeper = ResultKeeper(
        upload,
        ac_store=store_named(upload.ac_store) if upload.ac_store else None,
        historical_store=store_named(historical) if historical else store,
    )
    surroundings = Surroundings(
        f"workers[{index}].local.isolation",
        name,
        secrets,
        programs=[options.entrypoint] if os.path.isabs(options.entrypoint) else [],
        has_side_channel=has_side_channel(options),
    )
    runner = IsolatedRunner(
        wanted_isolation(options),
        supervisor=Supervisor(open_files=open_files),
        work_directory=options.work_directory,
        surroundings=surroundings,
    )
    return Worker(
        options,
        name=name,
        connect=connect or connector(options.worker_api_endpoint),
        actions=Actions(ActionRunner(options, store=store, keeper=keeper, runner=runner)),
        runner=runner,
    )
