"""What has to happen at the server in one step, as Lua scripts. All keys of one script are in one slot.

They may be repeated. Payload does not go through them: the server would copy it twice.
"""

from __future__ import annotations

import hashlib

from nl.plugin import Buffer
from nl_redis_store.client import Client, Op
from nl_redis_store.connection import Reply
from nl_redis_store.errors import UnknownScriptError


class Script:
    """Lua, and the name that a server knows it by."""

    __slots__ = ("sha", "source")

    def __init__(self, source: str) -> None:
        self.source = source.encode()
        self.sha = hashlib.sha1(self.source, usedforsecurity=False).hexdigest().encode()

    async def run(self, client: Client, keys: tuple[bytes, ...], *arguments: Buffer) -> Reply:
        """What it returns. Raises BackendError."""
        rest = (b"%d" % len(keys), *keys, *arguments)
        sends = sum(map(len, arguments))
        try:
            (reply,) = await client.one(Op(keys[0], ((b"EVALSHA", self.sha, *rest),), sends), changes=True)
        except UnknownScriptError:
            (reply,) = await client.one(Op(keys[0], ((b"EVAL", self.source, *rest),), sends), changes=True)
        return reply


FINISH = Script("""
if redis.call('STRLEN', KEYS[1]) == tonumber(ARGV[1]) and redis.call('GET', KEYS[2]) == ARGV[1] then
  redis.call('RENAME', KEYS[1], KEYS[3])
  redis.call('SET', KEYS[2], 'done', 'EX', 60)
  if tonumber(ARGV[2]) > 0 then
    redis.call('EXPIRE', KEYS[3], ARGV[2])
  else
    redis.call('PERSIST', KEYS[3])
  end
  return 1
end
return redis.call('GET', KEYS[2]) == 'done' and 1 or 0
""")
"""KEYS: the unfinished value, how much of it has been written, its key. ARGV: the size it must have, seconds that it
lives (0: for ever). Returns 1 if it is visible now, or was made so by the same call before, whose answer was lost; 0 if
something of it was lost."""

COPY = Script("""
if redis.call('COPY', KEYS[1], KEYS[2], 'REPLACE') == 0 then
  return -1
end
redis.call('EXPIRE', KEYS[2], ARGV[1])
return redis.call('STRLEN', KEYS[2])
""")
"""KEYS: a value, where a copy of it is to be. ARGV: seconds that the copy lives. Returns its size, or -1."""
