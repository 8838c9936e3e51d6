"""Names that a test makes up, through trio's own seam for them: `trio.socket.set_custom_hostname_resolver`."""

import socket

import trio


class Names(trio.abc.HostnameResolver):
    """`Names(a_example=["127.0.0.1"])`: what `a.example` is. An exception is raised; None never answers."""

    def __init__(self, **names):
        self.names = {name.replace("_", "."): value for name, value in names.items()}

    async def getaddrinfo(self, host, port, family=0, type=0, proto=0, flags=0):
        value = self.names[host.decode() if isinstance(host, bytes) else host]
        if isinstance(value, Exception):
            raise value
        if value is None:
            await trio.sleep_forever()
        return [
            (socket.AF_INET6, type, 6, "", (each, port, 0, 0))
            if ":" in each
            else (socket.AF_INET, type, 6, "", (each, port))
            for each in value
        ]

    async def getnameinfo(self, sockaddr, flags):
        raise NotImplementedError
