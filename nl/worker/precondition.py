"""`experimental_precondition_script`: asked before each action whether there is room here for one."""

from __future__ import annotations

import shlex

from nl.config.workers import LocalWorkerOptions
from nl.errors import UnavailableError
from nl.storage.contract import SMALL
from nl.worker.command import DEFAULT_PATH
from nl.worker.environment import static_environment
from nl.worker.orders import NotNowError
from nl.worker.runner import CannotExecuteError, Job, KillSwitch, Runner

LIMIT_S = 60.0
_SHOWN_BYTES = 1000


async def check_precondition(options: LocalWorkerOptions, runner: Runner, directory: str) -> None:
    """Runs the configured script in `directory`.

    Raises NotNowError if it fails: the scheduler is told that there is no room here now. UnavailableError if it cannot
    be run.
    """
    script = options.experimental_precondition_script
    if not script:
        return
    printed = f"{directory}/precondition"
    job = Job(
        argv=shlex.split(script),
        env={"PATH": DEFAULT_PATH, **static_environment(options.additional_environment)},
        cwd=directory,
        stdout=printed,
        stderr=f"{printed}.stderr",
        timeout_s=LIMIT_S,
        max_output_bytes=SMALL,
    )
    try:
        ended = await runner.run(job, switch=KillSwitch())
    except CannotExecuteError as exc:
        raise UnavailableError(f"the precondition script {script!r} cannot be run: {exc.message}") from exc
    if ended.why != "exit" or ended.exit_code:
        text = _beginning(printed)
        raise NotNowError(f"Preconditions script returned status {ended.exit_code} ({ended.why}) - {text}")


def _beginning(path: str) -> str:
    with open(path, "rb") as file:
        return file.read(_SHOWN_BYTES).decode(errors="replace")
