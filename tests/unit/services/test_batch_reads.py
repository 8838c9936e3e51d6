"""A reply to BatchReadBlobs counts what it says about each blob, too."""

import hashlib

from nl.model.digest import Digest
from nl.pb import reapi
from nl.pb.codec import encode
from nl.services.cas import CasInstance, CasService
from nl.services.limits import MESSAGE_BYTES, REPLY_BYTES
from tests.support.serving import memory_store
from tests.unit.services.memory_stream import call


async def test_many_small_blobs_that_fill_a_message_only_with_their_names_are_cut_off_in_time():
    store = memory_store()
    digests = []
    for number in range(20_000):
        blob = number.to_bytes(4, "big") * 50
        digest = Digest(hashlib.sha256(blob).hexdigest(), len(blob))
        digests.append(reapi.Digest(hash=digest.hash, size_bytes=digest.size))
        await store.put(digest, blob)
    assert 200 * len(digests) < REPLY_BYTES
    service = CasService({"": CasInstance(store)})
    [reply] = await call(service, "BatchReadBlobs", reapi.BatchReadBlobsRequest(digests=digests))
    codes = [0 if each.status is None else each.status.code for each in reply.responses]
    assert codes == sorted(codes)
    assert set(codes) == {0, 8}
    assert codes.count(0) > 10_000
    assert MESSAGE_BYTES * 0.95 < len(encode(reply)) < MESSAGE_BYTES
