"""One worker's runner with a real store and real processes, and short ways to build the messages of an action."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from nl.blob.hashing import digest_of
from nl.cas.action_results import load_action_result
from nl.config.types import EvictionPolicy
from nl.config.workers import IsolationOptions, LocalWorkerOptions, UploadActionResult
from nl.errors import BlobNotFoundError
from nl.model.digest import Digest, DigestFunction
from nl.pb import reapi, rpc_status, wkt, worker_api
from nl.pb.codec import decode, encode
from nl.storage.contract import Store
from nl.stores.fast_slow import FastSlowStore
from nl.stores.filesystem import FilesystemStore
from nl.stores.memory import MemoryOptions, MemoryStore
from nl.testing.context import BareContext, started
from nl.worker.action import ActionRunner
from nl.worker.isolation import IsolatedRunner, Surroundings
from nl.worker.orders import Report, Running
from nl.worker.processes import Supervisor
from nl.worker.results import ResultKeeper
from nl.worker.runner import Runner
from nl.worker.workdir import INPUT_FILES

SHA256 = DigestFunction.SHA256


def message(digest: Digest) -> reapi.Digest:
    return reapi.Digest(hash=digest.hash, size_bytes=digest.size)


def digest(proto: reapi.Digest | None) -> Digest:
    assert proto is not None
    return Digest(proto.hash, proto.size_bytes)


class Site:
    """A store, an action cache, a supervisor and a runner."""

    def __init__(self, path: Path, store: Store, ac: Store, supervisor: Supervisor, function: DigestFunction) -> None:
        self.path = path
        self.store = store
        self.ac = ac
        self.supervisor = supervisor
        self.commands: Runner = supervisor
        self.function = function
        self.work = path / "work"
        self.reports: list[Report] = []
        self.context = BareContext()
        self._serial = 0

    def runner(self, **options: object) -> ActionRunner:
        limit = options.pop("max_printed_bytes", 1 << 30)
        upload = options.pop("upload_action_result", UploadActionResult(ac_store="AC"))
        configured = LocalWorkerOptions(
            cas_fast_slow_store="CAS", work_directory=str(self.work), upload_action_result=upload, **options
        )
        return ActionRunner(
            configured,
            store=self.store,
            keeper=ResultKeeper(upload, ac_store=self.ac, historical_store=self.store),
            runner=self.commands,
            max_printed_bytes=limit,
        )

    def left(self) -> list[str]:
        """What is in the work directory of actions."""
        return [name for name in os.listdir(self.work) if name != INPUT_FILES]

    async def put(self, data: bytes) -> Digest:
        key = digest_of(data, self.function)
        if data:
            await self.store.put(key, data)
        return key

    async def put_message(self, proto: object) -> Digest:
        return await self.put(encode(proto))

    async def tree(self, layout: dict) -> Digest:
        """A Directory from nested dicts: bytes are files, (bytes,) executables, str are link targets."""
        directory = reapi.Directory()
        for name, item in layout.items():
            if isinstance(item, dict):
                child = await self.tree(item)
                directory.directories.append(reapi.DirectoryNode(name=name, digest=message(child)))
            elif isinstance(item, str):
                directory.symlinks.append(reapi.SymlinkNode(name=name, target=item))
            else:
                data = item[0] if isinstance(item, tuple) else item
                directory.files.append(
                    reapi.FileNode(
                        name=name, digest=message(await self.put(data)), is_executable=isinstance(item, tuple)
                    )
                )
        return await self.put_message(directory)

    async def tree_of_present(self, layout: dict[str, bytes]) -> Digest:
        """The digest of a flat tree whose files are not put again."""
        nodes = [
            reapi.FileNode(name=name, digest=message(digest_of(data, self.function))) for name, data in layout.items()
        ]
        return await self.put_message(reapi.Directory(files=nodes))

    async def action(
        self,
        argv: Sequence[str],
        *,
        inputs: dict | Digest | None = None,
        env: dict[str, str] | None = None,
        timeout_s: float | None = None,
        do_not_cache: bool = False,
        **command: object,
    ) -> Digest:
        root = inputs if isinstance(inputs, Digest) else await self.tree(inputs or {})
        variables = [
            reapi.CommandEnvironmentVariable(name=name, value=value) for name, value in sorted((env or {}).items())
        ]
        command_digest = await self.put_message(
            reapi.Command(arguments=list(argv), environment_variables=variables, **command)
        )
        return await self.put_message(
            reapi.Action(
                command_digest=message(command_digest),
                input_root_digest=message(root),
                timeout=None if timeout_s is None else wkt.duration_from_ns(round(timeout_s * 1e9)),
                do_not_cache=do_not_cache,
            )
        )

    async def run(
        self,
        action: Digest,
        *,
        runner: ActionRunner | None = None,
        running: Running | None = None,
        executed: Callable[[], None] = lambda: None,
        **request: object,
    ) -> Report:
        self._serial += 1
        reports: list[Report] = []
        start = worker_api.StartExecute(
            operation_id=f"00000000-0000-4000-8000-{self._serial:012d}",
            execute_request=reapi.ExecuteRequest(
                action_digest=message(action), digest_function=reapi.DigestFunctionValue(int(self.function)), **request
            ),
        )

        async def when_executed() -> None:
            executed()

        async def report(made: Report) -> None:
            reports.append(made)

        await (runner or self.runner()).run(
            start,
            worker_id="worker-1",
            running=running or Running(),
            executed=when_executed,
            report=report,
        )
        (made,) = reports
        return made

    async def result(self, argv: Sequence[str], **how: object) -> reapi.ActionResult:
        """Runs a command that must end by itself; its result."""
        report = await self.run(await self.action(argv, **how))
        assert report.error is None, report.error
        assert report.response is not None and report.response.result is not None
        assert report.response.status is None or report.response.status.code == 0, report.response.status
        return report.response.result

    async def text(self, proto: reapi.Digest | None) -> bytes:
        key = digest(proto)
        return bytes(await self.store.get(key)) if key.size else b""

    async def cached(self, action: Digest) -> reapi.ActionResult | None:
        try:
            return decode(reapi.ActionResult, await load_action_result(self.ac, action))
        except BlobNotFoundError:
            return None


def violations(status: rpc_status.Status) -> list[tuple[str, str]]:
    found = wkt.unpack(status.details[0], rpc_status.PreconditionFailure)
    assert found is not None
    return [(item.type, item.subject) for item in found.violations]


def alive(pid: int) -> bool:
    """Whether a process exists and is not merely a zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


async def until(fact: Callable[[], bool], *, within_s: float = 20.0) -> None:
    """Polls until `fact` holds."""
    with trio.fail_after(within_s):
        while not fact():
            await trio.sleep(0.01)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def let_others_in(path: Path) -> None:
    """Lets other users enter a directory of pytest's, and what it is in."""
    for each in (path, *path.parents):
        if each.stat().st_uid == os.getuid() and each.stat().st_mode & 0o777 == 0o700:
            each.chmod(0o711)


@asynccontextmanager
async def site_with(
    path: Path,
    kind: str,
    function: DigestFunction = SHA256,
    *,
    max_bytes: int = 0,
    isolation: IsolationOptions | None = None,
) -> AsyncIterator[Site]:
    context = BareContext("CAS")
    options = FilesystemStore.Options(
        content_path=str(path / "content"),
        temp_path=str(path / "temp"),
        eviction_policy=EvictionPolicy(max_bytes=max_bytes),
    )
    store: Store
    if kind == "memory":
        store = MemoryStore(MemoryOptions(), context)
    elif kind == "filesystem":
        store = FilesystemStore(options, context)
    else:
        fast = context.spec(FilesystemStore(options, context))
        slow = context.spec(MemoryStore(MemoryOptions(), context))
        store = FastSlowStore(FastSlowStore.Options(fast=fast, slow=slow), context)
    ac = MemoryStore(MemoryOptions(), BareContext("AC"))
    supervisor = Supervisor()
    runner: Runner = supervisor
    if isolation is not None:
        secrets = [str(path / "content"), str(path / "temp"), str(path / "secret")]
        around = Surroundings("isolation", "test", secrets)
        let_others_in(path)
        runner = IsolatedRunner(
            isolation, supervisor=supervisor, work_directory=str(path / "work"), surroundings=around
        )
    async with started(store, context), started(ac), trio.open_nursery() as nursery:
        await nursery.start(runner.serve)
        site = Site(path, store, ac, supervisor, function)
        site.commands = runner
        site.context = context
        site.work.mkdir(exist_ok=True)
        yield site
        assert site.left() == []
        nursery.cancel_scope.cancel()
