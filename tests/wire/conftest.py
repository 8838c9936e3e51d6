"""What the tests of the grpc store have in common: a server that is not ours, and what holds its answers up."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from tests.support.foreign_server import ForeignServer


@pytest.fixture
def server() -> Iterator[ForeignServer]:
    """Files with a server of another kind have a fixture of their own."""
    with ForeignServer().running() as running:
        yield running


@pytest.fixture
def later(server: ForeignServer) -> Iterator[threading.Event]:
    """What calls wait for that are planned so: set by the test, or when it has ended, for the server waits for them."""
    event = threading.Event()
    yield event
    event.set()
