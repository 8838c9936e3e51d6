"""How large messages and batches are, for all services. What clients meet is decided here and nowhere else.

Requests: a listener's `max_decoding_message_size` (4 MiB) is for methods that need no more. The ones here that do say
so themselves, and raising the option raises their limit, too, once it is above it. Replies: a client refuses messages
of more than 4 MiB unless it was told otherwise (REAPI A.7 rule 20), so whatever can be cut into pieces is.

Not here: how large an ActionResult may be (`nl.cas.action_results`, for the worker and the stores as well), and what a
store's `get` hands out whole (`nl.storage.contract.MAX_WHOLE`).
"""

from __future__ import annotations

from typing import Final

from nl.cas.action_results import MAX_ACTION_RESULT_BYTES

_MIB: Final = 1024 * 1024
MESSAGE_BYTES: Final = 4 * _MIB
"""The largest message that a gRPC peer takes by default, on either side."""
ENVELOPE_BYTES: Final = 64 * 1024
"""What is left free for everything in a message beside its payload."""
REPLY_BYTES: Final = MESSAGE_BYTES - ENVELOPE_BYTES
"""The most payload in one reply."""
READ_BYTES: Final = 256 * 1024
"""Most data in one ReadResponse: small against what clients accept, large against the cost of a message."""

BATCH_BYTES: Final = 2 * _MIB
"""What is announced as the total of a batch: half of a message. The other half names the blobs, which takes up to 84
bytes each, so that a whole batch works both ways however small its blobs are: down to 87 bytes on average."""
BATCH_UPDATE_BYTES: Final = REPLY_BYTES
"""What is taken as the total of an upload: clients that do not ask what is announced fill a message of 4 MiB."""
UNPACKED_BATCH_BYTES: Final = 8 * BATCH_UPDATE_BYTES
"""What compressed blobs of an upload may unpack to, together: a message of 4 MiB could hold gigabytes."""
ENTRY_BYTES: Final = 84
"""Bytes that a batch's message has for a blob beside its own, at the most: its digest, tags, lengths, a status code."""
MAX_ENTRIES: Final = 40_000
"""Most blobs in a batch: with their digests alone, a reply about more would not fit into a message."""
BATCH_REQUEST_BYTES: Final = BATCH_UPDATE_BYTES + MAX_ENTRIES * ENTRY_BYTES + ENVELOPE_BYTES
"""The largest BatchUpdateBlobs request: any batch within the limits fits, with as many blobs as there may be."""

FIND_MISSING_REQUEST_BYTES: Final = 16 * _MIB
"""Some 230,000 digests: clients that ask for a whole tree at once do not split it."""
ACTION_RESULT_MESSAGE_BYTES: Final = MAX_ACTION_RESULT_BYTES + ENVELOPE_BYTES
"""A message with an ActionResult and little else."""
REORDERED_WRITE_BYTES: Final = MESSAGE_BYTES
"""Largest WriteRequest taken in whole because its fields come in another order."""
INLINE_BYTES: Final = _MIB
"""How much content one GetActionResult gets inlined, together."""
