"""Who is let in where: from `auth` sections to authenticators, and what is said about listeners that have none."""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Iterator, Mapping, Sequence

from nl.auth.authenticator import Authenticator, authenticator_at
from nl.auth.grants import grants_of
from nl.auth.tokens import new_token
from nl.config.document import Config
from nl.config.servers import ServerOptions
from nl.model.access import Grant, Identity, Right

log = logging.getLogger("nl.server")
_ANY = ("0.0.0.0", "::")
_HARMFUL = ~(Right.READ_CAS | Right.READ_AC)
_HERE = ("127.0.0.1", "localhost", "::1")


class Doors:
    """The authenticators of a config: one for each `auth` section. Raises ConfigError for files that are not right."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._by_path: dict[str, Authenticator] = {}
        self.worker_token = new_token()
        """With which this process's own workers come in on its own listeners."""
        worker = Identity("this process", [Grant(("*",), Right.REGISTER_WORKERS)])
        for index in range(len(config.servers)):
            path, options = config.auth_of(index)
            if options is not None and path not in self._by_path:
                authenticator = self._by_path[path] = authenticator_at(options, path=path)
                authenticator.add_token(self.worker_token, worker)

        if self._by_path:
            for line in _shared_caches(config):
                log.warning("%s", line)
        self.instances = _instances(config)
        """The names of all instances that anything is served for, at least one: who administers the server has all."""

    def statistics(self) -> dict[str, Mapping[str, int]]:
        """Figures by the path of the section."""
        return {path: authenticator.statistics() for path, authenticator in self._by_path.items()}

    @property
    def authenticators(self) -> Sequence[Authenticator]:
        """All, each once: they have to be run."""
        return list(self._by_path.values())

    def at(self, index: int) -> Authenticator | None:
        """Who says who comes in at `servers[index]`; None: everybody does."""
        return self._by_path.get(self._config.auth_of(index)[0])

    def leads_here(self, host: str, port: int) -> bool:
        """Whether an address is that of a listener of this config that asks for credentials, seen from here."""
        for index, server in enumerate(self._config.servers):
            bound_host, bound_port = server.listener.http.address
            is_same = host == bound_host or (bound_host in _ANY and host in _HERE)
            if self.at(index) is not None and is_same and port == bound_port:
                return True
        return False

    def warn(self, index: int, addresses: Sequence[str]) -> None:
        """Log lines for a listener that strangers reach and that has no door, or a door of glass.

        One that asks everybody for a certificate has one.
        """
        server = self._config.servers[index]
        reachable = [each for each in addresses if is_reachable(each)]
        if not reachable:
            return
        where = ", ".join(reachable)
        tls = server.listener.http.tls
        path, options = self._config.auth_of(index)
        if options is None:
            if tls is None or tls.client_ca_file is None or tls.client_auth == "accept":
                log.warning("%s", open_warning(server, where))
            return
        if tls is None:
            log.warning("%s takes credentials without TLS: whoever sees the traffic can use them", where)
        for_all = Right(0)
        for grant in grants_of(options.anonymous):
            for_all |= grant.rights & _HARMFUL
        if for_all:
            what = f"everybody who reaches it {for_all.words}, without any credentials"
            log.warning("%s: %s.anonymous gives %s", where, path, what)


def _shared_caches(config: Config) -> Iterator[str]:
    """One line for each action cache under several names: rights for one of them are rights for all."""
    names: dict[str, set[str]] = {}
    for server in config.servers:
        for entry in server.services.ac or ():
            names.setdefault(entry.ac_store, set()).add(entry.instance_name)
    for store, found in names.items():
        if len(found) > 1:
            shown = ", ".join(map(repr, sorted(found)[:10]))
            yield (
                f"the instances {shown} keep their action results in the same store '{store}': who may write those of "
                "one writes those of all; expected a store for each, if rights are to keep them apart"
            )


def _instances(config: Config) -> frozenset[str]:
    names = {
        entry.instance_name
        for server in config.servers
        for kind in ("cas", "ac", "bytestream", "execution", "capabilities")
        for entry in getattr(server.services, kind) or ()
    }
    return frozenset(names or {""})


def is_reachable(address: str) -> bool:
    """Whether other machines may reach `host:port` as it was bound; names and sockets of files are not addresses."""
    host = address.rpartition(":")[0].strip("[]").partition("%")[0]
    try:
        found = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return not (mapped or found).is_loopback


def open_warning(server: ServerOptions, where: str) -> str:
    """What everybody may do on a listener without authentication, and the two commands that end it."""
    services = server.services
    allowed = []
    if services.cas or services.bytestream:
        allowed.append("read and write blobs")
    if services.ac:
        writable = any(not entry.read_only for entry in services.ac)
        allowed.append(f"read {'and WRITE ' if writable else ''}action results")
    if services.execution:
        allowed.append("run actions")
    if services.worker_api is not None:
        allowed.append("register workers, whose results everybody then gets")
    what = "; ".join(allowed) or "ask for health and services"
    return (
        f"no authentication: everybody who reaches {where} may {what}. To close it: `nl token create ci --allow all "
        "--file tokens`, then `nl serve --tokens tokens`, or auth: { tokens_file: \"tokens\" } in a config file"
    )
