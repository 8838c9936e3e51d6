"""The `fast_slow` kind: a small fast store in front of a large slow one.

`store` is the kind itself, `fetches` what moves blobs from slow to fast, `files` how inputs of actions become files.
"""

from nl.stores.fast_slow.options import FastSlowOptions
from nl.stores.fast_slow.store import FastSlowStore

__all__ = ["FastSlowOptions", "FastSlowStore"]
