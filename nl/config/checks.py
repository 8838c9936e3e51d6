"""What holds between the parts of a config: names are unique and lead somewhere, and nothing goes round in circles.

Works on the converted config alone; every finding is a ConfigError with the path of the place to mend.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from nl.config.circles import check_no_circles
from nl.config.convert import suggest
from nl.config.document import Config, NamedStore
from nl.config.fields import join, walk
from nl.config.servers import AcService, CasService
from nl.config.types import StoreName
from nl.config.values import show
from nl.errors import ConfigError


def check(config: Config, references: Sequence[tuple[str, str]]) -> None:
    """All checks, in an order in which the first finding is the root of later ones.

    `references` are the store and scheduler names that the file uses, with their paths (`Conversion.references`).
    """
    _unique_names(config)
    _references(config, references)
    _store_circles(config)
    check_no_circles(config)
    _cas_is_not_ac(config)
    _unique_addresses(config)
    _one_entry_per_instance(config)
    _workers_have_a_scheduler_here(config)
    _certificates_are_asked_for(config)
    if not config.servers and not config.workers:
        raise ConfigError("", "the config has nothing to run; expected servers, workers or both")


def _unique_names(config: Config) -> None:
    for entries in (config.stores, config.schedulers):
        first: dict[str, str] = {}
        for entry in entries:
            _claim(first, entry.name, entry.spec.path, join(entry.spec.path, "name"))
    workers: dict[str, str] = {}
    for i, worker in enumerate(config.workers):
        if worker.local.name:
            _claim(workers, worker.local.name, f"workers[{i}]", f"workers[{i}].local.name")


def _claim(taken: dict[str, str], name: str, owner: str, path: str) -> None:
    if name in taken:
        raise ConfigError(path, f"{show(name)} is already the name of {taken[name]}; expected another name")
    taken[name] = owner


def _references(config: Config, references: Sequence[tuple[str, str]]) -> None:
    stores = [store.name for store in config.stores]
    schedulers = [scheduler.name for scheduler in config.schedulers]
    for path, name in references:
        word, names = ("store", stores) if type(name) is StoreName else ("scheduler", schedulers)
        if name not in names:
            expected = f"expected one of {', '.join(names)}" if names else f"there are no {word}s"
            raise ConfigError(path, f"there is no {word} {show(name)}{suggest(name, names)}; {expected}")


def references_of(store: NamedStore) -> list[tuple[str, str]]:
    """The named stores that a store refers to, itself or in its children, each with the path of the reference."""
    return [(path, str(value)) for path, value in walk(store.spec, store.spec.path)
            if type(value) is StoreName and value]


def _store_circles(config: Config) -> None:
    by_name = {store.name: store for store in config.stores}
    done: set[str] = set()

    def visit(name: str, trail: list[str]) -> None:
        if name in done:
            return
        for path, target in references_of(by_name[name]):
            if target in trail:
                circle = " -> ".join([*trail[trail.index(target):], target])
                raise ConfigError(path, f"stores refer to each other in a circle, {circle}; expected an end somewhere")
            if target in by_name:
                visit(target, [*trail, target])
        done.add(name)

    for store in config.stores:
        visit(store.name, [store.name])


def _entries(config: Config, kind: Callable[..., object]) -> Iterator[tuple[int, str, object]]:
    for i, server in enumerate(config.servers):
        for path, value in walk(server.services, f"servers[{i}].services"):
            if type(value) is kind:
                yield i, path, value


def _cas_is_not_ac(config: Config) -> None:
    cas = {(i, value.instance_name): value.cas_store for i, _, value in _entries(config, CasService)
           if isinstance(value, CasService)}
    for i, path, value in _entries(config, AcService):
        if isinstance(value, AcService) and cas.get((i, value.instance_name)) == value.ac_store:
            raise ConfigError(f"{path}.ac_store", f"CAS and AC use the same store '{value.ac_store}' in the config; "
                                                  "expected a store of its own for each")


def _unique_addresses(config: Config) -> None:
    first: dict[tuple[str, int], int] = {}
    for i, server in enumerate(config.servers):
        address = server.listener.http.address
        if address[1] and address in first:
            raise ConfigError(f"servers[{i}].listener.http.socket_address",
                              f"servers[{first[address]}] listens there already; expected another address")
        first[address] = i


def _workers_have_a_scheduler_here(config: Config) -> None:
    """Workers of another server's scheduler connect there."""
    schedulers = {entry.name: entry.spec for entry in config.schedulers}
    for i, server in enumerate(config.servers):
        service = server.services.worker_api
        if service is None:
            continue
        spec = schedulers[service.scheduler]
        while (behind := getattr(spec.options, "scheduler", None)) is not None:
            spec = behind
        if spec.kind == "grpc":
            raise ConfigError(f"servers[{i}].services.worker_api.scheduler",
                              f"{show(service.scheduler)} is the scheduler of another server, where its workers "
                              "connect; expected one with a simple scheduler behind it")


def _certificates_are_asked_for(config: Config) -> None:
    """Grants for certificates that no listener could ever see are a mistake."""
    useless: dict[str, bool] = {}
    for i, server in enumerate(config.servers):
        path, auth = config.auth_of(i)
        if auth is not None and auth.certificates:
            tls = server.listener.http.tls
            useless[path] = useless.get(path, True) and (tls is None or tls.client_ca_file is None)
    for path, is_useless in useless.items():
        if is_useless:
            where = "no listener that uses them has a" if path == "auth" else "the listener has no"
            raise ConfigError(f"{path}.certificates", f"never match: {where} tls.client_ca_file; expected one")


def _one_entry_per_instance(config: Config) -> None:
    for i, server in enumerate(config.servers):
        for service in ("cas", "ac", "capabilities", "execution", "bytestream"):
            seen: set[str] = set()
            for j, entry in enumerate(getattr(server.services, service) or ()):
                if entry.instance_name in seen:
                    raise ConfigError(f"servers[{i}].services.{service}[{j}].instance_name",
                                      f"{show(entry.instance_name)} has an entry already; expected one per instance")
                seen.add(entry.instance_name)
