"""The life of one action on a worker: fetch, prepare, run, collect, keep, report.

Called by the agent with what the scheduler sent; answers with what goes back. It knows no connection. Everything of an
action lies in a directory of its own, `{work_directory}/{operation_id}`: `work` is the input root, `stdout` and
`stderr` are what it printed. The directory is removed after the report was handed over.

What ends how: the caller's faults, missing inputs, time limits, kills and a full disk are an ExecuteResponse with a
status that is not OK (REAPI, ExecuteResponse.status); the worker's own faults are an `internal_error`, which the
scheduler tries again elsewhere. A full disk is not one of them: schedulers count no attempt for RESOURCE_EXHAUSTED, so
the action would come back for ever, while a client can wait or tell its user. A command that cannot be executed ends
like in a shell: exit code 127 (not found) or 126, and a line on stderr. Death by signal n is exit code 128 + n.
"""

from __future__ import annotations

import logging
import os
import shlex
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import trio

from nl.cas.digests import parse_digest
from nl.config.workers import LocalWorkerOptions
from nl.errors import (
    BlobNotFoundError,
    CancelledError,
    Code,
    CorruptBlobError,
    DeadlineError,
    ExhaustedError,
    InternalError,
    InvalidRequestError,
    NlError,
    UnavailableError,
)
from nl.model.digest import EMPTY_DIGESTS, Digest, DigestFunction
from nl.pb import reapi, wkt, worker_api
from nl.pb.codec import DecodeError, decode
from nl.rpc.status import status_of
from nl.storage.capabilities import LocalFiles
from nl.storage.contract import MAX_WHOLE, Store
from nl.worker.command import CommandPlan, plan_command
from nl.worker.containment import make_parents
from nl.worker.environment import action_environment, has_side_channel, says_timeout
from nl.worker.failures import missing_blobs, os_errors
from nl.worker.files import local_files
from nl.worker.inputs import Listings, materialise
from nl.worker.lending import Copies, Lender
from nl.worker.orders import Report, Request, Running, asks_for_network, properties_of
from nl.worker.outputs import INLINE_OUTPUTS, Outputs, scan, upload
from nl.worker.precondition import check_precondition
from nl.worker.reports import failed, listed, not_executed, put_inline
from nl.worker.results import ResultKeeper
from nl.worker.runner import SHARED, CannotExecuteError, Ended, Job, Place, Runner
from nl.worker.trees import message_of
from nl.worker.workdir import INPUT_FILES, WorkDirectory

log = logging.getLogger("nl.worker.action")
M = TypeVar("M")

MAX_PRINTED_BYTES = 1024 * 1024 * 1024
"""A command that prints more is ended: stdout and stderr are files on the worker's disk."""
MAX_INLINE_BYTES = 1024 * 1024
"""What a request to inline may add to a response, in all."""


@dataclass(frozen=True, slots=True)
class _Task:
    """What an action says is to be done."""

    root: Digest
    plan: CommandPlan
    requested_s: float | None
    limit_s: float
    side_channel: str


@dataclass(slots=True)
class _Attempt:
    """What is known of an action on its way."""

    request: Request
    metadata: reapi.ExecutedActionMetadata
    place: Place
    directory: str
    root: str
    stdout: str
    stderr: str
    do_not_cache: bool = False
    network: bool = False
    has_inputs: bool = True
    usage: worker_api.ActionResourceUsage | None = None
    result: reapi.ActionResult = field(default_factory=reapi.ActionResult)
    inline: dict[str, bytes] = field(default_factory=dict)
    failure: NlError | None = None
    """Why the command did not end by itself, or why not all of its outputs are in the result."""


def _now() -> wkt.Timestamp:
    return wkt.timestamp_from_ns(time.time_ns())


class ActionRunner:
    """Runs actions for one worker. *Concurrency*: any number at once. `runner.serve` must be running."""

    def __init__(
        self,
        options: LocalWorkerOptions,
        *,
        store: Store,
        keeper: ResultKeeper,
        runner: Runner,
        max_printed_bytes: int = MAX_PRINTED_BYTES,
    ) -> None:
        self._options = options
        self._store = store
        self._files = local_files(store)
        self._listings = Listings(store)
        self._keeper = keeper
        self._runner = runner
        self._max_printed_bytes = max_printed_bytes
        self._work = WorkDirectory(options.work_directory, runner, max_wait_s=options.max_cleanup_wait_s)
        self._reads_side_channel = has_side_channel(options)
        kept = f"{self._work.path}/{INPUT_FILES}"
        self._lender = Lender(self._files, kept, max_bytes=options.input_file_cache_size)

    def statistics(self) -> dict[str, int]:
        """Counters for logs and metrics."""
        return {**self._runner.statistics(), **self._listings.statistics(), **self._lender.statistics()}

    @asynccontextmanager
    async def prepared(self) -> AsyncIterator[None]:
        """To be entered before the first action. Raises ConfigError if the work directory cannot be had."""
        async with self._work.opened(), trio.open_nursery() as nursery:
            nursery.start_soon(self._lender.run)
            yield
            nursery.cancel_scope.cancel()

    async def run(
        self,
        start: worker_api.StartExecute,
        *,
        worker_id: str,
        running: Running,
        executed: Callable[[], Awaitable[None]],
        report: Callable[[Report], Awaitable[None]],
    ) -> None:
        """Runs one action. `report` is called exactly once, unless cancelled; `executed` before it, when the command
        has ended and there is something to upload.

        *Cancellation*: kills the command and removes its directory; nothing is reported.
        """
        directory = ""
        async with AsyncExitStack() as lent:  # what is lent to the action goes back when nothing of it is left
            try:
                answer: Report
                try:
                    request = Request.parse(start)
                    directory = self._work.make(request.operation_id)
                    place = await lent.enter_async_context(self._runner.place(directory))
                    answer = await self._answer(
                        request, place=place, worker_id=worker_id, running=running, executed=executed
                    )
                except NlError as exc:
                    answer = failed(exc)
                await report(answer)
            finally:
                if directory:
                    await self._work.remove(directory)  # noqa: ASYNC102  # shields and bounds itself

    async def _answer(
        self,
        request: Request,
        *,
        place: Place,
        worker_id: str,
        running: Running,
        executed: Callable[[], Awaitable[None]],
    ) -> Report:
        directory = place.directory
        metadata = reapi.ExecutedActionMetadata(
            worker=worker_id, queued_timestamp=request.queued, worker_start_timestamp=_now()
        )
        attempt = _Attempt(
            request,
            metadata,
            place,
            directory,
            f"{directory}/work",
            f"{directory}/stdout",
            f"{directory}/stderr",
        )
        attempt.result.execution_metadata = metadata
        try:
            with running.scope:
                await self._attempt(attempt, running, executed)
            if running.scope.cancelled_caught:
                raise CancelledError("the action was killed by the scheduler")
            report = await self._kept(attempt)
        except NlError as exc:
            report = self._failed(exc, attempt)
        except Exception as exc:
            log.error("Error executing action %s", request.action_digest, exc_info=exc)
            report = self._failed(InternalError(f"{type(exc).__name__}: {exc}"), attempt)
        if report.says(Code.RESOURCE_EXHAUSTED):  # who hears of it tries again: the disk must not be full of this then
            await self._runner.remove_tree(directory)
        return report

    def _failed(self, error: NlError, attempt: _Attempt) -> Report:
        attempt.metadata.worker_completed_timestamp = _now()
        return failed(error, attempt.metadata, attempt.usage)

    async def _kept(self, attempt: _Attempt) -> Report:
        """The report of an action whose outputs are stored, once its result is kept as configured."""
        request = attempt.request
        response = reapi.ExecuteResponse(result=attempt.result)
        if attempt.failure is not None:
            response.status = status_of(attempt.failure)
        await self._keeper.keep(
            request.action_digest, response, function=request.function, do_not_cache=attempt.do_not_cache
        )
        put_inline(attempt.result, attempt.inline)
        return Report(response, None, attempt.usage)

    async def _attempt(self, attempt: _Attempt, running: Running, executed: Callable[[], Awaitable[None]]) -> None:
        """Everything from the first byte fetched to the last output stored."""
        await check_precondition(self._options, self._runner, attempt.directory)
        attempt.metadata.input_fetch_start_timestamp = _now()
        task = await self._load(attempt)
        running.do_not_cache = attempt.do_not_cache
        if self._runner.inputs_shared:
            ended = await self._run_watched(attempt, task, running)
        else:
            ended = await self._run(attempt, task, running, files=self._files)
        if task.plan.outputs or ended.stdout_bytes or ended.stderr_bytes:
            await executed()
        if self._reads_side_channel and ended.why == "exit":
            try:
                if await says_timeout(task.side_channel):
                    ended = ended._replace(why="timeout")
            except InvalidRequestError as exc:
                attempt.failure = exc
        attempt.failure = self._failure(ended, task.plan, task.requested_s or task.limit_s) or attempt.failure
        await self._collect(attempt, task.plan, ended)

    async def _load(self, attempt: _Attempt) -> _Task:
        """Fetches the action and its command, and checks them."""
        request = attempt.request
        action = await self._message(reapi.Action, request.action_digest, request.function)
        attempt.do_not_cache = action.do_not_cache
        requested_s, limit_s = self._time_limit(action)
        command_digest = parse_digest(action.command_digest, request.function, "Action.command_digest")
        root = parse_digest(action.input_root_digest, request.function, "Action.input_root_digest")
        command = await self._message(reapi.Command, command_digest, request.function)
        side_channel = f"{attempt.directory}/{SHARED}/side_channel"
        platform = request.platform or properties_of(action.platform or command.platform)
        attempt.network = asks_for_network(platform)
        attempt.has_inputs = root not in EMPTY_DIGESTS
        extra_env = action_environment(
            self._options.additional_environment,
            platform=platform,
            timeout_s=requested_s or self._options.max_action_timeout_s,
            side_channel=side_channel,
            directory=attempt.directory,
        )
        plan = plan_command(command, entrypoint=self._options.entrypoint, extra_env=extra_env)
        return _Task(root, plan, requested_s, limit_s, side_channel)

    async def _run_watched(self, attempt: _Attempt, task: _Task, running: Running) -> Ended:
        """Runs an action that can write to its inputs; once more, with inputs that nobody shares, if one was changed.

        It need not be the one that did it: what it has read may be another's doing.
        """
        borrowed = self._lender.borrow()
        try:
            ended = await self._run(attempt, task, running, files=borrowed, settled=borrowed.settle)
            changed = await borrowed.changed()
        finally:
            borrowed.release()
        if not changed or ended.why != "exit":
            return ended
        log.warning(
            "Action %s: %d of its input files were changed while it ran, by itself or by another action (%s was one): "
            "it runs again with files of its own",
            attempt.request.action_digest, len(changed), changed[0],
        )  # fmt: skip
        await self._work.renew(attempt.directory)
        return await self._run(attempt, task, running, files=Copies(self._lender))

    async def _run(
        self,
        attempt: _Attempt,
        task: _Task,
        running: Running,
        *,
        files: LocalFiles,
        settled: Callable[[], Awaitable[None]] | None = None,
    ) -> Ended:
        """Lays the input root out and runs the command in it, when `settled` has returned."""
        os.mkdir(attempt.root, 0o755)
        if self._reads_side_channel:
            os.mkdir(f"{attempt.directory}/{SHARED}", 0o755)
        linked = await materialise(
            task.root,
            attempt.root,
            listings=self._listings,
            store=self._store,
            files=files,
            function=attempt.request.function,
        )
        with os_errors("cannot make the directories of the outputs"):
            if len(task.plan.outputs) > INLINE_OUTPUTS:
                await trio.to_thread.run_sync(partial(make_parents, attempt.root, task.plan, linked=linked))
            else:
                make_parents(attempt.root, task.plan, linked=linked)
        if settled is not None:
            await settled()
        attempt.metadata.input_fetch_completed_timestamp = _now()
        return await self._execute(attempt, task.plan, task.limit_s, running)

    async def _message(self, kind: type[M], digest: Digest, function: DigestFunction) -> M:
        """The message with this digest. PreconditionError if it is missing, InvalidRequestError if it is none."""
        if digest.size > MAX_WHOLE:
            raise InvalidRequestError(f"{kind.__name__} {digest} is larger than the limit of {MAX_WHOLE} bytes")
        try:
            return decode(kind, bytes(await self._store.get(digest)) if digest not in EMPTY_DIGESTS else b"")
        except (BlobNotFoundError, CorruptBlobError):  # an upload mends both
            raise missing_blobs([digest], function) from None
        except DecodeError as exc:
            raise InvalidRequestError(f"{digest} is not a valid {kind.__name__}: {exc}") from exc

    def _time_limit(self, action: reapi.Action) -> tuple[float | None, float]:
        """What the action asks for, and what is enforced, in seconds."""
        maximum_s = self._options.max_action_timeout_s
        requested_ns = wkt.duration_to_ns(action.timeout) if action.timeout is not None else 0
        if requested_ns < 0:
            raise InvalidRequestError(f"Action timeout of {requested_ns / 1e9:g} seconds is negative")
        requested_s = requested_ns / 1e9 if requested_ns else None
        if requested_s is not None and requested_s > maximum_s:
            raise InvalidRequestError(
                f"Action timeout of {requested_s:g} seconds is greater than the maximum allowed timeout of "
                f"{maximum_s:g} seconds"
            )
        if requested_s is None or self._options.timeout_handled_externally:
            return requested_s, maximum_s
        return requested_s, requested_s

    async def _execute(self, attempt: _Attempt, plan: CommandPlan, limit_s: float, running: Running) -> Ended:
        """Runs the command; the metadata get its times, by the clock that the limit is measured with."""
        cwd = f"{attempt.root}/{plan.working_directory}" if plan.working_directory else attempt.root
        job = Job(
            plan.argv, plan.env, cwd, attempt.stdout, attempt.stderr, limit_s, self._max_printed_bytes,
            place=attempt.place, network=attempt.network, has_inputs=attempt.has_inputs,
        )  # fmt: skip
        log.debug("Executing command %s", plan.argv)
        running.executing(True)
        try:
            if running.killed:
                raise CancelledError("killed by the scheduler before its command had run")
            ended = await self._runner.run(job, switch=running.switch)
        except CannotExecuteError as exc:
            ended = not_executed(plan, exc, attempt.stderr)
        finally:
            running.executing(False)
        log.debug("Command complete: %s, exit code %d", ended.why, ended.exit_code)
        metadata, result = attempt.metadata, attempt.result
        metadata.execution_start_timestamp = wkt.timestamp_from_ns(ended.started_ns)
        metadata.execution_completed_timestamp = wkt.timestamp_from_ns(ended.started_ns + ended.elapsed_ns)
        metadata.virtual_execution_duration = wkt.duration_from_ns(ended.elapsed_ns)
        result.exit_code = ended.exit_code
        attempt.usage = worker_api.ActionResourceUsage(
            peak_memory_kb=ended.max_rss_kb,
            operation_id=attempt.request.operation_id,
            worker_id=metadata.worker,
            cpu_time_ms=round(ended.cpu_s * 1000),
        )
        return ended

    def _failure(self, ended: Ended, plan: CommandPlan, limit_s: float) -> NlError | None:
        """The status of a command that was ended, None for one that ended."""
        shown = shlex.join(plan.argv)[:1000]
        if ended.why == "timeout":
            return DeadlineError(f"Command {shown!r} timed out after {limit_s:g} seconds")
        if ended.why == "kill":
            return CancelledError(f"Command {shown!r} was killed by scheduler")
        if ended.why == "stopped":
            return InvalidRequestError(f"Command {shown!r} was killed: it stopped the process that supervises it")
        if ended.why == "flood":
            return ExhaustedError(f"Command {shown!r} printed more than {self._max_printed_bytes} bytes")
        return None

    async def _collect(self, attempt: _Attempt, plan: CommandPlan, ended: Ended) -> None:
        """Outputs and what was printed; of a command that was ended only the latter.

        Outputs that cannot be had leave what else is known in the result: why is the status.
        """
        request, metadata, result = attempt.request, attempt.metadata, attempt.result
        metadata.output_upload_start_timestamp = _now()
        streams = [("stdout", attempt.stdout, ended.stdout_bytes), ("stderr", attempt.stderr, ended.stderr_bytes)]
        wanted = plan if ended.why == "exit" else plan._replace(outputs=())
        collected = await scan(attempt.root, wanted, streams=streams, function=request.function)
        result.stdout_digest, result.stderr_digest = map(message_of, collected.streams)
        outputs = collected.outputs
        self._read_inline(attempt, outputs, collected.streams)
        try:
            with trio.fail_after(self._options.max_upload_timeout_s):
                refused = await upload(outputs, scratch=attempt.directory, store=self._store, files=self._files)
        except trio.TooSlowError:
            limit_s = self._options.max_upload_timeout_s
            raise UnavailableError(f"uploading the outputs took longer than {limit_s:g} s") from None
        if outputs.problems and attempt.failure is None:
            attempt.failure = InvalidRequestError(listed(outputs.problems))
        if refused:
            outputs.drop(refused)
            result.stdout_digest, result.stderr_digest = (
                None if digest in refused else message_of(digest) for digest in collected.streams
            )
            attempt.failure = attempt.failure or ExhaustedError(listed([error.message for error in refused.values()]))
        outputs.fill(result)
        metadata.output_upload_completed_timestamp = metadata.worker_completed_timestamp = _now()

    def _read_inline(self, attempt: _Attempt, outputs: Outputs, streams: Sequence[Digest]) -> None:
        """Remembers what the client wants inlined, while the files are still here."""
        message = attempt.request.message
        wanted = [
            *(["stdout"] if message.inline_stdout else []),
            *(["stderr"] if message.inline_stderr else []),
        ]
        left = MAX_INLINE_BYTES
        for name in wanted:
            digest = streams[0 if name == "stdout" else 1]
            found = outputs.local.get(digest)
            if found is not None and digest.size <= left:
                left -= digest.size
                attempt.inline[name] = _read(found.path, digest.size)
        if not message.inline_output_files:
            return
        names = frozenset(message.inline_output_files)
        for file in outputs.files:
            digest = parse_digest(file.digest, attempt.request.function, file.path)
            found = outputs.local.get(digest)
            if file.path in names and found is not None and digest.size <= left:
                left -= digest.size
                attempt.inline[f"file {file.path}"] = _read(found.path, digest.size)


def _read(path: str, size: int) -> bytes:
    with open(path, "rb") as file:
        return file.read(size)
