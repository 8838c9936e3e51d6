"""Variables and properties that the worker's config adds: `additional_environment`, `query_cmd`.

Programs of the config (query_cmd, the precondition script) see only the part of `additional_environment` that does
not depend on an action, and no variable of the server.
"""

from __future__ import annotations

import json
import os
import shlex
import stat
import subprocess
from collections.abc import Mapping

import json5
import trio

from nl.config.workers import EnvironmentSource, LocalWorkerOptions
from nl.errors import InvalidRequestError, UnavailableError
from nl.model.execution import Properties
from nl.worker.command import DEFAULT_PATH

QUERY_LIMIT_S = 60.0
MAX_SIDE_CHANNEL_BYTES = 4096

Sources = Mapping[str, str | EnvironmentSource]


def static_environment(sources: Sources) -> dict[str, str]:
    """The part that is the same for every action; properties are empty here."""
    found: dict[str, str] = {}
    for name, source in sources.items():
        if isinstance(source, EnvironmentSource):
            found[name] = source.value if source.value is not None else ""
        elif source == "from_environment":
            found[name] = os.environ.get(name, "")
    return found


def action_environment(
    sources: Sources, *, platform: Properties, timeout_s: float, side_channel: str, directory: str
) -> dict[str, str]:
    """The variables for one action."""
    found = static_environment(sources)
    for name, source in sources.items():
        if isinstance(source, EnvironmentSource):
            if source.property is not None:
                found[name] = next((value for key, value in platform if key == source.property), "")
        elif source == "timeout_millis":
            found[name] = str(round(timeout_s * 1000))
        elif source == "side_channel_file":
            found[name] = side_channel
        elif source == "action_directory":
            found[name] = directory
    return found


def has_side_channel(options: LocalWorkerOptions) -> bool:
    """Whether actions are told of a file beside their input root, to write to."""
    return "side_channel_file" in options.additional_environment.values()


async def query_properties(options: LocalWorkerOptions) -> list[tuple[str, str]]:
    """The worker's platform properties, queried ones included, sorted by name.

    Raises UnavailableError if a command cannot be run, fails or takes longer than a minute.
    """
    found: list[tuple[str, str]] = []
    environment = {"PATH": DEFAULT_PATH, **static_environment(options.additional_environment)}
    for name, source in options.platform_properties.items():
        if source.query_cmd is None:
            found.extend((name, value) for value in source.values or ())
        else:
            found.extend((name, value) for value in await _query(name, source.query_cmd, environment))
    return sorted(found, key=lambda item: item[0])


async def _query(name: str, command: str, environment: Mapping[str, str]) -> list[str]:
    where = f"platform property {name!r}: query_cmd {command!r}"
    try:
        argv = shlex.split(command)
        with trio.fail_after(QUERY_LIMIT_S):
            done = await trio.run_process(
                argv, env=dict(environment), capture_stdout=True, capture_stderr=True, check=False
            )
    except (OSError, ValueError, IndexError) as exc:
        raise UnavailableError(f"{where} cannot be run: {exc}") from exc
    except trio.TooSlowError:
        raise UnavailableError(f"{where} took longer than {QUERY_LIMIT_S:g} s") from None
    if done.returncode:
        raise UnavailableError(f"{where} ended with {done.returncode}: {_text(done)}")
    return [line for line in done.stdout.decode(errors="replace").split("\n") if line]


def _text(done: subprocess.CompletedProcess[bytes]) -> str:
    return (done.stderr or done.stdout or b"").decode(errors="replace").strip()[:1000]


async def says_timeout(path: str) -> bool:
    """Whether the side channel file says that the entrypoint ended the command for its time limit.

    An absent file says nothing. Raises InvalidRequestError if it cannot be understood: whatever is there, the action
    can have put it there.
    """
    try:
        text = _read_side_channel(path)
        said = await _parse(text.decode()) if text else None
    except (OSError, ValueError, RecursionError) as exc:
        raise InvalidRequestError(f"the side channel file is not JSON5: {exc}") from exc
    failure = said.get("failure") if isinstance(said, dict) else None
    if failure not in (None, "timeout"):
        shown = repr(failure)[:100]
        raise InvalidRequestError(f"the side channel file has the unknown failure {shown}; expected 'timeout'")
    return failure == "timeout"


def _read_side_channel(path: str) -> bytes:
    """What is in the file; nothing if there is none. It may be anything: opening a FIFO must not wait for a writer."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return b""
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ValueError("it is no regular file")
        text = os.read(fd, MAX_SIDE_CHANNEL_BYTES + 1)
    finally:
        os.close(fd)
    if len(text) > MAX_SIDE_CHANNEL_BYTES:
        raise ValueError(f"it has more than {MAX_SIDE_CHANNEL_BYTES} bytes")
    return text


async def _parse(text: str) -> object:
    try:
        parsed: object = json.loads(text)
    except ValueError:
        parsed = await trio.to_thread.run_sync(json5.loads, text)  # written in Python: 1 ms for each KiB, and more
    return parsed
