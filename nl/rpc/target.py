"""What a channel is told to reach, as text: `host:port`, `grpc://host`, `grpcs://host`, `dns:host:port`, `unix:path`.

Pure. Not here: looking names up (resolver.py).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_SCHEMES = {"grpc": False, "http": False, "grpcs": True, "https": True}
_NAME = r"[^\s\x00-\x20\x7f:/?#@\[\]%]+"
_IPV6 = r"\[[0-9A-Fa-f:.]+(?:%[^\s\]]+)?\]"
_HOST_AND_PORT = re.compile(rf"(?P<host>{_NAME}|{_IPV6})(?::(?P<port>[0-9]{{1,5}}))?")
_FORMS = "expected host:port, grpc://host:port, grpcs://host:port, dns:host:port or unix:path"


@dataclass(frozen=True, slots=True)
class Target:
    """One parsed target: a host and a port, or the path of a unix socket."""

    host: str = ""
    """A name or an address; an IPv6 address without its brackets."""
    port: int = 0
    path: str = ""
    """Of a unix socket; a leading NUL means the abstract namespace."""
    secure: bool | None = None
    """Whether the scheme asks for TLS; None if there is no scheme."""

    @property
    def authority(self) -> str:
        """What `:authority` says unless somebody knows better."""
        if self.path:
            return "localhost"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        if self.path:
            return "unix:" + self.path.replace("\0", "@", 1)
        return self.authority


def parse_target(text: str) -> Target:
    """Takes a target apart. ValueError, in one line, if it is none.

    The port may be left out behind `grpc://` and `http://` (80), and `grpcs://` and `https://` (443).
    """
    scheme, colon, rest = text.partition(":")
    scheme = scheme.lower()
    if colon and scheme in {"unix", "unix-abstract"}:
        return _unix(text, scheme, rest)
    if colon and scheme in _SCHEMES and rest.startswith("//"):
        secure = _SCHEMES[scheme]
        return _network(text, rest[2:].removesuffix("/"), secure=secure, default=443 if secure else 80)
    if colon and scheme == "dns" and not rest.isdigit():
        if rest.startswith("//"):
            server, _, rest = rest[2:].partition("/")
            if server:
                raise ValueError(f"{text!r} names a DNS server, and names are looked up by the system; {_FORMS}")
        return _network(text, rest, secure=None, default=None)
    return _network(text, text, secure=None, default=None)


def split_authority(text: str) -> tuple[str, int | None]:
    """The host, without the brackets of IPv6, and the port of `host`, `host:port`, `[::1]` or `[::1]:port`."""
    match = _HOST_AND_PORT.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no authority; expected host or host:port, an IPv6 address in brackets")
    return match["host"].strip("[]"), int(match["port"]) if match["port"] else None


def _unix(text: str, scheme: str, path: str) -> Target:
    if path.startswith("//"):
        if not path.startswith("///"):
            raise ValueError(f"{text!r} is no target: the path of unix:// must be absolute; {_FORMS}")
        path = path[2:]
    if not path or "\0" in path:
        raise ValueError(f"{text!r} is no target: it names no path; {_FORMS}")
    return Target(path=f"\0{path}" if scheme == "unix-abstract" else path)


def _network(text: str, rest: str, *, secure: bool | None, default: int | None) -> Target:
    match = _HOST_AND_PORT.fullmatch(rest)
    if match is None:
        hint = "an IPv6 address needs brackets; " if rest.count(":") > 1 else ""
        raise ValueError(f"{text!r} is no target; {hint}{_FORMS}")
    port = int(match["port"]) if match["port"] else default
    if port is None:
        raise ValueError(f"{text!r} has no port; {_FORMS}")
    if not 0 < port < 65_536:
        raise ValueError(f"{text!r}: port {port} is not one of 1 to 65535")
    return Target(host=match["host"].strip("[]"), port=port, secure=secure)
