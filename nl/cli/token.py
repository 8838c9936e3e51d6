"""`nl token`: the tokens of a tokens file. A token is shown once, when it is made; the file has its hash only."""

from __future__ import annotations

import datetime
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from nl.auth.grants import ALLOW

_FILE = click.option("--file", "-f", "path", required=True, type=click.Path(dir_okay=False), metavar="FILE",
                     help="The tokens file: tokens_file of a config's auth, or what nl serve --tokens names.")


@click.group("token")
def command() -> None:
    """Make, list and revoke the tokens with which clients and workers come in.

    A server takes a change up within a second or two.
    """


@command.command("create")
@click.argument("name")
@click.option("--allow", "allow", required=True, multiple=True, metavar="RIGHTS",
              help=f"What it allows, with commas or given several times: {', '.join(ALLOW)}.")
@click.option("--instance", "instances", multiple=True, metavar="PATTERN", default=("*",), show_default=True,
              help="For which instance names, * standing for any characters. Several times: for all of these.")
@click.option("--expires", default=None, metavar="DURATION",
              help="How long it is taken: 90d, 12h.  [default: for ever]")
@_FILE
def create(name: str, *, allow: tuple[str, ...], instances: tuple[str, ...], expires: str | None, path: str) -> int:
    """Make a token called NAME and print it; it cannot be shown again.

    Clients send it as `authorization: Bearer TOKEN`, or as a password (the user name does not matter):

    \b
        bazel build //... "--remote_header=authorization=Bearer TOKEN"
    """  # noqa: D301  # click's mark for text that is not to be wrapped
    from nl.auth.tokens import add_entry, hash_token, new_token, read_text, write_atomically

    words = [word.strip() for each in allow for word in each.split(",") if word.strip()]
    for word in words:
        if word not in ALLOW:
            raise click.BadParameter(f"{word!r} is none of {', '.join(ALLOW)}", param_hint="--allow")
    now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    token = new_token()
    entry: dict[str, object] = {
        "name": name,
        "sha256": hash_token(token.encode()).hex(),
        "grants": [{"allow": list(dict.fromkeys(words)), "instances": list(instances)}],
        "created": _text(now),
    }
    if expires is not None:
        entry["expires"] = _text(_end(now, expires))
    with _locked(path):
        text = read_text(path) if Path(path).exists() else ""
        write_atomically(path, add_entry(text, entry, source=path))
    click.echo(token)
    return 0


@command.command("list")
@_FILE
def list_tokens(path: str) -> int:
    """List names, rights and ends."""
    from nl.auth.tokens import read_tokens

    now = datetime.datetime.now(datetime.UTC).timestamp()
    for entry in read_tokens(path):
        rights = "; ".join(
            f"{', '.join(grant.allow)} for {', '.join(map(repr, grant.instances))}" for grant in entry.grants
        )
        ended = " (expired)" if entry.expires_at <= now else ""
        end = f"  until {entry.expires}{ended}" if entry.expires else ""
        click.echo(f"{entry.name}  {rights}{end}")
    return 0


@command.command("revoke")
@click.argument("name")
@_FILE
def revoke(name: str, *, path: str) -> int:
    """Take the token called NAME out of the file."""
    from nl.auth.tokens import read_text, remove_entry, write_atomically

    with _locked(path):
        write_atomically(path, remove_entry(read_text(path), name, source=path))
    return 0


@contextmanager
def _locked(path: str) -> Iterator[None]:
    """Two commands at once do not lose each other's change. The lock is on the folder: the file itself is replaced.

    Of the file itself, where the path is a link: others may know it by another.
    """
    folder = Path(path).resolve().parent
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as exc:
        raise click.ClickException(f"{folder} cannot be opened: {exc.strerror}") from exc
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _end(now: datetime.datetime, text: str) -> datetime.datetime:
    from nl.config.values import duration

    try:
        seconds = duration(text, {})
        if seconds < 1:
            raise ValueError(f"{text!r} is shorter than a second")
        return now + datetime.timedelta(seconds=int(seconds))
    except OverflowError:
        raise click.BadParameter(f"{text!r} is too long", param_hint="--expires") from None
    except ValueError as exc:
        raise click.BadParameter(f'{exc}; expected a duration such as "90d" or "12h"', param_hint="--expires") from None


def _text(time: datetime.datetime) -> str:
    return time.isoformat().replace("+00:00", "Z")
