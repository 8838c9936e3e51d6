"""What `nl serve` does: logs, config, the loop, exit codes."""

from __future__ import annotations

import gc
import os
import sys
from functools import partial
from pathlib import Path

import trio

from nl.config.document import Config
from nl.config.loader import load_file, load_text
from nl.errors import ConfigError
from nl.server.defaults import default_config
from nl.server.run import Endpoint, run
from nl.telemetry.log import set_up_logging

BUILT_IN = "<built-in config>"
COLLECT_AFTER = 100_000
"""Containers made and not yet freed before the collector looks at the young ones: some 10 MB at the worst."""


def serve_file(path: str) -> int:
    """Serves the config in a file until a signal. Raises ConfigError."""
    set_up_logging()
    return _serve(load_file(path), source=path)


def serve_default(*, listen: str, port: int, data_dir: str, max_bytes: int) -> int:
    """Serves the built-in all-in-one config until a signal. Raises ConfigError."""
    set_up_logging()
    directory = Path(data_dir).absolute()
    text = default_config(listen=listen, port=port, data_dir=directory, max_bytes=max_bytes)
    greet = partial(_print_flags, directory=directory)
    return _serve(load_text(text, source=BUILT_IN), source=BUILT_IN, on_ready=greet)


def _serve(config: Config, *, source: str, on_ready: partial[None] | None = None) -> int:
    if not config.servers and not config.workers:
        raise ConfigError("servers", "is empty, and there are no workers; expected at least one", source=source)
    _calm_collector()
    try:
        trio.run(partial(run, config, on_ready=on_ready), strict_exception_groups=True)
    except* ConfigError as group:
        error = group.exceptions[0]
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        assert isinstance(error, ConfigError)
        raise type(error)(error.path, error.problem, source=error.source or source) from None
    return 0


def _calm_collector() -> None:
    """Makes the cycle collector rare: nearly all garbage here dies by its reference count.

    A request of ten thousand digests makes twenty thousand tuples that are gone with it; at Python's own threshold of
    700 it would be interrupted by thirty collections, a third of its time (measured).
    """
    gc.collect()
    gc.freeze()  # what start-up has made is never looked at again
    gc.set_threshold(COLLECT_AFTER, 20, 50)


def _print_flags(endpoints: list[Endpoint], *, directory: Path) -> None:
    """What to copy into a `.bazelrc`, on standard output: the log goes to standard error."""
    address = next(a for e in endpoints if e.config.services.execution for a in e.addresses)
    bold, plain = ("\x1b[1m", "\x1b[0m") if sys.stdout.isatty() and "NO_COLOR" not in os.environ else ("", "")
    print(
        f"nl is ready; blobs and results are kept in {directory}\n\n"
        f"  Build and test remotely, with the cache:\n"
        f"    {bold}bazel test //... --remote_executor=grpc://{address}{plain}\n\n"
        f"  Or only share the cache:\n"
        f"    {bold}bazel test //... --remote_cache=grpc://{address}{plain}\n",
        flush=True,
    )
