"""What a config says of the kind: NativeLink's option names, and a few of our own."""

from __future__ import annotations

from typing import Annotated

from nl.plugin import Alias, ConfigError, Count, Duration, Flag, Options, RetryOptions, SecretText, Size, Text
from nl_cloud_object_store.providers import OF_SOME, PROVIDERS, ProviderName

MIB = 1024 * 1024
MAX_THREADS = 64

class CloudObjectStoreOptions(Options):
    """Blobs as objects of a bucket: Amazon S3, Google, Azure, Cloudflare R2, Oracle, ONTAP, or what speaks S3."""

    EXAMPLE = """{
  experimental_cloud_object_store: {
    provider: "aws",
    region: "us-east-1",
    bucket: "my-build-cache",
    key_prefix: "cas/",
  },
}"""

    provider: ProviderName
    """Whose object store it is."""
    bucket: Text = ""
    """The bucket's name (all but `azure`). It must exist."""
    container: Text = ""
    """The container's name (`azure`). It must exist."""
    account_name: Text = ""
    """The storage account (`azure`)."""
    sas_url: SecretText = ""
    """The container's URL with a shared access signature, in place of other credentials (`azure`)."""
    key_prefix: Text = ""
    """What all object keys begin with: `cas/`. Stores of different kinds of things need different ones."""
    region: Text = ""
    """Where the bucket is (`aws`, `oci`). For `aws` the default is that of the environment or of ~/.aws."""
    endpoint: Text = ""
    """The server's URL. Needed for `ontap`; for `aws` any server that speaks S3; for `azure` and `gcs` the
    address where it is not the provider's own."""
    account_id: Text = ""
    """The account (`r2`)."""
    namespace: Text = ""
    """The tenancy's namespace (`oci`)."""
    vserver_name: Text = ""
    """The storage VM (`ontap`)."""
    access_key_id: SecretText = ""
    """By default credentials are found as boto3 does: environment, ~/.aws, the machine's or the pod's role.
    Those of `azure` are found as Azure's own tools do: AZURE_STORAGE_KEY and the like, else azure-identity.
    Those of `gcs` by google-auth: GOOGLE_APPLICATION_CREDENTIALS, gcloud's, the machine's."""
    secret_access_key: SecretText = ""
    """Belongs to `access_key_id`."""
    authentication_required: Flag = False
    """End the start if no credentials are found, in place of requests that are anonymous (`gcs`)."""
    resumable_chunk_size: Size | None = None
    """The size of parts (`gcs`), if it is larger than `max_retry_buffer_per_request`. They go one after the other."""
    root_certificates: Text = ""
    """A PEM file with the authorities to trust, in place of the usual ones."""
    insecure_allow_http: Flag = False
    """Accept an endpoint without TLS. For tests, and for servers on the same machine."""
    disable_http2: Flag = False
    """Has no effect: HTTP/1.1 is spoken in any case."""
    retry: RetryOptions = RetryOptions(max_retries=6, delay=0.1, jitter=0.5)
    """For requests that failed. The default waits 13 seconds in all."""
    consider_expired_after_s: Duration = 0
    """Objects written so long ago are reported as missing, so that clients upload them again, before a lifecycle rule
    of the bucket deletes them; 0 means never."""
    max_retry_buffer_per_request: Size | None = 5 * MIB
    """The largest upload that is one request; larger ones go in parts of this size. At least 5 MiB."""
    multipart_max_concurrent_uploads: Count | None = 10
    """Parts of one upload that are in memory at the same time."""
    max_upload_memory: Size = 256 * MIB
    """What all uploads together may keep in memory; more of them wait."""
    max_threads: Count = 16
    """Requests at the same time, each in a thread; at most 64. More than 32 are slower than fewer."""
    remember_s: Duration = 60
    """For so long an object that was there is taken to be there still; 0 asks each time."""
    remember_count: Count = 100_000
    """How many objects are remembered so, at about 300 bytes each."""
    connect_timeout_s: Annotated[Duration, Alias("connection_timeout_s")] = 5
    """For one attempt to connect."""
    read_timeout_s: Duration = 60
    """How long the server may be silent in a request."""

    def check(self) -> None:
        """Refuses options that the provider does not have, and numbers that cannot work."""
        self._check_provider()
        self._check_address("endpoint", self.endpoint, shown=f'"{self.endpoint}"')
        self._check_address("sas_url", self.sas_url, shown="the address")
        if bool(self.access_key_id) != bool(self.secret_access_key):
            missing = "secret_access_key" if self.access_key_id else "access_key_id"
            raise ConfigError(missing, "missing; expected both access_key_id and secret_access_key, or neither")
        if not 1 <= self.max_threads <= MAX_THREADS:
            raise ConfigError("max_threads", f"{self.max_threads} is out of range; expected 1 to {MAX_THREADS}")
        if self.multipart_max_concurrent_uploads == 0:
            raise ConfigError("multipart_max_concurrent_uploads", "0 would send nothing; expected 1 or more")
        if self.max_upload_memory < self.part_size:
            problem = f"{self.max_upload_memory} is less than one part; expected at least {self.part_size}"
            raise ConfigError("max_upload_memory", problem)
        for name in ("connect_timeout_s", "read_timeout_s"):
            if getattr(self, name) <= 0:
                raise ConfigError(name, "0 would end every request; expected more than 0")

    def _check_provider(self) -> None:
        provider = PROVIDERS[self.provider]
        for name in sorted(provider.needs):
            if not getattr(self, name):
                raise ConfigError(name, f"missing; the provider {self.provider} needs it")
        for name in sorted(OF_SOME - provider.needs - provider.takes):
            if getattr(self, name):
                expected = ", ".join(sorted(provider.needs | provider.takes))
                raise ConfigError(name, f"the provider {self.provider} has no such option; expected {expected}")

    def _check_address(self, option: str, address: str, *, shown: str) -> None:
        if not address:
            return
        if not address.startswith(("http://", "https://")):
            raise ConfigError(option, f"{shown} is no URL; expected https://HOST[:PORT]")
        if address.startswith("http://") and not self.insecure_allow_http:
            problem = f"{shown} is not encrypted; expected https://, or insecure_allow_http: true"
            raise ConfigError(option, problem)

    @property
    def part_size(self) -> int:
        """Bytes that go in one request."""
        return max(5 * MIB, self.max_retry_buffer_per_request or 0, self.resumable_chunk_size or 0)

    @property
    def parts_at_once(self) -> int:
        """Parts of one upload in memory."""
        return self.multipart_max_concurrent_uploads or 10
