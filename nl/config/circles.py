"""Stores that would ask themselves: whose server is a listener of this very config that serves them.

Stores that refer to each other by name in a circle are found by `checks`; this is the circle over the network. It works
on addresses as they are written: one through a proxy or a name of this machine is not seen, and costs its time limit.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from nl.config.document import Config
from nl.config.fields import walk
from nl.config.servers import AcService, ByteStreamService, CasService
from nl.config.servers import ServerOptions as ServerConfig
from nl.config.types import Options, ServerAddress, StoreName, StoreSpec
from nl.errors import ConfigError

_TCP = re.compile(r"(?:(grpcs?|https?)://|dns:(?://)?)?(\[[^\]]+\]|[^/:\s\[\]]+)(?::([0-9]{1,5}))?/?")
_ANY = ("0.0.0.0", "::", "")
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_Served = tuple[type[Options], str, str]
"""A kind of service, the instance, the name of the store."""


def check_no_circles(config: Config) -> None:
    """ConfigError, with the place of the address, for the first store that leads back to itself."""
    specs = {store.name: store.spec for store in config.stores}
    for index, server in enumerate(config.servers):
        for service, instance, name in _served(server):
            for path, spec in _reached(name, specs):
                for at, address in _addresses(spec, path):
                    if _leads_to(address, server) and _asks_for(spec.options, service, instance, server):
                        raise ConfigError(
                            at, f'"{address}" is servers[{index}], which serves this very store (instance '
                                f"{instance!r}); expected another server"
                        )


def _served(server: ServerConfig) -> Iterator[_Served]:
    services = server.services
    for cas in services.cas or ():
        yield CasService, cas.instance_name, cas.cas_store
    for stream in services.bytestream or ():
        yield ByteStreamService, stream.instance_name, stream.cas_store
    for results in services.ac or ():
        yield AcService, results.instance_name, results.ac_store


def _reached(name: str, specs: dict[str, StoreSpec]) -> Iterator[tuple[str, StoreSpec]]:
    """The stores that a named one stands on, itself and its children included. There are no circles of names."""
    for path, value in walk(specs[name], specs[name].path):
        if isinstance(value, StoreSpec):
            yield path, value
        elif type(value) is StoreName and value in specs:
            yield from _reached(value, specs)


def _addresses(spec: StoreSpec, path: str) -> Iterator[tuple[str, str]]:
    for at, value in walk(spec.options, f"{path}.{spec.kind}", into_children=False):
        if type(value) is ServerAddress:
            yield at, value


def _leads_to(address: str, server: ServerConfig) -> bool:
    host, port = server.listener.http.address
    if address.startswith("unix:"):
        return host.startswith("unix:") and address.replace("unix://", "unix:") == host.replace("unix://", "unix:")
    match = _TCP.fullmatch(address)
    if match is None or host.startswith("unix:"):
        return False
    given = match[2].strip("[]")
    given_port = int(match[3]) if match[3] else {"grpcs": 443, "https": 443}.get(match[1] or "", 80)
    same_host = given == host or (given in _LOOPBACK and (host in _ANY or host in _LOOPBACK)) or given in _ANY
    return same_host and port != 0 and given_port == port


def _asks_for(options: Options, service: type[Options], instance: str, server: ServerConfig) -> bool:
    """Whether a store with these options would ask this service for this instance, as far as the options say."""
    sort: Any = getattr(options, "store_type", None)
    if sort is not None and (sort == "ac") is not (service is AcService):
        return False
    asked: Any = getattr(options, "instance_name", None)
    if asked is None or asked == instance:
        return True
    known = {name for kind, name, _ in _served(server) if kind is service}
    return bool(server.any_instance_name) and asked not in known and not instance
