"""The providers: which options each has, and how its client is made. To add one, write an `ObjectClient` and an entry.

Clients are made in a thread, when the store starts; the provider's library is imported then.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from nl_cloud_object_store.client import ObjectClient

if TYPE_CHECKING:
    from nl_cloud_object_store.http import Http
    from nl_cloud_object_store.options import CloudObjectStoreOptions

ProviderName = Literal["aws", "r2", "oci", "ontap", "azure", "gcs"]
"""What `provider` may say: the keys of PROVIDERS."""


@dataclass(frozen=True, slots=True)
class Provider:
    """One provider."""

    connect: Callable[[CloudObjectStoreOptions], ObjectClient]
    """Makes the client: blocking, without a request. Raises RefusedError for what cannot work."""
    needs: frozenset[str]
    """Options that must be given, of those that not all providers have."""
    takes: frozenset[str]
    """Options that may be given, `needs` apart."""


def _s3(options: CloudObjectStoreOptions, *, region: str, endpoint: str, path_style: bool) -> ObjectClient:
    from nl_cloud_object_store.s3 import S3Client, S3Settings

    return S3Client(S3Settings(
        bucket=options.bucket,
        region=region or None,
        endpoint=options.endpoint or endpoint or None,
        path_style=path_style,
        access_key_id=options.access_key_id or None,
        secret_access_key=options.secret_access_key or None,
        ca_file=options.root_certificates or None,
        insecure_allow_http=options.insecure_allow_http,
        connections=options.max_threads + 16,
        connect_timeout=options.connect_timeout_s,
        read_timeout=options.read_timeout_s,
    ))


def _aws(options: CloudObjectStoreOptions) -> ObjectClient:
    """Amazon's, or with `endpoint` any server that speaks S3: those seldom have a host name for each bucket."""
    return _s3(options, region=options.region, endpoint="", path_style=bool(options.endpoint))


def _r2(options: CloudObjectStoreOptions) -> ObjectClient:
    """Cloudflare R2, whose only region is `auto`."""
    host = f"{options.account_id}.r2.cloudflarestorage.com"
    return _s3(options, region="auto", endpoint=f"https://{host}", path_style=True)


def _oci(options: CloudObjectStoreOptions) -> ObjectClient:
    """Oracle's S3-compatible interface."""
    host = f"{options.namespace}.compat.objectstorage.{options.region}.oci.customer-oci.com"
    return _s3(options, region=options.region, endpoint=f"https://{host}", path_style=True)


def _ontap(options: CloudObjectStoreOptions) -> ObjectClient:
    """NetApp ONTAP, which takes the name of the storage VM for the region in signatures."""
    return _s3(options, region=options.vserver_name, endpoint="", path_style=True)


def _azure(options: CloudObjectStoreOptions) -> ObjectClient:
    """Azure's block blobs, or a server that speaks as they do."""
    from nl_cloud_object_store.azure import AzureClient, AzureSettings

    return AzureClient(AzureSettings(
        account=options.account_name, container=options.container, endpoint=options.endpoint, sas_url=options.sas_url,
    ), _http(options))


def _gcs(options: CloudObjectStoreOptions) -> ObjectClient:
    """Google Cloud Storage, or a server that speaks its JSON interface."""
    from nl_cloud_object_store.gcs import GcsClient, GcsSettings
    from nl_cloud_object_store.gcs_auth import find_credentials

    credentials = find_credentials(required=options.authentication_required)
    return GcsClient(GcsSettings(bucket=options.bucket, endpoint=options.endpoint), _http(options), credentials)


def _http(options: CloudObjectStoreOptions) -> Http:
    from nl_cloud_object_store.http import Http

    return Http(
        connections=options.max_threads + 16, connect_timeout=options.connect_timeout_s,
        read_timeout=options.read_timeout_s, ca_file=options.root_certificates or None,
    )


_KEYS = frozenset({"access_key_id", "secret_access_key", "root_certificates"})

PROVIDERS: dict[ProviderName, Provider] = {
    "aws": Provider(_aws, frozenset({"bucket"}), _KEYS | {"region", "endpoint"}),
    "r2": Provider(_r2, frozenset({"bucket", "account_id"}), _KEYS | {"endpoint"}),
    "oci": Provider(_oci, frozenset({"bucket", "namespace", "region"}), _KEYS | {"endpoint"}),
    "ontap": Provider(_ontap, frozenset({"bucket", "endpoint", "vserver_name"}), _KEYS),
    "azure": Provider(
        _azure, frozenset({"account_name", "container"}), frozenset({"endpoint", "sas_url", "root_certificates"})
    ),
    "gcs": Provider(
        _gcs, frozenset({"bucket"}),
        frozenset({"endpoint", "resumable_chunk_size", "authentication_required", "root_certificates"}),
    ),
}
"""Each provider by the name that a config has for it."""
OF_SOME = frozenset().union(*(each.needs | each.takes for each in PROVIDERS.values()))
"""Options that not all providers have."""
