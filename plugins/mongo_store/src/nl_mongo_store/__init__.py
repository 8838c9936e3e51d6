"""The `experimental_mongo` kind: blobs as documents of a MongoDB collection, which many servers share.

`store` is the Store, `options` what a config says of it. Below it, each knowing only those after it: `upload` and
`download` (blobs of several documents), `connection` (client, threads, trying again), `sweep` (what killed uploads and
replaced values have left, what has expired), `documents` (the requests, which block), `errors`, `keys`. The driver is
PyMongo's synchronous one in threads of the store's own: its asynchronous one is written for asyncio.
"""

from nl_mongo_store.options import MongoStoreOptions
from nl_mongo_store.store import MongoStore

__all__ = ["MongoStore", "MongoStoreOptions"]
