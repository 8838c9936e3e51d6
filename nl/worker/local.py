"""A `local` worker put together from its config. Nothing is started here."""

from __future__ import annotations

import logging
from collections.abc import Callable

from nl.config.workers import LocalWorkerOptions
from nl.storage.contract import Store
from nl.worker.action import ActionRunner
from nl.worker.actions import Actions
from nl.worker.agent import Connect, Worker
from nl.worker.connection import connector
from nl.worker.processes import Supervisor
from nl.worker.results import ResultKeeper

log = logging.getLogger("nl.worker")


def local_worker(
    options: LocalWorkerOptions, *, index: int, store_named: Callable[[str], Store], connect: Connect | None = None
) -> Worker:
    """The worker that is `workers[index].local`.

    `store_named` finds a store by its configured name; `connect` replaces the way to the scheduler that
    `worker_api_endpoint` tells. Raises ConfigError if the options contradict each other.
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
    runner = Supervisor()
    return Worker(
        options,
        name=name,
        connect=connect or connector(options.worker_api_endpoint),
        actions=Actions(ActionRunner(options, store=store, keeper=keeper, runner=runner)),
        runner=runner,
    )
