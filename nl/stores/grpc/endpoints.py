"""From the options of `grpc` to a channel: what its endpoints are, how they are reached, and with which credentials.

Files (certificates, tokens) are read when the store starts, and tokens again when they change.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Iterator

import trio

from nl.auth.watched_file import WatchedFile
from nl.config.workers import ClientTlsOptions
from nl.plugin import ConfigError
from nl.rpc.channel import Channel
from nl.rpc.options import ChannelOptions
from nl.rpc.origin import Endpoint
from nl.rpc.tls import client_context
from nl.stores.grpc.options import GrpcEndpoint, GrpcOptions

_log = logging.getLogger(__name__)
_MAX_TOKEN = 16 * 1024
"""Longest token read from a file: no server takes longer headers."""
_LOOPBACK = ("localhost", "::1")


class Credentials:
    """The token of one endpoint."""

    def __init__(self, endpoint: GrpcEndpoint) -> None:
        self.token = endpoint.token.strip() if endpoint.token is not None else None
        self.file = WatchedFile(endpoint.token_file, self._read) if endpoint.token_file is not None else None

    def authorization(self) -> str | None:
        """The header that every call to the endpoint gets."""
        return f"Bearer {self.token}" if self.token is not None else None

    def _read(self, path: str) -> None:
        try:
            with open(path, encoding="ascii") as file:
                token = file.readline(_MAX_TOKEN).strip()
        except (OSError, UnicodeDecodeError) as exc:
            why = exc.strerror if isinstance(exc, OSError) else "it is not ASCII"
            raise ConfigError("token_file", f"cannot read {path}: {why}") from None
        if not token or not token.isprintable() or " " in token:
            raise ConfigError("token_file", f"{path} has no token in its first line")
        self.token = token


class Endpoints:
    """The endpoints of a store. `start` reads their files, then there is a channel; `run` keeps tokens fresh."""

    def __init__(self, options: GrpcOptions, name: str, *, max_message_size: int) -> None:
        self.names = [str(each.target) for each in options.endpoints]
        self._options = options
        self._name = name
        self._max_message_size = max_message_size
        self._credentials = [Credentials(each) for each in options.endpoints]

    def secrets(self) -> list[str]:
        """What no message may show."""
        values = [str(value) for value in self._options.headers.values()]
        words = [word for value in values for word in value.split()]
        return [each.token for each in self._credentials if each.token is not None] + values + words

    async def start(self) -> Channel:
        """A channel to all of them. ConfigError for files that cannot be used, with the endpoint's place."""
        endpoints = []
        for at, (given, credentials) in enumerate(zip(self._options.endpoints, self._credentials, strict=True)):
            try:
                if credentials.file is not None:
                    credentials.file.load()
                tls = await trio.to_thread.run_sync(_tls, given)
            except ConfigError as exc:
                raise ConfigError(f"endpoints[{at}].{exc.path}", exc.problem) from exc
            self._warn_of_clear_text(given, tls)
            endpoints.append(_endpoint(given, credentials, tls))
        options = ChannelOptions(
            max_message_size=self._max_message_size,
            connections=self._options.connections_per_endpoint,
            balancing="round_robin" if len(endpoints) > 1 else "pick_first",
            backoff_max=5.0,
        )
        try:
            return Channel(endpoints, options=options)
        except ValueError as exc:
            raise ConfigError("endpoints", str(exc)) from exc

    async def run(self) -> None:
        """Reads tokens again when their files change, until cancelled."""
        async with trio.open_nursery() as nursery:
            for file in self._files():
                nursery.start_soon(file.watch)

    def _files(self) -> Iterator[WatchedFile]:
        return (each.file for each in self._credentials if each.file is not None)

    def _warn_of_clear_text(self, endpoint: GrpcEndpoint, tls: ssl.SSLContext | None) -> None:
        target = endpoint.target
        has_token = endpoint.token is not None or endpoint.token_file is not None
        near = target.path or target.host in _LOOPBACK or target.host.startswith("127.")
        if has_token and tls is None and not near:
            _log.warning("the grpc store '%s' sends its token to %s without TLS: expected grpcs://", self._name, target)


def _endpoint(given: GrpcEndpoint, credentials: Credentials, tls: ssl.SSLContext | None) -> Endpoint:
    return Endpoint(
        given.address,
        tls,
        compression="gzip" if given.compression == "gzip" else None,
        max_streams=given.concurrency_limit,
        authorization=credentials.authorization,
        connect_timeout=given.connect_timeout_s,
        tcp_keepalive=given.tcp_keepalive_s,
        keepalive_interval=given.http2_keepalive_interval_s,
        keepalive_timeout=given.http2_keepalive_timeout_s,
    )


def _tls(given: GrpcEndpoint) -> ssl.SSLContext | None:
    if given.tls_config is None and not given.target.secure:
        return None
    options = given.tls_config or ClientTlsOptions()
    try:
        return client_context(
            ca_file=options.ca_file,
            cert_file=options.cert_file,
            key_file=options.key_file,
            native_roots=bool(options.use_native_roots),
        )
    except ConfigError as exc:
        raise ConfigError(f"tls_config.{exc.path}", exc.problem) from exc
