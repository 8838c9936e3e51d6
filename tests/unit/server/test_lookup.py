"""Each instance's actions are looked up in that instance's action cache, and in no other."""

import hashlib

from nl.cas.action_results import store_action_result
from nl.model.digest import Digest, DigestFunction
from nl.model.execution import ActionRequest
from nl.pb import reapi
from nl.pb.codec import decode, encode
from nl.server.lookup import lookup_by_instance
from nl.services.execution import cache_lookup
from nl.stores.memory import MemoryOptions, MemoryStore
from nl.testing.context import BareContext


def action(name):
    return Digest(hashlib.sha256(name.encode()).hexdigest(), len(name))


async def cache_with(*results):
    """A cache that has results of these actions, all with this exit code."""
    store = MemoryStore(MemoryOptions(), BareContext("AC"))
    for name, exit_code in results:
        await store_action_result(store, action(name), encode(reapi.ActionResult(exit_code=exit_code)))
    return store


async def test_an_action_is_looked_up_in_the_cache_of_its_own_instance_and_in_no_other():
    look_up = lookup_by_instance(
        {
            "": cache_lookup(await cache_with(("both", 1), ("nameless", 1))),
            "main": cache_lookup(await cache_with(("both", 2), ("main", 2))),
        }
    )

    async def found(instance, name):
        request = ActionRequest(instance, action(name), DigestFunction.SHA256)
        response = await look_up(request)
        return None if response is None else decode(reapi.ExecuteResponse, response).result.exit_code

    assert [await found("", name) for name in ("both", "nameless", "main")] == [1, 1, None]
    assert [await found("main", name) for name in ("both", "nameless", "main")] == [2, None, 2]
    assert [await found("other", name) for name in ("both", "nameless", "main")] == [None, None, None]
