"""Who we are to Google: what google-auth finds where Google's own libraries look, or nobody."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from typing import Any

from nl.plugin import RefusedError, TransientError
from nl_cloud_object_store.http import one_line
from nl_cloud_object_store.turns import Turns

log = logging.getLogger("nl.stores.cloud_object_store")
_SCOPES = ["https://www.googleapis.com/auth/devstorage.read_write"]


class Credentials:
    """Signs requests; tokens are renewed before they end."""

    def __init__(self, found: Any) -> None:
        """`found` is google-auth's, or None for nobody's."""
        self._found = found
        self._turns = Turns()
        self._request: Any = None
        if found is not None:
            import urllib3
            from google.auth.transport import urllib3 as transport

            make: Any = transport.Request  # untyped there
            self._request = make(urllib3.PoolManager())

    def sign(self, method: str, url: str, headers: dict[str, str]) -> None:
        """Adds to `headers` what makes a request ours. May block."""
        if self._found is not None:
            with self._turns.turn():
                self._sign(method, url, headers)

    def _sign(self, method: str, url: str, headers: dict[str, str]) -> None:
        from google.auth import exceptions as google

        try:
            self._found.before_request(self._request, method, url, headers)
        except google.TransportError as error:
            raise TransientError(f"no token: {one_line(error)}") from error
        except google.GoogleAuthError as error:
            text = one_line(error.args[0] if error.args else error)
            if error.retryable:
                raise TransientError(f"no token: {text}") from error
            raise RefusedError(f"the credentials are refused: {text}") from error


def find_credentials(*, required: bool, environment: Mapping[str, str] = os.environ) -> Credentials:
    """GOOGLE_APPLICATION_CREDENTIALS_JSON (the text of a file of credentials), else what google-auth finds: the file
    that GOOGLE_APPLICATION_CREDENTIALS names, gcloud's, a workload's or the machine's. Where there are none, requests
    are nobody's, unless some are `required`.
    """
    try:
        import google.auth
        from google.auth import exceptions as google_errors
    except ImportError as error:
        raise RefusedError("google-auth is not installed: pip install 'nl-cloud-object-store[gcs]'",
                           option="provider") from error
    logging.getLogger("google").setLevel(logging.ERROR)
    text = environment.get("GOOGLE_APPLICATION_CREDENTIALS_JSON")
    found: Any
    try:
        found = _of_text(text) if text else google.auth.default(scopes=_SCOPES)[0]
    except google_errors.DefaultCredentialsError as error:
        if required or environment.get("GOOGLE_APPLICATION_CREDENTIALS"):
            raise RefusedError(f"no credentials: {one_line(error.args[0])}") from error
        log.warning("no credentials for Google's storage: requests are anonymous, unless authentication_required")
        found = None
    except (ValueError, KeyError, TypeError) as error:
        raise RefusedError("GOOGLE_APPLICATION_CREDENTIALS_JSON cannot be used; expected the text of the file of a "
                           "service account or of a user") from error
    return Credentials(found)


def _of_text(text: str) -> Any:
    """google-auth would take any kind from a text, and warns of that."""
    from google.oauth2 import credentials, service_account

    told: dict[str, Any] = json.loads(text)
    kinds: dict[str, Any] = {
        "service_account": service_account.Credentials.from_service_account_info,
        "authorized_user": credentials.Credentials.from_authorized_user_info,
    }
    return kinds[told["type"]](told, scopes=_SCOPES)
