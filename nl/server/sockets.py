"""Listening sockets: TCP on IPv4 and IPv6, and sockets in the file system. Nothing is accepted here."""

from __future__ import annotations

import errno
import logging
import os
import socket
import stat
from typing import Any

import trio

log = logging.getLogger("nl.server")
BACKLOG = 1024
_IP_FREEBIND = 15  # Linux, ip(7); not in the socket module
_NO_IPV6 = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL})


def listen_tcp(family: int, address: tuple[Any, ...], *, freebind: bool) -> trio.SocketListener:
    """Listens on one address, as getaddrinfo gives it. `::` takes IPv4's clients, too, and stands in for `0.0.0.0`
    where this machine has no IPv6. Raises OSError.
    """
    is_any = family == socket.AF_INET6 and address[0] == "::"
    try:
        return _listen_tcp(family, address, freebind=freebind, v6_only=not is_any)
    except OSError as error:
        if not is_any or error.errno not in _NO_IPV6:
            raise
    log.warning("this machine has no IPv6: [::]:%d takes IPv4 only", address[1])
    return _listen_tcp(socket.AF_INET, ("0.0.0.0", address[1]), freebind=freebind, v6_only=False)


def _listen_tcp(family: int, address: tuple[Any, ...], *, freebind: bool, v6_only: bool) -> trio.SocketListener:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, v6_only)
        if freebind:
            sock.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
        sock.bind(address)
        return _listening(sock)
    except BaseException:
        sock.close()
        raise


def _listening(sock: socket.socket) -> trio.SocketListener:
    sock.setblocking(False)
    sock.listen(BACKLOG)
    return trio.SocketListener(trio.socket.from_stdlib_socket(sock))


def listen_unix(path: str, *, mode: int) -> trio.SocketListener:
    """Listens on a socket in the file system, which only those whom `mode` allows can connect to, from the start.

    What an earlier process has left there is replaced, if it is a socket on which nobody listens. Raises OSError.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        os.fchmod(sock.fileno(), mode & 0o600)  # Linux: the file gets what the socket has, so nobody is faster than us
        try:
            sock.bind(path)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            _remove_stale(path)
            sock.bind(path)
        os.chmod(path, mode)
        return _listening(sock)
    except BaseException:
        sock.close()
        raise


def _remove_stale(path: str) -> None:
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        raise FileExistsError(errno.EEXIST, "is there and is no socket; choose another path, or remove it", path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        refused = probe.connect_ex(path) == errno.ECONNREFUSED
    if not refused:  # connected, or not allowed to, or its backlog is full
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE), path)
    os.unlink(path)


class UnixPath:
    """The file of a listening unix socket, to be removed at the end, unless another process has taken its place."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._mine = self._identity()

    def _identity(self) -> tuple[int, int]:
        found = os.lstat(self._path)
        return found.st_dev, found.st_ino

    def remove(self) -> None:
        """Removes it. What keeps us from that is one log line: everything else has ended well."""
        try:
            if self._identity() == self._mine:
                os.unlink(self._path)
        except FileNotFoundError:
            pass
        except OSError as exc:
            log.warning("cannot remove the socket %s: %s", self._path, exc.strerror)
