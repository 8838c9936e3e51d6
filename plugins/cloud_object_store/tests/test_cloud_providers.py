"""Each provider reaches the server that it should, signs as it should, and works."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
from answering_server import answering
from cloud_support import KEY, SECRET, S3Server, options_for
from faulty_proxy import FaultyProxy, faulty_proxy

from nl.plugin import RefusedError, digest_of
from nl.testing import BareContext, started
from nl_cloud_object_store import CloudObjectStore, CloudObjectStoreOptions
from nl_cloud_object_store.azure import AzureClient
from nl_cloud_object_store.client import ObjectClient, ObjectMissingError
from nl_cloud_object_store.gcs import GcsClient
from nl_cloud_object_store.providers import PROVIDERS
from nl_cloud_object_store.s3 import S3Client

OF_PROVIDER = {
    "aws": {"region": "eu-west-1"},
    "r2": {"region": "", "account_id": "an-account"},
    "oci": {"region": "eu-frankfurt-1", "namespace": "a-namespace"},
    "ontap": {"region": "", "vserver_name": "a-vserver"},
}
SIGNED_FOR = {"aws": "eu-west-1", "r2": "auto", "oci": "eu-frankfurt-1", "ontap": "a-vserver"}


@pytest.fixture
def proxy(moto: S3Server) -> Iterator[FaultyProxy]:
    with faulty_proxy(moto.port) as proxy:
        yield proxy


@pytest.mark.parametrize("provider", OF_PROVIDER)
async def test_a_provider_works_and_signs_for_its_region(
    provider: str, proxy: FaultyProxy, moto: S3Server
) -> None:
    options = options_for(moto.bucket(), proxy.url, provider=provider, **OF_PROVIDER[provider])
    async with started(CloudObjectStore(options, BareContext())) as store:
        digest = digest_of(b"data")
        await store.put(digest, b"data")
        assert await store.get(digest) == b"data"
    for request in proxy.requests:
        scope = re.search(r"Credential=[^/]+/\d+/([^/]+)/s3/", request.headers["Authorization"])
        assert scope, request
        assert scope[1] == SIGNED_FOR[provider]
        assert request.path.startswith(f"/{options.bucket}"), "path style"


@pytest.mark.parametrize(("options", "url"), [
    ({"provider": "aws", "region": "eu-west-1"}, "https://s3.eu-west-1.amazonaws.com"),
    ({"provider": "r2", "account_id": "abc"}, "https://abc.r2.cloudflarestorage.com"),
    ({"provider": "oci", "namespace": "ns", "region": "eu-frankfurt-1"},
     "https://ns.compat.objectstorage.eu-frankfurt-1.oci.customer-oci.com"),
    ({"provider": "ontap", "endpoint": "https://ontap.example:444", "vserver_name": "v"}, "https://ontap.example:444"),
])
def test_a_provider_knows_where_its_server_is(options: dict[str, str], url: str) -> None:
    made = CloudObjectStoreOptions(bucket="a-bucket", access_key_id=KEY, secret_access_key=SECRET, **options)
    made.check()
    client = PROVIDERS[made.provider].connect(made)
    assert client._client.meta.endpoint_url == url


def test_an_endpoint_of_the_environment_must_be_encrypted_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9000")
    made = CloudObjectStoreOptions(provider="aws", region="us-east-1", bucket="a-bucket")
    with pytest.raises(RefusedError, match="9000 is not encrypted") as caught:
        PROVIDERS["aws"].connect(made)
    assert caught.value.option == "insecure_allow_http"
    PROVIDERS["aws"].connect(CloudObjectStoreOptions(
        provider="aws", region="us-east-1", bucket="a-bucket", insecure_allow_http=True
    )).close()


def test_a_missing_region_is_told_as_such(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    client = PROVIDERS["aws"].connect(CloudObjectStoreOptions(provider="aws", bucket="a-bucket"))
    assert client._client.meta.endpoint_url.startswith("https://s3")


GIB = 1024**3


@pytest.mark.parametrize(("client", "part", "parts", "granule", "in_order"), [
    (S3Client, 5 * GIB, 10_000, 1, False), (AzureClient, 4000 * 1024**2, 50_000, 1, False),
    (GcsClient, 5 * GIB, 100_000, 256 * 1024, True),
])
def test_the_bounds_of_parts_are_those_that_the_providers_tell(
    client: type[ObjectClient], part: int, parts: int, granule: int, in_order: bool
) -> None:
    told = [client.MAX_PART, client.MAX_PARTS, client.GRANULE, client.IN_ORDER]
    assert told == [part, parts, granule, in_order]


@pytest.mark.parametrize("provider", ["aws", "azure", "gcs"])
def test_times_and_connections_are_those_of_the_config(provider: str) -> None:
    place = {"account_name": "a", "container": "c"} if provider == "azure" else {"bucket": "b"}
    keys = {"access_key_id": KEY, "secret_access_key": SECRET, "region": "r"} if provider == "aws" else {}
    client = PROVIDERS[provider].connect(CloudObjectStoreOptions(
        provider=provider, connect_timeout_s=7, read_timeout_s=11, max_threads=5, **place, **keys
    ))
    if provider == "aws":
        config = client._client.meta.config
        assert (config.connect_timeout, config.read_timeout, config.max_pool_connections) == (7, 11, 21)
    else:
        told = client._http._pool.connection_pool_kw
        assert (told["timeout"].connect_timeout, told["timeout"].read_timeout, told["maxsize"]) == (7, 11, 21)
    client.close()


@pytest.mark.parametrize("provider", ["aws", "azure", "gcs"])
def test_the_authorities_to_trust_are_those_of_the_config(provider: str, tmp_path: Path) -> None:
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "stranger.pem"))
    place = {"account_name": "a", "container": "c"} if provider == "azure" else {"bucket": "b"}
    keys = {"access_key_id": KEY, "secret_access_key": SECRET, "region": "r"} if provider == "aws" else {}
    with answering(context) as server:
        for file, trusted in (("ca.pem", True), ("stranger.pem", False), ("", False)):
            client = PROVIDERS[provider].connect(CloudObjectStoreOptions(
                provider=provider, endpoint=server.url, root_certificates=file and str(tmp_path / file), **place, **keys
            ))
            server.answers = [(404, {}, b"")]
            kind, said = (ObjectMissingError, "k") if trusted else (RefusedError, "certificate is not trusted")
            with pytest.raises(kind, match=said):
                client.head("k")
            client.close()


def test_the_readme_names_every_provider() -> None:
    text = (Path(__file__).parents[1] / "README.md").read_text()
    for provider in PROVIDERS:
        assert f"| `{provider}` |" in text
