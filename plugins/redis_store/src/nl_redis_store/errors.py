"""What each error reply of a server means, and what can go wrong besides what can with any backend."""

from __future__ import annotations

from nl.plugin import BackendError, FullError, RefusedError, TransientError, ValueTooLargeError


class DemotedError(TransientError):
    """The server is a replica now: its connections lead to the wrong place."""


class MovedError(BackendError):
    """A node of a cluster says who has the slot: for good, or, if `asking`, for this key while the slot moves."""

    code = "Aborted"

    def __init__(self, text: str, *, host: str, port: int, slot: int, asking: bool) -> None:
        super().__init__(text)
        self.host = host
        self.port = port
        self.slot = slot
        self.asking = asking


class UnknownScriptError(BackendError):
    """The server has forgotten a script, or never had it."""

    code = "FailedPrecondition"


class ReplyError(Exception):
    """An error reply as it came: `WORD text`. Not raised but returned among the replies of a pipeline."""


_TRANSIENT = frozenset({
    "LOADING", "CLUSTERDOWN", "TRYAGAIN", "MASTERDOWN", "BUSY", "MISCONF", "NOREPLICAS", "UNKILLABLE",
})
_REFUSED = frozenset({"NOAUTH", "WRONGPASS", "NOPERM"})


def meaning(reply: ReplyError, where: str) -> BackendError:
    """The error that a reply stands for. `where` is the server, for the message."""
    said = str(reply).splitlines()[0][:200] if str(reply) else "an error without text"
    word, _, rest = said.partition(" ")
    text = f"{where} says: {said}"
    if word in ("MOVED", "ASK"):
        return _moved(text, rest, asking=word == "ASK")
    if word == "READONLY":
        return DemotedError(text)
    if word in _TRANSIENT or "max number of clients" in rest:
        return TransientError(text)
    if word == "NOSCRIPT":
        return UnknownScriptError(text)
    if word == "OOM":
        return FullError(text)
    if "exceeds maximum allowed" in rest or "invalid bulk length" in rest:
        return ValueTooLargeError(text)
    if "cluster support disabled" in rest or "unknown command 'SENTINEL'" in rest:
        return RefusedError(text, option="mode")
    if word in _REFUSED or "invalid password" in rest or "AUTH" in rest or "DB index" in rest:
        return RefusedError(text, option="addresses")
    return RefusedError(text)


def _moved(text: str, rest: str, *, asking: bool) -> BackendError:
    """`MOVED 3999 127.0.0.1:6381`; an empty host is that of who says so."""
    slot, _, address = rest.partition(" ")
    host, _, port = address.rpartition(":")
    if not (slot.isdecimal() and port.isdecimal()):
        return TransientError(text)
    return MovedError(text, host=host.strip("[]"), port=int(port), slot=int(slot), asking=asking)
