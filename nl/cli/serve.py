"""`nl serve`: hands over to the server and returns its exit code."""

from __future__ import annotations

import os
from pathlib import Path

import click

from nl.config.values import size

DEFAULT_MAX_SIZE = "20GB"


def default_data_dir() -> str:
    """The user's data directory by the XDG base directory specification; relative values there count as unset."""
    root = os.environ.get("XDG_DATA_HOME", "")
    return str(Path(root) / "nl" if root.startswith("/") else Path.home() / ".local" / "share" / "nl")


def _size(ctx: click.Context, parameter: click.Parameter, value: str) -> int:
    try:
        return size(value, {})
    except ValueError as exc:
        raise click.BadParameter(f'{exc}; expected bytes or a size such as "20GB"', ctx, parameter) from None


@click.command("serve")
@click.argument("file", required=False, type=click.Path())
@click.option("--listen", default="127.0.0.1", show_default=True, metavar="IP",
              help="Without FILE: the address to listen on.")
@click.option("--port", default=50051, show_default=True, type=click.IntRange(0, 65535),
              help="Without FILE: the port; 0 takes a free one.")
@click.option("--data-dir", default=None, type=click.Path(file_okay=False), metavar="DIR",
              help="Without FILE: where blobs and results are kept.  [default: $XDG_DATA_HOME/nl]")
@click.option("--max-bytes", default=DEFAULT_MAX_SIZE, show_default=True, callback=_size, metavar="SIZE",
              help="Without FILE: how much is kept there.")
@click.pass_context
def command(
    ctx: click.Context, *, file: str | None, listen: str, port: int, data_dir: str | None, max_bytes: int
) -> int:
    """Run a server until SIGINT or SIGTERM.

    With FILE (JSON5, NativeLink's options) as that says. Without: cache, scheduler and one worker in one process, for
    this machine only; the Bazel flags for it are printed.
    """
    if file is not None:
        given = [f"--{name.replace('_', '-')}" for name in ("listen", "port", "data_dir", "max_bytes")
                 if ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE]
        if given:
            raise click.UsageError(f"{' and '.join(given)} cannot be used together with a config file")
    from nl.server.main import serve_default, serve_file

    if file is not None:
        return serve_file(file)
    return serve_default(listen=listen, port=port, data_dir=data_dir or default_data_dir(), max_bytes=max_bytes)
