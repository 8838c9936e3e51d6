"""The options of `grpc`, as NativeLink has them and a few more. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Literal

from grpclib.const import Status

from nl.config.fields import ZeroMeansDefault, join
from nl.config.workers import ClientTlsOptions
from nl.plugin import ConfigError, Count, Duration, ErrorName, Flag, Options, SecretText, ServerAddress, Size, Text
from nl.rpc.metadata import encode_fields
from nl.rpc.retry import RetryPolicy
from nl.rpc.target import Target, parse_target
from nl.stores.grpc.methods import REPEATABLE

_MAX_PAUSE_S = 30.0
_TOKEN = re.compile("[!-~]+")
_RETRIED: tuple[ErrorName, ...] = ("Cancelled", "Unknown", "DeadlineExceeded", "Aborted", "Internal", "Unavailable")


class GrpcRetry(Options):
    """When a call is sent again. Blobs never change, so whatever failed may be repeated."""

    max_retries: Count = 5
    """Besides the first attempt; 0 means never. A stream that has moved bytes begins to count anew."""
    delay: float = 0.1
    """Half of the seconds before the first retry; doubled for each further one."""
    jitter: float = 0.5
    """By which part the pauses vary at random, half of it up and half of it down."""
    retry_on_errors: tuple[ErrorName, ...] = _RETRIED
    """After which statuses. Calls that the server has certainly not begun with are sent again whatever stands here."""

    def check(self) -> None:
        """Pauses are not negative."""
        if self.delay < 0:
            raise ConfigError("delay", f"{self.delay:g} is negative; expected 0 or more seconds")
        if not 0 <= self.jitter <= 2:
            raise ConfigError("jitter", f"{self.jitter:g} is not between 0 and 2")

    def policy(self) -> RetryPolicy:
        """The same as the channel has it."""
        codes = frozenset(_status(name) for name in self.retry_on_errors)
        return RetryPolicy(
            max_retries=self.max_retries,
            delay=2 * self.delay,
            max_delay=_MAX_PAUSE_S,
            jitter=self.jitter / 2,
            codes=codes,
            methods=REPEATABLE,
        )


def _status(name: str) -> Status:
    return Status[re.sub("(?<=[a-z])(?=[A-Z])", "_", name).upper()]


class GrpcEndpoint(Options):
    """One server."""

    EXAMPLE = '{ address: "grpcs://cache.example.com", token_file: "/etc/nl/token", compression: "gzip" }'

    address: ServerAddress
    """`grpc://host:port`, `grpcs://host:port` for TLS, or `unix:/path`."""
    tls_config: ClientTlsOptions | None = None
    """TLS; for `grpcs` the system's authorities if not set."""
    compression: Literal["none", "gzip"] = "none"
    """Whether requests are packed. Replies may be, as the server likes."""
    token: SecretText | None = None
    """The token to come in with, `"${NL_TOKEN}"` say. It goes to this endpoint alone."""
    token_file: Text | None = None
    """A file with the token in its first line, read again when it changes."""
    concurrency_limit: Annotated[Count | None, ZeroMeansDefault()] = None
    """How many calls may be under way on one connection; others wait."""
    connect_timeout_s: Annotated[Duration, ZeroMeansDefault()] = 30.0
    """How long one attempt to connect may take."""
    tcp_keepalive_s: Annotated[Duration, ZeroMeansDefault()] = 30.0
    """After so much silence TCP itself asks whether the server's host is there."""
    http2_keepalive_interval_s: Annotated[Duration, ZeroMeansDefault()] = 30.0
    """After so much silence a connection with calls gets a PING."""
    http2_keepalive_timeout_s: Annotated[Duration, ZeroMeansDefault()] = 20.0
    """How long that PING may go unanswered."""

    @property
    def target(self) -> Target:
        """The address taken apart; checked when the config was read."""
        return parse_target(self.address)

    def check(self) -> None:
        """The address must be one, and a token is in one place."""
        try:
            parse_target(self.address)
        except ValueError as exc:
            raise ConfigError("address", str(exc)) from None
        if self.token is not None and self.token_file is not None:
            raise ConfigError("token_file", "says the same as token; expected only one of the two")
        if self.token is not None and _TOKEN.fullmatch(self.token.strip()) is None:
            raise ConfigError("token", "is empty, or has characters that no token has; expected a token")


class ReadBatching(Options):
    """How small blobs travel together."""

    max_blob_size_bytes: Annotated[Size, ZeroMeansDefault()] = 128 * 1024
    """Larger blobs are read and written by themselves."""
    max_batch_bytes: Annotated[Size, ZeroMeansDefault()] = 3 * 1024 * 1024
    """How large a batch may be, if the server takes as much."""
    dispatch_slots: Count = 4
    """How many batches of each sort may be under way at once; while they are, what comes gathers for the next."""
    max_queued_bytes: Annotated[Size, ZeroMeansDefault()] = 32 * 1024 * 1024
    """How much may gather; beyond it callers wait."""

    def check(self) -> None:
        """Somebody has to send them."""
        if not self.dispatch_slots:
            raise ConfigError("dispatch_slots", "0 would send nothing; expected 1 or more")


class GrpcOptions(Options):
    """The blobs, or the action results, of another server that speaks the Remote Execution API.

    Small blobs and lookups that are asked for at once travel in one call; large blobs are streamed, and resumed where
    they broke off. Every blob that goes through is checked by whoever fills a store with it; its size is checked here.
    """

    EXAMPLE = '{ grpc: { endpoints: [{ address: "grpc://127.0.0.1:50051" }], store_type: "cas" } }'

    instance_name: Text = ""
    """The instance to ask for."""
    endpoints: tuple[GrpcEndpoint, ...]
    """The servers, which have the same content. Calls go in turns to all that answer."""
    store_type: Literal["cas", "ac"]
    """Whether this is a store of blobs (`cas`) or of action results (`ac`)."""
    retry: GrpcRetry = GrpcRetry()
    """When calls are sent again."""
    max_concurrent_requests: Count = 0
    """How many calls may be under way at once, streams included; 0 means any number."""
    connections_per_endpoint: Annotated[Count, ZeroMeansDefault()] = 1
    """How many connections are kept to each address."""
    rpc_timeout_s: Duration = 120.0
    """How long a call may take, and how long a stream may move no byte; 0 means any time."""
    use_legacy_resource_names: Flag = False
    """Leave the digest function out of resource names, for servers that do not know it there."""
    headers: Mapping[str, SecretText] = field(default_factory=dict)
    """Headers that every call gets."""
    forward_headers: tuple[Text, ...] = ()
    """Headers of the request that causes a call, by name, that the call gets, too. `authorization` only if it stands
    here: then the server is asked with the rights of the client, and not with those of this server."""
    experimental_read_batching: ReadBatching = ReadBatching()
    """How small blobs travel together; lookups and writes, too."""
    experimental_remote_cache_compression: Flag | None = None
    """Whether blobs of 64 KiB and more that travel by themselves are packed on the wire (zstd), where the server offers
    it (`remote_cache_compression` there). Not so without this, whatever stands elsewhere in the config. Ranges, batches
    and action results go as they are."""

    def check(self) -> None:
        """There is somebody to ask, and the headers may be sent."""
        if not self.endpoints:
            raise ConfigError("endpoints", "is empty; expected at least one endpoint")
        seen: dict[str, int] = {}
        for at, endpoint in enumerate(self.endpoints):
            if (first := seen.setdefault(str(endpoint.target), at)) != at:
                raise ConfigError(f"endpoints[{at}].address", f"is that of endpoints[{first}]; expected another server")
        for name, value in self.headers.items():
            _check_header(name, value)
        for at, name in enumerate(self.forward_headers):
            if not _is_sendable(name.lower()):
                raise ConfigError(f"forward_headers[{at}]", f'"{name}" is no header that can be passed on')


def _check_header(name: str, value: str) -> None:
    path = join("headers", name)
    try:
        encode_fields([(name.lower(), value)])
    except (ValueError, TypeError):
        raise ConfigError(path, "cannot be sent as a header; expected a name of letters, digits and "
                                "`-_.`, and a value of printable ASCII") from None
    if not _is_sendable(name.lower()):
        raise ConfigError(path, "belongs to the connection; expected another name")


def _is_sendable(name: str) -> bool:
    """Whether it is a header of the caller's and not one of HTTP's or gRPC's own."""
    reserved = {"te", "content-type", "user-agent", "host", "connection", "transfer-encoding", "upgrade"}
    return re.fullmatch(r"[0-9a-z_.\-]+", name) is not None and name not in reserved and not name.startswith("grpc-")
