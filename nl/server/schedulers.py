"""From a config to its schedulers: those in front of others, and what they ask before anything is queued."""

from __future__ import annotations

from dataclasses import dataclass

from nl.config import schedulers as cfg
from nl.config.document import Config
from nl.errors import InternalError
from nl.scheduler.cache_lookup import CacheLookupScheduler
from nl.scheduler.contract import Lookup, Scheduler
from nl.scheduler.historical_resource import HistoricalResourceScheduler
from nl.scheduler.property_modifier import Add, Modification, PropertyModifierScheduler, Remove, Replace
from nl.scheduler.simple import SimpleScheduler
from nl.server.completeness import CompletenessChecks
from nl.server.lookup import lookup_by_instance
from nl.server.services import cache_lookups
from nl.services.execution import cache_lookup
from nl.storage.builder import StoreGraph


def build_schedulers(config: Config, graph: StoreGraph, checks: CompletenessChecks) -> dict[str, Scheduler]:
    """The schedulers by their names. Each runs those behind it."""
    builder = _Builder(config, graph, checks, lookup_by_instance(cache_lookups(config, graph, checks)))
    return {entry.name: builder.build(entry.spec, entry.name) for entry in config.schedulers}


@dataclass(frozen=True, slots=True)
class _Builder:
    config: Config
    graph: StoreGraph
    checks: CompletenessChecks
    lookup: Lookup

    def build(self, spec: cfg.SchedulerSpec, name: str) -> Scheduler:
        """One scheduler, those behind it first."""
        match spec.options:
            case cfg.SimpleSchedulerOptions() as options:
                return SimpleScheduler(options, lookup=self.lookup, name=name)
            case cfg.CacheLookupOptions() as options:
                lookup = self._looking_into(options.ac_store)
                return CacheLookupScheduler(self.build(options.scheduler, name), lookup, name=name)
            case cfg.PropertyModifierOptions() as options:
                modifications = [_modification(each) for each in options.modifications]
                return PropertyModifierScheduler(self.build(options.scheduler, name), modifications, name=name)
            case cfg.HistoricalResourceOptions() as options:
                return HistoricalResourceScheduler(
                    self.build(options.scheduler, name),
                    hints_file=options.hints_file,
                    refresh_s=options.refresh_interval_s,
                    cpu_name=options.cpu_property_name,
                    memory_name=options.memory_property_name,
                    name=name,
                )
        raise InternalError(f"nothing builds a scheduler of the kind {spec.kind}")

    def _looking_into(self, ac_store: str) -> Lookup:
        """Hits are results whose outputs are in the CAS of the instance that asks, as everywhere."""
        return lookup_by_instance({
            entry.instance_name: cache_lookup(self.graph[ac_store], self.checks.against(ac_store, entry.cas_store))
            for server in self.config.servers
            for entry in server.services.execution or ()
        })


def _modification(one: cfg.PropertyModification) -> Modification:
    if one.add is not None:
        return Add(one.add.name, one.add.value)
    if one.replace is not None:
        given = one.replace
        return Replace(given.name, given.new_name, given.value, given.new_value)
    assert one.remove is not None
    return Remove(one.remove)
