"""Everything that says who somebody is, together; and nothing of a token anywhere."""

import base64
import functools
import json
import logging
import time

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from nl.auth import authenticator as module
from nl.auth import watched_file
from nl.auth.authenticator import Authenticator, authenticator_at
from nl.auth.key_set import parse_keys
from nl.auth.throttle import BURST
from nl.auth.tokens import hash_token
from nl.config.auth import AuthOptions, CertificateGrant, GrantOptions, JwtGrant, JwtOptions
from nl.errors import ConfigError, UnauthenticatedError, UnavailableError
from nl.model.access import Grant, Identity, PeerCertificate, Right
from tests.support.changing import change

PEER = "10.0.0.1:1"
READ_EVERYBODY = (GrantOptions(allow=("read_ac",), instances=("public",)),)


def line(name, token, **more):
    entry = {"name": name, "sha256": hash_token(token).hex(), "grants": [{"allow": ["write"]}], **more}
    return json.dumps(entry) + "\n"


def opened(tmp_path, text="", **more):
    path = tmp_path / "tokens"
    path.write_text(text or line("ci", b"nl_ci"))
    return authenticator_at(AuthOptions(tokens_file=str(path), **more), path="auth"), path


async def look_twice(door):
    """What `run` does in a second."""
    for _ in range(2):
        for file in door._files:
            await file.look()


def test_nobody_is_anonymous_and_has_what_everybody_has(tmp_path):
    door, _ = opened(tmp_path, anonymous=READ_EVERYBODY)
    identity = door.authenticate(PEER, None, None)
    assert identity.is_anonymous
    assert identity.rights_on("public") == Right.READ_AC
    assert not identity.sees("main")
    assert door.authenticate(PEER, None, b"Bearer nl_ci").may(Right.READ_AC | Right.WRITE_AC, "public")


def test_the_same_token_is_the_same_identity_however_it_comes(tmp_path):
    door, _ = opened(tmp_path)
    headers = (b"Bearer nl_ci", b"Basic dTpubF9jaQ==", b"Bearer nl_ci")
    found = [door.authenticate(PEER, None, header) for header in headers]
    assert [each.name for each in found] == ["ci"] * 3
    assert found[0] is found[1] is found[2]


@pytest.mark.parametrize("header", [b"Bearer nl_SECRET", b"Bearer a.SECRET.c", b"SECRET", b"Basic SECRET", b""])
def test_what_is_wrong_is_refused_even_where_nobody_needs_anything(tmp_path, header):
    door, _ = opened(tmp_path, anonymous=(GrantOptions(allow=("all",)),))
    with pytest.raises(UnauthenticatedError) as caught:
        door.authenticate(PEER, None, header)
    assert "SECRET" not in str(caught.value)


def test_a_token_ends_when_it_says_so_also_for_those_who_use_it(tmp_path):
    now = [time.time()]
    path = tmp_path / "tokens"
    path.write_text(line("ci", b"nl_ci", expires="2100-01-01T00:00:00Z"))
    door = Authenticator(AuthOptions(tokens_file=str(path)), path="auth", clock=lambda: now[0])
    door.load()
    assert door.authenticate(PEER, None, b"Bearer nl_ci").name == "ci"
    now[0] = 4102444800.0
    with pytest.raises(UnauthenticatedError, match="^the token 'ci' has expired$"):
        door.authenticate(PEER, None, b"Bearer nl_ci")


async def test_a_revoked_token_is_out_and_a_new_one_in_while_the_server_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(watched_file, "LOOK_S", 0.01)
    door, path = opened(tmp_path)
    door.authenticate(PEER, None, b"Bearer nl_ci")
    async with trio.open_nursery() as nursery:
        await nursery.start(door.run)
        path.write_text(line("new", b"nl_new"))
        with trio.fail_after(20):
            while "new" not in repr(door):
                await trio.sleep(0.01)
            while door._remembered:
                await trio.sleep(0.01)
        assert door.authenticate(PEER, None, b"Bearer nl_new").name == "new"
        with pytest.raises(UnauthenticatedError, match="not known"):
            door.authenticate(PEER, None, b"Bearer nl_ci")
        nursery.cancel_scope.cancel()


async def test_who_lost_its_token_or_its_rights_is_revoked_and_nobody_else(tmp_path):
    door, path = opened(tmp_path, "".join(line(name, f"nl_{name}".encode()) for name in ("stays", "goes", "less")))
    before = {name: door.authenticate(PEER, None, f"Bearer nl_{name}".encode()) for name in ("stays", "goes", "less")}
    path.write_text(
        line("stays", b"nl_stays", expires="2100-01-01T00:00:00Z")
        + line("less", b"nl_less", grants=[{"allow": ["read"]}]) + line("new", b"nl_new")
    )  # fmt: skip
    await look_twice(door)
    assert {name: identity.is_revoked for name, identity in before.items()} == {
        "stays": False, "goes": True, "less": True
    }  # fmt: skip
    assert before["goes"].expires_at == float("inf")
    assert before["stays"].expires_at == 4102444800.0
    assert door.authenticate(PEER, None, b"Bearer nl_stays") is before["stays"]
    less = door.authenticate(PEER, None, b"Bearer nl_less")
    assert not less.is_revoked
    assert not less.may(Right.WRITE_AC, "")


async def test_a_file_that_became_wrong_or_went_away_changes_nothing(tmp_path, caplog):
    door, path = opened(tmp_path)
    path.write_text(line("new", b"nl_new") + "nl_SECRET\n")
    for _ in range(3):
        await look_twice(door)
    assert door.authenticate(PEER, None, b"Bearer nl_ci").name == "ci"
    path.unlink()
    for _ in range(3):
        await look_twice(door)
    assert door.authenticate(PEER, None, b"Bearer nl_ci").name == "ci"
    path.write_text(line("new", b"nl_new"))
    await look_twice(door)
    assert door.authenticate(PEER, None, b"Bearer nl_new").name == "new"
    errors = [each.getMessage() for each in caplog.records if each.levelno == logging.ERROR]
    assert len(errors) == 2, "one line for each change, not for each look"
    assert "tokens:2: is no JSON object" in errors[0]
    assert "there is no such file" in errors[1]
    assert all(each.endswith("what was read before stays in force") for each in errors)
    assert "SECRET" not in caplog.text


async def test_a_file_whose_mode_was_mended_is_read(tmp_path, caplog):
    """The log says `chmod o-w`: then that has to help, or what was revoked stays in force."""
    door, path = opened(tmp_path)
    path.write_text(line("new", b"nl_new"))
    path.chmod(0o666)
    for _ in range(3):
        await look_twice(door)
    assert "expected: chmod o-w" in caplog.text
    assert door.authenticate(PEER, None, b"Bearer nl_ci").name == "ci"
    path.chmod(0o600)
    await look_twice(door)
    with pytest.raises(UnauthenticatedError):
        door.authenticate(PEER, None, b"Bearer nl_ci")
    assert door.authenticate(PEER, None, b"Bearer nl_new").name == "new"


async def test_a_file_that_could_not_be_read_is_tried_again(autojump_clock, tmp_path, monkeypatch, caplog):
    door, path = opened(tmp_path)
    file, load = door._files[0], door._files[0]._load
    asked = []

    def out_of_descriptors(path):
        asked.append(path)
        raise ConfigError("", "cannot be read: Too many open files", source=path)

    monkeypatch.setattr(file, "_load", out_of_descriptors)
    path.write_text(line("new", b"nl_new"))
    for _ in range(60):
        await file.look()
        await trio.sleep(watched_file.LOOK_S)
    assert len(asked) == 3
    assert len(caplog.messages) == 1, "said once"
    monkeypatch.setattr(file, "_load", load)
    await trio.sleep(watched_file.RETRY_S)
    await file.look()
    with pytest.raises(UnauthenticatedError):
        door.authenticate(PEER, None, b"Bearer nl_ci")


def test_long_headers_are_not_kept(tmp_path):
    """Somebody with a right token could have megabytes kept: it comes in as many forms as there are user names."""
    door, _ = opened(tmp_path)
    for number in range(100):
        pair = b"%d" % number + b"u" * 6000 + b":nl_ci"
        assert door.authenticate(PEER, None, b"Basic " + base64.b64encode(pair)).name == "ci"
    assert len(door._remembered) == 100
    assert max(map(len, door._remembered)) <= 512


async def test_a_file_is_not_read_while_it_is_being_written(tmp_path):
    door, path = opened(tmp_path)
    file = door._files[0]
    path.write_text("")
    await file.look()
    assert len(door._tokens) == 1, "seen once: may be half of it"
    path.write_text(line("ci", b"nl_ci") + line("two", b"nl_two"))
    await file.look()
    assert len(door._tokens) == 1
    await file.look()
    assert len(door._tokens) == 2


def test_what_is_wrong_at_the_start_is_a_config_error(tmp_path):
    with pytest.raises(ConfigError, match=r"/none: there is no such file"):
        authenticator_at(AuthOptions(tokens_file=f"{tmp_path}/none"), path="servers[0].auth")


def test_a_process_s_own_token_needs_no_file(tmp_path):
    door = Authenticator(AuthOptions(anonymous=READ_EVERYBODY), path="auth")
    worker = Identity("w", [Grant(("*",), Right.REGISTER_WORKERS)])
    door.add_token("nl_own", worker)
    assert door.authenticate(PEER, None, b"Bearer nl_own") is worker


def test_a_certificate_counts_where_no_token_is_sent(tmp_path):
    grant = CertificateGrant(allow=("worker",), common_name="w*")
    door, _ = opened(tmp_path, certificates=(grant,), anonymous=READ_EVERYBODY)
    certificate = PeerCertificate("w1")
    identity = door.authenticate(PEER, certificate, None)
    assert identity is door.authenticate(PEER, PeerCertificate("w1"), None)
    assert identity.name == "cn:w1"
    assert identity.may(Right.REGISTER_WORKERS, "x")
    assert not door.authenticate(PEER, PeerCertificate("x"), None).sees("main")
    assert door.authenticate(PEER, certificate, b"Bearer nl_ci").name == "ci"
    with pytest.raises(UnauthenticatedError):
        door.authenticate(PEER, certificate, b"Bearer nl_wrong")
    with pytest.raises(UnauthenticatedError, match="the client certificate has expired"):
        door.authenticate(PEER, PeerCertificate("w1", not_after=time.time() - 1), None)


def test_what_is_remembered_is_bounded(tmp_path):
    door, _ = opened(tmp_path, "".join(line(f"t{n}", b"nl_%d" % n) for n in range(2 * module._MAX_REMEMBERED)))
    for number in range(2 * module._MAX_REMEMBERED):
        assert door.authenticate(PEER, None, b"Bearer nl_%d" % number).name == f"t{number}"
        with pytest.raises(UnauthenticatedError):
            door.authenticate(PEER, None, b"Bearer wrong%d" % number)
        door.authenticate(PEER, PeerCertificate(f"c{number}"), None)
    assert len(door._remembered) == len(door._wrong) == module._MAX_REMEMBERED
    assert len(door._certificates) <= module._MAX_REMEMBERED


def test_wrong_tokens_do_not_hold_up_right_ones_from_the_same_address(tmp_path):
    door, _ = opened(tmp_path)
    for number in range(3 * BURST):
        with pytest.raises(UnauthenticatedError, match="^the token is not known here$"):
            door.authenticate(PEER, None, b"Bearer nl_wrong%d" % number)
    assert door.authenticate("10.0.0.1:2", None, b"Bearer nl_ci").name == "ci"
    assert door.statistics()["failures"] == 3 * BURST


async def test_a_token_that_was_wrong_and_then_is_made_is_right(tmp_path):
    door, path = opened(tmp_path)
    for _ in range(2):
        with pytest.raises(UnauthenticatedError):
            door.authenticate(PEER, None, b"Bearer nl_new")
    path.write_text(line("new", b"nl_new"))
    await look_twice(door)
    assert door.authenticate(PEER, None, b"Bearer nl_new").name == "new"


class TestWebTokens:
    """With an issuer."""

    @pytest.fixture
    def issued(self, tmp_path):
        pytest.importorskip("jwt", reason="PyJWT is not installed: JSON web tokens are NOT being tested")
        from tests.support.web_tokens import ISSUER, Key, key_set

        key = Key("k")
        (tmp_path / "keys").write_text(key_set(key))
        options = JwtOptions(
            name="ci", issuer=ISSUER, audience=("nl",), jwks_file=f"{tmp_path}/keys",
            grants=(JwtGrant(allow=("write",), claims={"ref": "main"}),),
        )  # fmt: skip
        return authenticator_at(AuthOptions(jwt=(options,)), path="auth"), key

    def test_a_web_token_is_checked_once_and_remembered_until_it_ends(self, issued, monkeypatch):
        door, key = issued
        header = b"Bearer " + key.sign(ref="main").encode()
        identity = door.authenticate(PEER, None, header)
        assert identity.name == "ci:job"
        assert identity.may(Right.WRITE_AC, "x")
        monkeypatch.setattr(module, "header_and_issuer", None)
        assert door.authenticate(PEER, None, header) is identity
        monkeypatch.setattr(door, "_clock", lambda: time.time() + 631)
        with pytest.raises(TypeError):
            door.authenticate(PEER, None, header)

    def test_a_stranger_s_issuer_is_refused(self, issued):
        door, key = issued
        with pytest.raises(UnauthenticatedError, match="of an issuer that is not known here"):
            door.authenticate(PEER, None, b"Bearer " + key.sign(iss="https://evil.example").encode())

    def test_many_wrong_ones_end_the_checking_of_new_ones_for_a_moment(self, issued, monkeypatch):
        door, key = issued
        monkeypatch.setattr(door._throttle, "_clock", lambda: 1000.0)
        right, known = (b"Bearer " + key.sign(ref="main", jti=each).encode() for each in "ab")
        door.authenticate(PEER, None, known)
        for number in range(BURST):
            with pytest.raises(UnauthenticatedError, match="expired"):
                door.authenticate(PEER, None, b"Bearer " + key.sign(exp=1, jti=str(number)).encode())
        with pytest.raises(UnavailableError, match="too many wrong credentials from your connection; try again"):
            door.authenticate(PEER, None, right)
        assert door.authenticate(PEER, None, known).name == "ci:job"
        neighbour = PEER.rpartition(":")[0] + ":2"
        assert door.authenticate(neighbour, None, right).name == "ci:job", "each job of a CI system has a new one"
        assert door.authenticate("10.0.0.2:1", None, right).name == "ci:job"

    def test_what_is_no_web_token_holds_up_no_web_token(self, issued):
        door, key = issued
        for number in range(3 * BURST):
            with pytest.raises(UnauthenticatedError, match="not known"):
                door.authenticate(PEER, None, b"Bearer nl_wrong%d" % number)
        assert door.authenticate(PEER, None, b"Bearer " + key.sign(ref="main").encode()).name == "ci:job"

    def test_names_tell_the_holders_apart(self, issued):
        """Names own operations and uploads."""
        door, key = issued
        long = "repo:acme/app:ref:refs/heads/" + "x" * 300
        tokens = [key.sign(**more) for more in ({"sub": long + "1"}, {"sub": long + "2"}, {"sub": None, "jti": "1"},
                                                {"sub": None, "jti": "2"}, {"sub": "", "jti": "3"})]  # fmt: skip
        names = [door.authenticate(PEER, None, b"Bearer " + token.encode()).name for token in tokens]
        assert len(set(names)) == len(names)
        assert max(map(len, names)) < 240
        again = door.authenticate(PEER, None, b"Bearer " + key.sign(sub=long + "1", jti="again").encode())
        assert again.name == names[0]
        assert not any(part in "".join(names) for token in tokens for part in token.split("."))

    def test_an_end_without_end_is_refused(self, issued):
        door, key = issued
        with pytest.raises(UnauthenticatedError, match="malformed"):
            door.authenticate(PEER, None, b"Bearer " + key.sign(exp=10**400).encode())

    def test_one_client_with_an_old_token_harms_nobody(self, issued, monkeypatch):
        door, key = issued
        old = b"Bearer " + key.sign(exp=1).encode()
        for _ in range(3 * BURST):
            with pytest.raises(UnauthenticatedError, match="this token of ci is not taken: it has expired"):
                door.authenticate(PEER, None, old)
            monkeypatch.setattr(module, "header_and_issuer", None)  # it is not checked again
        monkeypatch.undo()
        assert door.authenticate(PEER, None, b"Bearer " + key.sign(ref="main").encode()).name == "ci:job"

    def test_a_token_that_has_not_begun_begins(self, issued, monkeypatch):
        door, key = issued
        now = time.time()
        header = b"Bearer " + key.sign(nbf=int(now) + 60).encode()
        with pytest.raises(UnauthenticatedError, match="not valid yet"):
            door.authenticate(PEER, None, header)
        checked = []
        monkeypatch.setattr(module, "header_and_issuer", lambda token: checked.append(token) or ({}, "nobody"))
        for later in (9, 11):
            monkeypatch.setattr(door, "_clock", lambda later=later: now + later)
            with pytest.raises(UnauthenticatedError):
                door.authenticate(PEER, None, header)
        assert len(checked) == 1

    async def test_a_key_that_is_taken_out_of_the_file_is_out(self, issued, tmp_path):
        from tests.support.web_tokens import Key, key_set

        door, key = issued
        header = b"Bearer " + key.sign(ref="main").encode()
        door.authenticate(PEER, None, header)
        (tmp_path / "keys").write_text(key_set(Key("other")))
        await look_twice(door)
        with pytest.raises(UnauthenticatedError, match="its key is none of ci's"):
            door.authenticate(PEER, None, header)


@given(st.one_of(
    st.binary(max_size=200),
    st.binary(max_size=200).map(lambda data: b"Bearer " + data),
    st.binary(max_size=100).map(lambda data: b"Basic " + base64.b64encode(data)),
    st.lists(st.binary(max_size=60), min_size=3, max_size=3).map(
        lambda parts: b"Bearer " + b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in parts)
    ),
    st.lists(st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=5) | st.integers(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
            st.sampled_from(["alg", "kid", "iss", "aud", "exp", "crit", "x"]), inner, max_size=4
        ),
    ), min_size=2, max_size=2).map(lambda parts: b"Bearer " + b".".join(
        base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in parts
    ) + b".c2ln"),
))  # fmt: skip
def test_whatever_is_sent_is_unauthenticated_and_nothing_worse(header):
    pytest.importorskip("jwt", reason="PyJWT is not installed: JSON web tokens are NOT being tested")
    with pytest.raises((UnauthenticatedError, UnavailableError)):
        fuzzed().authenticate(PEER, None, header)


@functools.cache
def fuzzed():
    from tests.support.web_tokens import ISSUER, Key, key_set

    options = JwtOptions(
        name="ci", issuer=ISSUER, audience=("nl",), jwks_file="unread", grants=(JwtGrant(allow=("all",)),)
    )
    door = Authenticator(AuthOptions(jwt=(options,)), path="auth")
    door._issuers[ISSUER].keys.keys = parse_keys(key_set(Key("k")).encode())
    return door


def test_without_the_library_a_config_with_issuers_is_refused(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "jwt", None)
    options = JwtOptions(name="ci", issuer="i", audience=("nl",), jwks_file="f", grants=(JwtGrant(allow=("read",)),))
    with pytest.raises(ConfigError, match=r"^auth.jwt: needs PyJWT, .* expected: pip install 'nl\[auth\]'$"):
        Authenticator(AuthOptions(jwt=(options,)), path="auth")


def test_nothing_of_a_token_is_in_any_log_message_or_repr(tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    door, _ = opened(tmp_path)
    door.authenticate(PEER, None, b"Bearer nl_ci")
    messages = []
    for header in (b"Bearer nl_ci2", b"Basic dTpubF9jaTI=", b"nl_ci2", b"Bearer nl_ci2.x.y"):
        with pytest.raises(UnauthenticatedError) as caught:
            door.authenticate(PEER, None, header)
        messages.append(str(caught.value))
    shown = caplog.text + repr(door) + repr(door.authenticate(PEER, None, b"Bearer nl_ci")) + str(messages)
    shown += repr(door.statistics()) + repr(door._tokens)
    assert "nl_ci" not in shown
    assert "dTpubF9jaTI" not in shown
    assert hash_token(b"nl_ci").hex() not in shown
    assert "ci" in repr(door)


class Clock:
    """Wall time, set by hand."""

    def __init__(self):
        self.now = 1_000_000.0

    def __call__(self):
        return self.now


END = "1970-01-12T13:46:50+00:00"  # 1,000,010 seconds


def at_hand(tmp_path, text, clock, **more):
    path = tmp_path / "tokens"
    path.write_text(text)
    door = Authenticator(AuthOptions(tokens_file=str(path), **more), path="auth", clock=clock)
    door.load()
    return door


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(("later", "is_taken"), [(9.9, True), (10.0, False), (10.1, False)])
def test_a_token_is_taken_until_its_end_and_not_at_it(tmp_path, known, later, is_taken):
    clock = Clock()
    door = at_hand(tmp_path, line("ci", b"nl_ci", expires=END), clock)
    if known:
        door.authenticate(PEER, None, b"Bearer nl_ci")
    clock.now += later
    if is_taken:
        assert door.authenticate(PEER, None, b"Bearer nl_ci").name == "ci"
    else:
        with pytest.raises(UnauthenticatedError, match="the token 'ci' has expired"):
            door.authenticate(PEER, None, b"Bearer nl_ci")


@pytest.mark.parametrize(("later", "is_said"), [(9.9, False), (10.0, True)])
def test_tokens_that_have_ended_are_named_when_the_file_is_read(tmp_path, caplog, later, is_said):
    clock = Clock()
    clock.now += later
    at_hand(tmp_path, line("a", b"nl_a", expires=END) + line("b", b"nl_b") + line("c", b"nl_c", expires=END), clock)
    assert caplog.messages == ([f"{tmp_path}/tokens: expired: a, c"] if is_said else [])


@pytest.mark.parametrize(("later", "is_taken"), [(-0.1, True), (0.0, True), (0.1, False)])
def test_a_certificate_is_taken_up_to_its_end(later, is_taken):
    clock = Clock()
    grant = CertificateGrant(allow=("read",), common_name="*")
    door = Authenticator(AuthOptions(certificates=(grant,)), path="auth", clock=clock)
    certificate = PeerCertificate("c", not_after=clock.now)
    clock.now += later
    if is_taken:
        assert door.authenticate(PEER, certificate, None).name == "cn:c"
    else:
        with pytest.raises(UnauthenticatedError, match="the client certificate has expired"):
            door.authenticate(PEER, certificate, None)


def test_a_wrong_one_is_looked_at_again_after_ten_seconds_and_counts_each_time(tmp_path):
    clock = Clock()
    door = at_hand(tmp_path, line("ci", b"nl_ci"), clock)

    def is_refused():
        with pytest.raises(UnauthenticatedError, match="^the token is not known here$"):
            door.authenticate(PEER, None, b"Bearer nl_new")

    is_refused()
    door.add_token("nl_new", Identity("new", []))  # nothing is forgotten because of it
    for later in (0.0, 9.9):
        clock.now = 1_000_000.0 + later
        is_refused()
    assert door.statistics() == {"tokens": 1, "remembered": 0, "failures": 3}
    clock.now = 1_000_010.0
    assert door.authenticate(PEER, None, b"Bearer nl_new").name == "new"
    assert door.statistics() == {"tokens": 1, "remembered": 1, "failures": 3}


def test_what_was_remembered_first_is_forgotten_first(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_MAX_REMEMBERED", 2)
    door = at_hand(tmp_path, "".join(line(name, f"nl_{name}".encode()) for name in "abc"), Clock())
    for name in "abc":
        door.authenticate(PEER, None, f"Bearer nl_{name}".encode())
        with pytest.raises(UnauthenticatedError):
            door.authenticate(PEER, None, f"Bearer wrong_{name}".encode())
    assert [found.identity.name for found in door._remembered.values()] == ["b", "c"]
    assert list(door._wrong) == [hash_token(f"Bearer wrong_{name}".encode()) for name in "bc"]


@pytest.mark.parametrize("length", [511, 512, 513])
def test_headers_are_kept_as_they_are_up_to_a_length(tmp_path, length):
    door, _ = opened(tmp_path)
    header = b"Bearer " + b" " * (length - len(b"Bearer nl_ci")) + b"nl_ci"
    assert len(header) == length
    assert door.authenticate(PEER, None, header) is door.authenticate(PEER, None, header)
    assert list(door._remembered) == [header if length <= 512 else hash_token(header)]


def test_a_token_goes_before_a_certificate_and_a_certificate_before_nobody(tmp_path):
    grant = CertificateGrant(allow=("read",), common_name="*")
    door, _ = opened(tmp_path, certificates=(grant,), anonymous=READ_EVERYBODY)
    names = [
        door.authenticate(PEER, certificate, header).name
        for certificate in (None, PeerCertificate("c")) for header in (None, b"Bearer nl_ci")
    ]  # fmt: skip
    assert names == ["anonymous", "ci", "cn:c", "ci"]


async def test_tokens_change_a_second_time(tmp_path):
    door, path = opened(tmp_path)
    seen = {}
    for name in ("one", "two", "three"):
        change(path, line(name, f"nl_{name}".encode()))
        await look_twice(door)
        seen[name] = door.authenticate(PEER, None, f"Bearer nl_{name}".encode())
        for earlier in list(seen)[:-1]:
            assert seen[earlier].is_revoked
            with pytest.raises(UnauthenticatedError, match="not known"):
                door.authenticate(PEER, None, f"Bearer nl_{earlier}".encode())
        assert not seen[name].is_revoked


def test_a_problem_of_an_option_is_at_its_path_and_one_of_a_file_in_the_file(tmp_path, monkeypatch):
    path = tmp_path / "tokens"
    path.write_text("nonsense")
    with pytest.raises(ConfigError) as caught:
        authenticator_at(AuthOptions(tokens_file=str(path)), path="servers[0].auth")
    assert (caught.value.path, caught.value.source) == ("", f"{path}:1")

    def load(self):
        raise ConfigError("tokens_file", "is wrong")

    monkeypatch.setattr(Authenticator, "load", load)
    with pytest.raises(ConfigError) as caught:
        authenticator_at(AuthOptions(tokens_file=str(path)), path="servers[0].auth")
    assert (caught.value.path, caught.value.problem) == ("servers[0].auth.tokens_file", "is wrong")


async def test_keys_that_are_fetched_are_followed_and_what_was_checked_with_older_ones_is_checked_again():
    pytest.importorskip("jwt", reason="PyJWT is not installed: JSON web tokens are NOT being tested")
    from tests.support.web_tokens import ISSUER, Key, key_server, key_set

    one, two = Key("one"), Key("two")
    published = [one]
    with key_server(lambda path: (200, {}, key_set(*published))) as (url, _):
        options = JwtOptions(name="ci", issuer=ISSUER, audience=("nl",), jwks_url=url,
                             grants=(JwtGrant(allow=("write",)),))  # fmt: skip
        door = Authenticator(AuthOptions(jwt=(options,)), path="auth")
        keys = door._issuers[ISSUER].keys
        keys._least_pause_s = 0.01
        header = b"Bearer " + one.sign().encode()
        with pytest.raises(UnavailableError, match="the keys of ci are being fetched; try again in a few seconds"):
            door.authenticate(PEER, None, header)
        async with trio.open_nursery() as nursery:
            await nursery.start(door.run)
            assert door.authenticate(PEER, None, header).name == "ci:job"
            published[:] = [two]
            with trio.fail_after(60):
                while list(keys.keys) != ["two"]:
                    keys.wants_other()
                    await trio.sleep(0.01)
            assert not door._remembered
            keys._least_pause_s = 3600.0
            with pytest.raises(UnauthenticatedError, match="its key is none of ci's"):
                door.authenticate(PEER, None, header)
            assert door.authenticate(PEER, None, b"Bearer " + two.sign().encode()).name == "ci:job"
            nursery.cancel_scope.cancel()


async def test_keys_in_a_file_are_watched_as_tokens_are(tmp_path, monkeypatch):
    pytest.importorskip("jwt", reason="PyJWT is not installed: JSON web tokens are NOT being tested")
    from tests.support.web_tokens import ISSUER, Key, key_set

    monkeypatch.setattr(watched_file, "LOOK_S", 0.01)
    one, two = Key("one"), Key("two")
    path = tmp_path / "keys"
    path.write_text(key_set(one))
    options = JwtOptions(name="ci", issuer=ISSUER, audience=("nl",), jwks_file=str(path),
                         grants=(JwtGrant(allow=("write",)),))  # fmt: skip
    door = authenticator_at(AuthOptions(jwt=(options,)), path="auth")
    async with trio.open_nursery() as nursery:
        await nursery.start(door.run)
        for key in (one, two, one):
            change(path, key_set(key))
            with trio.fail_after(60):
                while list(door._issuers[ISSUER].keys.keys) != [key.kid] or door._remembered:
                    await trio.sleep(0.01)
            assert door.authenticate(PEER, None, b"Bearer " + key.sign().encode()).name == "ci:job"
            if key is two:
                with pytest.raises(UnauthenticatedError, match="its key is none of ci's"):
                    door.authenticate(PEER, None, b"Bearer " + one.sign().encode())
        nursery.cancel_scope.cancel()


def test_several_certificates_are_known_by_heart():
    grant = CertificateGrant(allow=("read",), common_name="*")
    door = Authenticator(AuthOptions(certificates=(grant,)), path="auth")
    certificates = [PeerCertificate(name) for name in "abc"]
    first = [door.authenticate(PEER, each, None) for each in certificates]
    again = [door.authenticate(PEER, each, None) for each in certificates]
    assert all(one is other for one, other in zip(first, again, strict=True))


def test_what_is_wrong_with_an_entry_is_told_by_its_line_alone(tmp_path):
    path = tmp_path / "tokens"
    path.write_text("# x\n" + line("no name", b"nl_x"))
    with pytest.raises(ConfigError) as caught:
        authenticator_at(AuthOptions(tokens_file=str(path)), path="auth")
    assert (caught.value.path, caught.value.source) == ("name", f"{path}:2")


def test_an_identity_ends_with_its_token(tmp_path):
    door = at_hand(tmp_path, line("ci", b"nl_ci", expires=END) + line("b", b"nl_b"), Clock())
    assert door.authenticate(PEER, None, b"Bearer nl_ci").expires_at == 1_000_010.0
    assert door.authenticate(PEER, None, b"Bearer nl_b").expires_at == float("inf")
