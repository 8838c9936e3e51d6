"""Targets as text, and the names in them."""

import pytest

from nl.rpc.target import Target, parse_target, split_authority


@pytest.mark.parametrize(
    ("text", "host", "port", "secure"),
    [
        ("cache.example:50051", "cache.example", 50051, None),
        ("127.0.0.1:1", "127.0.0.1", 1, None),
        ("[::1]:65535", "::1", 65535, None),
        ("[fe80::1%eth0]:1", "fe80::1%eth0", 1, None),
        ("grpc://cache.example:50051", "cache.example", 50051, False),
        ("grpc://cache.example:50051/", "cache.example", 50051, False),
        ("GRPC://cache.example", "cache.example", 80, False),
        ("http://cache.example", "cache.example", 80, False),
        ("grpcs://cache.example", "cache.example", 443, True),
        ("https://[::1]", "::1", 443, True),
        ("grpcs://[2001:db8::7]:8443", "2001:db8::7", 8443, True),
        ("dns:cache.example:50051", "cache.example", 50051, None),
        ("dns:///cache.example:50051", "cache.example", 50051, None),
        ("dns:50051", "dns", 50051, None),
        ("grpc:50051", "grpc", 50051, None),
    ],
)
def test_a_network_target_has_a_host_and_a_port(text, host, port, secure):
    assert parse_target(text) == Target(host=host, port=port, secure=secure)


@pytest.mark.parametrize(
    ("text", "path", "shown"),
    [
        ("unix:/run/nl.sock", "/run/nl.sock", "unix:/run/nl.sock"),
        ("unix:///run/nl.sock", "/run/nl.sock", "unix:/run/nl.sock"),
        ("unix:nl.sock", "nl.sock", "unix:nl.sock"),
        ("unix-abstract:nl", "\0nl", "unix:@nl"),
    ],
)
def test_a_unix_target_has_a_path(text, path, shown):
    target = parse_target(text)
    assert target.path == path
    assert str(target) == shown
    assert target.authority == "localhost"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cache.example", "no port"),
        ("dns:cache.example", "no port"),
        ("::1:50051", "brackets"),
        ("host:0", "port 0"),
        ("host:65536", "port 65536"),
        ("host:+1", "no target"),
        ("host:", "no target"),
        ("", "no target"),
        (":80", "no target"),
        ("grpc://", "no target"),
        ("grpc://user@host:1", "no target"),
        ("grpc://host:1/path", "no target"),
        ("grpc://host:1?x", "no target"),
        ("ftp://host:1", "no target"),
        ("host name:1", "no target"),
        ("host:1\n", "no target"),
        ("ho\0st:1", "no target"),
        ("unix:", "no path"),
        ("unix://run/nl.sock", "absolute"),
        ("dns://1.1.1.1/host:1", "DNS server"),
    ],
)
def test_what_is_no_target_is_refused_in_words(text, words):
    with pytest.raises(ValueError, match=words) as caught:
        parse_target(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cache.example", ("cache.example", None)),
        ("cache.example:443", ("cache.example", 443)),
        ("[::1]", ("::1", None)),
        ("[::1]:50051", ("::1", 50051)),
        ("10.0.0.1", ("10.0.0.1", None)),
    ],
)
def test_an_authority_is_a_host_with_or_without_a_port(text, expected):
    assert split_authority(text) == expected


@pytest.mark.parametrize("text", ["::1", "host:port", "a b", "", "host:1:2", "[::1"])
def test_what_is_no_authority_is_refused(text):
    with pytest.raises(ValueError, match="no authority"):
        split_authority(text)


def test_an_ipv6_authority_keeps_its_brackets():
    assert parse_target("grpcs://[::1]").authority == "[::1]:443"


@pytest.mark.parametrize(
    ("text", "hint"), [("::1", True), ("a:b:c", True), ("a:b", False), ("a b", False), (":1", False)]
)
def test_only_what_may_be_an_ipv6_address_is_told_about_brackets(text, hint):
    with pytest.raises(ValueError, match="expected host:port") as caught:
        parse_target(text)
    assert ("an IPv6 address needs brackets" in str(caught.value)) is hint


@pytest.mark.parametrize("text", ["unix", "unix-abstract", "dns", "grpc"])
def test_a_scheme_without_anything_behind_it_is_a_name(text):
    with pytest.raises(ValueError, match="has no port"):
        parse_target(text)


def test_a_path_with_a_nul_is_none():
    with pytest.raises(ValueError, match="names no path"):
        parse_target("unix:/a\0b")
    assert str(parse_target("unix-abstract:a")) == "unix:@a"
