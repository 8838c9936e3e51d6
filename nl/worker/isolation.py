"""Which of the runners a worker has: the strongest that this machine allows, or the one that the config names.

What a machine allows is found out by doing it: a command that does not exist is run in a place of each kind, in the
work directory, where actions run. If it cannot be found *there*, all before it has worked.

Where an action sees the machine's files (`sandbox`), these are hidden from it: what the config names (stores, secrets),
the folders of other actions, the home of the server's user, and /run with the sockets of other servers.
"""

from __future__ import annotations

import errno
import logging
import os
import pwd
import stat
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal

import trio

from nl.config.workers import IsolationOptions
from nl.errors import ConfigError, NlError
from nl.worker.failures import os_errors
from nl.worker.processes import Supervisor
from nl.worker.reaper import kernel
from nl.worker.runner import SHARED, CannotExecuteError, Ended, Job, KillSwitch, Place
from nl.worker.uids import UidPool

log = logging.getLogger("nl.worker.isolation")

Kind = Literal["sandbox", "uid", "plain"]
PROBE_S = 30.0
_NO_COMMAND = "/nonexistent/nl-probe"
_ALWAYS_THERE = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc", "/opt", "/nix", "/proc", "/sys", "/dev")
"""What is never hidden as a whole, whoever's home it is."""
_PROTECTED_LINKS = "/proc/sys/fs/protected_hardlinks"
_RESOLVER = "/etc/resolv.conf"


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the worker knows of the server around it."""

    path: str
    """Where the options of the isolation are in the config."""
    name: str
    """The worker's, for the log."""
    secrets: Sequence[str] = ()
    """Absolute paths that no action may look into."""
    programs: Sequence[str] = ()
    """Programs that actions run by order of the config, wherever they lie."""
    has_side_channel: bool = False
    """Whether actions have a folder beside their input root (SHARED)."""


class IsolatedRunner:
    """The runner that the options ask for. See `Runner`; `kind` and what follows from it are known once it serves."""

    def __init__(
        self, options: IsolationOptions, *, supervisor: Supervisor, work_directory: str, surroundings: Surroundings
    ) -> None:
        self._options = options
        self._supervisor = supervisor
        self._work_directory = os.path.realpath(work_directory)
        self._surroundings = surroundings
        self._pool = UidPool(options.first_uid, options.uids)
        self._takes_uids = False
        self._overlay = False
        self._hidden: list[str] = []
        self._shown: list[str] = []
        self.kind: Kind = "plain"

    def __repr__(self) -> str:
        return f"<IsolatedRunner {self.kind} {self._supervisor!r}>"

    @property
    def inputs_shared(self) -> bool:
        """See `Runner`."""
        return self.kind == "plain"

    def statistics(self) -> Mapping[str, int]:
        """See `Runner`."""
        return self._supervisor.statistics()

    def held(self) -> AbstractContextManager[None]:
        """See `Runner`."""
        return self._supervisor.held()

    async def remove_tree(self, path: str) -> None:
        """See `Runner`."""
        await self._supervisor.remove_tree(path)

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """See `Runner`. Raises ConfigError if the kind that the config names cannot be had."""
        kernel.prctl(kernel.PR_SET_DUMPABLE, 0)  # this process's memory, environment and files are no action's business
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(self._supervisor.serve)
                with self._supervisor.held():
                    await self._choose()
                task_status.started()
        finally:
            self._pool.close()

    @asynccontextmanager
    async def place(self, directory: str) -> AsyncIterator[Place]:
        """See `Runner`."""
        async with AsyncExitStack() as stack:
            uid = await stack.enter_async_context(self._pool.lent()) if self._takes_uids else None
            if self.kind == "uid":
                with os_errors("cannot give the action its directory"):
                    os.chown(directory, 0, uid or 0)
                    os.chmod(directory, 0o750)
            yield Place(directory, uid)

    async def run(self, job: Job, *, switch: KillSwitch) -> Ended:
        """See `Runner`."""
        place = job.place
        if place is None or self.kind == "plain":
            return await self._supervisor.run(job, switch=switch)
        return await self._supervisor.run(job, switch=switch, place=self._described(job, place))

    def _described(self, job: Job, place: Place) -> dict[str, Any]:
        """What a warden is told of a place."""
        return {
            "sandbox": self.kind == "sandbox",
            "uid": place.uid,
            "directory": place.directory,
            "root": f"{place.directory}/work",
            "overlay": self._overlay and job.has_inputs,
            "network": self._options.network or job.network,
            "rootfs": self._options.rootfs,
            "shared": f"{place.directory}/{SHARED}" if self._surroundings.has_side_channel else None,
            "hidden": self._hidden,
            "shown": self._shown,
        }

    # ---- choosing

    async def _choose(self) -> None:
        if self._work_directory == "/":
            return  # nothing may be made there, and who prepares it says so
        named = self._options.kind
        kinds: tuple[Kind, ...] = (named,) if named is not None else ("sandbox", "uid", "plain")
        why_not: list[str] = []
        for kind in kinds:
            try:
                await self._try(kind)
            except (NlError, OSError) as exc:
                text = exc.message if isinstance(exc, NlError) else f"{exc.strerror}: {exc.filename}"
                why_not.append(f"{kind}: {text}")
                continue
            said = "; ".join(why_not)
            log.info(
                "Worker '%s' runs actions in isolation '%s'%s%s", self._surroundings.name, kind,
                f", as uids {self._options.first_uid} and up" if self._takes_uids else "",
                f" (not possible here: {said})" if said else "",
            )  # fmt: skip
            return
        raise ConfigError(f"{self._surroundings.path}.kind", f"\"{named}\" is not possible here: {why_not[0]}")

    async def _try(self, kind: Kind) -> None:
        """Becomes a runner of this kind; raises if that does not work here."""
        self.kind = kind
        self._takes_uids = self._overlay = False
        if kind == "plain":
            if self._options.rootfs:
                raise NlError("an input root can only be the root directory in a sandbox")
            return
        is_root = os.geteuid() == 0
        if kind == "uid":
            if not is_root:
                raise NlError("the server is not root, and may not change users")
            if (closed := _closed_ancestor(self._work_directory)) is not None:
                raise NlError(f"other users may not enter {closed}, which the work directory is in")
            if self._options.rootfs:
                raise NlError("an input root can only be the root directory in a sandbox")
            if not _links_are_protected():
                raise NlError("anybody may link anybody's files into outputs here; expected 1 in " + _PROTECTED_LINKS)
        if is_root:
            self._takes_uids = True
            self._pool.open()
        self._hidden, self._shown = self._view()
        self._overlay = kind == "sandbox"
        try:
            await self._probe()
        except NlError:
            if not (self._overlay and is_root):
                raise
            self._overlay = False  # inputs are not the action's then: it can read them, and put others in their place
            await self._probe()

    async def _probe(self) -> None:
        """Goes to where an action would run, without running anything. Raises NlError."""
        directory = f"{self._work_directory}/probe.{os.getpid()}"
        with os_errors("cannot make a directory to try it in"):
            os.makedirs(self._work_directory, exist_ok=True)
            await self._supervisor.remove_tree(directory)
            os.makedirs(f"{directory}/work")
        try:
            async with self.place(directory) as place:
                streams = f"{directory}/stdout", f"{directory}/stderr"
                job = Job([_NO_COMMAND], {}, f"{directory}/work", *streams, PROBE_S, 1 << 20, place=place)
                await self.run(job, switch=KillSwitch())
        except CannotExecuteError as exc:
            if exc.errno != errno.ENOENT:
                raise
        finally:
            with trio.move_on_after(PROBE_S, shield=True):
                await self._supervisor.remove_tree(directory)

    def _view(self) -> tuple[list[str], list[str]]:
        """What of the machine is hidden from actions, and what of that is shown all the same."""
        options = self._options
        hidden = ["/run", *_homes(), *self._surroundings.secrets, *options.hidden_paths, self._work_directory]
        if os.geteuid() == 0:  # actions are somebody else, who could not get to their input root
            hidden += filter(None, [_closed_ancestor(self._work_directory)])
        shown = [os.path.realpath(path) for path in (*options.visible_paths, *self._surroundings.programs)]
        resolver = os.path.realpath(_RESOLVER)
        return list(_outermost(hidden)), [*shown, resolver] if resolver != _RESOLVER else shown


def _homes() -> Iterator[str]:
    """The home of this process's user."""
    yield os.environ.get("HOME", "")
    try:
        yield pwd.getpwuid(os.geteuid()).pw_dir
    except KeyError:
        return


def _outermost(paths: Iterable[str]) -> Iterator[str]:
    """Real paths, without those that lie in another one, and without what cannot be hidden."""
    last = None
    for path in sorted({os.path.realpath(path) for path in paths if os.path.isabs(path)}):
        if path == "/" or path in _ALWAYS_THERE or (last is not None and path.startswith(f"{last}/")):
            continue
        last = path
        yield path


def _links_are_protected() -> bool:
    """Whether only who may write to a file may link it: else an output could be any file on the same file system."""
    try:
        with open(_PROTECTED_LINKS, encoding="ascii") as file:
            return file.read().strip() == "1"
    except OSError:
        return False


def _closed_ancestor(path: str) -> str | None:
    """The outermost directory above `path` that other users may not enter, None if there is none."""
    parts = os.path.dirname(path).split("/")
    for end in range(2, len(parts) + 1):
        directory = "/".join(parts[:end])
        try:
            if not os.stat(directory).st_mode & stat.S_IXOTH:
                return directory
        except FileNotFoundError:
            return None
    return None
