"""What botocore and the connections below it raise, as the errors of `client`. One table, one line of text each."""

from __future__ import annotations

from http.client import HTTPException
from typing import Any

from botocore import exceptions as boto
from urllib3.exceptions import HTTPError

from nl.plugin import BackendError, FullError, RefusedError, TransientError, ValueTooLargeError
from nl_cloud_object_store.client import ObjectChangedError, ObjectMissingError, UploadGoneError

FOREIGN = (boto.BotoCoreError, boto.ClientError, HTTPError, HTTPException, OSError)
"""What requests and the reading of their answers raise."""

_MISSING = {"NoSuchKey", "NotFound", "404", "NoSuchVersion"}
_CHANGED = {"PreconditionFailed", "412", "InvalidRange", "416"}
_THROTTLED = {
    "SlowDown", "Throttling", "ThrottlingException", "ThrottledException", "RequestThrottled", "TooManyRequests",
    "RequestLimitExceeded", "BandwidthLimitExceeded", "RequestThrottledException", "429",
}
_AGAIN = {
    "RequestTimeout", "RequestTimeoutException", "InternalError", "ServiceUnavailable", "OperationAborted",
    "ConditionalRequestConflict", "IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch", "PriorRequestNotComplete",
}
_FULL = {"QuotaExceeded", "XMinioStorageFull", "InsufficientStorage", "507"}
_CREDENTIALS = {
    "InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken", "ExpiredTokenException",
    "TokenRefreshRequired", "AuthFailure", "InvalidClientTokenId", "UnrecognizedClientException",
    "AuthorizationHeaderMalformed", "Unauthorized", "401",
}
_BUCKET = {"NoSuchBucket", "InvalidBucketName", "NoSuchTenant"}
_NO_CREDENTIALS = (
    boto.NoCredentialsError, boto.PartialCredentialsError, boto.ProfileNotFound, boto.NoAuthTokenError,
    boto.TokenRetrievalError, boto.UnknownCredentialError,
)


def translate(error: BaseException, *, bucket: str, key: str = "") -> BackendError:
    """The error of ours that `error`, one of FOREIGN, means."""
    where = f"bucket {bucket}" + (f", {key}" if key else "")
    if isinstance(error, boto.ClientError):
        return _answered(error, bucket, where)
    if isinstance(error, _NO_CREDENTIALS):
        return RefusedError(f"no credentials: {_line(error)}; expected some in the environment, in ~/.aws, or from the "
                            "machine's role")
    if isinstance(error, boto.ParamValidationError):
        return RefusedError(f"{bucket!r} is refused as a bucket: {_line(error)}", option="bucket")
    if isinstance(error, (boto.NoRegionError, boto.InvalidRegionError)):
        return RefusedError(f"{_line(error)}; expected the bucket's region", option="region")
    if isinstance(error, boto.SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error):
        return RefusedError(f"the server's certificate is not trusted: {_line(error)}")
    if isinstance(error, (boto.ReadTimeoutError, boto.ConnectTimeoutError)):
        return TransientError(f"{where}: {_line(error)}", code="DeadlineExceeded")
    if isinstance(error, (boto.HTTPClientError, boto.ConnectionError, boto.IncompleteReadError, boto.ChecksumError,
                          boto.CredentialRetrievalError)) or not isinstance(error, boto.BotoCoreError):
        return TransientError(f"{where}: {_line(error)}")
    return RefusedError(f"{where}: {type(error).__name__}: {_line(error)}")


def _answered(error: boto.ClientError, bucket: str, where: str) -> BackendError:
    response: dict[str, Any] = error.response
    code = str(response.get("Error", {}).get("Code", ""))
    status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    message = str(response.get("Error", {}).get("Message", "")) or "no reason given"
    said = f"{where}: {code}: {_short(message)}"
    if code in _BUCKET:
        return RefusedError(f"the bucket {bucket} does not exist ({code})", option="bucket")
    if code == "NoSuchUpload":
        return UploadGoneError(said)
    if code in _MISSING:
        return ObjectMissingError(said)
    if code in _CHANGED or status in (412, 416):
        return ObjectChangedError(said)
    if code in _THROTTLED or status == 429:
        return TransientError(said, code="ResourceExhausted")
    if code == "EntityTooLarge":
        return ValueTooLargeError(said)
    if code in _FULL or status == 507:
        return FullError(said)
    if code in _AGAIN or status >= 500:
        return TransientError(said)
    if code in _CREDENTIALS or status == 401:
        return RefusedError(f"bucket {bucket}: the credentials are refused ({code}: {_short(message)})")
    if status == 403:
        return RefusedError(f"{said} (needed: s3:ListBucket, s3:GetObject, s3:PutObject, s3:AbortMultipartUpload)")
    if status in (301, 307) or code == "PermanentRedirect":
        return RefusedError(f"the bucket {bucket} is in another region ({code}: {_short(message)})", option="region")
    return RefusedError(said)


def _line(error: BaseException) -> str:
    return _short(" ".join(str(error).split()) or type(error).__name__)


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 300 else text[:297] + "..."
