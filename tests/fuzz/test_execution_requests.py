"""Whatever a client sends to Execute, it gets an operation or hears that the fault is its own; nothing is left over."""

import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from nl.errors import Code, NlError
from nl.pb import longrunning, reapi, wkt
from nl.pb.codec import encode
from tests.unit.services.execution_support import EMPTY_ROOT, digest_of, house, wire
from tests.unit.services.memory_stream import call, calling

CLIENTS_FAULT = {Code.INVALID_ARGUMENT, Code.FAILED_PRECONDITION, Code.NOT_FOUND}
TEXTS = st.sampled_from(["", "main", "main/", "/", "..", "a" * 300, "é", "\x00", "OSFamily", "linux", "cpu", "-1", "7"])
INT64 = st.one_of(st.integers(-3, 3), st.integers(-(2**63), 2**63 - 1))
HASHES = st.one_of(TEXTS, st.just("a" * 64), st.just("A" * 64))
DIGESTS = st.one_of(st.none(), st.just(wire(EMPTY_ROOT)), st.builds(reapi.Digest, hash=HASHES, size_bytes=INT64))
PROPERTIES = st.builds(reapi.PlatformProperty, name=TEXTS, value=TEXTS)
PLATFORMS = st.one_of(st.none(), st.builds(reapi.Platform, properties=st.lists(PROPERTIES, max_size=4)))
DURATIONS = st.one_of(st.none(), st.builds(wkt.Duration, seconds=INT64, nanos=st.integers(-(2**31), 2**31 - 1)))
COMMANDS = st.one_of(
    st.binary(max_size=40),
    st.builds(
        reapi.Command,
        arguments=st.lists(TEXTS, max_size=2),
        output_node_properties=st.lists(TEXTS, max_size=2),
        platform=PLATFORMS,
    ).map(encode),
)


@st.composite
def actions(draw):
    """An encoded Action, and the encoded Command that it names, or None if it names another."""
    if draw(st.booleans()):
        return draw(st.binary(max_size=60)), None
    command = draw(st.one_of(st.none(), COMMANDS))
    made = reapi.Action(
        command_digest=draw(DIGESTS) if command is None else wire(digest_of(command)),
        input_root_digest=draw(DIGESTS),
        timeout=draw(DURATIONS),
        do_not_cache=draw(st.booleans()),
        platform=draw(PLATFORMS),
    )
    return encode(made), command


@settings(max_examples=400, deadline=None)
@given(
    action=actions(),
    instance=st.sampled_from(["main", "main", "main", "", "other", "main/x"]),
    function=st.sampled_from([0, 0, 1, 9, 2, 77]),
    priority=st.integers(-(2**31), 2**31 - 1),
    skip=st.booleans(),
    header=st.binary(max_size=20),
)
def test_every_request_is_served_or_is_the_clients_fault(action, instance, function, priority, skip, header):
    encoded, command = action

    async def attempt():
        async with house(supported_platform_properties={"cpu": "minimum"}, cached=True) as at, at.worker():
            await at.cas.put(digest_of(encoded), encoded)
            if command is not None:
                await at.cas.put(digest_of(command), command)
            request = reapi.ExecuteRequest(
                instance_name=instance,
                action_digest=wire(digest_of(encoded)),
                digest_function=function,
                skip_cache_lookup=skip,
                execution_policy=reapi.ExecutionPolicy(priority=priority),
            )
            metadata = [("build.bazel.remote.execution.v2.requestmetadata-bin", header)]
            left = trio.Event()
            try:
                with trio.move_on_after(5) as scope:
                    async with calling(at.execution, "Execute", request, metadata=metadata) as stream:
                        first = await stream.receive()
                        if first is not None:
                            left.set()
                            assert first.name.startswith("main/")
                            cancel = longrunning.CancelOperationRequest(name=first.name)
                            await call(at.operations, "CancelOperation", cancel)
                            while not first.done:
                                first = await stream.receive()
                        else:
                            await trio.sleep_forever()  # the handler's error ends the block
                assert not scope.cancelled_caught
            except* NlError as group:
                [error] = group.exceptions
                while isinstance(error, BaseExceptionGroup):
                    [error] = error.exceptions
                assert error.code in CLIENTS_FAULT, error
                assert error.message
                assert not left.is_set()
            statistics = at.scheduler.statistics()
            assert statistics["unfinished_operations"] == 0

    trio.run(attempt)


@settings(max_examples=200, deadline=None)
@given(name=st.one_of(TEXTS, st.text(max_size=40)), method=st.sampled_from(["Get", "Cancel", "Delete", "Wait"]))
def test_no_name_finds_an_operation_that_is_not_there(name, method):
    async def attempt():
        async with house() as at:
            request = getattr(longrunning, f"{method}OperationRequest")(name=name)
            try:
                await call(at.operations, f"{method}Operation", request)
            except NlError as error:
                assert error.code is Code.NOT_FOUND
            else:
                raise AssertionError("found")

    trio.run(attempt)
