"""What `nl serve` does: logs, config, the loop, exit codes."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import trio

from nl.config.document import Config
from nl.config.loader import in_file, load_file, load_text
from nl.errors import ConfigError
from nl.server.collector import calm_collector
from nl.server.composition import Endpoint
from nl.server.defaults import default_config
from nl.server.interpreter import take_short_turns
from nl.server.run import run
from nl.telemetry.log import set_up_logging

BUILT_IN = "<built-in config>"


def serve_file(path: str) -> int:
    """Serves the config in a file until a signal. Raises ConfigError."""
    set_up_logging()
    return _serve(load_file(path), source=path)


def serve_default(
    *,
    listen: Sequence[str],
    port: int,
    data_dir: str,
    max_bytes: int,
    tokens: str | None = None,
    isolation: str | None = None,
) -> int:
    """Serves the built-in all-in-one config until a signal. Raises ConfigError."""
    set_up_logging()
    directory = Path(data_dir).absolute()
    text = default_config(
        listen=listen, port=port, data_dir=directory, max_bytes=max_bytes, tokens=tokens, isolation=isolation
    )
    greet = partial(_print_flags, directory=directory, asks_for_tokens=tokens is not None)
    return _serve(load_text(text, source=BUILT_IN), source=BUILT_IN, on_ready=greet)


def _serve(config: Config, *, source: str, on_ready: partial[None] | None = None) -> int:
    if not config.servers and not config.workers:
        raise ConfigError("servers", "is empty, and there are no workers; expected at least one", source=source)
    calm_collector()
    take_short_turns()
    try:
        file = None if source == BUILT_IN else os.path.abspath(source)
        trio.run(partial(run, config, on_ready=on_ready, file=file), strict_exception_groups=True)
    except ConfigError as error:
        raise _placed(error, source) from None
    except BaseExceptionGroup as group:
        only = _config_error(group)
        if only is None:
            raise
        raise _placed(only, source) from None
    return 0


def _config_error(group: BaseExceptionGroup[BaseException]) -> ConfigError | None:
    """The ConfigError in what a nursery raised, if all that it raised are some: then the user can mend it."""
    _, others = group.split(ConfigError)
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error if others is None and isinstance(error, ConfigError) else None


def _placed(error: ConfigError, source: str) -> ConfigError:
    """With file, line and column in front, where there is a file."""
    return type(error)(error.path, error.problem, source=source) if source == BUILT_IN else in_file(error, source)


def _reachable(address: str) -> str:
    """The address as another machine writes it: this machine's name where it is all of this machine's."""
    host, _, port = address.rpartition(":")
    return f"{socket.gethostname()}:{port}" if host in ("0.0.0.0", "[::]") else address


def _print_flags(endpoints: Sequence[Endpoint], *, directory: Path, asks_for_tokens: bool = False) -> None:
    """What to copy into a `.bazelrc`, on standard output: the log goes to standard error."""
    addresses = [a for e in endpoints if e.config.services.execution for a in e.addresses]
    targets = [each if each.startswith("unix:") else f"grpc://{_reachable(each)}" for each in addresses]
    bold, plain = ("\x1b[1m", "\x1b[0m") if sys.stdout.isatty() and "NO_COLOR" not in os.environ else ("", "")
    token = ' "--remote_header=authorization=Bearer $NL_TOKEN"' if asks_for_tokens else ""
    also = "".join(f"  Also at {each}\n" for each in targets[1:])
    text = (
        f"nl is ready; blobs and results are kept in {directory}\n\n"
        f"  Build and test remotely, with the cache:\n"
        f"    {bold}bazel test //... --remote_executor={targets[0]}{token}{plain}\n\n"
        f"  Or only share the cache:\n"
        f"    {bold}bazel test //... --remote_cache={targets[0]}{token}{plain}\n{also}\n"
    )
    rest = text.encode()
    # Past Python's buffer: what could not be written would be tried again at the end, and give it an exit code of 120.
    with suppress(OSError):  # a closed pipe, a full disk: no reason not to serve
        while rest:
            rest = rest[os.write(sys.stdout.fileno(), rest) :]
