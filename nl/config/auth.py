"""The options of `auth`: whose credentials are taken, and what they allow."""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping
from dataclasses import field
from typing import Literal
from urllib.parse import urlsplit

from nl.config.types import Duration, Options, Text
from nl.errors import ConfigError

Allow = Literal[
    "read", "write", "execute", "worker", "admin", "all",
    "read_cas", "write_cas", "read_ac", "write_ac", "register_workers", "administer",
]  # fmt: skip
Algorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
TOKEN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,99}")
RESERVED_NAMES = frozenset({"anonymous", "everyone"})
_CERTIFICATE_KINDS = ("uri", "dns", "email", "cn")
"""With which the names of certificates' identities begin, as those of web tokens with their issuer's name."""


class GrantOptions(Options):
    """Rights for some instance names."""

    allow: tuple[Allow, ...]
    """What is allowed. `read`: blobs and action results; `write`: read, and upload both; `execute`: read, upload blobs
    and run actions, whose results only workers write; `worker`: register workers; `admin`: see and end everybody's
    operations, read the whole status page; `all`. Or the single rights: `read_cas`, `write_cas`, `read_ac`,
    `write_ac`, `register_workers`, `administer`."""
    instances: tuple[Text, ...] = ("*",)
    """For which instance names: patterns in which `*` stands for any characters; `""` is the empty name."""

    def check(self) -> None:
        """A grant of nothing, or for nothing, is a mistake."""
        for key in ("allow", "instances"):
            if not getattr(self, key):
                raise ConfigError(key, "is empty; expected at least one")


class TokenEntry(Options):
    """One line of a tokens file."""

    name: str
    """Whose it is; for logs and messages."""
    sha256: str
    """SHA-256 of the token, in hexadecimal."""
    grants: tuple[GrantOptions, ...]
    """What it allows."""
    created: str = ""
    """When it was made."""
    expires: str | None = None
    """When it ends, as `2027-02-24T00:00:00Z`; never, if not set."""

    @property
    def expires_at(self) -> float:
        """In seconds since the epoch."""
        return datetime.datetime.fromisoformat(self.expires).timestamp() if self.expires else float("inf")

    def check(self) -> None:
        """Names can be told apart from others' (of certificates, say), and times are times."""
        if TOKEN_NAME.fullmatch(self.name) is None or self.name in RESERVED_NAMES:
            raise ConfigError("name", "is not a token's name; expected letters, digits and . _ @ + - (at most 100)")
        if re.fullmatch("[0-9a-f]{64}", self.sha256) is None:  # never shown: somebody may have put a token here
            raise ConfigError("sha256", "is not a SHA-256; expected 64 digits 0-9, a-f")
        if not self.grants:
            raise ConfigError("grants", "is empty; expected at least one")
        if self.expires is not None:
            try:
                has_zone = datetime.datetime.fromisoformat(self.expires).tzinfo is not None
            except ValueError:
                has_zone = False
            if not has_zone:
                raise ConfigError("expires", f'"{self.expires}" is no time; expected one such as 2027-02-24T00:00:00Z')


class JwtGrant(GrantOptions):
    """Rights for the tokens whose claims match."""

    claims: Mapping[str, Text] = field(default_factory=dict)
    """Patterns by claim, all of which must match: `{ repository: "acme/*", ref: "refs/heads/main" }`. `*` stands for
    any characters. Of a claim that is a list, one element has to match. Empty: every token of the issuer."""


class JwtOptions(Options):
    """JSON web tokens of one issuer: what CI systems give their jobs (OpenID Connect)."""

    name: Text
    """What messages and logs call the issuer; part of the identity's name."""
    issuer: Text
    """The claim `iss`, exactly."""
    audience: tuple[Text, ...]
    """The claim `aud` has to be, or to contain, one of these."""
    jwks_url: Text | None = None
    """Where the issuer's keys are: an `https` address (`http` only of this machine). Exactly one of the two."""
    jwks_file: Text | None = None
    """A file with the issuer's keys, read again when it changes."""
    algorithms: tuple[Algorithm, ...] = ("RS256", "ES256", "EdDSA")
    """How tokens may be signed. Only with key pairs: whoever can check a signature cannot make one."""
    leeway_s: Duration = 30.0
    """How wrong clocks may be, for `exp`, `nbf` and `iat`."""
    refresh_interval_s: Duration = 3600.0
    """How often the keys are fetched again. For a key that is not among them they are, at most once in 30 seconds."""
    name_claim: Text = "sub"
    """The claim that names whoever has the token."""
    grants: tuple[JwtGrant, ...]
    """What tokens allow; those that match add up."""

    def check(self) -> None:
        """One place for the keys, and one that nobody on the way can change."""
        if (self.jwks_url is None) == (self.jwks_file is None):
            raise ConfigError("", "expected exactly one of jwks_url and jwks_file")
        if self.jwks_url is not None and not _is_safe(self.jwks_url):
            raise ConfigError("jwks_url", f'"{self.jwks_url}" is no https address; expected https://...')
        for key in ("audience", "algorithms", "grants"):
            if not getattr(self, key):
                raise ConfigError(key, "is empty; expected at least one")
        if self.refresh_interval_s < 30:
            raise ConfigError("refresh_interval_s", "is shorter than 30 seconds; expected 30 or more")


def _is_safe(url: str) -> bool:
    """Whether nobody on the way can change what comes from there."""
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        return False
    if parts.username is not None or not host:  # http://localhost:@evil.example
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and host in ("localhost", "127.0.0.1", "::1"))


class CertificateGrant(GrantOptions):
    """Rights for the client certificates that match. The listener's `tls.client_ca_file` says who may sign them."""

    uri: Text | None = None
    """A pattern for the subject alternative name of kind URI: `spiffe://acme.org/ci/*`."""
    dns: Text | None = None
    """A pattern for that of kind DNS."""
    email: Text | None = None
    """A pattern for that of kind email."""
    common_name: Text | None = None
    """A pattern for the subject's common name."""

    def check(self) -> None:
        """Something has to match: a grant for every certificate says so with `common_name: "*"`."""
        GrantOptions.check(self)
        if self.uri is self.dns is self.email is self.common_name is None:
            raise ConfigError("", "matches nothing; expected at least one of uri, dns, email, common_name")


class AuthOptions(Options):
    """Who may do what. Without this section everybody who reaches a listener may do everything on it."""

    tokens_file: Text | None = None
    """A file of named tokens, made by `nl token create`; read again when it changes. Clients send a token as
    `authorization: Bearer ...` or as the password of `Basic` (the user name does not matter)."""
    jwt: tuple[JwtOptions, ...] = ()
    """Issuers of JSON web tokens, sent in the same way. Needs the extra `auth`: `pip install 'nl[auth]'`."""
    certificates: tuple[CertificateGrant, ...] = ()
    """What the certificates of TLS clients allow; those that match add up. A token goes before a certificate."""
    anonymous: tuple[GrantOptions, ...] = ()
    """What needs no credentials, so that everybody may do it: `[{ allow: ["read"] }]`. With `all` a listener that only
    trusted peers reach is open, where others ask for credentials."""
    EXAMPLE = """\
{
  tokens_file: "/etc/nl/tokens",
  anonymous: [{ allow: ["read"] }],
  jwt: [{
    name: "github",
    issuer: "https://token.actions.githubusercontent.com",
    jwks_url: "https://token.actions.githubusercontent.com/.well-known/jwks",
    audience: ["nl"],
    grants: [
      { claims: { repository: "acme/app", ref: "refs/heads/main" }, allow: ["write"], instances: ["main"] },
      { claims: { repository: "acme/app" }, allow: ["write"], instances: ["pr"] },
    ],
  }],
}"""

    def check(self) -> None:
        """A section that lets nobody in is a mistake."""
        if not (self.tokens_file or self.jwt or self.certificates or self.anonymous):
            raise ConfigError("", "lets nobody do anything; expected tokens_file, jwt, certificates or anonymous")
        names = set(_CERTIFICATE_KINDS)
        for at, issuer in enumerate(self.jwt):
            if TOKEN_NAME.fullmatch(issuer.name) is None:
                problem = "is not an issuer's name; expected letters, digits and . _ @ + - (at most 100)"
                raise ConfigError(f"jwt[{at}].name", problem)
            if issuer.name in names or issuer.issuer in {each.issuer for each in self.jwt[:at]}:
                raise ConfigError(f"jwt[{at}]", "has a name or an issuer that is taken; expected its own")
            names.add(issuer.name)
