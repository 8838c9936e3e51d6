"""File descriptors: how many this process may have, and how many of them connections get."""

from __future__ import annotations

import resource

from nl.rpc.slots import Slots

OWN_FILES = 40
"""What a server holds before it has a client: 27 with two stores, 33 with a worker. Half of all, if there are fewer."""
FEW_FILES = 1024
"""What the stores, uploads and actions of a server need at least, where there is as much: a fair half otherwise."""


def open_files_allowed() -> int:
    """The soft limit, as whoever has started this process has set it."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def allow_open_files(wanted: int) -> int:
    """Raises the soft limit (RLIMIT_NOFILE) as far as the hard one allows; what it is then.

    Each connection, each open blob, each upload and each running action takes a descriptor.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    target = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft < target:
        resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))
        soft = target
    return soft


def connections_within(limit: int) -> int:
    """How many connections there may be, so that files can be opened for those who are connected.

    A quarter of what is not the server's own is kept for files, and at least FEW_FILES, but never more than half.
    """
    left = limit - _own(limit)
    return max(1, left - min(left // 2, max(left // 4, FEW_FILES)))


def transfers_within(limit: int) -> int:
    """How many files all Reads together may hold, and as many all uploads: a third each of what connections leave.

    The last third is for what opens its files only for a moment (whole blobs, batches), and for actions.
    """
    return max(1, (limit - _own(limit) - connections_within(limit)) // 3)


def _own(limit: int) -> int:
    return min(limit // 2, OWN_FILES)


def connection_slots(open_files: int) -> Slots:
    """The process's connections, for its listeners to share."""
    remedy = f"of {open_files} open files the others are kept for stores; raise global.max_open_files and ulimit -n"
    return Slots(connections_within(open_files), remedy=remedy)
