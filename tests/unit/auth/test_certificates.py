"""Which grants a client certificate gets, and what it is called."""

import pytest

from nl.auth.certificates import identity_of, name_of
from nl.config.auth import CertificateGrant, JwtGrant, JwtOptions
from nl.errors import ConfigError
from nl.model.access import Grant, PeerCertificate, Right

CI = PeerCertificate(
    "ci", uris=("spiffe://acme/ci/7",), dns_names=("a.acme.org", "b.acme.org"), emails=("ci@acme.org",)
)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ({"uri": "spiffe://acme/ci/*"}, True), ({"uri": "spiffe://acme/*", "common_name": "ci"}, True),
        ({"dns": "b.acme.org"}, True), ({"email": "*@acme.org"}, True), ({"common_name": "*"}, True),
        ({"uri": "spiffe://acme/ci/*", "common_name": "bot"}, False), ({"dns": "ci"}, False),
        ({"common_name": "a.acme.org"}, False), ({"uri": "spiffe://acme/ci"}, False),
    ],
)  # fmt: skip
def test_all_that_a_grant_asks_for_must_be_there(names, expected):
    grant = CertificateGrant(allow=("worker",), instances=("main",), **names)
    everybody = [Grant(("*",), Right.READ_AC)]
    identity = identity_of(CI, [grant], everybody=everybody)
    assert identity.may(Right.REGISTER_WORKERS, "main") is expected
    assert identity.may(Right.READ_AC, "other")
    assert not identity.may(Right.REGISTER_WORKERS, "other")
    assert not identity.is_anonymous


def test_a_name_says_where_it_is_from():
    assert name_of(CI) == "uri:spiffe://acme/ci/7"
    assert name_of(PeerCertificate("ci", dns_names=("a",))) == "dns:a"
    assert name_of(PeerCertificate("ci", emails=("a@b",))) == "email:a@b"
    assert name_of(PeerCertificate("ci")) == "cn:ci"


def test_a_kind_that_the_certificate_does_not_have_never_matches():
    grant = CertificateGrant(allow=("all",), uri="*")
    assert not identity_of(PeerCertificate("ci"), [grant], everybody=[]).sees("")


def test_a_grant_for_nobody_is_a_mistake():
    with pytest.raises(ConfigError, match="matches nothing; expected at least one of uri, dns, email, common_name"):
        CertificateGrant(allow=("read",)).check()


@pytest.mark.parametrize("key", ["uri", "dns", "email", "common_name"])
def test_each_of_its_keys_is_enough_for_a_grant_and_rights_are_asked_for_beside_it(key):
    CertificateGrant(allow=("read",), **{key: "*"}).check()
    with pytest.raises(ConfigError, match="allow: is empty"):
        CertificateGrant(allow=(), **{key: "*"}).check()


@pytest.mark.parametrize(("seconds", "is_taken"), [(29, False), (29.9, False), (30, True), (31, True)])
def test_keys_are_not_fetched_more_often_than_every_half_minute(seconds, is_taken):
    options = JwtOptions(name="a", issuer="i", audience=("x",), jwks_file="f", refresh_interval_s=seconds,
                         grants=(JwtGrant(allow=("read",)),))  # fmt: skip
    if is_taken:
        options.check()
    else:
        with pytest.raises(ConfigError, match="refresh_interval_s: is shorter than 30 seconds; expected 30 or more"):
            options.check()
