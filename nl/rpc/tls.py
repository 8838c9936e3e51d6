"""TLS contexts for listeners and channels. What goes wrong while files are loaded is a ConfigError with the file."""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nl.errors import ConfigError
from nl.model.access import PeerCertificate

_KEY = re.compile(rb"-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----")


def server_context(
    *,
    cert_file: str,
    key_file: str,
    client_ca_file: str | None = None,
    client_crl_file: str | None = None,
    client_optional: bool = False,
) -> ssl.SSLContext:
    """A listener's context; `client_ca_file` makes client certificates mandatory, `client_crl_file` revokes some.

    With `client_optional` clients without a certificate get in, too; one that is shown must be valid.
    """
    _require_one_key(key_file)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.set_alpn_protocols(["h2", "http/1.1"])
    _load_chain(context, cert_file, key_file)
    if client_ca_file is not None:
        _load_ca(context, client_ca_file, "client_ca_file")
        context.verify_mode = ssl.CERT_OPTIONAL if client_optional else ssl.CERT_REQUIRED
    elif client_crl_file is not None:
        raise ConfigError("client_crl_file", "means nothing without client_ca_file")
    if client_crl_file is not None:
        _load_ca(context, client_crl_file, "client_crl_file")
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    return context


def client_context(
    *,
    ca_file: str | None = None,
    cert_file: str | None = None,
    key_file: str | None = None,
    native_roots: bool = False,
) -> ssl.SSLContext:
    """A channel's context. The system's authorities are trusted without `ca_file`, and with `native_roots` besides."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if ca_file is not None:
        _load_ca(context, ca_file, "ca_file")
    if ca_file is None or native_roots:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2"])
    if (cert_file is None) != (key_file is None):
        raise ConfigError("cert_file" if cert_file is None else "key_file", "both are needed, or neither")
    if cert_file is not None and key_file is not None:
        _require_one_key(key_file)
        _load_chain(context, cert_file, key_file)
    return context


def peer_certificate(found: Mapping[str, Any] | None) -> PeerCertificate | None:
    """The certificate that the client has proven to have: `found` is what `ssl.SSLSocket.getpeercert` says."""
    if not found:
        return None
    names: dict[str, list[str]] = {"URI": [], "DNS": [], "email": []}
    for kind, value in found.get("subjectAltName", ()):
        names.setdefault(kind, []).append(value)
    subject = dict(pair for part in found.get("subject", ()) for pair in part)
    return PeerCertificate(
        common_name=subject.get("commonName", ""),
        uris=tuple(names["URI"]),
        dns_names=tuple(names["DNS"]),
        emails=tuple(names["email"]),
        not_after=float(ssl.cert_time_to_seconds(found["notAfter"])),
    )


def _require_one_key(key_file: str) -> None:
    try:
        count = len(_KEY.findall(Path(key_file).read_bytes()))
    except OSError as exc:
        raise ConfigError("key_file", f"cannot read {key_file}: {exc.strerror}") from exc
    if count != 1:
        raise ConfigError("key_file", f"Expected 1 key in file {key_file}, found {count}")


def _load_chain(context: ssl.SSLContext, cert_file: str, key_file: str) -> None:
    def refuse_to_ask() -> str:
        problem = f"{key_file} is encrypted; expected a key without a passphrase (openssl pkey -in FILE -out FILE)"
        raise ConfigError("key_file", problem)

    try:  # without a callback OpenSSL would ask on the terminal
        context.load_cert_chain(cert_file, key_file, password=refuse_to_ask)
    except (OSError, ssl.SSLError) as exc:
        raise ConfigError("cert_file", f"cannot load {cert_file} with {key_file}: {exc}") from exc


def _load_ca(context: ssl.SSLContext, file: str, option: str) -> None:
    try:
        context.load_verify_locations(file)
    except (OSError, ssl.SSLError) as exc:
        raise ConfigError(option, f"cannot load {file}: {exc}") from exc
