"""Tokens that cannot be renewed: who waits for one shares the failure, since each would wait as long, one by one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import SimpleNamespace, TracebackType
from typing import Any

import pytest

from nl.plugin import BackendError, RefusedError, TransientError
from nl_cloud_object_store import turns
from nl_cloud_object_store.azure_auth import Token
from nl_cloud_object_store.gcs_auth import Credentials

CALLERS = 5
Sign = Callable[[dict[str, str]], object]


class CrowdedLock:
    """Says when all callers have come for it."""

    crowd: threading.Event
    came: int

    def __init__(self) -> None:
        self._lock, self._counting = threading.Lock(), threading.Lock()

    def __enter__(self) -> None:
        with self._counting:
            CrowdedLock.came += 1
            if CrowdedLock.came == CALLERS:
                CrowdedLock.crowd.set()
        self._lock.acquire()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._lock.release()


class Place:
    """Where tokens are got; while it is away, it says so when all callers are there."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error
        self.asked = 0

    def ask(self) -> None:
        self.asked += 1
        assert CrowdedLock.crowd.wait(120)
        if self.error is not None:
            raise self.error


def of_azure(place: Place) -> Sign:
    def get_token(scope: str) -> SimpleNamespace:
        place.ask()
        return SimpleNamespace(token="token", expires_on=4e9)

    token = Token(SimpleNamespace(get_token=get_token))
    return lambda headers: token.sign("GET", "https://h/c", headers)


def of_google(place: Place) -> Sign:
    def before_request(request: object, method: str, url: str, headers: dict[str, str]) -> None:
        place.ask()
        headers["Authorization"] = "Bearer token"

    credentials = Credentials(SimpleNamespace(before_request=before_request))
    return lambda headers: credentials.sign("GET", "https://h/c", headers)


CASES: list[tuple[Callable[[Place], Sign], str, str, type[BackendError]]] = [
    (of_azure, "azure.core.exceptions", "ServiceRequestError", TransientError),
    (of_azure, "azure.core.exceptions", "ClientAuthenticationError", RefusedError),
    (of_google, "google.auth.exceptions", "TransportError", TransientError),
    (of_google, "google.auth.exceptions", "RefreshError", RefusedError),
]


@pytest.mark.parametrize(("make", "library", "name", "kind"), CASES, ids=lambda each: getattr(each, "__name__", each))
def test_who_waits_for_a_token_that_cannot_be_had_fails_with_who_has_asked_for_it(
    make: Callable[[Place], Sign], library: str, name: str, kind: type[BackendError], monkeypatch: pytest.MonkeyPatch
) -> None:
    errors: Any = pytest.importorskip(library)
    monkeypatch.setattr(turns, "threading", SimpleNamespace(Lock=CrowdedLock))
    CrowdedLock.crowd, CrowdedLock.came = threading.Event(), 0
    place = Place(getattr(errors, name)("away"))
    sign, failures = make(place), list[BackendError]()

    def call() -> None:
        try:
            sign({})
        except BackendError as error:
            failures.append(error)

    threads = [threading.Thread(target=call, daemon=True) for _ in range(CALLERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(240)
    assert place.asked == 1
    assert [type(each) for each in failures] == [kind] * CALLERS
    assert len(set(map(id, failures))) == CALLERS, "each has an error of its own, with a traceback of its own"
    assert len({(str(each), each.code) for each in failures}) == 1
    assert "away" in str(failures[0])
    with pytest.raises(kind):
        sign({})
    assert place.asked == 2, "who comes afterwards asks again"
    place.error = None
    sign(headers := dict[str, str]())
    assert headers == {"Authorization": "Bearer token"}
