"""The pure words of the plugin: slots and names, times in their units, and what each refusal means to a caller."""

from __future__ import annotations

import hashlib

import pytest

from nl.plugin import (
    ActionKey,
    ConfigError,
    ExhaustedError,
    FullError,
    RefusedError,
    RetryOptions,
    TooLargeError,
    TransientError,
    UnavailableError,
    ValueTooLargeError,
    digest_of,
    key_text,
)
from nl_redis_store import RedisStoreOptions
from nl_redis_store.addresses import Address, hash_tag, parse_address, slot_of
from nl_redis_store.errors import MovedError, ReplyError, meaning
from nl_redis_store.keys import TEMPORARY_S, Names, check_prefix
from nl_redis_store.scripts import COPY, FINISH

KIB, MIB = 1024, 1024 * 1024


def options(**more: object) -> RedisStoreOptions:
    given = RedisStoreOptions(**{"addresses": ("redis://a",), **more})  # type: ignore[arg-type]
    given.check()
    return given


@pytest.mark.parametrize(
    ("key", "slot"),
    [(b"123456789", 12739), (b"foo", 12182), (b"", 0), (b"{foo}x", 12182), (b"x{foo}{y}", 12182),
     (b"foo{}{bar}", 8363)],
)  # fmt: skip
def test_slots_are_those_of_the_cluster_specification(key: bytes, slot: int) -> None:
    assert slot_of(key) == slot


@pytest.mark.parametrize(
    ("key", "tag"),
    [(b"{a}", b"a"), (b"x{a}y", b"a"), (b"{}a", b"{}a"), (b"{a", b"{a"), (b"a}", b"a}"), (b"}{a}", b"a"),
     (b"{{a}}", b"{a"), (b"{a}{b}", b"a")],
)
def test_what_stands_in_the_first_braces_decides(key: bytes, tag: bytes) -> None:
    assert hash_tag(key) == tag


@pytest.mark.parametrize("prefix", ["", "cas/", "{cas}/", "x{cas}"])
def test_a_temporary_value_is_in_the_slot_of_its_own_and_has_a_name_of_its_own(prefix: str) -> None:
    check_prefix(prefix)
    names = Names(prefix)
    for key in (digest_of(b"x"), ActionKey(*digest_of(b"x")), "a name"):
        name = names.of(key)
        assert name == f"{prefix}{key_text(key)}".encode()
        temporary = {names.temporary(name) for _ in range(20)}
        assert len(temporary) == 20
        for each in temporary:
            assert each.startswith(prefix.encode() + b":temp:")
            assert slot_of(each) == slot_of(name)
            assert len(each) >= len(prefix) + len(":temp:") + 16


@pytest.mark.parametrize("prefix", ["{", "a{b", "{}", "{}{a}"])
def test_a_brace_that_is_no_tag_is_refused(prefix: str) -> None:
    with pytest.raises(ConfigError, match="has a brace that is no hash tag") as caught:
        check_prefix(prefix)
    assert caught.value.path == "key_prefix"


def test_a_closing_brace_alone_is_no_tag_and_no_mistake() -> None:
    check_prefix("a}b")


def test_another_server_has_the_same_login_and_is_no_sentinel() -> None:
    address = parse_address("rediss+sentinel://u:p@[::1]:7/2?sentinelServiceName=m&sentinelUsername=s", "")
    assert (address.service, address.sentinel_username, address.db) == ("m", "s", 2)
    other = address.at("b", 9)
    assert (other.host, other.port, other.username, other.password) == ("b", 9, "u", "p")
    assert (other.db, other.tls, other.service) == (2, True, "")
    assert address.at("", 9).host == "::1"
    assert [str(each) for each in (address, other)] == ["[::1]:7", "b:9"]
    assert str(Address(path="/run/x")) == "/run/x"


def test_times_are_seconds_whatever_the_unit_of_the_option_and_0_means_the_default() -> None:
    usual = options()
    assert (usual.command_timeout, usual.connect_timeout, usual.health_timeout, usual.ttl_s) == (10.0, 3.0, 4.0, 0)
    nothing = options(command_timeout_ms=0, connection_timeout_ms=0, health_check_timeout_ms=0)
    assert (nothing.command_timeout, nothing.connect_timeout, nothing.health_timeout) == (10.0, 3.0, 4.0)
    some = options(command_timeout_ms=1500, connection_timeout_ms=250, health_check_timeout_ms=70, key_ttl_s=1.2)
    assert (some.command_timeout, some.connect_timeout, some.health_timeout, some.ttl_s) == (1.5, 0.25, 0.07, 2)
    older = options(command_timeout_ms=1, connection_timeout_ms=1, response_timeout_s=7, connection_timeout_s=8)
    assert (older.command_timeout, older.connect_timeout) == (7, 8)


def test_the_defaults_are_those_that_are_told() -> None:
    given = RedisStoreOptions(addresses=("a",))
    assert (given.mode, given.key_prefix, given.key_ttl_s) == ("standard", "", 0)
    assert (given.connection_pool_size, given.max_client_permits) == (3, 500)
    assert (given.read_chunk_size, given.max_blob_bytes, given.max_upload_memory) == (MIB, 512 * MIB, 256 * MIB)
    assert given.retry == RetryOptions(max_retries=5, delay=0.05, jitter=0.5)
    assert TEMPORARY_S == 3600


@pytest.mark.parametrize(
    ("more", "path"),
    [
        ({"read_chunk_size": 4 * KIB}, ""), ({"read_chunk_size": 4 * KIB - 1}, "read_chunk_size"),
        ({"read_chunk_size": 16 * MIB}, ""), ({"read_chunk_size": 16 * MIB + 1}, "read_chunk_size"),
        ({"read_chunk_size": 0}, ""), ({"max_upload_memory": MIB}, ""),
        ({"max_upload_memory": MIB - 1}, "max_upload_memory"),
        ({"addresses": ("redis://a/1",)}, ""), ({"addresses": ("redis://a", "b"), "mode": "cluster"}, ""),
        ({"addresses": ("redis://a/1",), "mode": "cluster"}, "addresses[0]"),
        ({"addresses": ("redis+sentinel://a", "redis+sentinel://b")}, ""),
        ({"addresses": ("redis+sentinel://a",), "mode": "sentinel"}, ""),
        ({"addresses": ("a",), "mode": "standalone"}, ""),
        ({"addresses": ("a", "b"), "mode": "standalone"}, "addresses"),
    ],
)  # fmt: skip
def test_bounds_and_modes_are_exact(more: dict[str, object], path: str) -> None:
    if not path:
        options(**more)
        return
    with pytest.raises(ConfigError) as caught:
        options(**more)
    assert caught.value.path == path


@pytest.mark.parametrize(("mode", "address", "expected"), [
    ("sentinel", "redis://a", "expected redis\\+sentinel://"),
    ("cluster", "redis+sentinel://a", "expected redis:// or"),
])
def test_an_address_of_the_wrong_sort_is_told_which_sort_it_should_be(mode: str, address: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        options(addresses=(address,), mode=mode)


@pytest.mark.parametrize(("reply", "option"), [
    ("NOAUTH Authentication required.", "addresses"), ("WRONGPASS invalid username-password pair", "addresses"),
    ("NOPERM no permissions", "addresses"), ("ERR invalid password", "addresses"),
    ("ERR AUTH <password> called without any password configured", "addresses"),
    ("ERR DB index is out of range", "addresses"), ("ERR This instance has cluster support disabled", "mode"),
    ("ERR unknown command 'SENTINEL'", "mode"), ("WRONGTYPE Operation against a key", ""),
])  # fmt: skip
def test_a_refusal_names_the_option_that_is_at_fault(reply: str, option: str) -> None:
    error = meaning(ReplyError(reply), "here")
    assert isinstance(error, RefusedError)
    assert error.option == option
    assert str(error) == f"here says: {reply}"


@pytest.mark.parametrize(
    ("text", "host", "port", "slot", "asking"),
    [("MOVED 3999 10.0.0.1:6381", "10.0.0.1", 6381, 3999, False), ("ASK 7 [::1]:1", "::1", 1, 7, True),
     ("MOVED 7 :6381", "", 6381, 7, False)],
)  # fmt: skip
def test_who_has_the_slot_is_read_from_the_reply(text: str, host: str, port: int, slot: int, asking: bool) -> None:
    error = meaning(ReplyError(text), "here")
    assert isinstance(error, MovedError)
    assert (error.host, error.port, error.slot, error.asking) == (host, port, slot, asking)


@pytest.mark.parametrize("text", ["MOVED x 10.0.0.1:6381", "MOVED 7 10.0.0.1:x", "MOVED 7", "ASK"])
def test_a_reply_that_leads_nowhere_may_be_asked_again(text: str) -> None:
    assert type(meaning(ReplyError(text), "here")) is TransientError


def test_a_reply_is_shown_as_one_line_of_some_length() -> None:
    assert str(meaning(ReplyError("ERR first\nsecond"), "here")) == "here says: ERR first"
    assert str(meaning(ReplyError("ERR " + "x" * 300), "here")) == "here says: ERR " + "x" * 196
    assert str(meaning(ReplyError(""), "here")) == "here says: an error without text"


def test_each_error_has_the_contracts_name_and_says_whether_it_may_pass() -> None:
    for error, kind, retryable in (
        (TransientError("x"), UnavailableError, True), (RefusedError("x"), UnavailableError, False),
        (FullError("x"), ExhaustedError, None), (ValueTooLargeError("x"), TooLargeError, None),
    ):  # fmt: skip
        translated = error.translated("CAS")
        assert type(translated) is kind
        assert translated.message == "store CAS: x"
        if retryable is not None:
            assert translated.retryable is retryable


def test_a_script_is_known_by_the_hash_of_its_text() -> None:
    for script in (FINISH, COPY):
        assert script.sha == hashlib.sha1(script.source).hexdigest().encode()
