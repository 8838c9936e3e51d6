"""How a connection is made: to whom, with which words of a login, within which time, and what is left if it fails."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from redis_peer import CLOSE, SILENCE, Peer

from nl.plugin import RefusedError, TransientError
from nl_redis_store.addresses import parse_address
from nl_redis_store.connection import dial
from nl_redis_store.single import Watched
from nl_redis_store.topology import Dialer


class Listener(Peer):
    """A peer that TCP leads to."""

    def __init__(self, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(nursery)
        self.places: list[tuple[str, int]] = []
        monkeypatch.setattr(trio, "open_tcp_stream", self._open)

    async def _open(self, host: str, port: int) -> trio.abc.Stream:
        self.places.append((host, port))
        return (await self.connect())._stream

    def answer_with(self, *replies: object) -> list[tuple[bytes, ...]]:
        """One after the other. Returns what is asked."""
        asked: list[tuple[bytes, ...]] = []
        left = list(replies)

        def answer(command: tuple[bytes, ...]) -> object:
            asked.append(command)
            return left.pop(0)

        self.answer = answer  # type: ignore[assignment]
        return asked


@pytest.fixture
def listener(nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch) -> Listener:
    return Listener(nursery, monkeypatch)


SENTINEL = "redis+sentinel://u:p@watch/2?sentinelUsername=su&sentinelPassword=sp"


@pytest.mark.parametrize(("url", "sentinel", "place", "words"), [
    ("redis://cache", False, ("cache", 6379), []),
    ("redis://cache:7/0", False, ("cache", 7), []),
    ("redis://cache:7/1", False, ("cache", 7), [(b"SELECT", b"1")]),
    ("redis://:p@cache/3", False, ("cache", 6379), [(b"AUTH", b"p"), (b"SELECT", b"3")]),
    ("redis://u:p@cache", False, ("cache", 6379), [(b"AUTH", b"u", b"p")]),
    ("redis://u@cache", False, ("cache", 6379), []),
    (SENTINEL, True, ("watch", 26379), [(b"AUTH", b"su", b"sp")]),
    (SENTINEL.replace("sentinelUsername", "x"), True, ("watch", 26379), [(b"AUTH", b"sp")]),
    (SENTINEL.partition("?")[0], True, ("watch", 26379), []),
    (SENTINEL, False, ("watch", 26379), [(b"AUTH", b"u", b"p"), (b"SELECT", b"2")]),
])
async def test_we_log_in_as_the_address_says_and_at_a_sentinel_with_what_is_a_sentinels(
    listener: Listener, url: str, sentinel: bool, place: tuple[str, int], words: list[tuple[bytes, ...]]
) -> None:
    asked = listener.answer_with(*[b"OK"] * len(words))
    connection = await dial(parse_address(url, ""), timeout_s=5, tls=None, sentinel=sentinel)
    assert listener.places == [place]
    assert asked == words
    await connection.aclose()
    await trio.testing.wait_all_tasks_blocked()
    assert listener.open == 0


@pytest.mark.parametrize(("reply", "kind", "said"), [
    (Exception("WRONGPASS invalid"), RefusedError, "cache:7 says: WRONGPASS"),
    (Exception("LOADING"), TransientError, "cache:7 says: LOADING"),
    (CLOSE, TransientError, "cache:7 has closed the connection"),
])
async def test_a_server_that_does_not_let_us_in_keeps_no_connection(
    listener: Listener, reply: object, kind: type[Exception], said: str
) -> None:
    listener.answer_with(b"OK", reply)
    with pytest.raises(kind, match=said):
        await dial(parse_address("redis://:p@cache:7/1", ""), timeout_s=5, tls=None)
    await trio.testing.wait_all_tasks_blocked()
    assert listener.open == 0


async def test_connecting_and_logging_in_have_one_time_together(
    listener: Listener, autojump_clock: trio.testing.MockClock
) -> None:
    listener.answer_with(SILENCE)
    began = trio.current_time()
    with pytest.raises(TransientError, match=r"cache:7 did not answer within 2\.5 s") as caught:
        await dial(parse_address("redis://:p@cache:7", ""), timeout_s=2.5, tls=None)
    assert trio.current_time() - began == pytest.approx(2.5)
    assert caught.value.code == "DeadlineExceeded"
    await trio.testing.wait_all_tasks_blocked()
    assert listener.open == 0


# --- sentinels

BUILDS = "?sentinelServiceName=builds"


class Watchers:
    """Sentinels called `a` and `b`, and masters, by their ports: what each says to what it is asked."""

    def __init__(self, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch) -> None:
        self.peers: dict[tuple[str, int], Peer] = {}
        self.opened: list[tuple[str, int]] = []
        self.asked: list[tuple[object, ...]] = []
        self._nursery = nursery
        monkeypatch.setattr(trio, "open_tcp_stream", self._open)
        self.says("a", 26379, [b"m", b"7001"])
        self.says("b", 26379, [b"m", b"7001"])
        self.says("m", 7001, [b"master"])

    def says(self, host: str, port: int, reply: object) -> None:
        def answer(command: tuple[bytes, ...]) -> object:
            self.asked.append((host, *command))
            return reply if command[0] in (b"SENTINEL", b"ROLE") else b"OK"

        self.peers[host, port] = Peer(self._nursery, port, answer=answer)

    async def _open(self, host: str, port: int) -> trio.abc.Stream:
        self.opened.append((host, port))
        if (host, port) not in self.peers:
            raise OSError(111, "Connection refused")
        return (await self.peers[host, port].connect())._stream

    async def master(self) -> str:
        """Where a connection leads that is made now."""
        addresses = tuple(parse_address(f"redis+sentinel://u:p@{host}/1{BUILDS}", "") for host in "ab")
        watched = Watched(Dialer(addresses, 3, 30, 1, None))
        try:
            connection = await watched._connect()
            await connection.aclose()
            return str(connection.address)
        finally:
            await trio.testing.wait_all_tasks_blocked()
            assert sum(peer.open for peer in self.peers.values()) == 0, "all that was opened is closed"


@pytest.fixture
def watchers(nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch) -> Watchers:
    return Watchers(nursery, monkeypatch)


async def test_the_master_is_where_the_first_sentinel_that_knows_it_says(watchers: Watchers) -> None:
    assert await watchers.master() == "m:7001"
    assert watchers.opened == [("a", 26379), ("m", 7001)]
    assert watchers.asked == [
        ("a", b"SENTINEL", b"get-master-addr-by-name", b"builds"),
        ("m", b"AUTH", b"u", b"p"), ("m", b"SELECT", b"1"), ("m", b"ROLE"),
    ]
    for silence in (lambda: watchers.peers.pop(("a", 26379)), lambda: watchers.says("a", 26379, None)):
        silence()
        watchers.opened.clear()
        assert await watchers.master() == "m:7001"
        assert watchers.opened == [("a", 26379), ("b", 26379), ("m", 7001)]


async def test_one_that_is_no_master_yet_is_no_connection(watchers: Watchers) -> None:
    for reply in ([b"slave", b"m", 7001], b"something else", Exception("LOADING")):
        watchers.says("m", 7001, reply)
        with pytest.raises(TransientError, match=r"m:7001 (is not the master yet|says: LOADING)"):
            await watchers.master()


async def test_a_sentinel_that_knows_no_such_master_goes_before_one_that_cannot_be_reached(watchers: Watchers) -> None:
    del watchers.peers["b", 26379]
    watchers.says("a", 26379, None)
    with pytest.raises(RefusedError, match='sentinel a:26379 knows no master called "builds"; expected') as caught:
        await watchers.master()
    assert caught.value.option == "addresses"
    watchers.says("b", 26379, None)
    del watchers.peers["a", 26379]
    with pytest.raises(RefusedError, match="sentinel b:26379 knows no master"):
        await watchers.master()
    del watchers.peers["b", 26379]
    with pytest.raises(TransientError, match="cannot connect to a:26379"):
        await watchers.master()


async def test_a_sentinel_that_says_nothing_has_the_time_of_a_connection(
    watchers: Watchers, autojump_clock: trio.testing.MockClock
) -> None:
    watchers.says("a", 26379, SILENCE)
    began = trio.current_time()
    assert await watchers.master() == "m:7001"
    assert trio.current_time() - began == pytest.approx(3)
    watchers.says("b", 26379, SILENCE)
    with pytest.raises(TransientError, match="the sentinel a:26379 does not answer") as caught:
        await watchers.master()
    assert caught.value.code == "DeadlineExceeded"


async def test_a_place_where_nobody_listens_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(host: str, port: int) -> trio.abc.Stream:
        why = ExceptionGroup("two", [ConnectionRefusedError(111, "Connection refused")])
        raise OSError("all attempts failed") from why

    monkeypatch.setattr(trio, "open_tcp_stream", refuse)
    with pytest.raises(TransientError, match=r"^cannot connect to cache:7: Connection refused$") as caught:
        await dial(parse_address("redis://cache:7", ""), timeout_s=5, tls=None)
    assert caught.value.code == "Unavailable"
