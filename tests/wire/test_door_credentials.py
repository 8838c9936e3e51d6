"""Credentials as foreign clients send them, to a real server process: tokens, web tokens, certificates; changes."""

import base64
import json
import subprocess
import time

import grpc
import pytest
import trustme

from nl.pb import reapi
from nl.pb.codec import encode
from tests.support.processes import Server, free_port, nl_command

CAPABILITIES = "/build.bazel.remote.execution.v2.Capabilities/GetCapabilities"
UNAUTHENTICATED, DENIED, OK = grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.OK


class Quiet(Server):
    """Its readiness is told by its log: with TLS it cannot be asked over plain HTTP."""

    def answers(self):
        return "Ready, listening on" in self.log_text()


def token(*arguments):
    result = subprocess.run([*nl_command(), "token", *arguments], capture_output=True, text=True, check=True)
    return result.stdout.strip()


def served(directory, auth, **http):
    port = free_port()
    services = {"cas": [{"instance_name": name, "cas_store": "CAS"} for name in ("main", "pr")], "capabilities": []}
    config = {
        "stores": [{"name": "CAS", "memory": {}}],
        "servers": [{"listener": {"http": {"socket_address": f"127.0.0.1:{port}", **http}}, "services": services}],
        "auth": auth,
    }
    (directory / "config.json5").write_text(json.dumps(config))
    return Quiet(["serve", str(directory / "config.json5")], port=port, log=directory / "log")


@pytest.fixture
def start():
    """Starts a server; it is stopped at the end."""
    started = []

    def begin(server):
        started.append(server)
        server.start()
        return server

    yield begin
    for server in started:
        server.stop()


def ask(channel, authorization=None, instance="main"):
    metadata = [] if authorization is None else [("authorization", authorization)]
    try:
        channel.unary_unary(CAPABILITIES)(
            encode(reapi.GetCapabilitiesRequest(instance_name=instance)), metadata=metadata, timeout=20
        )
    except grpc.RpcError as exc:
        return exc.code(), exc.details()
    return OK, ""


def until(code, *arguments):
    """Asks until the answer has this code: what changes takes a moment."""
    end = time.monotonic() + 20
    while (answer := ask(*arguments))[0] is not code:
        assert time.monotonic() < end, answer
        time.sleep(0.05)
    return answer[1]


def test_a_token_is_made_used_and_revoked_while_the_server_runs(tmp_path, start):
    file = str(tmp_path / "tokens")
    ours = token("create", "ci", "--allow", "write", "--instance", "main", "-f", file)
    server = start(served(tmp_path, {"tokens_file": file}))
    with grpc.insecure_channel(server.target) as channel:
        assert ask(channel)[0] is UNAUTHENTICATED
        assert ask(channel, f"Bearer {ours}") == (OK, "")
        assert ask(channel, "Basic " + base64.b64encode(f"me:{ours}".encode()).decode()) == (OK, "")
        assert ask(channel, f"Bearer {ours}", "pr") == (DENIED, "'ci' does not have any right for instance 'pr'")
        new = token("create", "new", "--allow", "read", "-f", file, "--expires", "2s")
        until(OK, channel, f"Bearer {new}")
        assert until(UNAUTHENTICATED, channel, f"Bearer {new}") == "the token 'new' has expired"
        token("revoke", "ci", "-f", file)
        assert until(UNAUTHENTICATED, channel, f"Bearer {ours}") == "the token is not known here"
    text = server.log_text()
    assert ours not in text
    assert new not in text


def test_web_tokens_of_an_issuer_whose_keys_are_fetched(tmp_path, start):
    pytest.importorskip("jwt", reason="PyJWT is not installed: JSON web tokens are NOT being tested")
    from tests.support.web_tokens import ISSUER, Key, key_server, key_set

    key = Key("k1", "RS256")
    with key_server(lambda path: (200, {}, key_set(key))) as (url, asked):
        grants = [
            {"claims": {"repository": "acme/*", "ref": "refs/heads/main"}, "allow": ["write"], "instances": ["main"]},
            {"claims": {"repository": "acme/*"}, "allow": ["write"], "instances": ["pr"]},
        ]
        issuer = {"name": "ci", "issuer": ISSUER, "audience": ["nl"], "jwks_url": url, "grants": grants}
        server = start(served(tmp_path, {"jwt": [issuer]}))
        main = key.sign(sub="job", repository="acme/app", ref="refs/heads/main")
        pull = key.sign(sub="job", repository="acme/app", ref="refs/pull/1/merge")
        with grpc.insecure_channel(server.target) as channel:
            assert ask(channel, f"Bearer {main}") == ask(channel, f"Bearer {main}", "pr") == (OK, "")
            assert ask(channel, f"Bearer {pull}", "pr") == (OK, "")
            assert ask(channel, f"Bearer {pull}") == (DENIED, "'ci:job' does not have any right for instance 'main'")
            late = ask(channel, f"Bearer {key.sign(exp=1)}")
            assert late == (UNAUTHENTICATED, "this token of ci is not taken: it has expired")
            strange = ask(channel, f"Bearer {Key('k2').sign()}")
            assert strange == (UNAUTHENTICATED, "this token of ci is not taken: its key is none of ci's")
        assert len(asked) == 1
    assert not [part for each in (main, pull) for part in each.split(".")[1:] if part in server.log_text()]


def test_certificates_and_what_they_allow(tmp_path, start):
    ca = trustme.CA()
    own, ours, other = ca.issue_cert("localhost"), ca.issue_cert("ci.acme.org"), ca.issue_cert("ci.evil.org")
    files = {}
    for name, blob in (("ca", ca.cert_pem), ("key", own.private_key_pem), ("cert", own.cert_chain_pems[0])):
        files[name] = str(tmp_path / name)
        blob.write_to_path(files[name])
    tls = {"cert_file": files["cert"], "key_file": files["key"], "client_ca_file": files["ca"]}
    file = str(tmp_path / "tokens")
    writing = token("create", "ci", "--allow", "write", "-f", file)
    auth = {"certificates": [{"dns": "*.acme.org", "allow": ["read"], "instances": ["main"]}], "tokens_file": file}
    server = start(served(tmp_path, auth, tls=tls))

    def channel(cert):
        credentials = grpc.ssl_channel_credentials(
            ca.cert_pem.bytes(), cert.private_key_pem.bytes(), cert.cert_chain_pems[0].bytes()
        )
        return grpc.secure_channel(f"localhost:{server.port}", credentials)

    with channel(ours) as one, channel(other) as two:
        assert ask(one) == (OK, "")
        assert ask(one, None, "pr") == (DENIED, "'dns:ci.acme.org' does not have any right for instance 'pr'")
        assert ask(two) == (DENIED, "'dns:ci.evil.org' does not have any right for any instance")
        assert ask(two, f"Bearer {writing}") == (OK, "")
        assert ask(one, "Bearer nl_wrong")[0] is UNAUTHENTICATED


def test_a_wrong_tokens_file_ends_the_start_with_one_line(tmp_path):
    (tmp_path / "tokens").write_text("nl_SECRET\n")
    server = served(tmp_path, {"tokens_file": str(tmp_path / "tokens")})
    with pytest.raises(AssertionError, match="server exited with 2"):
        server.start()
    [line] = server.log_text().splitlines()
    assert line == f"nl: {tmp_path}/tokens:1: is no JSON object; expected what `nl token create` writes"
