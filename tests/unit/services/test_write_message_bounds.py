"""The messages of a Write: how much is taken in, what is refused, and how long a client is waited for."""

import pytest
import trio

from nl.blob.reader import read_all
from nl.cas.large import IN_PLACE_BYTES
from nl.errors import DeadlineError, ExhaustedError, InvalidRequestError
from nl.pb import bytestream
from nl.pb.codec import encode, varint
from nl.services.limits import MESSAGE_BYTES, REORDERED_WRITE_BYTES
from nl.services.upload_bounds import SingleWrite
from nl.services.write_messages import WriteMessages, WriteStoppedError

NAME = "uploads/u/blobs/" + "a" * 64 + "/10"


class Body:
    """A message that comes in the pieces that the connection happened to receive."""

    def __init__(self, *pieces, size=None):
        self.size = sum(map(len, pieces)) if size is None else size
        self._pieces = list(pieces)
        self._lent = bytearray()

    async def receive_parts(self, max_bytes=1 << 20):
        """As a connection does: the buffer of the piece before is used again."""
        await trio.lowlevel.checkpoint()
        self._lent[:] = b"\xee" * len(self._lent)
        if not self._pieces:
            return []
        self._lent = bytearray(self._pieces.pop(0))
        return [memoryview(self._lent).toreadonly()]


class Stream:
    """A call that brings these messages, and then nothing until `ends`."""

    def __init__(self, *bodies, ends=True):
        self._bodies = list(bodies)
        self._ends = ends
        self.kept = 0
        self.counts = []

    def keep(self, count):
        self.kept = count
        self.counts.append(count)

    def take_body(self, max_bytes):
        return None  # nothing is at hand as a whole

    async def receive_body(self):
        if self._bodies:
            return self._bodies.pop(0)
        if not self._ends:
            await trio.sleep_forever()
        return None


def messages_of(*bodies, ends=True, idle_s=10.0):
    return WriteMessages(Stream(*bodies, ends=ends), idle_s=idle_s)


def request(data=b"0123456789", name=NAME, **more):
    return encode(bytestream.WriteRequest(resource_name=name, data=data, **more))


def reordered(data):
    """A message whose data comes first."""
    return b"\x52" + varint(len(data)) + data + encode(bytestream.WriteRequest(resource_name=NAME, finish_write=True))


@pytest.mark.parametrize("step", [1, 2, 7, 60, 1000])
async def test_a_message_is_the_same_in_whatever_pieces_it_comes(step):
    encoded = request(write_offset=300, finish_write=True)
    pieces = [memoryview(encoded)[at : at + step] for at in range(0, len(encoded), step)]
    message = await messages_of(Body(*pieces)).receive_message()
    assert (message.resource_name, message.offset, message.finish, message.size) == (NAME, 300, True, 10)
    assert bytes(await read_all(message)) == b"0123456789"
    assert not await message.receive_parts()


@pytest.mark.parametrize("most", [1, 4, 9, 10, 11])
async def test_no_more_is_handed_out_than_is_asked_for(most):
    message = await messages_of(Body(request())).receive_message()
    sizes = []
    while parts := await message.receive_parts(most):
        sizes.append(sum(map(len, parts)))
    assert sum(sizes) == 10
    assert max(sizes) == min(most, 10)


@pytest.mark.parametrize("step", [3, 12, 13, 60, 1000])
async def test_a_message_whose_data_comes_first_means_the_same(step):
    encoded = reordered(b"0123456789")
    pieces = [encoded[at : at + step] for at in range(0, len(encoded), step)]
    message = await messages_of(Body(*pieces)).receive_message()
    assert (message.resource_name, message.offset, message.finish, message.size) == (NAME, 0, True, 10)
    assert bytes(await read_all(message)) == b"0123456789"


@pytest.mark.parametrize("beyond", [-1, 0, 1])
async def test_how_large_a_message_may_be_whose_data_comes_first(beyond):
    assert REORDERED_WRITE_BYTES == MESSAGE_BYTES
    frame = len(reordered(b"x" * MESSAGE_BYTES)) - MESSAGE_BYTES
    encoded = reordered(b"x" * (REORDERED_WRITE_BYTES - frame + beyond))
    assert len(encoded) == REORDERED_WRITE_BYTES + beyond
    messages = messages_of(Body(encoded))
    if beyond > 0:
        with pytest.raises(ExhaustedError, match=f"a WriteRequest of {len(encoded)} bytes whose data does not come"):
            await messages.receive_message()
    else:
        assert (await messages.receive_message()).size == len(encoded) - frame


@pytest.mark.parametrize("encoded", [b"\x0a\xff", b"\x52\x02ab\x0a\xff", b"\x0a\x05ab", b"\xff" * 20])
async def test_what_is_no_write_request_is_refused_as_such(encoded):
    with pytest.raises(InvalidRequestError, match="^not a WriteRequest: "):
        await messages_of(Body(encoded)).receive_message()


async def test_the_first_message_has_a_name_and_later_ones_the_same_or_none():
    with pytest.raises(InvalidRequestError, match="first message of a Write must carry a resource_name"):
        await messages_of(Body(request(name=""))).receive_message()
    messages = messages_of(Body(request()), Body(request(name="")), Body(request()), Body(request(name="other")))
    for _ in range(3):
        await read_all(await messages.receive_message())
    with pytest.raises(InvalidRequestError, match=f"cannot change: 'other' came after '{NAME}'"):
        await messages.receive_message()


async def test_each_wait_for_the_client_has_its_own_end(autojump_clock):
    messages = messages_of(Body(request()), ends=False, idle_s=10.0)
    await trio.sleep(100)
    await messages.receive_message()
    began = trio.current_time()
    messages.idle_s = 7.0
    with pytest.raises(DeadlineError, match=r"no progress for 7 s \(idle_upload_timeout_s"):
        await messages.receive_message()
    assert trio.current_time() - began == 7.0
    assert messages.waiting_since == float("inf")


async def test_an_upload_in_one_message_waits_since_its_client_is_waited_for_and_ends_when_told_to(autojump_clock):
    messages, ends = messages_of(Body(request()), ends=False), []
    upload = SingleWrite(messages)
    assert (upload.waiting_since, upload.committed) == (float("inf"), 0)
    await messages.receive_message()
    assert upload.waiting_since == float("inf")

    async def wait():
        with pytest.raises(ExhaustedError, match="its place was needed"):
            await messages.receive_message()
        ends.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        began = trio.current_time()
        nursery.start_soon(wait)
        await trio.sleep(3.0)
        assert upload.waiting_since == began
        upload.give_up(ExhaustedError("its place was needed"))
        upload.give_up(ExhaustedError("a second reason"))
    assert ends == [began + 3.0]
    assert upload.waiting_since == float("inf")
    with pytest.raises(WriteStoppedError):
        await messages.receive_message()


async def test_who_is_stopped_before_it_waits_does_not_wait():
    messages = messages_of(ends=False)
    messages.stop()
    with pytest.raises(WriteStoppedError):
        await messages.receive_message()


async def test_what_is_copied_while_the_rest_is_to_come_is_held_until_the_next_message_is_here():
    encoded = reordered(b"x" * 100)
    stream = Stream(Body(encoded[:30], encoded[30:60], encoded[60:]), Body(request()))
    messages = WriteMessages(stream, idle_s=10.0)
    message = await messages.receive_message()
    assert stream.counts == [30, 60, len(encoded)]
    await read_all(message)
    assert stream.kept == len(encoded)
    await messages.receive_message()
    assert stream.kept == 0


async def test_a_head_that_comes_in_pieces_is_held_with_what_came_in_the_last_of_them():
    encoded = request()
    stream = Stream(Body(encoded[:10], encoded[10:20], encoded[20:]), Body(request()))
    messages = WriteMessages(stream, idle_s=10.0)
    await read_all(await messages.receive_message())
    await messages.receive_message()
    assert stream.counts == [10, 20, len(encoded), 0]


@pytest.mark.parametrize(("size", "in_loop"), [(IN_PLACE_BYTES, True), (IN_PLACE_BYTES + 1, False)])
async def test_a_message_whose_data_comes_first_is_decoded_beside_the_loop_if_it_is_large(size, in_loop):
    """It may be of any number of fields. Who is cancelled gets no thread."""
    frame = len(reordered(bytes(size))) - size
    encoded = reordered(bytes(size - frame))
    assert len(encoded) == size

    class AtHand(Stream):
        def take_body(self, max_bytes):
            return encoded

    with trio.CancelScope() as scope:
        scope.cancel()
        assert (await WriteMessages(AtHand(), idle_s=10.0).receive_message()).size == size - frame
    assert scope.cancelled_caught is (not in_loop)


@pytest.mark.parametrize("beyond", [0, 1])
async def test_a_resource_name_is_kept_and_so_has_a_limit(beyond):
    messages = messages_of(Body(request(name="n" * (64 * 1024 + beyond))))
    if beyond:
        with pytest.raises(InvalidRequestError, match="resource_name of 65537 characters; expected at most 65536"):
            await messages.receive_message()
    else:
        await messages.receive_message()
