"""Keys that are fetched: in the background, bounded, and never instead of those that are here."""

import json
import threading

import pytest
import trio

pytest.importorskip("jwt", reason="PyJWT (the extra auth) is not installed: key sets are NOT being tested")

from nl.auth import key_set as module  # noqa: E402
from nl.auth.key_set import FetchedKeys, fetch  # noqa: E402
from tests.support.web_tokens import Key, key_server, key_set  # noqa: E402

ONE, TWO = Key("one"), Key("two")


async def wait_until(condition):
    with trio.fail_after(20):
        while not condition():
            await trio.sleep(0.01)


async def test_keys_are_there_when_run_has_started_and_a_rotation_is_taken_up():
    published = [ONE]
    with key_server(lambda path: (200, {}, key_set(*published))) as (url, asked):
        keys = FetchedKeys(url, interval_s=3600, least_pause_s=0.05)
        changes = []
        keys.on_change = lambda: changes.append(sorted(keys.keys))
        async with trio.open_nursery() as nursery:
            await nursery.start(keys.run)
            assert sorted(keys.keys) == ["one"]
            assert changes == [["one"]]
            published.append(TWO)
            await wait_until(keys.wants_other)
            await wait_until(lambda: sorted(keys.keys) == ["one", "two"])
            assert changes[-1] == ["one", "two"]
            nursery.cancel_scope.cancel()


async def test_unknown_keys_cause_one_fetch_however_often_they_are_named():
    with key_server(lambda path: (200, {}, key_set(ONE))) as (url, asked):
        keys = FetchedKeys(url, interval_s=3600, least_pause_s=3600)
        async with trio.open_nursery() as nursery:
            await nursery.start(keys.run)
            assert not any(keys.wants_other() for _ in range(1000)), "fetched just now: the key is nobody's"
            await trio.sleep(0.1)
            assert len(asked) == 1
            nursery.cancel_scope.cancel()


async def test_a_failed_fetch_leaves_the_keys_that_are_here(caplog):
    answers = [(200, {}, key_set(ONE)), (500, {}, "no"), (200, {}, "{}"), (200, {}, key_set(TWO))]
    with key_server(lambda path: answers.pop(0) if len(answers) > 1 else answers[0]) as (url, asked):
        keys = FetchedKeys(url, interval_s=0.01, least_pause_s=0.01)
        async with trio.open_nursery() as nursery:
            await nursery.start(keys.run)
            await wait_until(lambda: len(asked) >= 3)
            await wait_until(lambda: "two" in keys.keys)
            nursery.cancel_scope.cancel()
    warnings = [each for each in caplog.messages if "cannot be fetched" in each]
    assert len(warnings) == 2
    assert all("the 1 that are here stay" in each for each in warnings)


async def test_a_server_that_does_not_answer_holds_up_nothing_for_long(monkeypatch):
    monkeypatch.setattr(module, "FIRST_FETCH_S", 0.1)
    release = threading.Event()

    def answer(path):
        release.wait(20)
        return 200, {}, key_set(ONE)

    with key_server(answer) as (url, _):
        keys = FetchedKeys(url, interval_s=3600)
        async with trio.open_nursery() as nursery:
            with trio.fail_after(5):
                await nursery.start(keys.run)
            assert keys.wants_other(), "whoever asks is told to come again"
            release.set()
            await wait_until(lambda: keys.keys)
            nursery.cancel_scope.cancel()


def test_keys_come_from_nowhere_else_and_are_not_endless(monkeypatch):
    with key_server(lambda path: (302, {"Location": "/other"}, "")) as (url, asked):
        with pytest.raises(OSError, match="302"):
            fetch(url)
        assert asked == ["/jwks"]
    with key_server(lambda path: (200, {}, "x" * (module.MAX_BYTES + 1))) as (url, _), pytest.raises(
        ValueError, match="larger than"
    ):
        fetch(url)


@pytest.mark.parametrize("odd", [None, 5, -1, 1.5, "", [], {}, "!!", "A" * 5000, "\u00e9", True], ids=repr)
@pytest.mark.parametrize("key", [Key("a"), Key("r", "RS256"), Key("o", "EdDSA")], ids=lambda key: key.algorithm)
def test_a_key_that_is_none_costs_nobody_the_others(key, odd):
    """TypeError would have ended the server."""
    for name in (*key.public(), "d", "key_ops"):
        keys = module.parse_keys(json.dumps({"keys": [{**key.public(), name: odd}, ONE.public()]}).encode())
        assert "one" in keys


async def test_headers_that_drip_end_the_fetch_and_take_no_thread_from_others(monkeypatch, caplog):
    monkeypatch.setattr(module, "FETCH_TIMEOUT_S", 0.2)
    limiter = trio.to_thread.current_default_thread_limiter()
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")

        async def drip(stream):
            async with stream:
                await stream.send_all(b"HTTP/1.1 200 OK\r\nX: ")
                while True:
                    await stream.send_all(b"x")
                    await trio.sleep(0.02)

        nursery.start_soon(trio.serve_listeners, drip, listeners)
        url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}/"
        keys = FetchedKeys(url, interval_s=3600, least_pause_s=0.01)
        await nursery.start(keys.run)
        await wait_until(lambda: caplog.text.count("it took longer than 0.4 s") >= 2)
        assert limiter.borrowed_tokens == 0
        assert keys._threads.borrowed_tokens <= 1
        nursery.cancel_scope.cancel()


async def test_the_same_keys_again_are_no_change_and_others_of_the_same_name_are():
    """Else naming unknown keys would have everybody's credentials checked anew every 30 seconds."""
    published = [ONE]
    with key_server(lambda path: (200, {}, key_set(*published))) as (url, asked):
        keys = FetchedKeys(url, interval_s=0.01, least_pause_s=0.01)
        changes = []
        keys.on_change = lambda: changes.append(1)
        async with trio.open_nursery() as nursery:
            await nursery.start(keys.run)
            await wait_until(lambda: len(asked) >= 4)
            assert len(changes) == 1
            published[:] = [Key("one")]
            await wait_until(lambda: len(changes) == 2)
            nursery.cancel_scope.cancel()
