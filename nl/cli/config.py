"""`nl config`: everything about a config that needs no running server."""

from __future__ import annotations

import json

import click

from nl.config.registry import StoreKinds


@click.group("config")
def command() -> None:
    """Check a config, print its schema or the reference of all options."""


@command.command("check")
@click.argument("file", type=click.Path())
def check(file: str) -> int:
    """Check the config FILE and draw its stores and listeners. Nothing is opened or started."""
    from nl.config.drawing import draw
    from nl.config.loader import load_file
    from nl.errors import ConfigError
    from nl.storage.builder import build_stores

    kinds = StoreKinds()
    config = load_file(file, kinds=kinds, on_warning=lambda line: click.echo(f"warning: {line}", err=True))
    try:
        build_stores(config.stores, kinds=kinds)
    except ConfigError as exc:
        raise type(exc)(exc.path, exc.problem, source=exc.source or file) from exc
    click.echo(f"OK {file}\n{draw(config)}")
    return 0


@command.command("schema")
def schema() -> int:
    """Print the JSON schema of configs, installed store kinds included."""
    from nl.config.schema import config_schema

    click.echo(json.dumps(config_schema(StoreKinds()), indent=2))
    return 0


@command.command("reference")
def reference() -> int:
    """Print the reference of all options as Markdown, installed store kinds included."""
    from nl.config.reference import config_reference

    click.echo(config_reference(StoreKinds()), nl=False)
    return 0
