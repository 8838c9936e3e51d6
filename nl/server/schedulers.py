"""From a config to its schedulers: those in front of others, and what they ask before anything is queued."""

from __future__ import annotations

from dataclasses import dataclass

import trio

from nl.config import schedulers as cfg
from nl.config.document import Config
from nl.errors import ConfigError, InternalError
from nl.rpc.channel import Channel
from nl.scheduler.cache_lookup import CacheLookupScheduler
from nl.scheduler.contract import Lookup, Scheduler
from nl.scheduler.historical_resource import HistoricalResourceScheduler
from nl.scheduler.property_modifier import Add, Modification, PropertyModifierScheduler, Remove, Replace
from nl.scheduler.simple import SimpleScheduler
from nl.server.completeness import CompletenessChecks
from nl.server.lookup import lookup_by_instance
from nl.server.services import cache_lookups
from nl.services.execution import cache_lookup
from nl.services.limits import ACTION_RESULT_MESSAGE_BYTES
from nl.services.remote_scheduler import RemoteLimits, RemoteScheduler
from nl.storage.builder import StoreGraph
from nl.stores.grpc.endpoints import Endpoints
from nl.stores.grpc.options import GrpcEndpoint, GrpcOptions


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
            case cfg.GrpcSchedulerOptions() as options:
                return _remote(options, name, path=f"{spec.path}.grpc")
        raise InternalError(f"nothing builds a scheduler of the kind {spec.kind}")

    def _looking_into(self, ac_store: str) -> Lookup:
        """Hits are results whose outputs are in the CAS of the instance that asks, as everywhere."""
        return lookup_by_instance({
            entry.instance_name: cache_lookup(self.graph[ac_store], self.checks.against(ac_store, entry.cas_store))
            for server in self.config.servers
            for entry in server.services.execution or ()
        })


def _remote(options: cfg.GrpcSchedulerOptions, name: str, *, path: str) -> RemoteScheduler:
    """Raises ConfigError for an address that is none, or a token in two places."""
    given = options.endpoint
    endpoint = GrpcEndpoint(
        address=given.address,
        tls_config=given.tls_config,
        compression=given.compression,
        token=given.token,
        token_file=given.token_file,
        concurrency_limit=given.concurrency_limit,
        connect_timeout_s=given.connect_timeout_s,
        tcp_keepalive_s=given.tcp_keepalive_s,
        http2_keepalive_interval_s=given.http2_keepalive_interval_s,
        http2_keepalive_timeout_s=given.http2_keepalive_timeout_s,
    )
    try:
        endpoint.check()
    except ConfigError as exc:
        raise ConfigError(f"{path}.endpoint.{exc.path}", exc.problem) from exc
    endpoints = Endpoints(
        GrpcOptions(
            endpoints=(endpoint,), store_type="cas", connections_per_endpoint=options.connections_per_endpoint
        ),
        name,
        max_message_size=ACTION_RESULT_MESSAGE_BYTES,
    )

    async def open_channel(nursery: trio.Nursery) -> Channel:
        channel = await endpoints.start()
        nursery.start_soon(endpoints.run)
        return channel

    limits = RemoteLimits(
        max_retries=options.retry.max_retries,
        first_pause_s=options.retry.delay,
        jitter=options.retry.jitter,
        retain_completed_for_s=options.retain_completed_for_s,
        client_action_timeout_s=options.client_action_timeout_s,
        max_operations=options.max_operations,
        max_retained_bytes=options.max_retained_bytes,
        max_concurrent=options.max_concurrent_requests,
    )
    return RemoteScheduler(open_channel, where=endpoints.names[0], name=name, limits=limits)


def _modification(one: cfg.PropertyModification) -> Modification:
    if one.add is not None:
        return Add(one.add.name, one.add.value)
    if one.replace is not None:
        given = one.replace
        return Replace(given.name, given.new_name, given.value, given.new_value)
    assert one.remove is not None
    return Remove(one.remove)
