"""The `experimental_cloud_object_store` kind: blobs as objects of a bucket that many servers share.

`store` is the Store, `options` what a config says of it. What every object store needs is written once and knows no
provider: `upload`, `download`, `existence`, `retry`, `threads`, `keys`. A provider is an entry of `providers.PROVIDERS`
and a `client.ObjectClient`, the dozen blocking requests that the rest is made of; `s3` is the one for whatever speaks
S3. Its library (boto3) is imported when the store starts.
"""

from nl_cloud_object_store.options import CloudObjectStoreOptions
from nl_cloud_object_store.store import CloudObjectStore

__all__ = ["CloudObjectStore", "CloudObjectStoreOptions"]
