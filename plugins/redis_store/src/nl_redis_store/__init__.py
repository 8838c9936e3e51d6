"""The `redis_store` kind: blobs as values of Redis or Valkey, which many servers share.

`store` is the Store, `options` what a config says of it. Below it, each knowing only those after it: `upload` and
`download` (values larger than a request), `client` (where a command goes, and trying again), `cluster` and `single`
(which servers there are), `node` (the connections to one of them), `connection` (RESP over a trio stream). hiredis
parses replies; the rest of a client is here, because what Python has is written for asyncio.
"""

from nl_redis_store.options import RedisStoreOptions
from nl_redis_store.store import RedisStore

__all__ = ["RedisStore", "RedisStoreOptions"]
