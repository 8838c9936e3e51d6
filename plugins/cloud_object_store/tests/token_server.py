"""Where programs get tokens: Google's for service accounts (POST), and what an Azure App Service offers (GET)."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@contextmanager
def token_server(status: int = 200) -> Iterator[tuple[str, list[str]]]:
    """Its address, and the paths that were asked for. Tokens are called `token-1`, `token-2`."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            self._answer(status if self.headers["X-IDENTITY-HEADER"] == "known" else 401)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self._answer(status)

        def _answer(self, status: int) -> None:
            asked.append(self.path)
            good = {"access_token": f"token-{len(asked)}", "expires_in": 3600, "expires_on": "4102444800",
                    "token_type": "Bearer", "resource": "https://storage.azure.com"}
            bad = {"error": "invalid_grant", "error_description": "no"}
            body = json.dumps(good if status == 200 else bad).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/token", asked
        finally:
            server.shutdown()
            thread.join()
