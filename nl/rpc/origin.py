"""Where calls go: an endpoint as the user gives it, and the origin that a channel makes of it.

An origin (HTTP's word: scheme, host, port) knows what is the same for all of its requests and connections. Not here:
its addresses (resolver.py).
"""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

import trio

from nl.rpc import hpack
from nl.rpc.options import ChannelOptions
from nl.rpc.target import Target, parse_target, split_authority
from nl.rpc.tls import client_context

Connect = Callable[[], Awaitable[trio.abc.Stream]]
"""Opens a stream to the server: for tests, and for other transports."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One place that a channel may call. What is None is as the channel's options say."""

    target: str | Connect
    """As in target.py, or a function that opens a stream."""
    tls: ssl.SSLContext | None = None
    """For TLS. None: only if the target says `grpcs://` or `https://`, and then with the system's authorities."""
    authority: str | None = None
    compression: str | None = None
    """`gzip`: requests are packed."""
    max_streams: int | None = None
    authorization: Callable[[], str | None] | None = None
    """Asked for each call: the `authorization` of those that bring none themselves. No other endpoint gets it."""
    connect_timeout: float | None = None
    tcp_keepalive: float | None = None
    keepalive_interval: float | None = None
    keepalive_timeout: float | None = None


_OWN = ("max_streams", "connect_timeout", "tcp_keepalive", "keepalive_interval", "keepalive_timeout")
"""What an endpoint may say otherwise than the channel."""


class Origin:
    """An endpoint with all that follows from it. ValueError for a target or an authority that is none."""

    def __init__(self, endpoint: Endpoint, options: ChannelOptions) -> None:
        self.connect: Connect | None = None
        self.target: Target | None = None
        if isinstance(endpoint.target, str):
            self.target = parse_target(endpoint.target)
        elif endpoint.tls is not None:
            raise ValueError("a function that opens streams speaks TLS itself; expected no tls, or text as the target")
        else:
            self.connect = endpoint.target
        self.name = str(self.target) if self.target is not None else "the server"
        self.tls = endpoint.tls
        if self.tls is None and self.target is not None and self.target.secure:
            self.tls = client_context()
        authority = endpoint.authority or options.authority
        if authority is None:
            authority = self.target.authority if self.target is not None else "localhost"
        self.authority = authority
        self.server_hostname, _ = split_authority(authority)
        """Whose certificate is asked for (SNI) and expected."""
        if self.tls is not None:
            _check_name(self.server_hostname)
        self.options = replace(
            options,
            authority=authority,
            send_compression=endpoint.compression or options.send_compression,
            **{name: value for name in _OWN if (value := getattr(endpoint, name)) is not None},
        )
        self._authorization = endpoint.authorization
        self._start = hpack.METHOD_POST + (hpack.SCHEME_HTTP if self.tls is None else hpack.SCHEME_HTTPS)
        self._fixed = self._fixed_fields()

    def _fixed_fields(self) -> bytes:
        fields = [
            (b":authority", self.authority.encode("ascii")),
            (b"te", b"trailers"),
            (b"content-type", b"application/grpc"),
            (b"user-agent", self.options.user_agent.encode("ascii")),
            (b"grpc-accept-encoding", b"identity,gzip"),
        ]
        if self.options.send_compression:
            fields.append((b"grpc-encoding", self.options.send_compression.encode("ascii")))
        return hpack.encode(fields)

    def head(self, method: str) -> bytes:
        """The header block of a request, up to what differs from call to call."""
        return self._start + hpack.encode_path(method.encode()) + self._fixed


    def with_credentials(self, fields: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        """A call's headers with the endpoint's `authorization`, if it has one and the call has not."""
        value = self._authorization() if self._authorization is not None else None
        if value is None or any(name == b"authorization" for name, _ in fields):
            return fields
        return [*fields, (b"authorization", value.encode("ascii"))]


def _check_name(host: str) -> None:
    """ValueError for what cannot be a name in a certificate. Here, since ssl finds out when it has taken the socket."""
    try:
        host.encode("idna")
    except UnicodeError as exc:
        raise ValueError(f"{host!r} cannot be the name of a server: {exc}") from exc
