"""The public keys of an issuer of JSON web tokens (RFC 7517): read from a file or fetched, in the background.

Nothing here is on the way of a request: a token whose key is not here asks for the keys to be fetched, and its request
is answered at once. Asking is bounded: one fetch in 30 seconds, however many unknown keys are named.
"""

from __future__ import annotations

import json
import logging
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from http.client import HTTPException
from typing import Any, NamedTuple, Protocol

import trio

from nl.auth.watched_file import WatchedFile
from nl.errors import ConfigError

_log = logging.getLogger("nl.auth")
LEAST_PAUSE_S = 30.0
"""Between two fetches, at least."""
FETCH_TIMEOUT_S = 10.0
MAX_BYTES = 1 << 20
MAX_KEYS = 200
FIRST_FETCH_S = 5.0
"""How long the start of the server waits for the first fetch."""


class PublicKey(NamedTuple):
    """What signatures are checked with."""

    key: Any
    """cryptography's object."""
    algorithm: str | None
    """The only one to use it with, where the set says so."""


class KeySource(Protocol):
    """Where an issuer's keys are."""

    keys: Mapping[str, PublicKey]
    """By key id."""

    def wants_other(self) -> bool:
        """To be called for a key id that is not among the keys: whether the keys are being fetched because of it."""


def parse_keys(data: bytes) -> dict[str, PublicKey]:
    """The keys of a JSON Web Key Set by id. Raises ValueError; keys of other kinds and uses are left out."""
    import jwt

    try:
        raw = json.loads(data)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    found = raw.get("keys") if isinstance(raw, dict) else None
    if not isinstance(found, list):
        raise ValueError('it is no key set; expected { "keys": [ ... ] }')
    keys: dict[str, PublicKey] = {}
    for entry in found[:MAX_KEYS]:
        if not isinstance(entry, dict) or entry.get("kty") not in ("RSA", "EC", "OKP"):  # a tuple: it may be a list
            continue
        if entry.get("use", "sig") != "sig":
            continue
        try:
            keys[str(entry.get("kid", ""))] = PublicKey(jwt.PyJWK.from_dict(entry).key, entry.get("alg"))
        except Exception:  # noqa: BLE001  # whatever PyJWT and cryptography make of it, it is no key
            continue
    if not keys:
        raise ValueError("it has no key that signatures can be checked with")
    return keys


class FileKeys:
    """Keys in a file, read again when it changes."""

    def __init__(self, path: str) -> None:
        self.file = WatchedFile(path, self._load)
        self.keys: Mapping[str, PublicKey] = {}

    def _load(self, path: str) -> None:
        try:
            with open(path, "rb") as file:
                data = file.read(MAX_BYTES + 1)
            if len(data) > MAX_BYTES:
                raise ValueError(f"it is larger than {MAX_BYTES} bytes")
            self.keys = parse_keys(data)
        except OSError as exc:
            raise ConfigError("", f"cannot be read: {exc.strerror}", source=path) from exc
        except ValueError as exc:
            raise ConfigError("", f"is not right: {exc}", source=path) from exc

    def wants_other(self) -> bool:
        """Never: the file is looked at all the time."""
        return False


class FetchedKeys:
    """Keys at an address. `run` fetches them, again and again."""

    def __init__(self, url: str, *, interval_s: float, least_pause_s: float = LEAST_PAUSE_S) -> None:
        self.keys: Mapping[str, PublicKey] = {}
        self._url = url
        self._interval_s = interval_s
        self._least_pause_s = least_pause_s
        self._wanted = trio.Event()
        self._threads = trio.CapacityLimiter(1)
        """Its own: a fetch that never ends takes no thread from anybody else, and no second one."""
        self._fetched_at = float("-inf")
        self.on_change: Callable[[], None] | None = None

    def wants_other(self) -> bool:
        """Asks for a fetch, unless there was one just now: then the key is not the issuer's."""
        if self.keys and time.monotonic() - self._fetched_at < self._least_pause_s:
            return False
        self._wanted.set()
        return True

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled. Has started when the first fetch is over, or has taken too long."""
        async with trio.open_nursery() as nursery:
            first = trio.Event()
            nursery.start_soon(self._fetch_for_ever, first)
            with trio.move_on_after(FIRST_FETCH_S):
                await first.wait()
            task_status.started()

    async def _fetch_for_ever(self, first: trio.Event) -> None:
        while True:
            await self._fetch()
            first.set()
            await trio.sleep(self._least_pause_s)
            with trio.move_on_after(self._interval_s if self.keys else 0):
                await self._wanted.wait()

    async def _fetch(self) -> None:
        self._wanted = trio.Event()
        try:
            keys = parse_keys(await self._fetch_in_time())
        except (OSError, HTTPException, ValueError) as exc:
            left = f"; the {len(self.keys)} that are here stay" if self.keys else ""
            _log.warning("the keys at %s cannot be fetched: %s%s", self._url, exc, left)
            return
        self._fetched_at = time.monotonic()
        if keys == self.keys:  # strangers can have them fetched: nobody is asked again for that
            return
        _log.info("fetched %d keys from %s", len(keys), self._url)
        self.keys = keys
        if self.on_change is not None:
            self.on_change()


    async def _fetch_in_time(self) -> bytes:
        """`fetch` in a thread. TimeoutError, too, where headers come so slowly that its own limits do not see it."""
        with trio.move_on_after(2 * FETCH_TIMEOUT_S):
            return await trio.to_thread.run_sync(
                fetch, self._url, abandon_on_cancel=True, limiter=self._threads
            )
        raise TimeoutError(f"it took longer than {2 * FETCH_TIMEOUT_S:g} s")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Keys are taken from where the config says, and from nowhere else."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def fetch(url: str) -> bytes:
    """The body at `url`; blocking, bounded in size, and in time but for headers that drip.

    Raises OSError, HTTPException or ValueError.
    """
    deadline = time.monotonic() + FETCH_TIMEOUT_S
    opener = urllib.request.build_opener(_NoRedirect)
    request = urllib.request.Request(url, headers={"Accept": "application/json", "User-Agent": "nl"})
    try:
        opened = opener.open(request, timeout=FETCH_TIMEOUT_S)
    except urllib.error.HTTPError as exc:
        exc.close()
        raise OSError(f"the answer has status {exc.code}") from None
    with opened as response:
        body = b""
        while piece := response.read1(64 * 1024):
            body += piece
            if len(body) > MAX_BYTES:
                raise ValueError(f"it is larger than {MAX_BYTES} bytes")
            if time.monotonic() > deadline:
                raise TimeoutError(f"it took longer than {FETCH_TIMEOUT_S:g} s")
    return body
