"""Tokens: how they are made and kept, what is said about a file that is not right."""

import fcntl
import json
import os
import stat

import pytest

from nl.auth import tokens
from nl.auth.grants import ALLOW
from nl.auth.tokens import (
    TokenTable,
    add_entry,
    hash_token,
    new_token,
    parse_tokens,
    read_text,
    read_tokens,
    remove_entry,
    write_atomically,
)
from nl.config.auth import AuthOptions, JwtGrant, JwtOptions
from nl.errors import ConfigError
from nl.model.access import ALL_RIGHTS, Grant, Right

HASH = hash_token(b"nl_one").hex()


def entry(name="one", sha256=HASH, **more):
    return {"name": name, "sha256": sha256, "grants": [{"allow": ["read"]}], **more}


def test_tokens_are_long_and_differ():
    assert len(new_token()) == len("nl_") + 43, "256 bits, six in each character"
    tokens = {new_token() for _ in range(100)}
    assert len(tokens) == 100
    assert all(token.startswith("nl_") and len(token) >= 46 and "." not in token for token in tokens)


def test_a_token_is_found_by_what_it_is_and_by_nothing_near_it():
    table = TokenTable(parse_tokens(json.dumps(entry()), source="f"), everybody=[])
    found = table.find(b"nl_one")
    assert found.identity.name == "one"
    assert found.expires_at == float("inf")
    assert not found.identity.is_anonymous
    for other in (b"", b"nl_on", b"nl_one ", b"nl_onE", HASH.encode(), bytes.fromhex(HASH)):
        assert table.find(other) is None


def test_finding_a_token_compares_hashes_and_never_tokens():
    """So the time that it takes tells nothing: who could choose the hash could break SHA-256."""
    table = TokenTable(parse_tokens(json.dumps(entry()), source="f"), everybody=[])
    assert list(table._by_hash) == [bytes.fromhex(HASH)]
    asked = []

    class Watched(dict):
        def get(self, key):
            asked.append(key)
            return dict.get(self, key)

    table._by_hash = Watched(table._by_hash)
    for guess in (b"nl_one", b"nl_onE", b"x" * 10_000):
        table.find(guess)
    assert asked == [hash_token(guess) for guess in (b"nl_one", b"nl_onE", b"x" * 10_000)]


def test_a_token_has_its_grants_and_what_everybody_has():
    grants = [{"allow": ["read", "execute"], "instances": ["main"]}, {"allow": ["write_ac"], "instances": ["pr-*"]}]
    text = json.dumps({**entry(), "grants": grants})
    table = TokenTable(parse_tokens(text, source="f"), everybody=[Grant(("public",), Right.READ_AC)])
    identity = table.find(b"nl_one").identity
    assert identity.rights_on("main") == Right.READ_CAS | Right.READ_AC | Right.WRITE_CAS | Right.EXECUTE
    assert identity.rights_on("pr-1") == Right.WRITE_AC
    assert identity.rights_on("public") == Right.READ_AC
    assert identity.rights_on("") == Right(0)


def test_the_words_of_allow_mean_what_the_reference_says():
    assert ALLOW["read"] == Right.READ_CAS | Right.READ_AC
    assert ALLOW["write"] == ALLOW["read"] | Right.WRITE_CAS | Right.WRITE_AC
    assert ALLOW["execute"] == ALLOW["read"] | Right.WRITE_CAS | Right.EXECUTE
    assert ALLOW["worker"] == Right.REGISTER_WORKERS
    assert ALLOW["admin"] == Right.ADMINISTER
    assert ALLOW["all"] == ALL_RIGHTS
    assert all(ALLOW[right.name.lower()] == right for right in Right if right is not Right.EXECUTE)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nl_SECRET", "f:1: is no JSON object"),
        ("[]", "f:1: [a list is not|.*not] an object"),
        (json.dumps(entry(sha256="nl_SECRET")), "f:1: sha256: is not a SHA-256; expected 64"),
        (json.dumps(entry(sha256=HASH.upper())), "f:1: sha256: is not a SHA-256"),
        (json.dumps(entry(name="a b")), "f:1: name: is not a token's name"),
        (json.dumps(entry(name="anonymous")), "f:1: name: is not a token's name"),
        (json.dumps(entry(name="uri:x")), "f:1: name: is not a token's name"),
        (json.dumps(entry(grants=[])), "f:1: grants: is empty"),
        (json.dumps(entry(grants=[{"allow": ["wrte"]}])), 'f:1: grants.0..allow.0.: "wrte" is none of the choices'),
        (json.dumps(entry(grants=[{"allow": []}])), "f:1: grants.0..allow: is empty"),
        (json.dumps(entry(expires="soon")), "f:1: expires: .* is no time"),
        (json.dumps(entry(expires="2027-01-01T00:00:00")), "f:1: expires: .* is no time"),
        (json.dumps(entry(secret="x")), "f:1: secret: unknown key"),
        ("# x\n\n" + json.dumps(entry()) + "\n" + json.dumps(entry(sha256="a" * 64)), "f:4: name: is that of line 3"),
        (json.dumps(entry()) + "\n" + json.dumps(entry("two")), "f:2: token: is that of line 1"),
    ],
)
def test_a_wrong_line_is_named_and_never_shown(text, message):
    message = message.replace("[a list is not|.*not]", ".*not")
    with pytest.raises(ConfigError, match=message) as caught:
        parse_tokens(text, source="f")
    assert "SECRET" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_file_grows_and_shrinks_and_comments_stay():
    text = add_entry("", entry(), source="f")
    assert text.startswith("# Tokens of nl")
    text = add_entry(text + "# for the laptops\n\n", entry("two", "b" * 64), source="f")
    assert [each.name for each in parse_tokens(text, source="f")] == ["one", "two"]
    with pytest.raises(ConfigError, match="name: is that of line"):
        add_entry(text, entry("two", "c" * 64), source="f")
    text = remove_entry(text, "one", source="f")
    assert [each.name for each in parse_tokens(text, source="f")] == ["two"]
    assert "# for the laptops" in text
    with pytest.raises(ConfigError, match="has no token 'one'; it has: two"):
        remove_entry(text, "one", source="f")


def test_a_written_file_is_its_owners_alone_and_keeps_a_mode_that_it_had(tmp_path):
    path = str(tmp_path / "tokens")
    write_atomically(path, "a")
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    os.chmod(path, 0o640)
    link = tmp_path / "link"
    link.symlink_to(path)
    write_atomically(str(link), "b")
    assert link.is_symlink()
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o640
    assert (tmp_path / "tokens").read_text() == "b"
    assert sorted(os.listdir(tmp_path)) == ["link", "tokens"]
    with pytest.raises(ConfigError, match="cannot be written: No such file"):
        write_atomically(str(tmp_path / "no" / "tokens"), "x")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("mode", [0o600, 0o640])
def test_a_file_that_root_writes_anew_stays_the_servers(tmp_path, mode):
    """`nl token create` as root: the server, which is somebody else, must still be able to read it."""
    path = tmp_path / "tokens"
    write_atomically(str(path), "a")
    assert os.stat(path).st_uid == os.geteuid(), "a new one is its writer's"
    try:
        os.chown(path, 12345, 23456)
    except OSError:
        pytest.skip("a container that knows no other users")
    os.chmod(path, mode)
    write_atomically(str(path), "b")
    after = os.stat(path)
    assert (after.st_uid, after.st_gid, stat.S_IMODE(after.st_mode)) == (12345, 23456, mode)
    assert path.read_text() == "b"


def test_a_file_that_cannot_be_trusted_is_refused(tmp_path):
    path = tmp_path / "tokens"
    with pytest.raises(ConfigError, match=r"there is no such file; make it with: nl token create"):
        read_tokens(str(path))
    path.write_text("")
    assert read_tokens(str(path)) == []
    path.chmod(0o666)
    with pytest.raises(ConfigError, match="everybody on this machine can write to it; expected: chmod o-w"):
        read_text(str(path))
    path.chmod(0o600)
    path.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="is not UTF-8 at byte 0"):
        read_text(str(path))


def test_two_paths_of_one_file_are_one_lock(tmp_path):
    """A token is revoked by one path and another made by a link to it, at once: neither change is lost."""
    from nl.cli.token import _locked

    (tmp_path / "etc").mkdir()
    (tmp_path / "var").mkdir()
    (tmp_path / "etc" / "tokens").write_text("")
    (tmp_path / "var" / "link").symlink_to(tmp_path / "etc" / "tokens")
    with _locked(str(tmp_path / "var" / "link")):
        descriptor = os.open(tmp_path / "etc", os.O_RDONLY)
        try:
            with pytest.raises(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            os.close(descriptor)


@pytest.mark.parametrize(
    ("url", "is_taken"),
    [("https://ci.example.org/keys", True), ("http://localhost/keys", True), ("http://127.0.0.1:9/keys", True),
     ("http://[::1]:9/keys", True), ("http://ci.example.org/keys", False), ("http://localhost:@evil.example/k", False),
     ("http://localhost:x@evil.example/k", False), ("https://u:p@ci.example.org/k", False), ("https:///k", False),
     ("file:///etc/keys", False), ("http://localhost.evil.example/", False), ("http://[::1/", False)],
)  # fmt: skip
def test_keys_come_from_where_nobody_on_the_way_can_change_them(url, is_taken):
    more = {"audience": ("nl",), "grants": (JwtGrant(allow=("read",)),)}
    options = JwtOptions(name="ci", issuer="i", jwks_url=url, **more)
    if is_taken:
        options.check()
    else:
        with pytest.raises(ConfigError, match="is no https address"):
            options.check()


@pytest.mark.parametrize("name", ["uri:x", "a:b", "", "a b"])
def test_an_issuer_s_name_can_be_told_from_what_follows_it(name):
    issuer = JwtOptions(name=name, issuer="i", jwks_file="f", audience=("nl",), grants=(JwtGrant(allow=("read",)),))
    with pytest.raises(ConfigError, match="is not an issuer's name"):
        AuthOptions(jwt=(issuer,)).check()


@pytest.mark.parametrize("beyond", [0, 1])
def test_how_large_a_file_may_be(tmp_path, monkeypatch, beyond):
    path = tmp_path / "tokens"
    path.write_text("#" * (100 + beyond))
    monkeypatch.setattr(tokens, "MAX_FILE_BYTES", 100)
    if beyond:
        with pytest.raises(ConfigError, match="tokens: is larger than 100 bytes"):
            read_text(str(path))
    else:
        assert read_text(str(path)) == "#" * 100


def test_what_is_no_file_cannot_be_read_and_a_device_that_all_may_write_to_can(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        read_text(str(tmp_path))
    assert read_text("/dev/null") == "", "as /dev/stdin, from which a token may come"


def test_an_entry_goes_on_a_line_of_its_own_also_behind_a_file_without_an_end_of_line():
    text = add_entry(json.dumps(entry()), entry("two", "b" * 64), source="f")
    assert [each.name for each in parse_tokens(text, source="f")] == ["one", "two"]
    assert text.endswith("\n")
    assert not text.startswith("#")


def test_a_file_that_cannot_be_put_in_place_leaves_nothing_behind(tmp_path):
    target = tmp_path / "tokens"
    target.mkdir()
    (target / "x").write_text("")
    with pytest.raises(ConfigError, match="tokens: cannot be written: "):
        write_atomically(str(target), "text")
    assert os.listdir(tmp_path) == ["tokens"]


def test_only_lines_of_the_name_are_taken_out():
    text = "# one\n" + json.dumps(entry()) + "\n\n" + json.dumps(entry("two", "b" * 64)) + "\n"
    assert remove_entry(text, "two", source="f") == "# one\n" + json.dumps(entry()) + "\n\n"
    with pytest.raises(ConfigError, match="it has: none"):
        remove_entry("# nothing\n", "one", source="f")


def test_a_store_has_no_place_in_a_token():
    grants = [{"allow": ["read"], "store": {"memory": {}}}]
    with pytest.raises(ConfigError, match=r"f:1: grants\[0\].store: unknown key"):
        parse_tokens(json.dumps(entry(grants=grants)), source="f")


def test_a_table_in_place_of_another_revokes_what_is_no_longer_so_and_keeps_who_is_the_same():
    def table(*entries):
        return TokenTable([parse_tokens(json.dumps(each), source="f")[0] for each in entries], everybody=())

    def hashed(name):
        return tokens.hash_token(name.encode()).hex()

    old = table(entry("same", hashed("a")), entry("renamed", hashed("b")), entry("gone", hashed("c")),
                entry("ends", hashed("d")))  # fmt: skip
    new = table(entry("same", hashed("a")), entry("other", hashed("b")),
                entry("ends", hashed("d"), expires="2100-01-01T00:00:00Z"))  # fmt: skip
    before = {name: old.find(name.encode()).identity for name in "abcd"}
    new.replace(old)
    assert [before[name].is_revoked for name in "abcd"] == [False, True, True, False]
    assert new.find(b"a").identity is before["a"]
    assert new.find(b"b").identity.name == "other"
    found = new.find(b"d")
    assert found.identity is before["d"]
    assert found.expires_at == before["d"].expires_at == 4102444800.0
    third = table(entry("same", hashed("a")))
    third.replace(new)
    assert before["d"].is_revoked
    assert third.find(b"a").identity is before["a"], "also at the second change"
    assert len(third) == 1
    assert repr(third) == "TokenTable(same)"


def test_a_file_of_tokens_is_bounded():
    assert tokens.MAX_FILE_BYTES == 16 * 1024 * 1024
