"""What is wrong with the options of `grpc` is one line with its place."""

from __future__ import annotations

import pytest
from grpclib.const import Status

from nl.config.loader import load_value
from nl.config.registry import StoreKinds
from nl.errors import ConfigError
from nl.storage.builder import build_stores

ENDPOINT = {"address": "grpc://127.0.0.1:50051"}


def load(env=None, warnings=None, **options):
    given = {"endpoints": [ENDPOINT], "store_type": "cas", **options}
    config = load_value(
        {
            "stores": [{"name": "A", "grpc": {key: value for key, value in given.items() if value is not ...}}],
            "servers": [{"listener": {"http": {"socket_address": "127.0.0.1:1"}},
                         "services": {"cas": [{"cas_store": "A"}]}}],
        },
        env=env or {}, kinds=StoreKinds.built_in(), on_warning=pytest.fail if warnings is None else warnings.append,
    )
    build_stores(config.stores, kinds=StoreKinds.built_in())
    return config.stores[0].spec.options


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"endpoints": []}, "endpoints: is empty; expected at least one endpoint"),
        ({"endpoints": ...}, "endpoints: missing; expected a list"),
        ({"store_type": ...}, 'store_type: missing; expected one of "cas", "ac"'),
        ({"store_type": "cash"}, 'store_type: "cash" is none of the choices (did you mean cas?); expected one of '
                                 '"cas", "ac"'),
        ({"endpoints": [{"address": "ftp://x"}]}, "endpoints[0].address: 'ftp://x' is no target; "),
        ({"endpoints": [{"address": "host"}]}, "endpoints[0].address: 'host' has no port; "),
        ({"endpoints": [ENDPOINT, ENDPOINT]},
         "endpoints[1].address: is that of endpoints[0]; expected another server"),
        ({"endpoints": [{**ENDPOINT, "token": "a", "token_file": "b"}]},
         "endpoints[0].token_file: says the same as token; expected only one of the two"),
        ({"endpoints": [{**ENDPOINT, "token": "a b"}]}, "endpoints[0].token: is empty, or has characters"),
        ({"endpoints": [{**ENDPOINT, "tls_config": {"cert_file": "x"}}]}, "endpoints[0].tls_config: cert_file and key"),
        ({"endpoints": [{**ENDPOINT, "compression": "zip"}]}, 'endpoints[0].compression: "zip" is none of the choices'),
        ({"retry": {"delay": -1}}, "retry.delay: -1 is negative; expected 0 or more seconds"),
        ({"retry": {"retry_on_errors": ["Unavailabel"]}}, 'retry.retry_on_errors[0]: "Unavailabel" is none'),
        ({"headers": {"grpc-timeout": "1S"}}, 'headers["grpc-timeout"]: '),
        ({"headers": {"x y": "1"}}, 'headers["x y"]: cannot be sent as a header'),
        ({"forward_headers": ["x-a", "x y"]}, 'forward_headers[1]: "x y" is no header that can be passed on'),
        ({"forward_headers": ["grpc-timeout"]}, 'forward_headers[0]: "grpc-timeout" is no header'),
        ({"forward_headers": ["te"]}, 'forward_headers[0]: "te" is no header that can be passed on'),
        ({"experimental_read_batching": {"dispatch_slots": 0}},
         "experimental_read_batching.dispatch_slots: 0 would send nothing; expected 1 or more"),
        ({"endpoint": 1}, "endpoint: unknown key (did you mean endpoints?)"),
    ],
)
def test_a_mistake_is_one_line_with_its_place(options, line):
    with pytest.raises(ConfigError) as caught:
        load(**options)
    assert str(caught.value).startswith(f"stores[0].grpc.{line}")
    assert "\n" not in str(caught.value)


def test_a_config_of_nativelinks_is_taken_with_all_its_keys():
    warnings: list[str] = []
    options = load(
        env={"TEAM": "build"},
        warnings=warnings,
        instance_name="main",
        endpoints=[{
            "address": "grpcs://cas:443", "tls_config": {"ca_file": "/x", "use_native_roots": True},
            "concurrency_limit": "7", "connect_timeout_s": 0, "tcp_keepalive_s": "10s", "http2_keepalive_interval_s": 5,
            "http2_keepalive_timeout_s": 6,
        }],
        retry={"max_retries": 6, "delay": 0.3, "jitter": 0.5, "retry_on_errors": ["DeadlineExceeded", "DataLoss"]},
        max_concurrent_requests=5, connections_per_endpoint=3, rpc_timeout_s="30s", use_legacy_resource_names=True,
        headers={"x-team": "${TEAM}"}, forward_headers=["X-Request-Id"],
        experimental_read_batching={"max_blob_size_bytes": "64KiB"}, experimental_remote_cache_compression=True,
    )
    (endpoint,) = options.endpoints
    assert (endpoint.concurrency_limit, endpoint.connect_timeout_s, endpoint.tcp_keepalive_s) == (7, 30.0, 10.0)
    policy = options.retry.policy()
    assert (policy.max_retries, policy.delay, policy.jitter) == (6, 0.6, 0.25)
    assert policy.codes == {Status.DEADLINE_EXCEEDED, Status.DATA_LOSS}
    assert options.headers == {"x-team": "build"}
    assert options.experimental_remote_cache_compression is True and not warnings


def test_no_option_shows_a_token():
    options = load(endpoints=[{**ENDPOINT, "token": "tok-secret"}], headers={"x-key": "also-secret"})
    assert "tok-secret" not in repr(options)
    assert "also-secret" not in repr(options)
