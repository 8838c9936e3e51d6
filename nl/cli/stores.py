"""`nl stores`: what is installed, and whether what a config names works."""

from __future__ import annotations

import click

from nl.config.registry import StoreKinds
from nl.errors import PluginError


@click.group("stores")
def command() -> None:
    """Show the installed store kinds; ask those of a config whether they work."""


@command.command("list")
def list_stores() -> int:
    """List the store kinds that a config may use, with the distribution that brings each.

    The exit code is 1 if one of them cannot be loaded.
    """
    kinds, broken = StoreKinds(), 0
    names = kinds.names()
    width = max((len(name) for name in names), default=0)
    for name in names:
        try:
            kinds.load(name, name)
            click.echo(f"{name:<{width}}  {kinds.distribution(name)}")
        except PluginError as exc:
            broken += 1
            click.echo(f"{name:<{width}}  broken: {exc.problem}")
    return 1 if broken else 0


@command.command("check")
@click.argument("file", type=click.Path())
@click.option("--no-write", is_flag=True, help="Only ask; otherwise a small blob is written, read and taken out again.")
def check(file: str, *, no_write: bool) -> int:
    """Ask every store of the config FILE whether it can be reached, written to and read from, and how fast.

    One line each; the exit code is 1 if one of them does not work. A server may run on the same config meanwhile.
    """
    from functools import partial

    import trio

    from nl.config.loader import in_file, load_file
    from nl.errors import ConfigError
    from nl.storage.builder import build_stores
    from nl.storage.checking import check_store, stores_to_check

    kinds = StoreKinds()
    config = load_file(file, kinds=kinds, on_warning=lambda line: click.echo(f"warning: {line}", err=True))
    try:
        graph = build_stores(config.stores, kinds=kinds)
    except ConfigError as exc:
        raise in_file(exc, file) from exc
    broken = 0
    for built in stores_to_check(graph):
        found = trio.run(partial(check_store, built, writes=not no_write))
        broken += not found.works
        click.echo(f"{'ok' if found.works else 'FAILED':<6}  {found.name}  {found.kind}: {found.text}")
    return 1 if broken else 0
