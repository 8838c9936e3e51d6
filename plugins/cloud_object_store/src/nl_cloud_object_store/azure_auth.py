"""Who we are to Azure: a shared access signature, the account's key, or what azure-identity finds.

An `Authorization` is given each request before it leaves. None of them shows its secret, and none is logged.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import logging
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from email.utils import formatdate
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit

from nl.plugin import RefusedError, TransientError
from nl_cloud_object_store.http import one_line
from nl_cloud_object_store.turns import Turns

_SIGNED = ("Content-Encoding", "Content-Language", "Content-Length", "Content-MD5", "Content-Type", "Date",
           "If-Modified-Since", "If-Match", "If-None-Match", "If-Unmodified-Since", "Range")
_SCOPE = "https://storage.azure.com/.default"
_EARLY_S = 300
"""A token is renewed so long before it ends."""


class Authorization(ABC):
    """What makes a request ours."""

    @abstractmethod
    def sign(self, method: str, url: str, headers: dict[str, str]) -> str:
        """Adds to `headers` what is missing; the address to send the request to. May block."""


class SharedAccessSignature(Authorization):
    """A signature that somebody has made for us, which is part of every address."""

    def __init__(self, query: str) -> None:
        self._query = query.lstrip("?")

    def sign(self, method: str, url: str, headers: dict[str, str]) -> str:
        return f"{url}{'&' if '?' in url else '?'}{self._query}"


class SharedKey(Authorization):
    """The account's key: every request is signed with it (Azure's "Shared Key")."""

    def __init__(self, account: str, key: str) -> None:
        self._account = account
        try:
            self._key = base64.b64decode(key, validate=True)
        except binascii.Error as error:
            raise RefusedError("the account's key is not base64") from error

    def sign(self, method: str, url: str, headers: dict[str, str]) -> str:
        text = self.text_to_sign(method, url, headers)
        mac = hmac.new(self._key, text.encode(), hashlib.sha256).digest()
        headers["Authorization"] = f"SharedKey {self._account}:{base64.b64encode(mac).decode()}"
        return url

    def text_to_sign(self, method: str, url: str, headers: Mapping[str, str]) -> str:
        """Method, headers and address in the form that both ends sign."""
        parts = urlsplit(url)
        fixed = [headers.get(name, "") for name in _SIGNED]
        if headers.get("Content-Length") == "0":
            fixed[_SIGNED.index("Content-Length")] = ""
        own = sorted((name.lower(), value) for name, value in headers.items() if name.lower().startswith("x-ms-"))
        asked = sorted((name.lower(), value) for name, value in parse_qsl(parts.query, keep_blank_values=True))
        lines = [method, *fixed, *(f"{name}:{value}" for name, value in own)]
        return "\n".join([*lines, f"/{self._account}{parts.path}", *(f"{name}:{value}" for name, value in asked)])


class Token(Authorization):
    """A token of Microsoft Entra ID, renewed before it ends."""

    def __init__(self, credential: Any) -> None:
        """`credential` is one of azure-identity's."""
        self._credential = credential
        self._turns = Turns()
        self._token = ""
        self._until = 0.0

    def sign(self, method: str, url: str, headers: dict[str, str]) -> str:
        with self._turns.turn():
            if time.time() >= self._until:
                self._renew()
            headers["Authorization"] = f"Bearer {self._token}"
        return url

    def _renew(self) -> None:
        from azure.core import exceptions as azure

        try:
            found = self._credential.get_token(_SCOPE)
        except azure.ClientAuthenticationError as error:
            raise RefusedError(f"no credentials: {one_line(error)}") from error
        except azure.AzureError as error:
            raise TransientError(f"no token: {one_line(error)}") from error
        self._token = found.token
        self._until = max(found.expires_on - _EARLY_S, time.time() + 1)


def find_authorization(account: str, environment: Mapping[str, str] = os.environ) -> Authorization:
    """That of the environment, by the names that Azure's own tools have for it; else azure-identity's usual chain
    (a service principal, a workload's identity, the machine's, whoever has logged in).
    """
    told = dict(part.partition("=")[::2] for part in environment.get("AZURE_STORAGE_CONNECTION_STRING", "").split(";"))
    if told.get("AccountName", account) != account:
        told = {}  # it is about another account
    key = (told.get("AccountKey") or environment.get("AZURE_STORAGE_KEY")
           or environment.get("AZURE_STORAGE_ACCOUNT_KEY"))
    if key:
        return SharedKey(account, key)
    if query := told.get("SharedAccessSignature") or environment.get("AZURE_STORAGE_SAS_TOKEN"):
        return SharedAccessSignature(query)
    try:
        from azure.identity import DefaultAzureCredential
    except ImportError as error:
        raise RefusedError(
            "no credentials: expected AZURE_STORAGE_KEY, AZURE_STORAGE_SAS_TOKEN or sas_url; for those of a machine or "
            "a service principal install azure-identity (pip install 'nl-cloud-object-store[azure]')"
        ) from error
    for name in ("azure", "msal", "msal_extensions"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return Token(DefaultAzureCredential(exclude_interactive_browser_credential=True))


def standard_headers(size: int | None) -> dict[str, str]:
    """Those that every request has; `size` is that of its body."""
    headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2021-12-02"}
    return headers if size is None else {**headers, "Content-Length": str(size)}


def quoted(name: str) -> str:
    """A name in an address."""
    return quote(name, safe="/-._~")
