"""What a server or a channel may be told. All sizes in bytes, all times in seconds."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from nl.model.access import Identity, PeerCertificate
from nl.rpc.h2.limits import Limits
from nl.rpc.live_tls import LiveContext
from nl.rpc.retry import RetryPolicy

Authenticate = Callable[[str, PeerCertificate | None, bytes | None], Identity]
"""Who asks: from the peer (`host:port`), the verified certificate of the TLS client and the request's `authorization`.

Called once for every call, on the loop: it looks up, and never waits. Raises UnauthenticatedError for credentials that
are wrong, UnavailableError where that cannot be told now. Several headers are one, with commas; none at all make an
identity, too, with what rights it may have.
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
    the next, until it is enough. A thirtieth, and what is read in one turn of the loop, may be on top of it."""
    tls: ssl.SSLContext | LiveContext | None = None
    authenticate: Authenticate | None = None
    """None: everybody may do everything."""
    shown_headers: frozenset[str] = frozenset()
    """Headers of a request that `nl.model.caller` shows to what its handler calls, by lower-case name. `authorization`
    only if it stands here."""


@dataclass(frozen=True, slots=True)
class ChannelOptions:
    """A channel's options. An Endpoint may say otherwise for itself where it has the same field."""

    limits: Limits = field(default_factory=Limits)
    max_message_size: int = 4 << 20
    """Largest reply message, also after unpacking: RESOURCE_EXHAUSTED beyond it."""
    send_compression: str | None = None
    """`gzip`: requests are packed."""
    compress_from: int = 1024
    """Requests smaller than this are not packed."""
    call_timeout: float | None = None
    """A deadline for every call that has none of its own."""
    wait_for_ready: bool = False
    """Whether calls wait until a connection can be made, instead of failing with the attempt."""
    retry: RetryPolicy | None = None
    """Which calls are sent again; None: none are."""
    connections: int = 1
    """How many are kept to each address (round_robin), or to the first address that answers (pick_first)."""
    balancing: Literal["pick_first", "round_robin"] = "pick_first"
    """`pick_first`: all calls go to the first address that answers. `round_robin`: in turns to all that answer."""
    resolve_interval: float | None = 300.0
    """Names are looked up again this often while there are connections, and sooner when one fails; None: only then."""
    head_start: float = 0.25
    """How long an address may be silent before the next one is tried beside it (RFC 8305's attempt delay)."""
    connect_timeout: float = 20.0
    """For one attempt, over all addresses: TCP, TLS, and the server's SETTINGS."""
    tcp_keepalive: float | None = None
    """After so much silence TCP itself asks whether the server's host is there; None: never."""
    keepalive_interval: float | None = 60.0
    """A connection with calls that has been silent for this long gets a PING; None: never."""
    keepalive_timeout: float = 20.0
    """How long that PING may go unanswered."""
    stall_timeout: float = 60.0
    """How long a server may leave what we have sent in its receive buffer."""
    max_send_buffer: int = 1 << 20
    """Unsent bytes that the kernel takes before a connection counts as full."""
    backoff_initial: float = 0.1
    """After a failed attempt to connect, the next one waits about this long; doubled every time ..."""
    backoff_max: float = 10.0
    """... up to this, until a connection has been of use: it has answered a call, or lived for this long."""
    backoff_jitter: float = 0.2
    """By which part the pauses vary at random."""
    max_streams: int = 1000
    """Calls at once on one connection, if the server allows as many; others wait."""
    authority: str | None = None
    """`:authority`, and the name in the server's certificate; None: as the target says."""
    user_agent: str = "nl-rpc"
