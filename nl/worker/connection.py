"""The stream to the scheduler, over a channel of its own: what an endpoint of the config becomes.

A channel per stream: when the stream is over, so is the connection, and the next attempt starts from nothing. Errors
of the call become NlErrors here.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpclib.const

from nl.config.workers import ClientTlsOptions, WorkerApiEndpoint
from nl.errors import ConfigError, UnavailableError
from nl.pb import worker_api
from nl.rpc.channel import Channel
from nl.rpc.client_stream import ClientStream
from nl.rpc.errors import translated
from nl.rpc.options import ChannelOptions
from nl.rpc.tls import client_context
from nl.worker.agent import Connect, WorkerStream
from nl.worker.tasks import one_error

METHOD = "/com.github.trace_machina.nativelink.remote_execution.WorkerApi/ConnectWorker"
MAX_MESSAGE_BYTES = 64 * 1024 * 1024
"""What a scheduler may send: an order carries no blobs, but NativeLink sets no limit for it."""
MAX_TOKEN = 16 * 1024
"""Longest token read from a file: no server takes longer headers."""
PING_S = 10.0
"""A silent scheduler is asked so often whether it is there, and given as long to answer."""


class _Stream:
    """A ClientStream whose failures are NlErrors."""

    def __init__(self, stream: ClientStream, where: str) -> None:
        self._stream = stream
        self._where = where

    async def send_message(self, message: worker_api.UpdateForScheduler, /) -> None:
        with translated(self._where):
            await self._stream.send_message(message)

    async def recv_message(self) -> worker_api.UpdateForWorker | None:
        with translated(self._where):
            update: worker_api.UpdateForWorker | None = await self._stream.recv_message()
        return update

    async def end(self) -> None:
        with translated(self._where):
            await self._stream.end()


def _tls(given: ClientTlsOptions | None) -> ssl.SSLContext:
    options = given or ClientTlsOptions()
    try:
        return client_context(
            ca_file=options.ca_file,
            cert_file=options.cert_file,
            key_file=options.key_file,
            native_roots=bool(options.use_native_roots),
        )
    except ConfigError as exc:
        raise ConfigError(f"worker_api_endpoint.tls_config.{exc.path}", exc.problem) from exc


def _credentials(endpoint: WorkerApiEndpoint) -> dict[str, str]:
    """The metadata that carries the endpoint's token, if it has one. Raises UnavailableError if it cannot be read."""
    token: str | None = endpoint.token
    if endpoint.token_file is not None:
        try:
            with open(endpoint.token_file, encoding="ascii") as file:
                token = file.readline(MAX_TOKEN).strip()
        except (OSError, UnicodeDecodeError) as exc:
            why = exc.strerror if isinstance(exc, OSError) else "it is not ASCII"
            raise UnavailableError(f"the token file {endpoint.token_file} cannot be read: {why}") from exc
        if not token or not token.isprintable():
            raise UnavailableError(f"the token file {endpoint.token_file} has no token in its first line")
    return {} if token is None else {"authorization": f"Bearer {token.strip()}"}


def connector(endpoint: WorkerApiEndpoint) -> Connect:
    """How to open a stream to this endpoint. Raises ConfigError if its TLS files cannot be used."""
    host, port, wants_tls = endpoint.address
    tls = _tls(endpoint.tls_config) if wants_tls or endpoint.tls_config is not None else None
    target = host if host.startswith("unix:") else f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    options = ChannelOptions(
        max_message_size=MAX_MESSAGE_BYTES,
        connect_timeout=endpoint.timeout,
        keepalive_interval=PING_S,
        keepalive_timeout=PING_S,
    )
    where = f"scheduler at {target}"

    @asynccontextmanager
    async def connect() -> AsyncIterator[WorkerStream]:
        with translated(where), one_error():
            async with (
                Channel(target, tls=tls, options=options) as channel,
                channel.request(
                    METHOD,
                    grpclib.const.Cardinality.STREAM_STREAM,
                    worker_api.UpdateForScheduler,
                    worker_api.UpdateForWorker,
                    metadata=_credentials(endpoint),
                ) as stream,
            ):
                yield _Stream(stream, where)

    return connect
