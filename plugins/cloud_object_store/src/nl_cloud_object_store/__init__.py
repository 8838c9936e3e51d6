"""The kinds `experimental_cloud_object_store`, blobs as objects of a bucket that many servers share, and
`ontap_s3_existence_cache`, which remembers besides what is in one on ONTAP.

`store` is the Store, `options` what a config says of it. What every object store needs is written once and knows no
provider: `upload`, `download`, `existence`, `threads`, `parts`, `sweep`. A provider is an entry of
`providers.PROVIDERS` and a `client.ObjectClient`, the dozen blocking requests that the rest is made of; `s3` is the one
for whatever speaks S3, `azure` and `gcs` are for Azure and Google, over plain `http`. Their libraries are imported when
the store starts.
`ontap_cache` is the second kind, `digest_set` and `index_file` what it remembers.
"""

from nl_cloud_object_store.ontap_cache import OntapExistenceCacheOptions, OntapExistenceCacheStore
from nl_cloud_object_store.options import CloudObjectStoreOptions
from nl_cloud_object_store.store import CloudObjectStore

__all__ = [
    "CloudObjectStore", "CloudObjectStoreOptions", "OntapExistenceCacheOptions", "OntapExistenceCacheStore",
]
