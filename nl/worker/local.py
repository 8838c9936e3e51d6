"""A `local` worker put together from its config. Nothing is started here."""

from __future__ import annotations

from collections.abc import Callable

from nl.config.workers import LocalWorkerOptions
from nl.storage.contract import Store
from nl.worker.action import ActionRunner
from nl.worker.agent import Connect, Worker
from nl.worker.connection import connector
from nl.worker.processes import Supervisor
from nl.worker.results import ResultKeeper


def local_worker(
    options: LocalWorkerOptions, *, index: int, store_named: Callable[[str], Store], connect: Connect | None = None
) -> Worker:
    """The worker that is `workers[index].local`.

    `store_named` finds a store by its configured name; `connect` replaces the way to the scheduler that
    `worker_api_endpoint` tells. Raises ConfigError if the options contradict each other.
    """
    store = store_named(options.cas_fast_slow_store)
    upload = options.upload_action_result
    historical = upload.historical_results_store
    keeper = ResultKeeper(
        upload,
        ac_store=store_named(upload.ac_store) if upload.ac_store else None,
        historical_store=store_named(historical) if historical else store,
    )
    supervisor = Supervisor()
    return Worker(
        options,
        name=options.name or f"worker_{index}",
        connect=connect or connector(options.worker_api_endpoint),
        runner=ActionRunner(options, store=store, keeper=keeper, supervisor=supervisor),
        supervisor=supervisor,
    )
