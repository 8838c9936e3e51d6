"""An issuer of JSON web tokens for tests: keys, their public set, signed tokens, and a server of the set."""

import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

ISSUER = "https://ci.example.org"
_ALGORITHMS = {"RS": jwt.algorithms.RSAAlgorithm, "PS": jwt.algorithms.RSAAlgorithm, "ES": jwt.algorithms.ECAlgorithm,
               "Ed": jwt.algorithms.OKPAlgorithm}  # fmt: skip


class Key:
    """A private key with an id."""

    def __init__(self, kid, algorithm="ES256"):
        self.kid, self.algorithm = kid, algorithm
        kind = algorithm[:2]
        if kind in ("RS", "PS"):
            self.private = rsa.generate_private_key(65537, 2048)
        else:
            self.private = ec.generate_private_key(ec.SECP256R1()) if kind == "ES" else (
                ed25519.Ed25519PrivateKey.generate())

    def public(self, *, with_alg=True):
        entry = json.loads(_ALGORITHMS[self.algorithm[:2]].to_jwk(self.private.public_key()))
        entry |= {"kid": self.kid, "use": "sig"}
        return {**entry, "alg": self.algorithm} if with_alg else entry

    def sign(self, headers=None, algorithm=None, **claims):
        """A token that is right, but for what `claims` change; a claim that is None is left out."""
        now = int(time.time())
        claims = {"iss": ISSUER, "aud": "nl", "sub": "job", "iat": now, "exp": now + 600, **claims}
        claims = {name: value for name, value in claims.items() if value is not None}
        headers = {name: value for name, value in {"kid": self.kid, **(headers or {})}.items() if value is not None}
        return jwt.encode(claims, self.private, algorithm or self.algorithm, headers=headers)


def key_set(*keys, **kwargs):
    return json.dumps({"keys": [key.public(**kwargs) for key in keys]})


@contextmanager
def key_server(answer):
    """Serves what `answer(path)` gives, (status, headers, body), on a port of 127.0.0.1; yields (url, paths asked)."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            status, headers, body = answer(self.path)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/jwks", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
