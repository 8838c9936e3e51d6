"""However a handler ends, it ends its own call and nothing else of the connection."""

import pytest
import trio
from grpclib.const import Cardinality, Handler, Status
from grpclib.exceptions import GRPCError
from trio.testing import wait_all_tasks_blocked

from nl.errors import PreconditionError, Violation
from nl.rpc import frames as fr
from nl.rpc.frames import ErrorCode, Setting
from tests.wire.raw_h2 import RawClient, headers, message
from tests.wire.rpc_hosting import serving
from tests.wire.rpc_service import RawService


class Untidy:
    """Handlers that do not take their cancellation well."""

    def __init__(self):
        self.ended = []
        self.untidily = None

    async def echo(self, stream):
        await stream.send_message(await stream.recv_message())

    async def nursery(self, stream):
        """A task of its own fails while another is cancelled: what comes out is a group of both."""
        await stream.recv_message()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._breaks_when_cancelled)
                nursery.start_soon(trio.sleep_forever)
        finally:
            self.ended.append(stream.method)

    async def breaks(self, stream):
        await stream.recv_message()
        try:
            await self._breaks_when_cancelled()
        finally:
            self.ended.append(stream.method)

    async def swallows(self, stream):
        await stream.recv_message()
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            await stream.send_message(b"all the same")
        finally:
            self.ended.append(stream.method)

    async def lingers(self, stream):
        await stream.recv_message()
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                for _ in range(20):
                    await trio.lowlevel.checkpoint()
            self.ended.append(stream.method)

    async def _breaks_when_cancelled(self):
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError("while it was tidying up")

    def __mapping__(self):
        methods = {"Echo": self.echo, "Nursery": self.nursery, "Breaks": self.breaks, "Swallows": self.swallows,
                   "Lingers": self.lingers}
        return {f"/t.S/{name}": Handler(func, Cardinality.UNARY_UNARY, bytes, bytes) for name, func in methods.items()}


@pytest.fixture
async def service():
    yield Untidy()
    RawClient.close_all()


KINDS = ("Nursery", "Breaks", "Swallows", "Lingers")


@pytest.mark.parametrize("kind", KINDS)
async def test_a_reset_call_ends_alone_however_it_takes_that(service, kind):
    async with serving(service) as (server, port):
        client = await RawClient.connect(port)
        await client.send(headers(1, kind), message(1))
        await wait_all_tasks_blocked()
        await client.send(fr.rst_stream(1, ErrorCode.CANCEL))
        await client.send(headers(3, "Echo"), message(3, b"still here"))
        assert (await client.until(fr.DATA, sid=3)).endswith(b"still here")
        await wait_all_tasks_blocked()
        [connection] = server._connections
        assert service.ended == [f"/t.S/{kind}"]
        assert (connection.h2.winding_down, connection._running, connection.h2.streams) == (0, {}, {})


@pytest.mark.parametrize("kind", KINDS)
async def test_a_call_whose_deadline_passes_ends_alone_however_it_takes_that(service, kind):
    async with serving(service) as (server, port):
        client = await RawClient.connect(port)
        await client.send(headers(1, kind, extra=[(b"grpc-timeout", b"20m")]), message(1))
        await client.until(fr.HEADERS, sid=1)
        await client.send(headers(3, "Echo"), message(3, b"still here"))
        assert (await client.until(fr.DATA, sid=3)).endswith(b"still here")
        await wait_all_tasks_blocked()
        [connection] = server._connections
        assert service.ended == [f"/t.S/{kind}"]
        assert (connection.h2.winding_down, connection._running, connection.h2.streams) == (0, {}, {})


class Unsendable(RawService):
    """Ends calls with what cannot be encoded, or not in the way that it does it."""

    async def fail(self, stream):
        how = await stream.recv_message()
        if how == b"details":
            raise GRPCError(Status.ABORTED, "again", [object()])
        if how == b"surrogates":
            raise PreconditionError("file \udcff", details=(Violation("MISSING", "blobs/\udcff"),))
        await stream.send_message(bytes(50))
        await stream.send_trailing_metadata(metadata={"Bad Key" if how == b"metadata" else "x-good": "x"})


@pytest.mark.parametrize("window", [fr.DEFAULT_WINDOW, 10])
@pytest.mark.parametrize(("how", "status"), [(b"details", 10), (b"surrogates", 9), (b"metadata", 13)])
async def test_a_status_that_cannot_be_sent_ends_its_call_and_no_other(window, how, status):
    service = Unsendable()
    async with serving(service) as (_, port):
        client = await RawClient.connect(port, settings={Setting.INITIAL_WINDOW_SIZE: window})
        await client.send(headers(1, "Hang"), message(1))
        await client.settled()
        await client.send(headers(3, "Fail"), message(3, how), fr.window_update(3, 100))
        while b"grpc-status" not in (block := await client.until(fr.HEADERS, sid=3)):
            pass
        assert b"grpc-status" + bytes((len(b"%d" % status),)) + b"%d" % status in block
        await client.send(fr.window_update(1, 100))
        service.release.set()
        assert (await client.until(fr.DATA, sid=1)).endswith(b"released")
    RawClient.close_all()


async def test_trailing_metadata_waits_for_credit_with_its_reply():
    async with serving(Unsendable()) as (_, port):
        client = await RawClient.connect(port, settings={Setting.INITIAL_WINDOW_SIZE: 10})
        await client.send(headers(1, "Fail"), message(1, b"good"))
        await client.settled()
        await client.send(fr.window_update(1, 100))
        while b"grpc-status" not in (block := await client.until(fr.HEADERS, sid=1)):
            pass
        assert b"x-good" in block
    RawClient.close_all()
