"""What each provider's client asks of its server, and what it makes of each status and each code, over a server that
says what it is told. (What no object store would say: `test_cloud_answers`.)
"""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator

import pytest
from answering_server import Answering, answering
from botocore import exceptions as boto
from cloud_support import KEY, SECRET
from urllib3 import exceptions as urllib3

from nl.plugin import BackendError, FullError, RefusedError, TransientError, ValueTooLargeError
from nl_cloud_object_store.azure import AzureClient, AzureSettings
from nl_cloud_object_store.client import (
    ListedObject,
    ObjectBody,
    ObjectChangedError,
    ObjectClient,
    ObjectInfo,
    ObjectMissingError,
    OpenUpload,
    UploadGoneError,
    UploadsPage,
)
from nl_cloud_object_store.gcs import GcsClient, GcsSettings
from nl_cloud_object_store.gcs_auth import Credentials
from nl_cloud_object_store.http import Http
from nl_cloud_object_store.s3 import S3Client, S3Settings
from nl_cloud_object_store.s3_errors import translate

BUSY, AGAIN, LATE = "ResourceExhausted", "Unavailable", "DeadlineExceeded"
DATE, AT = "Wed, 21 Oct 2015 07:28:00 GMT", 1445412480.0


@pytest.fixture
def server() -> Iterator[Answering]:
    with answering() as server:
        yield server


def http() -> Http:
    return Http(connections=1, connect_timeout=30, read_timeout=30, ca_file=None)


@pytest.fixture
def s3(server: Answering) -> Iterator[ObjectClient]:
    client = S3Client(S3Settings(
        bucket="b", region="us-east-1", endpoint=server.url, path_style=True, access_key_id=KEY,
        secret_access_key=SECRET, insecure_allow_http=True,
    ))
    yield client
    client.close()


@pytest.fixture
def azure(server: Answering) -> Iterator[ObjectClient]:
    client = AzureClient(AzureSettings(account="acct", container="b", endpoint=f"{server.url}/acct"), http())
    yield client
    client.close()


@pytest.fixture
def gcs(server: Answering) -> Iterator[ObjectClient]:
    client = GcsClient(GcsSettings(bucket="b", endpoint=server.url), http(), Credentials(None))
    yield client
    client.close()


def failed(client: ObjectClient) -> BackendError:
    with pytest.raises(BackendError) as caught:
        client.get("k")
    assert "\n" not in str(caught.value)
    return caught.value


def check(error: BackendError, kind: type[BackendError], code: str, option: str) -> None:
    assert type(error) is kind, error
    if code:
        assert error.code == code, error
    assert getattr(error, "option", "") == option, error


# ------------------------------------------------------------------------------------------------------------ errors

S3_ERRORS = [
    (404, "NoSuchKey", ObjectMissingError, "NotFound", ""), (404, "NoSuchVersion", ObjectMissingError, "", ""),
    (404, "404", ObjectMissingError, "", ""), (404, "NotFound", ObjectMissingError, "", ""),
    (404, "NoSuchUpload", UploadGoneError, "NotFound", ""),
    (404, "NoSuchBucket", RefusedError, "PermissionDenied", "bucket"),
    (404, "NoSuchTenant", RefusedError, "", "bucket"), (400, "InvalidBucketName", RefusedError, "", "bucket"),
    (412, "PreconditionFailed", ObjectChangedError, "FailedPrecondition", ""), (412, "", ObjectChangedError, "", ""),
    (416, "InvalidRange", ObjectChangedError, "", ""), (416, "Whatever", ObjectChangedError, "", ""),
    (503, "SlowDown", TransientError, BUSY, ""), (400, "Throttling", TransientError, BUSY, ""),
    (400, "RequestLimitExceeded", TransientError, BUSY, ""), (503, "TooManyRequests", TransientError, BUSY, ""),
    (429, "Whatever", TransientError, BUSY, ""),
    (400, "EntityTooLarge", ValueTooLargeError, "OutOfRange", ""), (403, "QuotaExceeded", FullError, "OutOfRange", ""),
    (507, "Whatever", FullError, "", ""), (400, "XMinioStorageFull", FullError, "", ""),
    (400, "RequestTimeout", TransientError, AGAIN, ""), (400, "BadDigest", TransientError, AGAIN, ""),
    (409, "OperationAborted", TransientError, AGAIN, ""), (400, "IncompleteBody", TransientError, AGAIN, ""),
    (500, "Whatever", TransientError, AGAIN, ""), (503, "", TransientError, AGAIN, ""),
    (599, "x", TransientError, AGAIN, ""),
    (403, "InvalidAccessKeyId", RefusedError, "", ""), (400, "ExpiredToken", RefusedError, "", ""),
    (401, "", RefusedError, "", ""), (403, "AccessDenied", RefusedError, "PermissionDenied", ""),
    (301, "PermanentRedirect", RefusedError, "", "region"), (301, "", RefusedError, "", "region"),
    (307, "x", RefusedError, "", "region"), (400, "Whatever", RefusedError, "", ""), (499, "x", RefusedError, "", ""),
]


def answered(status: int, code: str, message: str = "why") -> boto.ClientError:
    told = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return boto.ClientError(told, "PutObject")  # type: ignore[arg-type]


@pytest.mark.parametrize(("status", "code", "kind", "grpc", "option"), S3_ERRORS)
def test_what_an_error_of_s3_means(
    status: int, code: str, kind: type[BackendError], grpc: str, option: str
) -> None:
    error = translate(answered(status, code), bucket="b", key="k")
    check(error, kind, grpc, option)
    assert "b" in str(error)


def test_an_error_of_s3_is_one_short_line_that_says_what_to_do() -> None:
    def said(*error: object) -> str:
        return str(translate(answered(*error), bucket="b", key="k"))  # type: ignore[arg-type]

    assert said(404, "NoSuchKey") == "bucket b, k: NoSuchKey: why"
    assert said(500, "X", "two\n  lines ") == "bucket b, k: X: two lines"
    assert said(500, "X", "") == "bucket b, k: X: no reason given"
    assert said(500, "X", "y" * 1000) == f"bucket b, k: X: {'y' * 297}..."
    assert said(500, "X", "y" * 300) == f"bucket b, k: X: {'y' * 300}"
    assert said(404, "NoSuchBucket") == "the bucket b does not exist (NoSuchBucket)"
    assert said(403, "ExpiredToken") == "bucket b: the credentials are refused (ExpiredToken: why)"
    assert "needed: s3:ListBucket, s3:GetObject, s3:PutObject, s3:AbortMultipartUpload" in said(403, "AccessDenied")
    assert said(301, "X") == "the bucket b is in another region (X: why)"
    assert str(translate(answered(404, "X"), bucket="b")) == "bucket b: X: why"


@pytest.mark.parametrize(("error", "kind", "code", "option", "said"), [
    (boto.NoCredentialsError(), RefusedError, "", "", "no credentials: .*expected some in the environment"),
    (boto.PartialCredentialsError(provider="x", cred_var="y"), RefusedError, "", "", "no credentials"),
    (boto.ProfileNotFound(profile="x"), RefusedError, "", "", "no credentials"),
    (boto.ParamValidationError(report="a b"), RefusedError, "", "bucket", "'b' is refused as a bucket"),
    (boto.NoRegionError(), RefusedError, "", "region", "expected the bucket's region"),
    (boto.InvalidRegionError(region_name="x"), RefusedError, "", "region", "expected the bucket's region"),
    (boto.SSLError(endpoint_url="x", error="CERTIFICATE_VERIFY_FAILED"), RefusedError, "", "", "is not trusted"),
    (boto.SSLError(endpoint_url="x", error="EOF"), TransientError, AGAIN, "", "bucket b, k: "),
    (boto.ReadTimeoutError(endpoint_url="x"), TransientError, LATE, "", "bucket b, k: "),
    (boto.ConnectTimeoutError(endpoint_url="x"), TransientError, LATE, "", "bucket b, k: "),
    (boto.EndpointConnectionError(endpoint_url="x"), TransientError, AGAIN, "", "bucket b, k: "),
    (boto.IncompleteReadError(actual_bytes=1, expected_bytes=2), TransientError, AGAIN, "", "bucket b, k: "),
    (boto.CredentialRetrievalError(provider="x", error_msg="y"), TransientError, AGAIN, "", "bucket b, k: "),
    (urllib3.ProtocolError("x"), TransientError, AGAIN, "", "bucket b, k: x"),
    (ConnectionResetError(), TransientError, AGAIN, "", "bucket b, k: ConnectionResetError"),
    (boto.UnknownServiceError(service_name="x", known_service_names="y"), RefusedError, "", "", "UnknownServiceErr"),
], ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "")  # fmt: skip
def test_what_goes_wrong_below_the_answers_of_s3_means(
    error: Exception, kind: type[BackendError], code: str, option: str, said: str
) -> None:
    found = translate(error, bucket="b", key="k")
    check(found, kind, code, option)
    assert re.search(said, str(found)), found


AZURE_ERRORS = [
    (404, "BlobNotFound", ObjectMissingError, "", ""), (404, "", ObjectMissingError, "", ""),
    *((status, code, RefusedError, "", "container") for status, code in (
        (404, "ContainerNotFound"), (403, "AccountIsDisabled"), (400, "InvalidResourceName"), (404, "ResourceNotFound"),
    )),
    (400, "InvalidBlockList", UploadGoneError, "", ""), (400, "InvalidBlockId", UploadGoneError, "", ""),
    (412, "ConditionNotMet", ObjectChangedError, "", ""), (416, "InvalidRange", ObjectChangedError, "", ""),
    (503, "ServerBusy", TransientError, BUSY, ""), (429, "", TransientError, BUSY, ""),
    (413, "RequestBodyTooLarge", ValueTooLargeError, "", ""), (413, "", ValueTooLargeError, "", ""),
    (409, "BlockCountExceedsLimit", ValueTooLargeError, "", ""), (507, "", FullError, "", ""),
    (500, "InternalError", TransientError, AGAIN, ""), (503, "", TransientError, AGAIN, ""),
    (408, "", TransientError, AGAIN, ""), (409, "ContainerBeingDeleted", TransientError, AGAIN, ""),
    (400, "Md5Mismatch", TransientError, AGAIN, ""), (401, "", RefusedError, "", ""),
    (403, "AuthenticationFailed", RefusedError, "", ""), (400, "InvalidHeaderValue", RefusedError, "", ""),
    (409, "BlobImmutable", RefusedError, "", ""), (302, "", RefusedError, "", ""),
]
GCS_ERRORS = [
    (404, "notFound", ObjectMissingError, "", ""), (410, "gone", UploadGoneError, "", ""),
    (304, "", ObjectChangedError, "", ""), (412, "conditionNotMet", ObjectChangedError, "", ""),
    (416, "", ObjectChangedError, "", ""), (429, "", TransientError, BUSY, ""),
    (403, "rateLimitExceeded", TransientError, BUSY, ""), (403, "userRateLimitExceeded", TransientError, BUSY, ""),
    (413, "", ValueTooLargeError, "", ""), (403, "quotaExceeded", FullError, "", ""),
    (403, "storageQuotaExceeded", FullError, "", ""), (507, "", FullError, "", ""),
    (500, "backendError", TransientError, AGAIN, ""), (503, "", TransientError, AGAIN, ""),
    (408, "", TransientError, AGAIN, ""), (401, "", RefusedError, "", ""), (403, "forbidden", RefusedError, "", ""),
    (400, "invalid", RefusedError, "", ""), (302, "", RefusedError, "", ""),
]


def test_what_an_error_of_azure_means(azure: ObjectClient, server: Answering) -> None:
    for status, code, kind, grpc, option in AZURE_ERRORS:
        headers = {"x-ms-error-code": code} if code else {}
        server.will(status, headers, "\ufeff<Error><Code>x</Code><Message>why\nRequestId:secret</Message></Error>"
                    if status not in (304,) else "")
        error = failed(azure)
        check(error, kind, grpc, option)
        assert "container b" in str(error)
        assert "secret" not in str(error)
    server.will(500, {"x-ms-error-code": "X"}, "<Error><Message>why</Message></Error>")
    assert str(failed(azure)) == "container b, k: X: why"
    server.will(500, {}, "no xml")
    assert str(failed(azure)) == "container b, k: 500: no reason given"
    server.will(403, {"x-ms-error-code": "X"}, "<Error><Message>why</Message></Error>")
    assert str(failed(azure)) == "container b: the credentials are refused (X: why)"


def test_what_an_error_of_google_means(gcs: ObjectClient, server: Answering) -> None:
    for status, reason, kind, grpc, option in GCS_ERRORS:
        told = {"error": {"message": "two\nlines", "errors": [{"reason": reason}] if reason else []}}
        server.will(status, {}, json.dumps(told) if status != 304 else "")
        error = failed(gcs)
        check(error, kind, grpc, option)
        assert "bucket b" in str(error)
    for body, said in (('{"error": {"message": "why"}}', "why"), ("<html>", "<html>"), ("", "no reason given"),
                       ('{"error": {"errors": []}}', "no reason given"), ("y" * 300, "y" * 300),
                       (json.dumps({"error": {"message": "y" * 301}}), "y" * 297 + "..."),
                       ('{"error": 5}', '{"error": 5}')):
        server.will(500, {}, body)
        assert str(failed(gcs)) == f"bucket b, k: 500: {said}"
    server.will(403, {}, '{"error": {"message": "why"}}')
    assert "why (needed: storage.objects.get, list, create and delete)" in str(failed(gcs))
    server.will(401, {}, '{"error": {"message": "why"}}')
    assert str(failed(gcs)) == "bucket b: the credentials are refused: why"


# ---------------------------------------------------------------------------------------------------------- downloads

ALL = pytest.mark.parametrize("provider", ["s3", "azure", "gcs"])


@ALL
def test_a_part_of_an_object_is_asked_for_by_its_first_and_last_byte(
    provider: str, request: pytest.FixtureRequest, server: Answering
) -> None:
    client: ObjectClient = request.getfixturevalue(provider)
    tags = {"ETag": '"e"', "x-goog-generation": '"e"', "Last-Modified": DATE}
    server.will(206, {**tags, "Content-Range": "bytes 3-6/10"}, b"3456")
    body = client.get("a key/x", span=(3, 4), etag='"e"')
    assert body.info == ObjectInfo(10, '"e"', AT)
    assert (body.read(3), body.read(5)) == (b"345", b"6")
    body.close()
    asked = server.took()
    assert asked.headers["Range"] == "bytes=3-6"
    assert asked.headers["If-Match"] == '"e"' or asked.query["ifGenerationMatch"] == '"e"'
    assert asked.path.lower().endswith(("/a%20key/x", "/a%20key%2fx"))
    server.will(200, tags, b"0123456789")
    body = client.get("k")
    assert body.info == ObjectInfo(10, '"e"', AT)
    assert body.read(10) == b"0123456789"
    body.close()
    asked = server.took()
    assert "Range" not in asked.headers
    assert "If-Match" not in asked.headers
    assert "ifGenerationMatch" not in asked.query


@ALL
@pytest.mark.parametrize(("status", "headers", "kind"), [
    (206, {"Content-Range": "bytes 3-5/6"}, ObjectChangedError),
    (206, {"Content-Range": "bytes 2-5/9"}, ObjectChangedError),
    (206, {"Content-Range": "bytes 0-3/10"}, ObjectChangedError), (416, {}, ObjectChangedError),
    (412, {}, ObjectChangedError), (404, {}, ObjectMissingError), (500, {}, TransientError),
])
def test_what_is_not_the_part_that_was_asked_for_is_none(
    provider: str, status: int, headers: dict[str, str], kind: type[BackendError], request: pytest.FixtureRequest,
    server: Answering,
) -> None:
    client: ObjectClient = request.getfixturevalue(provider)
    server.will(status, {"ETag": '"e"', "x-goog-generation": "1", **headers}, b"3456" if status == 206 else b"")
    with pytest.raises(kind) as caught:
        client.get("k", span=(3, 4))
    assert type(caught.value) is kind


@pytest.mark.parametrize("provider", ["azure", "gcs"])
def test_a_whole_object_in_place_of_a_part_is_no_answer(
    provider: str, request: pytest.FixtureRequest, server: Answering
) -> None:
    client: ObjectClient = request.getfixturevalue(provider)
    server.will(200, {}, b"0123456789")
    with pytest.raises(TransientError, match=r"a range was asked for, and the answer \(200\) is none"):
        client.get("k", span=(3, 4))
    for status, headers in ((206, {}), (200, {"Content-Range": "bytes 3-6/10"})):
        server.will(status, headers, b"3456")
        with pytest.raises(TransientError, match="is none"):
            client.get("k", span=(3, 4))


def test_of_a_server_that_knows_no_ranges_the_beginning_is_skipped(s3: ObjectClient, server: Answering) -> None:
    for whole in (b"0123456789", b"0123456"):
        server.will(200, {"ETag": '"e"'}, whole)
        body = s3.get("k", span=(3, 4))
        assert body.info.size == len(whole)
        assert body.read(4) == b"3456"
        body.close()
    server.will(206, {"ETag": '"e"'}, b"3456")  # the header is missing
    body = s3.get("k", span=(3, 4))
    assert (body.info.size, body.read(4)) == (7, b"3456")
    body.close()
    for size in (6, 5):
        server.will(200, {"ETag": '"e"'}, bytes(size))
        with pytest.raises(ObjectChangedError, match=f"has {size} bytes; expected at least 7"):
            s3.get("k", span=(3, 4))


@pytest.mark.parametrize("provider", ["s3", "gcs"])
def test_an_object_that_was_replaced_is_noticed_also_where_a_server_knows_no_conditions(
    provider: str, request: pytest.FixtureRequest, server: Answering
) -> None:
    client: ObjectClient = request.getfixturevalue(provider)
    server.will(200, {"ETag": '"other"', "x-goog-generation": "2"}, b"data")
    with pytest.raises(ObjectChangedError, match="k has been replaced"):
        client.get("k", etag='"e"')


@ALL
def test_an_answer_that_ends_early_may_be_asked_for_again(
    provider: str, request: pytest.FixtureRequest, server: Answering
) -> None:
    client: ObjectClient = request.getfixturevalue(provider)
    server.will(200, {"Content-Length": "10"}, b"0123")
    body = client.get("k")
    assert body.info.size == 10
    with pytest.raises(TransientError):
        read_on(body)
    body.close()


def read_on(body: ObjectBody) -> None:
    for _ in range(4):
        body.read(6)


# ----------------------------------------------------------------------------------------------------- other requests


@ALL
@pytest.mark.parametrize("status", [500, 503, 429, 0])
def test_each_request_is_one_attempt(
    provider: str, status: int, request: pytest.FixtureRequest, server: Answering
) -> None:
    """How often and after which pauses there are others is not the client's business."""
    client: ObjectClient = request.getfixturevalue(provider)
    for ask in (lambda: client.head("k"), lambda: client.get("k"), lambda: client.put("k", b"data")):
        server.will(status)
        with pytest.raises(TransientError) as caught:
            ask()
        assert caught.value.code == (BUSY if status == 429 else AGAIN)
        server.took()


@ALL
def test_what_is_not_there_need_not_be_deleted(
    provider: str, request: pytest.FixtureRequest, server: Answering
) -> None:
    client: ObjectClient = request.getfixturevalue(provider)
    for status in ({"s3": 204, "azure": 202, "gcs": 204}[provider], 404):
        server.will(status)
        client.delete("k")
        assert server.took().method == "DELETE"
    server.will(403)
    with pytest.raises(RefusedError):
        client.delete("k")


def test_s3_lists_from_the_last_key_on_whatever_the_server_knows(s3: ObjectClient, server: Answering) -> None:
    def listing(*names: str, more: bool = False) -> str:
        found = "".join(
            f"<Contents><Key>{name}</Key><Size>{len(name)}</Size>"
            "<LastModified>2015-10-21T07:28:00Z</LastModified></Contents>" for name in names
        )
        return f"<ListBucketResult><IsTruncated>{str(more).lower()}</IsTruncated>{found}</ListBucketResult>"

    server.will(body=listing("p/a", "p/bb", more=True))
    page = s3.list_page("p/", "", 2)
    assert page == ([ListedObject("p/a", 3, AT), ListedObject("p/bb", 4, AT)], "p/bb")
    asked = server.took()
    assert (asked.query["prefix"], asked.query["max-keys"]) == ("p/", "2")
    assert "start-after" not in asked.query
    server.will(body=listing("p/a", "p/bb", "p/c", "p/d", "p/e"))  # knows neither where to begin nor how many
    page = s3.list_page("p/", "p/bb", 2)
    assert ([each.key for each in page.objects], page.cursor) == (["p/c", "p/d"], "p/d")
    assert server.took().query["start-after"] == "p/bb"
    server.will(body=listing("p/a", "p/bb", "p/c", "p/d"))
    assert s3.list_page("p/", "p/bb", 2).cursor == ""
    server.will(body=listing("p/a", "p/bb", more=True))  # nothing new: or it would never end
    assert s3.list_page("p/", "p/bb", 2) == ([], "")


def test_s3_makes_an_object_of_the_parts_in_their_order(s3: ObjectClient, server: Answering) -> None:
    server.will(body="<R><UploadId>u1</UploadId></R>")
    assert s3.create_upload("k") == "u1"
    server.took()
    server.will(200, {"ETag": '"t2"'})
    assert s3.upload_part("k", "u1", 2, b"data", 5) == '"t2"'
    asked = server.took()
    assert (asked.query, asked.body) == ({"uploadId": "u1", "partNumber": "2"}, b"data")
    server.will(body="<R></R>")
    s3.complete_upload("k", "u1", ["t1", "t2"])
    body = server.took().body
    parts = [sorted(re.findall(b"<(?:PartNumber|ETag)>(.*?)<", part)) for part in body.split(b"</Part>")]
    assert parts == [[b"1", b"t1"], [b"2", b"t2"], []]
    for code in ("NoSuchUpload", "NoSuchKey"):
        server.will(404, {}, f"<Error><Code>{code}</Code></Error>")
        s3.abort_upload("k", "u1")
    server.will(500, {}, "<Error><Code>InternalError</Code></Error>")
    with pytest.raises(TransientError):
        s3.abort_upload("k", "u1")


def test_s3_tells_open_uploads_page_by_page(s3: ObjectClient, server: Answering) -> None:
    upload = "<Upload><Key>p/k</Key><UploadId>u</UploadId><Initiated>2015-10-21T07:28:00Z</Initiated></Upload>"
    server.will(body=f"<R><IsTruncated>true</IsTruncated><NextKeyMarker>p/k</NextKeyMarker>"
                     f"<NextUploadIdMarker>u</NextUploadIdMarker>{upload}</R>")
    assert s3.open_uploads("p/") == UploadsPage([OpenUpload("p/k", "u", AT)], ("p/k", "u"))
    assert server.took().query["max-uploads"] == "1000"
    server.will(body=f"<R><IsTruncated>false</IsTruncated>{upload}</R>")
    assert s3.open_uploads("p/", ("p/k", "u")).after is None
    asked = server.took()
    assert (asked.query["prefix"], asked.query["key-marker"], asked.query["upload-id-marker"]) == ("p/", "p/k", "u")
    server.will(404, {}, "<Error><Code>NoSuchUpload</Code></Error>")
    assert s3.open_uploads("p/") == UploadsPage([], None)


LISTING = (
    "<EnumerationResults><Blobs><Blob><Name>p/k</Name><Properties><Content-Length>3</Content-Length><Last-Modified>"
    f"{DATE}</Last-Modified></Properties></Blob></Blobs><NextMarker>{{}}</NextMarker></EnumerationResults>"
)


def test_azures_requests_are_as_its_reference_has_them(azure: ObjectClient, server: Answering) -> None:
    server.will(201)
    azure.put("a key", b"data")
    asked = server.took()
    assert (asked.method, asked.path, asked.body) == ("PUT", "/acct/b/a%20key", b"data")
    assert asked.headers["x-ms-blob-type"] == "BlockBlob"
    assert asked.headers["Authorization"].startswith("SharedKey acct:")
    upload, blocks = azure.create_upload("k"), []
    for number in (1, 10_000):
        server.will(201)
        blocks.append(azure.upload_part("k", upload, number, b"part", 0))
        asked = server.took()
        assert (asked.query, asked.body) == ({"comp": "block", "blockid": blocks[-1]}, b"part")
    assert len(set(blocks)) == 2
    assert len(blocks[0]) == len(blocks[1]), "Azure wants them all of one length"
    assert azure.create_upload("k") != upload
    server.will(201)
    azure.complete_upload("k", upload, blocks)
    asked = server.took()
    assert asked.query == {"comp": "blocklist"}
    assert "".join(f"<Uncommitted>{block}</Uncommitted>" for block in blocks).encode() in asked.body
    for status in (200, 404):
        server.will(status, {"x-ms-error-code": "BlobNotFound"} if status == 404 else {})
        azure.probe("p/")
        asked = server.took()
        assert (asked.method, asked.path) == ("HEAD", "/acct/b/p/nl-probe")
    server.will(200, {"Content-Length": "7", "ETag": '"e"', "Last-Modified": DATE})
    assert azure.head("k") == ObjectInfo(7, '"e"', AT)
    server.took()
    for cursor, after in (("", "m"), ("m", "")):
        server.will(body=LISTING.format(after))
        assert azure.list_page("p/", cursor, 5) == ([ListedObject("p/k", 3, AT)], after)
        asked = server.took()
        expected = {"restype": "container", "comp": "list", "prefix": "p/", "maxresults": "5"}
        assert asked.query == ({**expected, "marker": cursor} if cursor else expected)
    server.will(body="a proxy's page")
    with pytest.raises(TransientError, match="cannot be understood"):
        azure.list_page("p/", "", 5)


def test_googles_requests_are_as_its_reference_has_them(gcs: ObjectClient, server: Answering) -> None:
    server.will(body='{"size": "4"}')
    gcs.put("a key", b"data")
    asked = server.took()
    assert (asked.method, asked.path, asked.body) == ("POST", "/upload/storage/v1/b/b/o", b"data")
    assert asked.query == {"uploadType": "media", "name": "a key"}
    server.will(body='{"size": "7", "generation": "12", "timeCreated": "2015-10-21T07:28:00Z"}')
    assert gcs.head("p/k") == ObjectInfo(7, "12", AT)
    asked = server.took()
    assert (asked.path, asked.query) == ("/storage/v1/b/b/o/p%2Fk", {"fields": "size,generation,timeCreated"})
    for cursor, after in (("", "t"), ("t", "")):
        item = {"name": "p/k", "size": "3", "timeCreated": "2015-10-21T07:28:00Z"}
        server.will(body=json.dumps({"items": [item], **({"nextPageToken": after} if after else {})}))
        assert gcs.list_page("p/", cursor, 5) == ([ListedObject("p/k", 3, AT)], after)
        asked = server.took()
        assert (asked.query["prefix"], asked.query["maxResults"]) == ("p/", "5")
        assert asked.query.get("pageToken", "") == cursor
    server.will(body="{}")
    gcs.probe("p/")
    assert server.took().query["maxResults"] == "1"
    server.will(404)
    with pytest.raises(RefusedError, match="the bucket b does not exist") as caught:
        gcs.probe("p/")
    assert caught.value.option == "bucket"
    server.asked.clear()
    server.will(200, {"Location": "https://elsewhere.example/x?upload_id=u1"})
    assert gcs.create_upload("k") == "u1"
    assert server.took().query == {"uploadType": "resumable", "name": "k"}
    server.will(200, {"Location": "https://elsewhere.example/x"})
    with pytest.raises(TransientError, match="the answer has no session"):
        gcs.create_upload("k")
    for status in (499, 404, 410):
        server.will(status)
        gcs.abort_upload("k", "u1")
    for body in ("a proxy's page", "[]", '{"size": "x"}'):
        server.will(body=body)
        with pytest.raises(TransientError, match="cannot be understood"):
            gcs.head("k")


def test_a_session_that_takes_nothing_is_an_error_and_is_asked_what_it_has_before_more_is_sent(
    gcs: ObjectClient, server: Answering
) -> None:
    part = bytes(256 * 1024)
    server.will(308)
    with pytest.raises(TransientError, match="k: 0 bytes have arrived after 0; expected more"):
        gcs.upload_part("k", "u1", 1, part, 0)
    assert server.took().headers["Content-Range"] == "bytes 0-262143/*"
    server.will(308, {"Range": "bytes=0-262143"})
    assert gcs.upload_part("k", "u1", 1, part, 0) == "262144:"
    assert server.took().headers["Content-Range"] == "bytes */*"
    server.will(308, {"Range": "bytes=0-524287"})
    assert gcs.upload_part("k", "u1", 2, part, 262144) == "524288:"
    assert server.took().headers["Content-Range"] == "bytes 262144-524287/*", "there is no doubt any more"


def test_a_server_that_says_nothing_is_given_up_after_the_time_for_reading(server: Answering) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        quick = Http(connections=1, connect_timeout=30, read_timeout=0.05, ca_file=None)
        client = GcsClient(GcsSettings(bucket="b", endpoint=url), quick, Credentials(None))
        with pytest.raises(TransientError) as caught:
            client.put("k", b"data")
        assert caught.value.code == LATE
        client.close()
