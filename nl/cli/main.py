"""The entry points of the commands. Subcommands are imported when they are run, so `--help` and `--version` are fast.

Exit codes: 0 done, 1 failed, 2 wrong usage or wrong config (one line on stderr, never a traceback).
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import click

from nl import __version__
from nl.cli.process import begin
from nl.errors import ConfigError

_COMMANDS = {
    "config": ("nl.cli.config", "Check a config; print the default one, the schema, the reference of all options."),
    "serve": ("nl.cli.serve", "Run a server: from a config, or a built-in all-in-one."),
    "token": ("nl.cli.token", "Make, list and revoke the tokens with which clients and workers come in."),
    "stores": ("nl.cli.stores", "Show the installed store kinds."),
}


class LazyGroup(click.Group):
    """A group that knows the names and one-line helps of its commands and imports a command when it is run."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command = importlib.import_module(_COMMANDS[cmd_name][0]).command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands in the help, without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in sorted(_COMMANDS.items())])


_EPILOG = "`nativelink` is an equal name; with a file as its only argument it runs a server with that config."


@click.group(cls=LazyGroup, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="nl")
def cli() -> None:
    """A remote cache and remote execution server for builds (Remote Execution API v2).

    Start with `nl serve`.
    """


def run(arguments: list[str], *, prog_name: str) -> int:
    """Runs one command line and returns its exit code."""
    try:
        result = cli.main(arguments, prog_name=prog_name, standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as exc:
        click.echo(exc.format_message(), err=True)
        return 2
    except click.ClickException as exc:
        hint = f" (see {prog_name} --help)" if isinstance(exc, click.UsageError) else ""
        click.echo(f"{prog_name}: {_one_line(exc.format_message())}{hint}", err=True)
        return exc.exit_code
    except click.Abort:
        return 130
    except ConfigError as exc:
        click.echo(f"{prog_name}: {_one_line(str(exc))}", err=True)
        return 2
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output went away: nobody is left to tell
        return 1
    return result if isinstance(result, int) else 0


def _one_line(text: str) -> str:
    return " ".join(text.split())


def main() -> None:
    """The command `nl`."""
    begin()
    sys.exit(run(sys.argv[1:], prog_name="nl"))


def nativelink() -> None:
    """The command `nativelink`: `nativelink FILE` runs a server with that config, all else is as in `nl`."""
    begin()
    sys.exit(run(nativelink_arguments(sys.argv[1:]), prog_name="nativelink"))


def nativelink_arguments(arguments: list[str]) -> list[str]:
    """`[FILE]` becomes `[serve, FILE]`. A word that is a command is one: a file of that name is `./serve`."""
    if len(arguments) == 1 and not arguments[0].startswith("-") and arguments[0] not in _COMMANDS:
        looks_like_file = "/" in arguments[0] or "." in arguments[0] or Path(arguments[0]).exists()
        if looks_like_file:
            return ["serve", arguments[0]]
    return arguments
