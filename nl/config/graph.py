"""A config drawn for Graphviz: listeners and workers on the left, the stores that they reach on the right.

`nl config graph FILE | dot -Tsvg > config.svg`. What drawing.py is for terminals this is for pictures; both show what
is configured, not what is running.
"""

from __future__ import annotations

from collections.abc import Iterator

from nl.config import types as t
from nl.config.document import Config
from nl.config.drawing import facts_of
from nl.config.fields import child_specs, fields_of, walk
from nl.config.servers import ServicesOptions

_HEAD = """\
digraph nl {
  rankdir=LR;
  node [shape=box, style=rounded, fontname="sans-serif", fontsize=11];
  edge [fontname="sans-serif", fontsize=9];"""


def graph(config: Config) -> str:
    """The whole config in Graphviz's language, several lines, no line end."""
    lines = [_HEAD]
    for i, server in enumerate(config.servers):
        http, node = server.listener.http, f"listener {i}"
        title = f"{http.socket_address}{' with TLS' if http.tls else ''}"
        lines.append(_node(node, [*([server.name] if server.name else []), title], shape="house"))
        lines += _services(node, server.services)
    for i, worker in enumerate(config.workers):
        local, node = worker.local, f"worker {i}"
        lines.append(_node(node, [f"worker {local.name or i}", f"asks {local.worker_api_endpoint.uri}"], shape="cds"))
        lines += [_edge(node, target, "") for target in _targets(local)]
    for scheduler in config.schedulers:
        node = f"scheduler {scheduler.name}"
        lines.append(_node(node, [scheduler.name, scheduler.spec.kind], shape="component"))
        lines += [_edge(node, target, "") for target in _targets(scheduler.spec.options)]
    for store in config.stores:
        lines += _store(f"store {store.name}", store.name, store.spec)
    return "\n".join([*lines, "}"])


def _services(node: str, services: ServicesOptions) -> Iterator[str]:
    """One edge to each store and scheduler, with the services that use it."""
    users: dict[str, list[str]] = {}
    for service in fields_of(type(services)):
        for target in _targets(getattr(services, service.attribute)):
            users.setdefault(target, []).append(service.key)
    for target, keys in users.items():
        yield _edge(node, target, ", ".join(keys))


def _store(node: str, label: str, spec: t.StoreSpec) -> Iterator[str]:
    """A store, its children, and what it refers to by name."""
    yield _node(node, [label, spec.kind, *facts_of(spec.options)], shape="cylinder")
    for path, child in child_specs(spec.options):
        yield _edge(node, f"{node}.{path}", "")
        yield from _store(f"{node}.{path}", path, child)
    for _, value in walk(spec.options, into_children=False):
        if type(value) is t.StoreName and value:
            yield _edge(node, f"store {value}", "", style="dashed")


def _targets(value: object) -> list[str]:
    """The nodes of the stores and schedulers that a part of the config names, each once."""
    found: dict[str, None] = {}
    for _, name in walk(value):
        if type(name) is t.StoreName and name:
            found[f"store {name}"] = None
        elif type(name) is t.SchedulerName and name:
            found[f"scheduler {name}"] = None
    return list(found)


def _node(node: str, lines: list[str], *, shape: str) -> str:
    text = "\\n".join(map(_escaped, lines))
    return f'  "{_escaped(node)}" [shape={shape}, label="{text}"];'


def _edge(start: str, end: str, label: str, *, style: str = "solid") -> str:
    return f'  "{_escaped(start)}" -> "{_escaped(end)}" [label="{_escaped(label)}", style={style}];'


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ")
