"""JSON web tokens: which are taken, and what their claims allow."""

import base64
import hmac
import json
import time

import pytest

jwt = pytest.importorskip("jwt", reason="PyJWT (the extra auth) is not installed: JSON web tokens are NOT being tested")

from nl.auth.web_tokens import Issuer, claims_match, header_and_issuer, looks_like_web_token  # noqa: E402
from nl.config.auth import JwtGrant, JwtOptions  # noqa: E402
from nl.errors import ConfigError, UnauthenticatedError  # noqa: E402
from nl.model.access import Grant, Right  # noqa: E402
from tests.support.web_tokens import ISSUER, Key, key_set  # noqa: E402

KEYS = {name: Key(name, name) for name in ("ES256", "RS256", "EdDSA")}
MAIN = JwtGrant(
    allow=("write",), instances=("main",), claims={"repository": "acme/*", "ref": "refs/heads/main"}
)
PULL = JwtGrant(allow=("read",), instances=("pr",), claims={"repository": "acme/*"})


def issuer(tmp_path, keys=None, **more):
    path = tmp_path / "keys.json"
    path.write_text(keys or key_set(*KEYS.values()))
    given = {"name": "ci", "issuer": ISSUER, "audience": ("nl", "other"), "grants": (MAIN, PULL), **more}
    made = Issuer(JwtOptions(jwks_file=str(path), **given), everybody=[Grant(("public",), Right.READ_AC)])
    made.keys.file.load()
    return made


def encoded(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def check(made, token):
    header, name = header_and_issuer(token)
    assert name == ISSUER
    return made.check(token, header)


@pytest.mark.parametrize("key", KEYS.values(), ids=str)
@pytest.mark.parametrize("with_alg", [True, False])
def test_claims_become_rights(tmp_path, key, with_alg):
    made = issuer(tmp_path, key_set(*KEYS.values(), with_alg=with_alg))
    found = check(made, key.sign(sub="repo:acme/app", repository="acme/app", ref="refs/heads/main"))
    assert found.identity.name == "ci:repo:acme/app"
    assert found.identity.may(Right.WRITE_AC, "main")
    assert found.identity.may(Right.READ_AC, "public")
    assert 500 < found.expires_at - time.time() <= 631
    found = check(made, key.sign(repository="acme/app", ref="refs/pull/7/merge"))
    assert not found.identity.sees("main")
    assert found.identity.rights_on("pr") == Right.READ_CAS | Right.READ_AC
    assert not check(made, key.sign(repository="evil/app", ref="refs/heads/main")).identity.sees("main")


@pytest.mark.parametrize(
    ("claims", "message"),
    [
        ({"exp": 1}, "it has expired"),
        ({"exp": None}, "one of the claims exp, iss, aud is missing"),
        ({"aud": None}, "one of the claims exp, iss, aud is missing"),
        ({"aud": "somebody"}, "it is for another audience"),
        ({"nbf": 99999999999}, "it is not valid yet"),
        ({"exp": "soon"}, "it is malformed"),
    ],
)
def test_a_token_that_is_not_for_us_now_is_refused(tmp_path, claims, message):
    token = KEYS["ES256"].sign(**claims)
    with pytest.raises(UnauthenticatedError, match=f"^this token of ci is not taken: {message}$") as caught:
        check(issuer(tmp_path), token)
    assert caught.value.__cause__ is None


def test_an_issuer_takes_only_its_own_tokens(tmp_path):
    token = KEYS["ES256"].sign(iss="https://other.example.org")
    with pytest.raises(UnauthenticatedError, match="it is of another issuer"):
        issuer(tmp_path).check(token, jwt.get_unverified_header(token))


def test_clocks_may_differ_a_little(tmp_path):
    now = int(time.time())
    token = KEYS["ES256"].sign(exp=now - 10, nbf=now - 60)
    check(issuer(tmp_path), token)
    with pytest.raises(UnauthenticatedError, match="expired"):
        check(issuer(tmp_path, leeway_s=1.0), token)


def test_a_changed_token_and_a_stranger_s_key_are_refused(tmp_path):
    made = issuer(tmp_path)
    head, _, signature = KEYS["ES256"].sign(repository="acme/app").split(".")
    other = KEYS["ES256"].sign(repository="acme/app", ref="refs/heads/main").split(".")[1]
    with pytest.raises(UnauthenticatedError, match="its signature is wrong"):
        check(made, f"{head}.{other}.{signature}")
    with pytest.raises(UnauthenticatedError, match="its signature is wrong"):
        check(made, Key("ES256").sign())
    with pytest.raises(UnauthenticatedError, match="its key is none of ci's"):
        check(made, Key("unknown").sign())
    with pytest.raises(UnauthenticatedError, match="its key is none of ci's"):
        check(made, KEYS["ES256"].sign(headers={"kid": None}))


def test_no_secret_that_the_server_knows_makes_a_token(tmp_path):
    """`none`, and the public key taken for the secret of an HMAC: the two old attacks."""
    made = issuer(tmp_path)
    public = KEYS["RS256"].public()
    claims = {"iss": ISSUER, "aud": "nl", "exp": int(time.time()) + 600, "repository": "acme/app"}
    plain = jwt.encode(claims, None, "none", headers={"kid": "RS256"})
    head = encoded(json.dumps({"alg": "HS256", "kid": "RS256", "typ": "JWT"}).encode())
    body = f"{head}.{encoded(json.dumps(claims).encode())}"
    symmetric = f"{body}.{encoded(hmac.digest(json.dumps(public).encode(), body.encode(), 'sha256'))}"
    for token in (plain, symmetric):
        with pytest.raises(UnauthenticatedError, match="its algorithm is not"):
            check(made, token)


def test_a_key_is_used_with_its_own_algorithm_and_with_those_of_the_config_only(tmp_path):
    key = Key("r", "RS256")
    stronger = key.sign(algorithm="RS512")
    with pytest.raises(UnauthenticatedError, match="its algorithm is not"):
        check(issuer(tmp_path, key_set(key), algorithms=("RS256", "RS512")), stronger)
    check(issuer(tmp_path, key_set(key, with_alg=False), algorithms=("RS256", "RS512")), stronger)
    with pytest.raises(UnauthenticatedError, match="its algorithm is not"):
        check(issuer(tmp_path, key_set(key, with_alg=False), algorithms=("RS256",)), stronger)


def test_a_lone_key_needs_no_id(tmp_path):
    key = Key("only")
    check(issuer(tmp_path, key_set(key)), key.sign(headers={"kid": None}))


@pytest.mark.parametrize(
    ("patterns", "claims", "expected"),
    [
        ({}, {}, True), ({"a": "*"}, {}, False), ({"a": ""}, {}, False), ({"a": ""}, {"a": ""}, True),
        ({"a": "x", "b": "y"}, {"a": "x", "b": "y", "c": 1}, True), ({"a": "x", "b": "y"}, {"a": "x"}, False),
        ({"a": "7"}, {"a": 7}, True), ({"a": "true"}, {"a": True}, True), ({"a": "1"}, {"a": True}, False),
        ({"a": "x*"}, {"a": ["y", "xy"]}, True), ({"a": "x"}, {"a": []}, False), ({"a": "x"}, {"a": [["x"]]}, False),
        ({"a": "*"}, {"a": {"b": "c"}}, False), ({"a": "*"}, {"a": None}, False),
    ],
)  # fmt: skip
def test_every_pattern_must_match_its_claim(patterns, claims, expected):
    assert claims_match(patterns, claims) is expected


@pytest.mark.parametrize("token", ["a.b.c", "..", "x" * 10_000 + "..", base64.b64encode(b"{}").decode() + ".e30.x"])
def test_what_is_no_token_is_refused(token):
    assert looks_like_web_token(token.encode())
    with pytest.raises(UnauthenticatedError, match="^the token is malformed$") as caught:
        header_and_issuer(token)
    assert caught.value.__cause__ is None


DEEP = "[" * 6000


@pytest.mark.parametrize("parts", [(DEEP, "{}"), ('{"alg":"ES256","kid":"ES256"}', DEEP), ("[]", "{}"), ('"x"', "7"),
                                   ('{"alg":"ES256","kid":["ES256"]}', "{}"), ('{"alg":7}', '{"iss":{}}'),
                                   ('{"alg":"ES256","b64":false,"crit":["b64"]}', "{}"), ("\x00", "\xff")])  # fmt: skip
def test_nonsense_is_unauthenticated_and_nothing_else(tmp_path, parts):
    token = ".".join([*(encoded(part.encode()) for part in parts), "c2ln"])
    with pytest.raises(UnauthenticatedError):
        header, _ = header_and_issuer(token)
        issuer(tmp_path).check(token, header)


@pytest.mark.parametrize("claims", [{"exp": 1e400}, {"exp": [1]}, {"nbf": {}}, {"iat": "x"}, {"aud": 7}, {"aud": [7]}])
def test_claims_of_a_wrong_kind_are_unauthenticated_too(tmp_path, claims):
    with pytest.raises(UnauthenticatedError):
        check(issuer(tmp_path), KEYS["ES256"].sign(**claims))


@pytest.mark.parametrize(
    ("text", "message"),
    [("[" * 100_000, "nested too deeply"), ("{", "is not right"),
     ("{}", "it is no key set"), ("[1]", "it is no key set"), ("7", "it is no key set"),
     ('{"keys": {}}', "it is no key set"), ('{"keys": []}', "it has no key"),
     ('{"keys": [{"kty": "oct", "k": "c2VjcmV0", "kid": "1"}]}', "it has no key"),
     ('{"keys": [{"kty": "RSA", "kid": "1"}, 7]}', "it has no key")],
)  # fmt: skip
def test_a_key_file_that_is_not_right_is_a_config_error(tmp_path, text, message):
    with pytest.raises(ConfigError, match=f"keys.json: .*{message}"):
        issuer(tmp_path, text)


def test_keys_for_encryption_are_not_for_signatures(tmp_path):
    one, two = Key("one"), Key("two")
    text = json.dumps({"keys": [one.public() | {"use": "enc"}, two.public()]})
    made = issuer(tmp_path, text)
    check(made, two.sign())
    with pytest.raises(UnauthenticatedError):
        check(made, one.sign())


@pytest.mark.parametrize(("length", "is_kept"), [(0, False), (1, True), (199, True), (200, True), (201, False)])
def test_a_name_is_kept_whole_up_to_a_length_and_else_told_apart_by_its_hash(tmp_path, length, is_kept):
    name = check(issuer(tmp_path), KEYS["ES256"].sign(sub="x" * length)).identity.name
    assert (name == f"ci:{'x' * length}") is is_kept
    if not is_kept:
        start, _, digest = name.partition("~")
        assert (start, len(digest)) == (f"ci:{'x' * min(length, 200)}", 16)


def test_another_claim_may_have_the_name(tmp_path):
    made = issuer(tmp_path, name_claim="actor")
    assert check(made, KEYS["ES256"].sign(actor="me")).identity.name == "ci:me"
    assert check(made, KEYS["ES256"].sign(actor=7)).identity.name == "ci:7"


@pytest.mark.parametrize(("leeway", "late", "is_taken"), [(2000.0, 1000, True), (30.0, 60, False), (0.0, 25, False)])
def test_a_token_ends_with_the_leeway(tmp_path, leeway, late, is_taken):
    made = issuer(tmp_path, leeway_s=leeway)
    end = int(time.time()) - late
    if is_taken:
        assert check(made, KEYS["ES256"].sign(exp=end, iat=end - 5)).expires_at == end + leeway
    else:
        with pytest.raises(UnauthenticatedError, match="it has expired"):
            check(made, KEYS["ES256"].sign(exp=end, iat=end - 5))
