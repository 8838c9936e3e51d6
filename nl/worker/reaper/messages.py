"""Messages between the worker and its wardens: JSON with a 4-byte length in front."""

from __future__ import annotations

import json
import socket
import struct
from typing import Any

LENGTH = struct.Struct("<I")


def send(sock: socket.socket, message: dict[str, Any]) -> None:
    """Sends one message whole."""
    data = json.dumps(message, separators=(",", ":")).encode()
    sock.sendall(LENGTH.pack(len(data)) + data)


def receive(sock: socket.socket) -> dict[str, Any] | None:
    """The next message; None when the other side is gone."""
    head = receive_exactly(sock, LENGTH.size)
    if head is None:
        return None
    body = receive_exactly(sock, LENGTH.unpack(head)[0])
    return None if body is None else json.loads(body)


def receive_exactly(sock: socket.socket, count: int) -> bytes | None:
    """`count` bytes, or None at the end of the stream."""
    got = b""
    while len(got) < count:
        try:
            part = sock.recv(count - len(got))
        except ConnectionError:
            return None
        if not part:
            return None
        got = got + part if got else part
    return got
