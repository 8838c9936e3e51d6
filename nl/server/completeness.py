"""Who looks whether an action result is complete, for each entry of `ac`: the service, the store behind it, or nobody.

One `Completeness` for each CAS, so that what results refer to is remembered once, whoever asks: GetActionResult on any
listener, and Execute's look into the cache.
"""

from __future__ import annotations

from collections.abc import Iterator

from nl.cas.completeness import Completeness
from nl.config.document import Config
from nl.config.servers import AcService, ByteStreamService, CasService, ExecutionService, ServerOptions
from nl.storage.builder import StoreGraph
from nl.storage.capabilities import ChecksCompleteness


class CompletenessChecks:
    """The checks of a whole config. Asked while the server is put together, and by `nl config check`."""

    def __init__(self, config: Config, graph: StoreGraph) -> None:
        self._config = config
        self._graph = graph
        self._by_cas: dict[str, Completeness] = {}

    def of(self, server: ServerOptions, entry: AcService) -> Completeness | None:
        """What an entry's results are checked with; None where the store does it, or nobody shall or can."""
        cas = self._cas_of(server, entry)
        if cas is None or not entry.check_completeness:
            return None
        return self.against(entry.ac_store, cas)

    def against(self, ac_store: str, cas: str) -> Completeness | None:
        """What the results of a store are checked with, against that CAS; None where the store itself does it."""
        if self._graph[ac_store].capability(ChecksCompleteness) is not None:
            return None
        if cas not in self._by_cas:
            self._by_cas[cas] = Completeness(self._graph[cas], name=cas)
        return self._by_cas[cas]

    def lines(self) -> Iterator[str]:
        """In words, a line for each entry."""
        for server in self._config.servers:
            for entry in server.services.ac or ():
                what = f"action results of instance {entry.instance_name!r} on {server.listener.http.socket_address}"
                yield f"{what}: {self._said(server, entry)}"

    def _said(self, server: ServerOptions, entry: AcService) -> str:
        if self._graph[entry.ac_store].capability(ChecksCompleteness) is not None:
            return f"{entry.ac_store} itself gives only those whose outputs are there (completeness_checking)"
        if not entry.check_completeness:
            return "given also when their outputs are gone (check_completeness is false)"
        cas = self._cas_of(server, entry)
        if cas is None:
            return "given also when their outputs are gone (no cas or execution names this instance)"
        return f"only those whose outputs are in {cas}"

    def _cas_of(self, server: ServerOptions, entry: AcService) -> str | None:
        """The store of the entry's instance name: on its own listener if that has one, else on any other."""
        for each in (server, *self._config.servers):
            services = each.services
            others: tuple[CasService | ExecutionService | ByteStreamService, ...] = (
                *(services.cas or ()), *(services.execution or ()), *(services.bytestream or ())
            )
            for other in others:
                if other.instance_name == entry.instance_name:
                    return other.cas_store
        return None
