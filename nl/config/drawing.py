"""A config drawn as text: the stores as trees with their paths and sizes, then listeners and workers.

For logs and `nl config check`. Draws what is configured, not what is running.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

from nl.config import types as t
from nl.config.auth import AuthOptions, GrantOptions
from nl.config.document import Config
from nl.config.fields import Unsupported, child_specs, fields_of, join, walk, without_none
from nl.config.values import format_duration, format_size


def draw(config: Config) -> str:
    """The whole config, several lines, no line end."""
    lines: list[str] = []
    for store in config.stores:
        lines += _tree(f"store {store.name}", store.spec)
    lines += [f"scheduler {one.name}: {one.spec.kind}" for one in config.schedulers]
    for i, server in enumerate(config.servers):
        http = server.listener.http
        services = [one.key for one in fields_of(type(server.services))
                    if one.marker(Unsupported) is None and getattr(server.services, one.attribute) is not None]
        name = f" ({server.name})" if server.name else ""
        tls = " with TLS" if http.tls else ""
        lines.append(f"listener {http.socket_address}{name}{tls}: {', '.join(services) or 'no services'}")
        lines += [f"  {line}" for line in _doors(config.auth_of(i)[1])]
    for i, worker in enumerate(config.workers):
        local = worker.local
        lines.append(f"worker {local.name or i}: store {local.cas_fast_slow_store}, work in {local.work_directory}, "
                     f"scheduler at {local.worker_api_endpoint.uri}")
    return "\n".join(lines)


def _doors(auth: AuthOptions | None) -> Iterator[str]:
    """Who may do what on a listener."""
    if auth is None:
        yield "everybody may do everything"
        return
    if auth.tokens_file is not None:
        yield f"tokens of {auth.tokens_file}"
    for issuer in auth.jwt:
        for grant in issuer.grants:
            claims = " ".join(f"{name}={pattern}" for name, pattern in grant.claims.items()) or "all"
            yield f"web tokens of {issuer.name} ({claims}): {_rights(grant)}"
    for certificate in auth.certificates:
        names = {"uri": certificate.uri, "dns": certificate.dns, "email": certificate.email,
                 "cn": certificate.common_name}
        asked = " ".join(f"{kind}={pattern}" for kind, pattern in names.items() if pattern is not None)
        yield f"certificates ({asked}): {_rights(certificate)}"
    for everybody in auth.anonymous:
        yield f"everybody: {_rights(everybody)}"


def _rights(grant: GrantOptions) -> str:
    return f"{', '.join(grant.allow)} for {', '.join(map(repr, grant.instances))}"


def draw_store(name: str, spec: t.StoreSpec) -> str:
    """One store and its children, several lines, no line end."""
    return "\n".join(_tree(name, spec))


def _tree(label: str, spec: t.StoreSpec) -> Iterator[str]:
    facts = "  ".join(facts_of(spec.options))
    yield f"{label}: {spec.kind}" + (f"  {facts}" if facts else "")
    children = child_specs(spec.options)
    for i, (path, child) in enumerate(children):
        last = i == len(children) - 1
        for n, line in enumerate(_tree(path, child)):
            lead = ("└─ " if last else "├─ ") if n == 0 else ("   " if last else "│  ")
            yield lead + line


def facts_of(options: t.Options, path: str = "") -> Iterator[str]:
    """The options that differ from their defaults, as `key=value`; names of other stores as arrows."""
    for one in fields_of(type(options)):
        value, key = getattr(options, one.attribute), join(path, one.key)
        if isinstance(value, t.Options):
            yield from facts_of(value, key)
        elif value != one.default and not isinstance(value, (t.StoreSpec, tuple, dict)):
            yield _fact(key, value, without_none(one.annotation)[0])
        elif isinstance(value, tuple):
            addresses = [each for _, each in walk(value, into_children=False) if type(each) is t.ServerAddress]
            if addresses:
                yield f"{key} -> {', '.join(addresses)}"


def _fact(key: str, value: object, annotation: object) -> str:
    if annotation is t.SecretText:
        return f"{key}=***"
    if annotation is t.StoreName:
        return f"{key} -> {value}"
    if annotation is t.Size and isinstance(value, int):
        return f"{key}={format_size(value)}"
    if annotation in (t.Duration, t.SignedDuration) and isinstance(value, (int, float)):
        return f"{key}={format_duration(value)}"
    return f"{key}={value}" if get_args(annotation) or not isinstance(value, bool) else f"{key}={str(value).lower()}"
