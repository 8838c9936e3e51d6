"""Which files and folders a config names, and are no action's business."""

from __future__ import annotations

from nl.config.loader import load_value
from nl.config.paths import private_paths
from nl.config.registry import StoreKinds

CONFIG = {
    "stores": [
        {"name": "CAS", "fast_slow": {
            "fast": {"filesystem": {"content_path": "/data/cas", "temp_path": "relative/temp"}},
            "slow": {"grpc": {"instance_name": "", "store_type": "cas", "endpoints": [
                {"address": "grpcs://cas:1", "tls_config": {
                    "ca_file": "/etc/ssl/ca.pem", "cert_file": "/keys/cert.pem", "key_file": "/keys/key.pem"}}]}},
        }},
    ],
    "servers": [{"listener": {"http": {"socket_address": "unix:/sockets/nl"}}, "services": {"health": {}}}],
    "workers": [{"local": {
        "cas_fast_slow_store": "CAS", "work_directory": "/data/work", "entrypoint": "/tools/entry",
        "worker_api_endpoint": {"uri": "unix:///sockets/workers", "token_file": "/keys/token"},
        "platform_properties": {"where": {"values": ["/opt/sdk"]}},
        "additional_environment": {"SDK": {"value": "/opt/sdk"}},
        "isolation": {"visible_paths": ["/home/sdk"], "hidden_paths": ["/srv"]},
    }}],
}  # fmt: skip


def test_stores_keys_tokens_and_sockets_are_private_and_programs_are_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = set(private_paths(load_value(CONFIG, kinds=StoreKinds())))
    assert found == {
        "/data/cas", f"{tmp_path}/relative/temp", "/keys/cert.pem", "/keys/key.pem", "/sockets/nl", "/data/work",
        "/sockets/workers", "/keys/token", "/srv",
    }  # fmt: skip
