"""`nl stores`: what is installed."""

from __future__ import annotations

import click

from nl.config.registry import StoreKinds
from nl.errors import PluginError


@click.group("stores")
def command() -> None:
    """Show the installed store kinds."""


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
