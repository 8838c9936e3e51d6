"""Python's cycle collector, set for a server. It needs no config, so that a bench can do the same."""

from __future__ import annotations

import gc

COLLECT_AFTER = 100_000
"""Containers made and not yet freed before the collector looks at the young ones: some 10 MB at the worst."""


def calm_collector() -> None:
    """Makes the cycle collector rare: nearly all garbage here dies by its reference count.

    A request of ten thousand digests makes twenty thousand tuples that are gone with it; at Python's own threshold of
    700 it would be interrupted by thirty collections, a third of its time (measured).
    """
    gc.collect()
    gc.freeze()  # what start-up has made is never looked at again
    gc.set_threshold(COLLECT_AFTER, 20, 50)
