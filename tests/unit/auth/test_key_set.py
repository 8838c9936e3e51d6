"""Keys that are fetched: in the background, bounded, and never instead of those that are here."""

import io
import json
import threading
import time
from http.client import BadStatusLine
from types import SimpleNamespace

import pytest
import trio

pytest.importorskip("jwt", reason="PyJWT (the extra auth) is not installed: key sets are NOT being tested")

from nl.auth import key_set as module  # noqa: E402
from nl.auth.key_set import FetchedKeys, FileKeys, fetch  # noqa: E402
from nl.errors import ConfigError  # noqa: E402
from tests.support.changing import change  # noqa: E402
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


class Canned(FetchedKeys):
    """Gets what `answers` has, and notes when it was asked; the last answer for ever."""

    def __init__(self, *answers, **more):
        super().__init__("https://keys.example", **{"interval_s": 3600, **more})
        self.answers, self.times = list(answers), []

    async def _fetch_in_time(self):
        self.times.append(trio.current_time())
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def trio_time(monkeypatch, autojump_clock):
    """The module's monotonic clock is trio's."""
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=trio.current_time))
    return autojump_clock


GOOD = key_set(ONE).encode()


async def times_of(keys, seconds):
    """When they were fetched, in seconds since the beginning."""
    began = trio.current_time()
    with trio.move_on_after(seconds):
        await keys.run()
    return [round(each - began) for each in keys.times]


async def test_keys_are_fetched_again_after_the_interval_and_missing_ones_after_the_pause(trio_time):
    assert await times_of(Canned(GOOD), 8000) == [0, 3630, 7260]
    assert await times_of(Canned(GOOD, least_pause_s=10, interval_s=100), 300) == [0, 110, 220]
    assert await times_of(Canned(OSError("gone")), 100) == [0, 30, 60, 90]
    assert await times_of(Canned(OSError("gone"), GOOD), 3000) == [0, 30]
    assert await times_of(Canned(GOOD, OSError("gone")), 8000) == [0, 3630, 7260], "those that are here serve"


@pytest.mark.parametrize(("later", "is_fetched"), [(29.9, False), (30.0, True), (1000.0, True)])
async def test_a_key_that_is_not_here_is_asked_for_unless_there_was_a_fetch_just_now(trio_time, later, is_fetched):
    keys = Canned(GOOD)
    async with trio.open_nursery() as nursery:
        await nursery.start(keys.run)
        began = trio.current_time()
        await trio.sleep(later)
        assert keys.wants_other() is is_fetched
        await trio.sleep(5)
        assert [each - began for each in keys.times] == ([0, later] if is_fetched else [0])
        nursery.cancel_scope.cancel()


async def test_where_there_are_no_keys_whoever_asks_is_told_to_come_again(trio_time):
    keys = Canned(OSError("gone"))
    async with trio.open_nursery() as nursery:
        await nursery.start(keys.run)
        assert keys.wants_other()
        assert keys.wants_other()
        await trio.sleep(29)
        assert len(keys.times) == 1, "but the server of the keys is not asked more often for it"
        nursery.cancel_scope.cancel()


async def test_the_start_waits_for_the_first_fetch_so_long_and_no_longer(trio_time):
    class Slow(Canned):
        async def _fetch_in_time(self):
            await trio.sleep(self.answers[0])
            return GOOD

    for seconds, waited in ((1, 1), (4.9, 4.9), (100, 5)):
        async with trio.open_nursery() as nursery:
            began = trio.current_time()
            await nursery.start(Slow(seconds).run)
            assert trio.current_time() - began == pytest.approx(waited)
            nursery.cancel_scope.cancel()


async def test_what_was_fetched_is_said(trio_time, caplog):
    caplog.set_level("INFO", "nl.auth")
    await times_of(Canned(OSError("gone"), GOOD, b"{}", GOOD, key_set(ONE, TWO).encode()), 20_000)
    cannot = "the keys at https://keys.example cannot be fetched: "
    assert caplog.messages == [
        f"{cannot}gone",
        "fetched 1 keys from https://keys.example",
        f'{cannot}it is no key set; expected {{ "keys": [ ... ] }}; the 1 that are here stay',
        "fetched 2 keys from https://keys.example",
    ]


def test_a_key_file_that_cannot_be_read_or_is_too_large_is_a_config_error(tmp_path, monkeypatch):
    path = tmp_path / "keys"
    with pytest.raises(ConfigError, match="keys: cannot be read: No such file"):
        FileKeys(str(path)).file.load()
    path.write_text(key_set(ONE))
    for most, is_taken in ((path.stat().st_size, True), (path.stat().st_size - 1, False)):
        monkeypatch.setattr(module, "MAX_BYTES", most)
        keys = FileKeys(str(path))
        if is_taken:
            keys.file.load()
            assert list(keys.keys) == ["one"]
        else:
            with pytest.raises(ConfigError, match=f"keys: is not right: it is larger than {most} bytes"):
                keys.file.load()
    assert not keys.wants_other()


async def test_a_key_file_is_read_at_each_change(tmp_path):
    path = tmp_path / "keys"
    path.write_text(key_set(ONE))
    keys = FileKeys(str(path))
    keys.file.load()
    for published in ([TWO], [ONE, TWO], [ONE]):
        change(path, key_set(*published))
        for _ in range(2):
            await keys.file.look()
        assert sorted(keys.keys) == sorted(key.kid for key in published)


@pytest.mark.parametrize("beyond", [0, 1])
def test_how_many_keys_a_set_may_have(monkeypatch, beyond):
    monkeypatch.setattr(module, "MAX_KEYS", 2)
    others = [TWO.public() | {"kid": f"k{at}"} for at in range(1 + beyond)]
    found = module.parse_keys(json.dumps({"keys": [*others, ONE.public()]}).encode())
    assert ("one" in found) is not bool(beyond)


def test_what_comes_slowly_or_is_too_long_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(module, "FETCH_TIMEOUT_S", 0.0)
    monkeypatch.setattr(module.urllib.request.OpenerDirector, "open", lambda *args, **more: io.BytesIO())
    assert fetch("http://x") == b""

    class Slow(io.BytesIO):
        def read1(self, size):
            while time.monotonic() <= deadline:
                pass
            return super().read1(size)

    deadline = time.monotonic() + 0.01
    monkeypatch.setattr(module.urllib.request.OpenerDirector, "open", lambda *args, **more: Slow(GOOD))
    with pytest.raises(TimeoutError, match="it took longer than 0 s"):
        fetch("http://x")


def test_the_figures_of_fetching():
    assert (module.LEAST_PAUSE_S, module.FETCH_TIMEOUT_S, module.FIRST_FETCH_S) == (30.0, 10.0, 5.0)
    assert (module.MAX_BYTES, module.MAX_KEYS) == (1 << 20, 200)
    assert FetchedKeys("https://x", interval_s=1)._least_pause_s == 30.0


def test_a_fetch_asks_for_json_by_name_and_gives_its_time_to_the_socket(monkeypatch):
    asked = []

    def opened(self, request, *args, timeout):
        asked.append((request.full_url, timeout, dict(request.header_items())))
        return io.BytesIO(b"body")

    monkeypatch.setattr(module.urllib.request.OpenerDirector, "open", opened)
    assert fetch("https://keys.example/x") == b"body"
    assert asked == [("https://keys.example/x", 10.0, {"Accept": "application/json", "User-agent": "nl"})]


@pytest.mark.parametrize("beyond", [0, 1])
def test_how_much_is_fetched(monkeypatch, beyond):
    monkeypatch.setattr(module, "MAX_BYTES", 100)
    body = io.BytesIO(b"x" * (100 + beyond))
    monkeypatch.setattr(module.urllib.request.OpenerDirector, "open", lambda *args, **more: body)
    if beyond:
        with pytest.raises(ValueError, match="it is larger than 100 bytes"):
            fetch("https://x")
    else:
        assert fetch("https://x") == b"x" * 100
    assert body.closed


@pytest.mark.parametrize("problem", [OSError("x"), BadStatusLine("x"), ValueError("x"), TimeoutError("x")], ids=repr)
async def test_whatever_a_server_of_keys_does_is_one_line_and_not_the_end(trio_time, caplog, problem):
    keys = Canned(problem, GOOD)
    assert await times_of(keys, 100) == [0, 30]
    assert list(keys.keys) == ["one"]
    [line] = caplog.messages
    assert line.startswith("the keys at https://keys.example cannot be fetched: ")


async def test_a_key_that_was_asked_for_once_is_fetched_once(trio_time):
    keys = Canned(GOOD)
    async with trio.open_nursery() as nursery:
        await nursery.start(keys.run)
        began = trio.current_time()
        await trio.sleep(40)
        assert keys.wants_other()
        await trio.sleep(3600)
        assert [each - began for each in keys.times] == [0, 40]
        await trio.sleep(100)
        assert [each - began for each in keys.times] == [0, 40, 3670], "and again when it is time"
        nursery.cancel_scope.cancel()
