"""File descriptors: how many this process may have, and how many of them connections get."""

from __future__ import annotations

import resource

from nl.rpc.slots import Slots

FEW_FILES = 1024
"""What the stores, uploads and actions of a server need at least, where there is as much: a fair half otherwise."""


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

    A quarter of all descriptors is kept for files, and at least FEW_FILES, but never more than half.
    """
    return max(1, limit - min(limit // 2, max(limit // 4, FEW_FILES)))


def connection_slots(open_files: int) -> Slots:
    """The process's connections, for its listeners to share."""
    remedy = f"of {open_files} open files the others are kept for stores; raise global.max_open_files and ulimit -n"
    return Slots(connections_within(open_files), remedy=remedy)
