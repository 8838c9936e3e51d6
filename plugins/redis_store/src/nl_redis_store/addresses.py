"""Where servers are, as URLs say it, and which slot of a cluster a key is in. Pure.

redis://[[USER]:PASSWORD@]HOST[:PORT][/DB]      rediss:// the same with TLS; valkey://, valkeys:// likewise
redis+sentinel://[[USER]:PASSWORD@]HOST[:PORT][/DB][?sentinelServiceName=NAME]      HOST is a sentinel
redis+unix:///PATH[?db=DB], unix:///PATH        a socket file
HOST[:PORT]                                     without TLS and password
"""

from __future__ import annotations

import binascii
from dataclasses import dataclass, field, replace
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

from nl.plugin import ConfigError

REDIS_PORT = 6379
SENTINEL_PORT = 26379
SLOTS = 16384

_PLAIN = {"redis", "valkey", "redis-cluster", "redis+cluster"}
_TLS = {"rediss", "valkeys", "rediss-cluster", "rediss+cluster"}
_SENTINEL = {"redis+sentinel": False, "redis-sentinel": False, "rediss+sentinel": True, "rediss-sentinel": True}
_UNIX = {"unix", "redis+unix", "redis-unix"}


@dataclass(frozen=True, slots=True)
class Address:
    """A server, and how one logs in there. Its text is without the password."""

    host: str = ""
    port: int = REDIS_PORT
    path: str = ""
    """Of a socket file, in place of host and port."""
    tls: bool = False
    username: str = ""
    password: str = field(default="", repr=False)
    sentinel_username: str = ""
    sentinel_password: str = field(default="", repr=False)
    db: int = 0
    service: str = ""
    """The master's name, if the server is a sentinel."""

    def __str__(self) -> str:
        if self.path:
            return self.path
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def at(self, host: str, port: int) -> Address:
        """Another server of the same kind with the same login."""
        return replace(self, host=host or self.host, port=port, service="")


def parse_address(text: str, path: str) -> Address:
    """Raises ConfigError with `path`, never showing what might be a password."""
    parsed = _split(text if "://" in text else f"redis://{text}", path)
    scheme = parsed.scheme
    username, password = unquote(parsed.username or ""), unquote(parsed.password or "")
    query = {name: values[-1] for name, values in parse_qs(parsed.query).items()}
    if scheme in _UNIX:
        if not parsed.path:
            raise ConfigError(path, f"no path after {scheme}://; expected {scheme}:///PATH")
        db = _db(query.get("db", ""), path)
        return Address(path=unquote(parsed.path), db=db, username=username, password=password)
    if scheme not in _PLAIN | _TLS | _SENTINEL.keys():
        expected = "redis://, rediss://, redis+sentinel:// or redis+unix://"
        raise ConfigError(path, f'unknown scheme "{scheme}"; expected {expected}')
    if not parsed.hostname:
        raise ConfigError(path, f"no host after {scheme}://; expected {scheme}://HOST[:PORT]")
    sentinel = scheme in _SENTINEL
    return Address(
        host=parsed.hostname,
        port=parsed.port or (SENTINEL_PORT if sentinel else REDIS_PORT),
        tls=scheme in _TLS or _SENTINEL.get(scheme, False),
        db=_db(parsed.path.strip("/"), path),
        service=query.get("sentinelServiceName", "master") if sentinel else "",
        sentinel_username=query.get("sentinelUsername", ""),
        sentinel_password=query.get("sentinelPassword", ""),
        username=username,
        password=password,
    )


def _split(url: str, path: str) -> SplitResult:
    try:
        parsed = urlsplit(url)
        _ = parsed.port  # which is what raises
    except ValueError:
        raise ConfigError(path, "not a URL; expected redis://[[USER]:PASSWORD@]HOST[:PORT][/DB]") from None
    return parsed


def _db(text: str, path: str) -> int:
    if not text:
        return 0
    if not (text.isdecimal() and text.isascii()):
        raise ConfigError(path, "what follows the host is no number of a database; expected /0, /1, ...")
    return int(text)


def hash_tag(key: bytes) -> bytes:
    """The part of a key that decides about its slot: what stands in the first braces, unless that is nothing."""
    start = key.find(b"{")
    if start >= 0:
        end = key.find(b"}", start + 1)
        if end > start + 1:
            return key[start + 1 : end]
    return key


def slot_of(key: bytes) -> int:
    """CRC-16 (XMODEM) modulo 16384, as the cluster specification has it."""
    return binascii.crc_hqx(hash_tag(key), 0) % SLOTS
