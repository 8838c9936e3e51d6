"""What the tests of faults share: a client that has actions executed, raw HTTP/2, and looks into /proc."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio

from nl.rpc import frames as fr
from nl.rpc import hpack
from tests.support.foreign import REAPI, Foreign, read_name
from tests.support.processes import Server
from tests.wire.execution_support import EXECUTE, LONGRUNNING, response

_GRPC = hpack.encode([(b":authority", b"x"), (b"te", b"trailers"), (b"content-type", b"application/grpc")])


class Builder:
    """A client that has actions executed."""

    def __init__(self, server: Server, client: Foreign) -> None:
        self.server = server
        self.client = client

    async def put(self, message: Any) -> Any:
        return await self.client.put(message.SerializeToString(deterministic=True))

    async def request(
        self, script: str, *, root: Any = None, outputs: tuple[str, ...] = ("out",), priority: int = 0, **action: Any
    ) -> Any:
        command = REAPI.Command(arguments=["/bin/sh", "-c", script], output_paths=outputs)
        properties = action.pop("properties", {})
        timeout_s = action.pop("timeout_s", None)
        made = REAPI.Action(
            command_digest=await self.put(command),
            input_root_digest=await self.put(root or REAPI.Directory()),
            **action,
        )
        for name, value in properties.items():
            made.platform.properties.add(name=name, value=value)
        if timeout_s is not None:
            made.timeout.FromMilliseconds(int(timeout_s * 1000))
        request = REAPI.ExecuteRequest(action_digest=await self.put(made))
        request.execution_policy.priority = priority
        return request

    async def execute(self, request: Any) -> Any:
        operations = await self.client.server_stream(EXECUTE, request, LONGRUNNING.Operation)
        return response(operations[-1])

    async def run(self, script: str, **more: Any) -> Any:
        return await self.execute(await self.request(script, **more))

    async def stdout(self, result: Any) -> bytes:
        return result.stdout_raw or b"".join(await self.client.read(read_name(result.stdout_digest)))

    def begin(self, request: Any) -> Any:
        """A call under way, in grpcio's own threads."""
        call = self.client.channel.unary_stream(EXECUTE, encode, LONGRUNNING.Operation.FromString)
        return call(request, timeout=60)


def encode(message: Any) -> bytes:
    """As grpcio wants a serializer."""
    data: bytes = message.SerializeToString()
    return data


async def until(holds: Callable[[], bool], *, within_s: float = 15) -> None:
    """Polls what can be observed from outside."""
    with trio.fail_after(within_s):
        while not holds():
            await trio.sleep(0.01)


def marked(mark: str) -> list[int]:
    """Processes with `mark` among their arguments."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                arguments = (folder / "cmdline").read_bytes()
            except OSError:
                continue
            if mark.encode() in arguments.split(b"\0"):
                found.append(int(folder.name))
    return found


def request(sid: int, method: str, message: bytes, *, end: bool) -> bytes:
    """The frames of a call with one message; with `end`, the whole call."""
    block = hpack.METHOD_POST + hpack.SCHEME_HTTP + hpack.encode_path(f"{method}".encode()) + _GRPC
    return fr.frame(fr.HEADERS, fr.END_HEADERS, sid, block) + data_frames(sid, message, end=end)


def data_frames(sid: int, message: bytes, *, end: bool) -> bytes:
    """One gRPC message in DATA frames."""
    whole = fr.PREFIX.pack(0, len(message)) + message
    pieces = [whole[at : at + fr.MIN_FRAME_SIZE] for at in range(0, len(whole), fr.MIN_FRAME_SIZE)]
    last = fr.END_STREAM if end else 0
    return b"".join(
        fr.frame(fr.DATA, last if at == len(pieces) - 1 else 0, sid, piece) for at, piece in enumerate(pieces)
    )


def dial(server: Server, *parts: bytes, settings: dict[Any, int] | None = None) -> socket.socket:
    """A connection that has said hello, and `parts`."""
    sock = socket.create_connection(("127.0.0.1", server.port), timeout=20)
    sock.sendall(fr.PREFACE + fr.settings(settings or {}) + b"".join(parts))
    return sock
