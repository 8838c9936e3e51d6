"""Workers of another process: how they come in, and what they are told when they do not."""

import json
import time

import pytest
import trustme

from tests.support.processes import Server, free_port
from tests.wire.test_door_credentials import token


class Process(Server):
    """Its log tells what has become of it."""

    words = "Ready, listening on"

    def answers(self):
        return self.words in self.log_text()


@pytest.fixture
def site(tmp_path):
    """A scheduler that takes tokens, and certificates of an authority's, and what its workers may need."""
    ca = trustme.CA()
    own, certified, stranger = ca.issue_cert("localhost"), ca.issue_cert("w1.acme.org"), ca.issue_cert("w1.evil.org")
    blobs = {"ca": ca.cert_pem}
    for name, cert in (("own", own), ("certified", certified), ("stranger", stranger)):
        blobs |= {f"{name}.key": cert.private_key_pem, f"{name}.pem": cert.cert_chain_pems[0]}
    files = {name: str(tmp_path / name) for name in blobs}
    for name, blob in blobs.items():
        blob.write_to_path(files[name])
    tokens = str(tmp_path / "tokens")
    for name in ("worker", "write"):
        (tmp_path / f"{name}.token").write_text(token("create", name, "--allow", name, "-f", tokens) + "\n")
    port = free_port()
    tls = {
        "cert_file": files["own.pem"], "key_file": files["own.key"], "client_ca_file": files["ca"],
        "client_auth": "accept",
    }  # fmt: skip
    config = {
        "schedulers": [{"name": "S", "simple": {}}],
        "servers": [
            {
                "listener": {"http": {"socket_address": f"127.0.0.1:{port}", "tls": tls}},
                "services": {"worker_api": {"scheduler": "S"}},
            }
        ],
        "auth": {"tokens_file": tokens, "certificates": [{"dns": "*.acme.org", "allow": ["worker"]}]},
    }
    (tmp_path / "scheduler.json5").write_text(json.dumps(config))
    scheduler = Process(["serve", str(tmp_path / "scheduler.json5")], port=port, log=tmp_path / "scheduler.log")
    scheduler.start()
    yield tmp_path, files, port
    scheduler.stop()


def worker(site, *, words, certificate=None, **endpoint):
    directory, files, port = site
    tls = {"ca_file": files["ca"]}
    if certificate is not None:
        tls |= {"cert_file": files[f"{certificate}.pem"], "key_file": files[f"{certificate}.key"]}
    options = {
        "name": "w", "cas_fast_slow_store": "CAS", "work_directory": str(directory / "work"),
        "worker_api_endpoint": {"uri": f"grpcs://localhost:{port}", "tls_config": tls, **endpoint},
        "upload_action_result": {"upload_ac_results_strategy": "never"},
    }  # fmt: skip
    store = {"filesystem": {"content_path": str(directory / "cas"), "temp_path": str(directory / "cas.temp")}}
    (directory / "worker.json5").write_text(
        json.dumps({"stores": [{"name": "CAS", **store}], "workers": [{"local": options}]})
    )
    log = directory / f"worker-{time.monotonic_ns()}.log"
    process = Process(["serve", str(directory / "worker.json5")], port=0, log=log)
    process.words = words
    process.start()
    process.kill()
    return process.log_text()


def test_a_worker_comes_in_with_its_token_or_its_certificate(site):
    directory, _, _ = site
    secret = (directory / "worker.token").read_text().strip()
    for how in (
        {"token_file": str(directory / "worker.token")}, {"token": secret}, {"certificate": "certified"},
        {"certificate": "stranger", "token": secret}, {"token": secret + "\n"},
    ):  # fmt: skip
        assert secret not in worker(site, words="Worker registered with scheduler", **how)
    assert secret not in (directory / "scheduler.log").read_text()


def test_a_worker_that_may_not_come_in_says_why(site):
    directory, _, port = site
    (directory / "odd.token").write_text("nl_\x01\n")
    where = f"scheduler at localhost:{port}: "
    for words, how in {
        "UNAUTHENTICATED: " + where + "register_workers for instance '' needs credentials": {},
        "PERMISSION_DENIED: " + where + "'write' does not have register_workers": {
            "token_file": str(directory / "write.token")
        },
        "UNAUTHENTICATED: " + where + "the token is not known here": {"token": "nl_wrong"},
        "PERMISSION_DENIED: " + where + "'dns:w1.evil.org' does not have register_workers": {"certificate": "stranger"},
        "odd.token has no token in its first line": {"token_file": str(directory / "odd.token")},
        "the token file /nowhere cannot be read: No such file or directory": {"token_file": "/nowhere"},
    }.items():
        assert "registered" not in worker(site, words=words, **how)
