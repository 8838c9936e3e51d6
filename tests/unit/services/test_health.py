"""Which services are serving, and who is told when that changes."""

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from nl.errors import InvalidRequestError, NotFoundError, UnavailableError
from nl.model.access import Identity
from nl.pb import health
from nl.services.health import HealthRegistry, HealthService
from tests.unit.services.memory_stream import MemoryStream, call, calling

STATUS = health.HealthCheckResponseServingStatus
NOBODY = Identity("nobody", [])


def test_nothing_serves_until_the_server_says_so_and_one_that_comes_later_is_as_the_server_is():
    registry = HealthRegistry(["a", "b"])
    assert registry.snapshot() == {"": False, "a": False, "b": False}
    registry.set_serving(True)
    registry.add_service("late")
    assert registry.snapshot() == {"": True, "a": True, "b": True, "late": True}


def test_a_service_that_is_known_already_keeps_its_state():
    registry = HealthRegistry(["a"])
    registry.set_serving(True, service="a")
    registry.add_service("a")
    assert registry.snapshot() == {"": False, "a": True}


def test_one_service_may_change_alone():
    registry = HealthRegistry(["a", "b"])
    registry.set_serving(True)
    registry.set_serving(False, service="a")
    assert [registry.is_serving(name) for name in ("", "a", "b", "unknown")] == [True, False, True, None]
    assert registry.is_serving() is True


async def test_check_tells_the_state_and_needs_no_right():
    registry = HealthRegistry(["a"])
    registry.set_serving(True, service="a")
    service = HealthService(registry)
    for name, status in (("", STATUS.NOT_SERVING), ("a", STATUS.SERVING)):
        [reply] = await call(service, "Check", health.HealthCheckRequest(service=name), identity=NOBODY)
        assert reply.status == status
    with pytest.raises(NotFoundError, match="unknown service 'b'"):
        await call(service, "Check", health.HealthCheckRequest(service="b"), identity=NOBODY)


@pytest.mark.parametrize("method", ["Check", "Watch"])
async def test_a_call_without_a_request_is_told_what_is_missing(method):
    with pytest.raises(InvalidRequestError, match=f"Health/{method} needs a request message"):
        await call(HealthService(HealthRegistry()), method, identity=NOBODY)


async def test_who_watches_is_told_of_each_change_and_of_nothing_else():
    registry = HealthRegistry(["a", "b"])
    async with calling(HealthService(registry), "Watch", health.HealthCheckRequest(service="a")) as stream:
        assert (await stream.receive()).status == STATUS.NOT_SERVING
        for change in (
            lambda: registry.set_serving(True, service="b"),
            lambda: registry.set_serving(False),
            lambda: registry.add_service("c"),
        ):
            change()
            await wait_all_tasks_blocked()
            with pytest.raises(trio.WouldBlock):
                stream.receive_nowait()
        registry.set_serving(True)
        assert (await stream.receive()).status == STATUS.SERVING
        registry.set_serving(False, service="a")
        assert (await stream.receive()).status == STATUS.NOT_SERVING


async def test_who_watches_a_service_that_comes_later_is_told_when_it_is_there():
    registry = HealthRegistry()
    async with calling(HealthService(registry), "Watch", health.HealthCheckRequest(service="a")) as stream:
        assert (await stream.receive()).status == STATUS.SERVICE_UNKNOWN
        registry.add_service("a")
        assert (await stream.receive()).status == STATUS.NOT_SERVING


async def test_at_the_end_nothing_serves_and_who_watches_is_told_so_and_sent_away():
    registry = HealthRegistry(["a"])
    registry.set_serving(True)
    [(_, handler)] = [each for each in HealthService(registry).__mapping__().items() if each[0].endswith("/Watch")]
    stream = MemoryStream(handler, "Watch")
    await stream.send(health.HealthCheckRequest(service="a"))

    async def serve():
        with pytest.raises(UnavailableError, match="shutting down"):
            await stream.serve()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        assert (await stream.receive()).status == STATUS.SERVING
        registry.close()
        assert (await stream.receive()).status == STATUS.NOT_SERVING
        assert await stream.receive() is None
    assert registry.snapshot() == {"": False, "a": False}


async def test_who_asks_after_the_end_does_not_wait():
    registry = HealthRegistry(["a"])
    registry.close()
    with pytest.raises(UnavailableError, match="shutting down"):
        await registry.wait_changed("a", False)
    assert await registry.wait_changed("a", True) is False
