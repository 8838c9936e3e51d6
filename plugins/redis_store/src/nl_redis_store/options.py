"""What a config says of the kind: NativeLink's option names, and a few of our own."""

from __future__ import annotations

import math
from typing import Literal

from nl.plugin import ConfigError, Count, Duration, Options, RetryOptions, SecretText, Size, Text
from nl_redis_store.addresses import Address, parse_address
from nl_redis_store.keys import check_prefix

KIB, MIB = 1024, 1024 * 1024

class RedisStoreOptions(Options):
    """Blobs as values of Redis or Valkey: one server, one with replicas behind sentinels, or a cluster."""

    EXAMPLE = '{ redis_store: { addresses: ["redis://127.0.0.1:6379/0"], key_prefix: "cas/" } }'

    addresses: tuple[SecretText, ...]
    """Where the server is: `redis://[[USER]:PASSWORD@]HOST[:PORT][/DB]`, `rediss://` with TLS, `redis+unix:///PATH`. Of
    a cluster some of its nodes; of sentinels `redis+sentinel://HOST[:PORT]/DB?sentinelServiceName=NAME` (the login is
    the master's; `sentinelUsername` and `sentinelPassword` are the sentinels')."""
    mode: Literal["standard", "standalone", "sentinel", "cluster"] = "standard"
    """What is there: one server (`standalone` is another name for it), sentinels (which `addresses` say as well), or a
    cluster."""
    key_prefix: Text = ""
    """What all keys begin with: `cas/`. Stores of different kinds of things need different ones."""
    key_ttl_s: Duration = 0
    """How long a value lives after it was last used, in whole seconds; 0 means for ever, or until `maxmemory-policy`
    takes it."""
    command_timeout_ms: Count = 10_000
    """For one trip to a server; 0 means the default, here as below."""
    connection_timeout_ms: Count = 3000
    """For one attempt to connect and log in."""
    health_check_timeout_ms: Count = 4000
    """For the PING of a health check."""
    response_timeout_s: Duration = 0
    """An older way to say `command_timeout_ms`; goes before it."""
    connection_timeout_s: Duration = 0
    """An older way to say `connection_timeout_ms`; goes before it."""
    connection_pool_size: Count = 3
    """Connections to each server. Each carries what has gathered while it was busy, so few are enough."""
    max_client_permits: Count = 500
    """Calls at once; more of them wait."""
    read_chunk_size: Size = MIB
    """Bytes per request of an upload or a download; 4 KiB to 16 MiB. What is no larger than 1 MiB is downloaded by one
    request in any case."""
    max_blob_bytes: Size = 512 * MIB
    """The largest value that is accepted. Redis takes no more than its `proto-max-bulk-len`, 512 MiB by default."""
    max_upload_memory: Size = 256 * MIB
    """What all uploads together may keep in memory, each `read_chunk_size`; more of them wait."""
    root_certificates: Text = ""
    """A PEM file with the authorities to trust for `rediss://`, in place of the system's."""
    retry: RetryOptions = RetryOptions(max_retries=5, delay=0.05, jitter=0.5)
    """For commands that failed. The default waits 3 seconds in all."""
    experimental_pub_sub_channel: Text = ""
    """Has no effect: it is for scheduler state, which is not kept here."""
    broadcast_channel_capacity: Count | None = None
    """Has no effect."""
    max_chunk_uploads_per_update: Count | None = None
    """Has no effect: chunks go one after another, so that a server that lost one is noticed."""
    scan_count: Count | None = None
    """Has no effect: nothing is listed."""
    max_count_per_cursor: Count | None = None
    """Has no effect: nothing is listed."""

    def check(self) -> None:
        """Refuses what cannot work."""
        check_prefix(self.key_prefix)
        if not self.addresses:
            raise ConfigError("addresses", 'empty; expected at least one, such as "redis://127.0.0.1:6379"')
        parsed = self.servers()
        for at, address in enumerate(parsed):
            self._check_address(address, f"addresses[{at}]")
        if len({bool(address.service) for address in parsed}) > 1:
            raise ConfigError("addresses", "sentinels beside other servers; expected servers of one sort")
        if self.mode != "cluster" and not parsed[0].service and len(parsed) > 1:
            problem = f'{len(parsed)} servers with mode "{self.mode}"; expected one, or mode "cluster" or "sentinel"'
            raise ConfigError("addresses", problem)
        if self.read_chunk_size and not 4 * KIB <= self.read_chunk_size <= 16 * MIB:
            raise ConfigError("read_chunk_size", f"{self.read_chunk_size} is out of range; expected 4 KiB to 16 MiB")
        if self.max_upload_memory < self.read_chunk_size:
            problem = f"{self.max_upload_memory} is less than one chunk; expected at least {self.read_chunk_size}"
            raise ConfigError("max_upload_memory", problem)

    def _check_address(self, address: Address, path: str) -> None:
        if address.service if self.mode == "cluster" else (not address.service and self.mode == "sentinel"):
            expected = "redis+sentinel://" if self.mode == "sentinel" else "redis:// or rediss://"
            raise ConfigError(path, f'not an address for mode "{self.mode}"; expected {expected}')
        if self.mode == "cluster" and (address.db or address.path):
            what = "a socket file" if address.path else f"database {address.db}"
            raise ConfigError(path, f"{what} is not possible in a cluster; expected redis://HOST[:PORT]")

    def servers(self) -> tuple[Address, ...]:
        """What `addresses` say."""
        return tuple(parse_address(text, f"addresses[{at}]") for at, text in enumerate(self.addresses))

    @property
    def ttl_s(self) -> int:
        """Whole seconds."""
        return math.ceil(self.key_ttl_s)

    @property
    def command_timeout(self) -> float:
        """Seconds."""
        return self.response_timeout_s or (self.command_timeout_ms or 10_000) / 1000

    @property
    def connect_timeout(self) -> float:
        """Seconds."""
        return self.connection_timeout_s or (self.connection_timeout_ms or 3000) / 1000

    @property
    def health_timeout(self) -> float:
        """Seconds."""
        return (self.health_check_timeout_ms or 4000) / 1000
