"""What `nl serve` tells its user to copy."""

import socket

import pytest

from nl.server.main import _reachable


@pytest.mark.parametrize(
    ("bound", "shown"),
    [
        ("127.0.0.1:50051", "127.0.0.1:50051"),
        ("[::1]:50051", "[::1]:50051"),
        ("0.0.0.0:50051", f"{socket.gethostname()}:50051"),
        ("[::]:1", f"{socket.gethostname()}:1"),
    ],
)
def test_an_address_of_all_interfaces_is_shown_as_other_machines_write_it(bound, shown):
    assert _reachable(bound) == shown
