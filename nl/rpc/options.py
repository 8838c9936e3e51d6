"""What a server or a channel may be told. All sizes in bytes, all times in seconds."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass, field

from nl.model.access import Identity, PeerCertificate
from nl.rpc.h2.limits import Limits

Authenticate = Callable[[str, PeerCertificate | None, bytes | None], Identity]
"""Who asks: from the peer (`host:port`), the verified certificate of the TLS client and the request's `authorization`.

Called once for every call, on the loop: it looks up, and never waits. Raises UnauthenticatedError for credentials that
are wrong; none at all make an identity, too, with what rights it may have.
"""


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """One listener's options. The defaults bound every resource that a peer can take."""

    limits: Limits = field(default_factory=Limits)
    max_message_size: int = 4 << 20
    """Largest request message, also after unpacking: RESOURCE_EXHAUSTED beyond it."""
    send_compression: str | None = None
    """`gzip`: replies are packed for clients that accept it."""
    accepted_compression: tuple[str, ...] = ()
    """Encodings of requests that are taken besides `identity`: `gzip`."""
    compress_from: int = 1024
    """Replies smaller than this are not packed."""
    max_send_buffer: int = 1 << 20
    """Unsent bytes that the kernel takes before a connection counts as full."""
    handshake_timeout: float = 10.0
    """For TLS, for the first bytes, and for the client's SETTINGS."""
    keepalive_interval: float | None = 60.0
    """A connection that has been silent for this long gets a PING; None: never."""
    keepalive_timeout: float = 20.0
    """How long that PING may go unanswered."""
    stall_timeout: float = 60.0
    """How long a peer may leave what we have sent in its receive buffer."""
    window_timeout: float = 600.0
    """How long a call may wait for its client to open the flow-control window."""
    idle_timeout: float | None = None
    """A connection without calls for this long is asked to leave; None: never."""
    max_connections: int = 20_000
    max_held: int = 1 << 30
    """Bytes that all connections together may hold for their peers: DATA that nobody has consumed yet, messages that
    have arrived in part, replies that a peer does not take. Beyond it the connection that holds the most is ended, and
    the next, until it is enough; what arrives within a second may be on top of it."""
    tls: ssl.SSLContext | None = None
    authenticate: Authenticate | None = None
    """None: everybody may do everything."""


@dataclass(frozen=True, slots=True)
class ChannelOptions:
    """A channel's options."""

    limits: Limits = field(default_factory=Limits)
    max_message_size: int = 4 << 20
    """Largest reply message."""
    send_compression: str | None = None
    connect_timeout: float = 20.0
    keepalive_interval: float | None = 60.0
    keepalive_timeout: float = 20.0
    stall_timeout: float = 60.0
    max_send_buffer: int = 1 << 20
    backoff_initial: float = 0.1
    """After a failed attempt to connect, the next one waits at least this long; doubled every time ..."""
    backoff_max: float = 10.0
    """... up to this."""
    max_streams: int = 1000
    """Calls at once on one connection, if the server allows as many."""
    authority: str | None = None
    user_agent: str = "nl-rpc"
