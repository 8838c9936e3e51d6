"""What holds where nobody says otherwise: numbers that operators rely on, so that changing one is a decision."""

from dataclasses import asdict

from grpclib.const import Status

from nl.rpc.h2.limits import Limits
from nl.rpc.options import ChannelOptions, ServerOptions
from nl.rpc.retry import RetryPolicy

MIB = 1 << 20


def test_what_one_connection_may_cost():
    assert asdict(Limits()) == {
        "stream_window": 4 * MIB, "connection_window": 16 * MIB, "max_frame_size": 16_384,
        "max_concurrent_streams": 1000, "max_header_list_size": 16_384, "control_burst": 1000, "control_per_s": 100.0,
        "reset_burst": 1000, "reset_per_s": 100.0,
    }  # fmt: skip


def test_what_a_listener_does():
    options = ServerOptions()
    assert {name: getattr(options, name) for name in ServerOptions.__dataclass_fields__} == {
        "limits": Limits(), "max_message_size": 4 * MIB, "send_compression": None, "accepted_compression": (),
        "compress_from": 1024, "max_send_buffer": MIB, "handshake_timeout": 10.0, "keepalive_interval": 60.0,
        "keepalive_timeout": 20.0, "stall_timeout": 60.0, "window_timeout": 600.0, "idle_timeout": None,
        "max_connections": 20_000, "max_held": 1024 * MIB, "tls": None, "authenticate": None,
        "shown_headers": frozenset(),
    }  # fmt: skip


def test_what_a_channel_does():
    options = ChannelOptions()
    assert {name: getattr(options, name) for name in ChannelOptions.__dataclass_fields__} == {
        "limits": Limits(), "max_message_size": 4 * MIB, "send_compression": None, "compress_from": 1024,
        "call_timeout": None, "wait_for_ready": False, "retry": None, "connections": 1, "balancing": "pick_first",
        "resolve_interval": 300.0, "head_start": 0.25, "connect_timeout": 20.0, "tcp_keepalive": None,
        "keepalive_interval": 60.0, "keepalive_timeout": 20.0, "stall_timeout": 60.0, "max_send_buffer": MIB,
        "backoff_initial": 0.1, "backoff_max": 10.0, "backoff_jitter": 0.2, "max_streams": 1000, "authority": None,
        "user_agent": "nl-rpc",
    }  # fmt: skip


def test_what_a_retry_policy_does():
    policy = RetryPolicy()
    assert {name: getattr(policy, name) for name in RetryPolicy.__dataclass_fields__} == {
        "max_retries": 3, "delay": 0.1, "max_delay": 60.0, "jitter": 0.2,
        "codes": frozenset({Status.UNAVAILABLE, Status.ABORTED}), "methods": frozenset(), "max_kept": 4 * MIB,
    }  # fmt: skip
