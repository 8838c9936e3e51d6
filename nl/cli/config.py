"""`nl config`: everything about a config that needs no running server."""

from __future__ import annotations

import json

import click

from nl.cli.serve import all_in_one_options
from nl.config.registry import StoreKinds


@click.group("config")
def command() -> None:
    """Check a config; print the default one, the schema, the reference of all options."""


@command.command("check")
@click.argument("file", type=click.Path())
def check(file: str) -> int:
    """Check the config FILE and draw its stores and listeners. Nothing is opened or started."""
    from nl.config.drawing import draw
    from nl.config.loader import in_file, load_file
    from nl.errors import ConfigError
    from nl.server.completeness import CompletenessChecks
    from nl.storage.builder import build_stores

    kinds = StoreKinds()
    config = load_file(file, kinds=kinds, on_warning=lambda line: click.echo(f"warning: {line}", err=True))
    try:
        graph = build_stores(config.stores, kinds=kinds)
    except ConfigError as exc:
        raise in_file(exc, file) from exc
    click.echo("\n".join((f"OK {file}", draw(config), *CompletenessChecks(config, graph).lines())))
    return 0


@command.command("graph")
@click.argument("file", type=click.Path())
def graph(file: str) -> int:
    """Print the stores, listeners and workers of the config FILE as a graph for Graphviz.

    A picture of it: nl config graph FILE | dot -Tsvg > config.svg
    """
    from nl.config.graph import graph
    from nl.config.loader import load_file

    click.echo(graph(load_file(file, kinds=StoreKinds(), on_warning=lambda line: click.echo(line, err=True))))
    return 0


@command.command("schema")
def schema() -> int:
    """Print the JSON schema of configs, installed store kinds included."""
    from nl.config.schema import config_schema

    click.echo(json.dumps(config_schema(StoreKinds()), indent=2))
    return 0


@command.command("reference")
@click.option("--installed", is_flag=True, help="With the store kinds of all installed plugins.")
def reference(*, installed: bool) -> int:
    """Print the reference of all options as Markdown."""
    from nl.config.reference import config_reference

    click.echo(config_reference(StoreKinds() if installed else StoreKinds.of_project()), nl=False)
    return 0


@command.command("default")
@all_in_one_options
def default(
    *,
    listen: tuple[str, ...],
    port: int,
    data_dir: str | None,
    max_bytes: int,
    tokens: str | None,
    isolation: str | None,
) -> int:
    """Print the config that `nl serve` runs without a file, to start one's own from."""
    from pathlib import Path

    from nl.server.defaults import default_config, default_data_directory

    directory = Path(data_dir) if data_dir else default_data_directory()
    text = default_config(
        listen=listen, port=port, data_dir=directory, max_bytes=max_bytes, tokens=tokens, isolation=isolation
    )
    click.echo(text)
    return 0
