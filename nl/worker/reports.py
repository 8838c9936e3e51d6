"""What is reported of an action beside its outputs: failures for whoever can use them, what a shell would say."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Sequence

from nl.errors import Code, NlError
from nl.pb import reapi, worker_api
from nl.rpc.status import status_of
from nl.worker.command import CommandPlan
from nl.worker.failures import os_errors
from nl.worker.orders import NotNowError, Report
from nl.worker.runner import CannotExecuteError, Ended

log = logging.getLogger("nl.worker.reports")

MAX_PROBLEMS = 8
"""Outputs that are named in a status because they cannot be had."""
FOR_THE_CLIENT = frozenset(
    {
        Code.INVALID_ARGUMENT,
        Code.FAILED_PRECONDITION,
        Code.DEADLINE_EXCEEDED,
        Code.CANCELLED,
        Code.OUT_OF_RANGE,
        Code.RESOURCE_EXHAUSTED,
    }
)


def failed(
    error: NlError,
    metadata: reapi.ExecutedActionMetadata | None = None,
    usage: worker_api.ActionResourceUsage | None = None,
) -> Report:
    """The report on an action without a result: for the client if it can do something, else for the scheduler."""
    if error.code not in FOR_THE_CLIENT or isinstance(error, NotNowError):
        log.warning("Error executing action: %s: %s", error.code.name, error.message)
        return Report(None, status_of(error), usage)
    response = reapi.ExecuteResponse(status=status_of(error))
    if metadata is not None:
        response.result = reapi.ActionResult(execution_metadata=metadata)
    return Report(response, None, usage)


def not_executed(plan: CommandPlan, error: CannotExecuteError, stderr: str) -> Ended:
    """What a shell makes of a command that cannot be executed."""
    text = f"nl: cannot execute {plan.argv[0]!r}: {error.message}\n".encode(errors="replace")
    with os_errors("cannot write stderr"), open(stderr, "ab") as file:
        file.write(text)
    now = time.time_ns()
    return Ended(
        why="exit",
        exit_code=127 if error.errno in (errno.ENOENT, errno.ENOTDIR) else 126,
        started_ns=now,
        ended_ns=now,
        elapsed_ns=0,
        stdout_bytes=0,
        stderr_bytes=len(text),
        cpu_s=0.0,
        max_rss_kb=0,
        strays=0,
    )


def put_inline(result: reapi.ActionResult, inline: dict[str, bytes]) -> None:
    """Puts contents into a result that has been kept without them; the digests stay (REAPI, ActionResult)."""
    if not inline:
        return
    result.stdout_raw = inline.get("stdout", b"")
    result.stderr_raw = inline.get("stderr", b"")
    for file in result.output_files:
        file.contents = inline.get(f"file {file.path}", b"")


def listed(problems: Sequence[str]) -> str:
    """Some of them, and how many there are."""
    shown = list(dict.fromkeys(problems))[:MAX_PROBLEMS]
    more = len(problems) - len(shown)
    return "; ".join(shown) + (f"; and {more} more" if more > 0 else "")
