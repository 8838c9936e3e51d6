"""Who asks: tokens, JSON web tokens, certificates and nobody in particular, put together as the config says.

`authenticate` is what `nl.rpc.options.Authenticate` and the HTTP side want. It never waits; the credentials that it
has seen to be right it knows by heart, so a request costs a look into a dict. Rules for this file: nothing of a
token is in a log line, a message or a repr; failures are counted by address; what is remembered is forgotten when a
file or a key has changed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

import trio

from nl.auth.certificates import identity_of
from nl.auth.credentials import secret_of
from nl.auth.grants import grants_of
from nl.auth.key_set import FetchedKeys
from nl.auth.throttle import FailureThrottle
from nl.auth.tokens import Found, TokenTable, hash_token, read_tokens
from nl.auth.watched_file import WatchedFile
from nl.auth.web_tokens import Issuer, header_and_issuer, looks_like_web_token, require_library
from nl.config.auth import AuthOptions
from nl.errors import ConfigError, UnauthenticatedError, UnavailableError
from nl.model.access import Identity, PeerCertificate

_log = logging.getLogger("nl.auth")
_MAX_REMEMBERED = 1024
"""Right credentials, wrong ones, and certificates that are known by heart: so many of each."""
_MAX_KEPT = 512
"""Longer headers are remembered by their hash: 1,024 of them would be megabytes, and a token can come in many."""
_WRONG_S = 10.0
"""How long a wrong one is taken for wrong without a look: a web token may not have begun yet."""


class Authenticator:
    """One `auth` section. `load` before anything else; `run` keeps files and keys up to date.

    Raises ConfigError for a library that is missing. `path` is where the section stands in the config.
    """

    def __init__(self, options: AuthOptions, *, path: str, clock: Callable[[], float] = time.time) -> None:
        if options.jwt:
            require_library(f"{path}.jwt")
        self._options = options
        self._path = path
        self._clock = clock
        self._everybody = grants_of(options.anonymous)
        self._anonymous = Identity("anonymous", self._everybody, is_anonymous=True)
        self._tokens = TokenTable([], everybody=())
        self._own: dict[bytes, Identity] = {}
        self._issuers = {each.issuer: Issuer(each, everybody=self._everybody) for each in options.jwt}
        self._throttle = FailureThrottle()
        self._remembered: dict[bytes, Found] = {}
        self._wrong: dict[bytes, tuple[str, float]] = {}
        self._certificates: dict[PeerCertificate, Identity] = {}
        self._files: list[WatchedFile] = []
        if options.tokens_file is not None:
            self._files.append(WatchedFile(options.tokens_file, self._load_tokens))
        for issuer in self._issuers.values():
            if not isinstance(issuer.keys, FetchedKeys):
                self._files.append(issuer.keys.file)
        for file in self._files:
            file.on_change = self._forget

    def load(self) -> None:
        """Reads the files. Raises ConfigError."""
        for file in self._files:
            file.load()

    def add_token(self, token: str, identity: Identity) -> None:
        """A token of this process's own, for its workers: in no file, gone with the process."""
        self._own[hash_token(token.encode())] = identity

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Looks at files and fetches keys until cancelled. Has started when keys are here, or some seconds later."""
        async with trio.open_nursery() as nursery:
            for file in self._files:
                nursery.start_soon(file.watch)
            async with trio.open_nursery() as starting:
                for issuer in self._issuers.values():
                    if isinstance(issuer.keys, FetchedKeys):
                        issuer.keys.on_change = self._forget
                        starting.start_soon(nursery.start, issuer.keys.run)
            task_status.started()

    # -- a request ---------------------------------------------------------------------------------------------------

    def authenticate(self, peer: str, certificate: PeerCertificate | None, header: bytes | None) -> Identity:
        """Who asks. See `nl.rpc.options.Authenticate`."""
        if header is None:
            return self._anonymous if certificate is None else self._of_certificate(certificate)
        key = header if len(header) <= _MAX_KEPT else hash_token(header)
        found = self._remembered.get(key)
        if found is not None and found.expires_at > self._clock():
            return found.identity
        digest = hash_token(header)
        known = self._wrong.get(digest)
        if known is not None and known[1] > self._clock():
            self._throttle.failed(peer, known[0])
            raise UnauthenticatedError(known[0])
        try:
            found = self._of_header(peer, header)
        except UnauthenticatedError as exc:
            self._refuse(peer, digest, exc.message)
            raise
        if len(self._remembered) >= _MAX_REMEMBERED:
            del self._remembered[next(iter(self._remembered))]
        self._remembered[key] = found
        return found.identity

    def _refuse(self, peer: str, digest: bytes, reason: str) -> None:
        """Remembers for a while what was wrong: clients that have it send it again and again."""
        self._throttle.failed(peer, reason)
        if len(self._wrong) >= _MAX_REMEMBERED:
            del self._wrong[next(iter(self._wrong))]
        self._wrong[digest] = (reason, self._clock() + _WRONG_S)

    def _of_header(self, peer: str, header: bytes) -> Found:
        secret = secret_of(header)
        own = self._own.get(hash_token(secret))
        if own is not None:
            return Found(own, float("inf"))
        found = self._tokens.find(secret)
        if found is not None:
            if found.expires_at <= self._clock():
                raise UnauthenticatedError(f"the token {found.identity.name!r} has expired")
            return found
        if not self._issuers or not looks_like_web_token(secret):
            raise UnauthenticatedError("the token is not known here")
        if self._throttle.is_blocked(peer):
            raise UnavailableError("too many wrong credentials from your connection; try again in a few seconds")
        try:
            return self._of_web_token(secret.decode("latin-1"))
        except UnauthenticatedError:
            self._throttle.checked_in_vain(peer)
            raise

    def _of_web_token(self, token: str) -> Found:
        unchecked, name = header_and_issuer(token)
        issuer = self._issuers.get(name)
        if issuer is None:
            raise UnauthenticatedError("the token is of an issuer that is not known here")
        return issuer.check(token, unchecked)

    def _of_certificate(self, certificate: PeerCertificate) -> Identity:
        if certificate.not_after < self._clock():
            raise UnauthenticatedError("the client certificate has expired")
        identity = self._certificates.get(certificate)
        if identity is None:
            identity = identity_of(certificate, self._options.certificates, everybody=self._everybody)
            if len(self._certificates) >= _MAX_REMEMBERED:
                self._certificates.clear()
            self._certificates[certificate] = identity
        return identity

    # -- what changes ------------------------------------------------------------------------------------------------

    def _load_tokens(self, path: str) -> None:
        entries = read_tokens(path)
        tokens = TokenTable(entries, everybody=self._everybody)
        tokens.replace(self._tokens)
        self._tokens = tokens
        now = self._clock()
        ended = [entry.name for entry in entries if entry.expires_at <= now]
        if ended:
            _log.warning("%s: expired: %s", path, ", ".join(ended))

    def _forget(self) -> None:
        self._remembered.clear()
        self._wrong.clear()

    def statistics(self) -> Mapping[str, int]:
        """A snapshot: how many tokens there are, how many right ones are remembered, how many were wrong."""
        return {"tokens": len(self._tokens), "remembered": len(self._remembered), "failures": self._throttle.total}

    def __repr__(self) -> str:
        return f"Authenticator({self._path}: {self._tokens!r}, issuers {', '.join(self._issuers) or 'none'})"


def authenticator_at(options: AuthOptions, *, path: str) -> Authenticator:
    """An authenticator with its files read. Raises ConfigError with a path or a file."""
    authenticator = Authenticator(options, path=path)
    try:
        authenticator.load()
    except ConfigError as exc:
        raise ConfigError(f"{path}.{exc.path}" if exc.path and not exc.source else exc.path, exc.problem,
                          source=exc.source) from exc  # fmt: skip
    return authenticator
