"""What a config may say: addresses in every form, NativeLink's options as they are, one line for what is wrong."""

from __future__ import annotations

import pytest
from redis_support import options_for

from nl.plugin import ConfigError
from nl_redis_store.addresses import Address, parse_address
from nl_redis_store.errors import ReplyError, meaning

GOOD = {
    "10.0.0.5": Address(host="10.0.0.5"),
    "cache:7000": Address(host="cache", port=7000),
    "redis://cache": Address(host="cache"),
    "valkey://cache:1/3": Address(host="cache", port=1, db=3),
    "rediss://u%40x:p%2Fw@[::1]:7/0": Address(host="::1", port=7, tls=True, username="u@x", password="p/w"),
    "redis://:secret@cache/": Address(host="cache", password="secret"),
    "redis+unix:///run/redis.sock?db=4": Address(path="/run/redis.sock", db=4),
    "redis+sentinel://:pw@watch/2?sentinelServiceName=builds&sentinelPassword=other": Address(
        host="watch", port=26379, db=2, password="pw", sentinel_password="other", service="builds"
    ),
    "rediss-sentinel://watch:1": Address(host="watch", port=1, tls=True, service="master"),
}


@pytest.mark.parametrize("text", GOOD)
def test_an_address_is_read(text: str) -> None:
    assert parse_address(text, "addresses[0]") == GOOD[text]


def test_the_text_of_an_address_is_without_its_login() -> None:
    address = parse_address("redis://someone:hunter2@[::1]:7/3", "")
    assert str(address) == "[::1]:7"
    assert "hunter2" not in repr(address)


@pytest.mark.parametrize(("text", "said"), [
    ("http://hunter2@cache", 'unknown scheme "http"; expected redis://'),
    ("redis://", "no host after redis://"),
    ("redis://:hunter2@", "no host after redis://"),
    ("redis://:hunter2/x@cache:99999999", "not a URL; expected redis://"),
    ("redis://u:12/hunter2@cache", "no number of a database"),
    ("redis://cache/-1", "no number of a database"),
    ("redis://[::1", "not a URL"),
    ("unix://", "no path after unix://"),
])
def test_what_is_no_address_is_refused_without_showing_a_password(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said.replace("/", r"\/")) as caught:
        parse_address(text, "addresses[0]")
    assert caught.value.path == "addresses[0]"
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(("options", "path"), [
    ({"addresses": ()}, "addresses"),
    ({"addresses": ("a", "b")}, "addresses"),
    ({"addresses": ("a", "redis+sentinel://b")}, "addresses"),
    ({"addresses": ("a",), "mode": "sentinel"}, "addresses[0]"),
    ({"addresses": ("a", "redis+sentinel://b"), "mode": "cluster"}, "addresses[1]"),
    ({"addresses": ("redis+sentinel://b",), "mode": "cluster"}, "addresses[0]"),
    ({"addresses": ("a", "redis://b/1"), "mode": "cluster"}, "addresses[1]"),
    ({"addresses": ("unix:///b",), "mode": "cluster"}, "addresses[0]"),
    ({"addresses": ("a",), "key_prefix": "a{b"}, "key_prefix"),
    ({"addresses": ("a",), "key_prefix": "{}"}, "key_prefix"),
    ({"addresses": ("a",), "read_chunk_size": 100}, "read_chunk_size"),
    ({"addresses": ("a",), "max_upload_memory": 1000}, "max_upload_memory"),
])
def test_options_that_cannot_work_are_refused(options: dict[str, object], path: str) -> None:
    with pytest.raises(ConfigError) as caught:
        options_for(*options.pop("addresses"), **options)  # type: ignore[misc]
    assert caught.value.path == path


@pytest.mark.parametrize(("reply", "kind"), [
    ("LOADING Redis is loading the dataset in memory", "TransientError"),
    ("CLUSTERDOWN Hash slot not served", "TransientError"),
    ("ERR max number of clients reached", "TransientError"),
    ("READONLY You can't write against a read only replica.", "DemotedError"),
    ("MOVED 3999 127.0.0.1:6381", "MovedError"),
    ("ASK 3999 ::1:6381", "MovedError"),
    ("MOVED nonsense", "TransientError"),
    ("OOM command not allowed when used memory > 'maxmemory'.", "FullError"),
    ("NOPERM this user has no permissions", "RefusedError"),
    ("ERR string exceeds maximum allowed size (proto-max-bulk-len)", "ValueTooLargeError"),
    ("NOSCRIPT No matching script.", "UnknownScriptError"),
    ("WRONGTYPE Operation against a key holding the wrong kind of value", "RefusedError"),
    ("", "RefusedError"),
])
def test_error_replies_mean(reply: str, kind: str) -> None:
    assert type(meaning(ReplyError(reply), "here")).__name__ == kind
