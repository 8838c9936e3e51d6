"""Flow control, the receiving half: how much the peer may still send, and when to tell it that it may send more.

Pure arithmetic. Credit returns when the application has *consumed* bytes, not when they arrive: back-pressure is the
window. The sending half is two integers (h2/protocol.py), since all it needs is a minimum.
"""

from __future__ import annotations


class ReceiveWindow:
    """One window, of a stream or of a connection.

    Invariant: `left` (what the peer may send) + bytes held by us + `owed` (consumed, not yet announced) == `size`.
    """

    __slots__ = ("announce", "left", "owed", "size")

    def __init__(self, size: int, *, parts: int = 4) -> None:
        """Credit is announced when a `parts`-th of the window has come together.

        A quarter for a window that many share: what some hold and what is not announced yet must not be all of it.
        Half does for a stream's own, whose reader waits for nobody: half as many frames, each a packet to send.
        """
        self.size = size
        self.announce = size // parts
        self.left = size
        self.owed = 0

    def give_back(self, count: int) -> int:
        """Bytes have been consumed; the increment to announce now, or 0 while too little has come together."""
        owed = self.owed + count
        if owed < self.announce:
            self.owed = owed
            return 0
        self.owed = 0
        self.left += owed
        return owed
