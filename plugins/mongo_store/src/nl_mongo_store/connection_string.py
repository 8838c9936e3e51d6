"""The connection string: what of it is refused, what in it is secret. PyMongo reads it; errors here never show it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import unquote_plus

from pymongo.errors import PyMongoError
from pymongo.uri_parser import parse_uri

from nl.plugin import ConfigError

OPTION = "connection_string"
EXPECTED = "expected mongodb://[USER:PASSWORD@]HOST[:PORT][,HOST...]/[?OPTIONS], user and password percent-encoded"
_SECRET = frozenset({"authmechanismproperties", "tlscertificatekeyfilepassword", "proxypassword"})
_TAKEN = {
    "timeoutms": "command_timeout_ms",  # PyMongo would leave out wtimeoutMS
    "wtimeoutms": "write_concern_timeout_ms",
}


def check(text: str) -> None:
    """Raises ConfigError for one that cannot be used, as far as that can be seen without the network."""
    if not text.startswith(("mongodb://", "mongodb+srv://")):
        raise ConfigError(OPTION, f"not a connection string of MongoDB; {EXPECTED}")
    options = given(text)
    for name, other in _TAKEN.items():
        if name in options:
            raise ConfigError(OPTION, f"has {name}, which belongs into an option of the store; expected {other}")
    if options.get("w") == "0":
        raise ConfigError(OPTION, "has w=0, with which nobody knows what was written; expected w=1, or w=majority")
    if options.get("readpreference", "primary").lower() != "primary":
        raise ConfigError(OPTION, "has a readPreference by which what was just written may be missing; expected none")
    if text.startswith("mongodb://"):  # the other form is parsed with questions to DNS
        try:
            parse_uri(text)
        except (PyMongoError, ValueError, OSError) as error:
            raise ConfigError(OPTION, f"{_reason(error, text)}; {EXPECTED}") from None  # it may quote what it was given


def given(text: str) -> Mapping[str, str]:
    """The options after the `?`, names in lower case, values as they are."""
    _, _, query = text.partition("?")
    pairs = (word.partition("=") for word in re.split("[&;]", query) if word)
    return {name.lower(): value for name, _, value in pairs}


def secrets_of(text: str) -> frozenset[str]:
    """What no message may show: user and password, secrets among the options; as they are given, and decoded."""
    found = {value for name, value in given(text).items() if name in _SECRET}
    login, at, _ = text.partition("?")[0].rpartition("@")
    if at:
        user, _, password = login.partition("://")[2].partition(":")
        found |= {password, f"{user}:{password}"}
    return frozenset((found | set(map(unquote_plus, found))) - {"", ":"})


def _reason(error: BaseException, text: str) -> str:
    """PyMongo's words, unless a part of what is secret is among them."""
    said = (str(error).splitlines() or [""])[0].rstrip(".")
    unknown = "Unknown option" in said
    if unknown:
        return "has an option that PyMongo does not know"
    if not said or any(piece in said for piece in re.split(r"[:/@,?&=]+", text)[1:] if len(piece) > 3):
        return "not a connection string that PyMongo can read"
    return said
