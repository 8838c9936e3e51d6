"""What an instance is said to be able to do."""

import pytest

from nl.pb import reapi
from nl.services.capabilities import CapabilitiesInstance, CapabilitiesService
from tests.unit.services.memory_stream import call


async def said(**instance):
    service = CapabilitiesService({"": CapabilitiesInstance(**{"max_batch_bytes": 5, **instance})})
    [reply] = await call(service, "GetCapabilities", reapi.GetCapabilitiesRequest())
    return reply


async def test_versions_are_those_that_old_and_new_clients_take():
    reply = await said()
    assert (reply.low_api_version.major, reply.low_api_version.minor) == (2, 0)
    assert (reply.high_api_version.major, reply.high_api_version.minor) == (2, 12)


async def test_what_is_not_said_otherwise():
    cache = (await said()).cache_capabilities
    assert (cache.max_batch_total_size_bytes, cache.max_cas_blob_size_bytes) == (5, 0)
    assert cache.action_cache_update_capabilities.update_enabled
    assert (cache.supported_compressors, cache.supported_batch_update_compressors) == ([], [])
    assert cache.digest_functions == [reapi.DigestFunctionValue.SHA256, reapi.DigestFunctionValue.BLAKE3]
    assert cache.symlink_absolute_path_strategy == reapi.SymlinkAbsolutePathStrategyValue.ALLOWED
    assert (await said()).execution_capabilities is None


async def test_there_is_one_priority_of_results_and_every_priority_of_actions():
    reply = await said(execution=True)
    [results] = reply.cache_capabilities.cache_priority_capabilities.priorities
    assert (results.min_priority, results.max_priority) == (0, 0)
    [actions] = reply.execution_capabilities.execution_priority_capabilities.priorities
    assert (actions.min_priority, actions.max_priority) == (-(2**31), 2**31 - 1)


async def test_execution_is_described_with_what_workers_keep():
    described = (await said(execution=True, supported_node_properties=("mtime", "unix_mode"))).execution_capabilities
    assert described.exec_enabled
    assert described.digest_function == reapi.DigestFunctionValue.SHA256
    assert described.digest_functions == [reapi.DigestFunctionValue.SHA256, reapi.DigestFunctionValue.BLAKE3]
    assert described.supported_node_properties == ["mtime", "unix_mode"]


@pytest.mark.parametrize("enabled", [True, False])
async def test_updates_are_announced_where_they_are_taken(enabled):
    reply = await said(update_enabled=enabled, max_blob_bytes=77)
    assert reply.cache_capabilities.action_cache_update_capabilities.update_enabled is enabled
    assert reply.cache_capabilities.max_cas_blob_size_bytes == 77
