"""From the verified certificate of a TLS client to an identity. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from nl.auth.grants import grant_of
from nl.config.auth import CertificateGrant
from nl.model.access import Grant, Identity, PeerCertificate, matches


def name_of(certificate: PeerCertificate) -> str:
    """Its name for messages and logs, with its kind, so that no token's name can be the same: `uri:spiffe://a/ci`."""
    for kind, names in (
        ("uri", certificate.uris),
        ("dns", certificate.dns_names),
        ("email", certificate.emails),
        ("cn", (certificate.common_name,)),
    ):
        if names and names[0]:
            return f"{kind}:{names[0]}"
    return "cn:"


def identity_of(
    certificate: PeerCertificate, grants: Sequence[CertificateGrant], *, everybody: Sequence[Grant]
) -> Identity:
    """The identity that a certificate gives: the grants that match it, and what everybody may do."""
    found = [grant_of(grant) for grant in grants if _matches(grant, certificate)]
    return Identity(name_of(certificate), [*found, *everybody])


def _matches(grant: CertificateGrant, certificate: PeerCertificate) -> bool:
    """Whether all that the grant asks for is there; of several names of a kind, one is enough."""
    asked = (
        (grant.uri, certificate.uris),
        (grant.dns, certificate.dns_names),
        (grant.email, certificate.emails),
        (grant.common_name, (certificate.common_name,)),
    )
    return all(pattern is None or any(matches(pattern, name) for name in names) for pattern, names in asked)
