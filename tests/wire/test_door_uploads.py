"""An upload belongs to whoever began it."""

import grpc
import trio

from nl.model.access import ALL_RIGHTS, Grant, Identity
from nl.rpc.options import ServerOptions
from nl.services.bytestream import ByteStreamInstance, ByteStreamService
from tests.support.foreign import BYTES, BYTESTREAM, digest, upload_name
from tests.support.serving import memory_store
from tests.wire.rpc_hosting import in_thread, serving

IDENTITIES = {name: Identity(name.decode(), [Grant(("*",), ALL_RIGHTS)]) for name in (b"one", b"two")}


async def test_nobody_resumes_or_asks_after_anothers_upload():
    data = bytes(range(256)) * 4096
    name = upload_name(digest(data))
    store = memory_store()
    service = ByteStreamService({"": ByteStreamInstance(store)})
    options = ServerOptions(authenticate=lambda peer, certificate, header: IDENTITIES[header])
    half = len(data) // 2

    def status(channel, who):
        call = channel.unary_unary(
            BYTES + "QueryWriteStatus", lambda m: m.SerializeToString(), BYTESTREAM.QueryWriteStatusResponse.FromString
        )
        reply = call(BYTESTREAM.QueryWriteStatusRequest(resource_name=name), metadata=[("authorization", who)])
        return reply.committed_size, reply.complete

    def write(channel, who, *messages):
        call = channel.stream_unary(
            BYTES + "Write", lambda m: m.SerializeToString(), BYTESTREAM.WriteResponse.FromString
        )
        return call(iter(messages), metadata=[("authorization", who)], timeout=20).committed_size

    def message(start, stop, **more):
        return BYTESTREAM.WriteRequest(resource_name=name, write_offset=start, data=data[start:stop], **more)

    def run(port):
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            try:
                write(channel, "one", message(0, half))
            except grpc.RpcError as exc:
                assert exc.code() is grpc.StatusCode.INVALID_ARGUMENT  # it ended without finish_write
            seen = [status(channel, "one"), status(channel, "two")]
            try:
                write(channel, "two", message(half, len(data), finish_write=True))
            except grpc.RpcError as exc:
                seen.append(exc.code())
            seen.append(status(channel, "one"))
            seen.append(write(channel, "one", message(half, len(data), finish_write=True)))
            seen.append(status(channel, "two"))
            return seen

    async with trio.open_nursery() as nursery:
        await nursery.start(store.run)
        await nursery.start(service.run)
        async with serving(service, options=options) as (_, port):
            seen = await in_thread(run, port)
        nursery.cancel_scope.cancel()
    assert seen == [
        (half, False), (0, False), grpc.StatusCode.INVALID_ARGUMENT, (half, False), len(data), (len(data), True)
    ]  # fmt: skip
