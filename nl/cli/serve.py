"""`nl serve`: hands over to the server and returns its exit code."""

from __future__ import annotations

from collections.abc import Callable

import click

from nl.config.values import size

DEFAULT_MAX_SIZE = "20GB"


def parse_size(ctx: click.Context, parameter: click.Parameter, value: str) -> int:
    """A callback for options that take a size."""
    try:
        return size(value, {})
    except ValueError as exc:
        raise click.BadParameter(f'{exc}; expected bytes or a size such as "20GB"', ctx, parameter) from None


def all_in_one_options(function: Callable[..., int]) -> Callable[..., int]:
    """The options of the built-in all-in-one, for the commands that have them."""
    for option in reversed((
        click.option("--listen", default=("127.0.0.1",), show_default=True, metavar="ADDRESS", multiple=True,
                     help="An address to listen on: IP, IP:PORT or unix:/PATH; :: is all of IPv6 and IPv4. May be "
                          "given several times."),
        click.option("--port", default=50051, show_default=True, type=click.IntRange(0, 65535),
                     help="The port where --listen names none; 0 takes a free one."),
        click.option("--data-dir", default=None, type=click.Path(file_okay=False), metavar="DIR",
                     help="Where blobs and results are kept.  [default: $XDG_DATA_HOME/nl]"),
        click.option("--max-bytes", default=DEFAULT_MAX_SIZE, show_default=True, callback=parse_size, metavar="SIZE",
                     help="How much is kept there."),
        click.option("--tokens", default=None, type=click.Path(), metavar="FILE",
                     help="Ask for a token of FILE (see nl token create).  [default: everybody may do everything]"),
        click.option("--isolation", default=None, type=click.Choice(["sandbox", "uid", "plain"]),
                     help="How actions are kept apart.  [default: as well as this machine allows]"),
    )):
        function = option(function)
    return function


@click.command("serve")
@click.argument("file", required=False, type=click.Path())
@all_in_one_options
@click.pass_context
def command(
    ctx: click.Context,
    *,
    file: str | None,
    listen: tuple[str, ...],
    port: int,
    data_dir: str | None,
    max_bytes: int,
    tokens: str | None,
    isolation: str | None,
) -> int:
    """Run a server until SIGINT or SIGTERM.

    With FILE (JSON5, NativeLink's options) as that says; the options are for running without. Without FILE: cache,
    scheduler and one worker in one process, for this machine only; the Bazel flags for it are printed.
    """
    if file is not None:
        names = ("listen", "port", "data_dir", "max_bytes", "tokens", "isolation")
        given = [f"--{name.replace('_', '-')}" for name in names
                 if ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE]
        if given:
            raise click.UsageError(f"{' and '.join(given)} cannot be used together with a config file")
    from nl.server.defaults import default_data_directory
    from nl.server.main import serve_default, serve_file

    if file is not None:
        return serve_file(file)
    directory = data_dir or str(default_data_directory())
    return serve_default(
        listen=listen, port=port, data_dir=directory, max_bytes=max_bytes, tokens=tokens, isolation=isolation
    )
