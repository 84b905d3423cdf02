"""What boto3 raises, as one line that names the place, the cause and the fix."""

from __future__ import annotations

import os
from typing import Any

# Codes of S3 services (https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html) → the fix.
_EXPIRED = "the session token has expired: renew it, and set AWS_SESSION_TOKEN and its keys anew"
_KEYS = "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN"
_RIGHTS = "check the credentials and their rights on this bucket"
FIXES = {
    "ExpiredToken": _EXPIRED,
    "ExpiredTokenException": _EXPIRED,
    "TokenRefreshRequired": _EXPIRED,
    "RequestExpired": _EXPIRED,
    "InvalidToken": "the session token is not valid: set AWS_SESSION_TOKEN anew, or unset it",
    "InvalidAccessKeyId": _KEYS,
    "SignatureDoesNotMatch": _KEYS,
    "RequestTimeTooSkewed": "this machine's clock differs from the service's: set it (timedatectl, NTP)",
    "NoSuchBucket": "make the bucket, or name one that exists",
    "AllAccessDisabled": _RIGHTS,
    "AccessDenied": _RIGHTS,
    "AccountProblem": _RIGHTS,
    "SlowDown": "the service limits requests: run again later, or with fewer workers",
    "QuotaExceeded": "make room in the bucket, or raise its quota",
    "XMinioStorageFull": "make room on the service's disks",
}
_REGION = (
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
    "InvalidLocationConstraint",
    "InvalidRegion",
    "PermanentRedirect",
    "BucketRegionError",
)


def status_of(error: Any) -> int:
    """The HTTP status of a ClientError."""
    return int(error.response["ResponseMetadata"]["HTTPStatusCode"])


def explain(error: BaseException, endpoint: str | None) -> str | None:
    """The cause and the fix, or None for an error that is none of S3's. `endpoint` is the service's address
    as far as it is known."""
    from botocore import exceptions as raised

    at = endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "AWS"
    lost = "check AWS_ENDPOINT_URL and the network, and that the service is well"
    if isinstance(error, RecursionError):  # of botocore, which asks such a service for the bucket's region
        return f"{at}: it redirects every request; check AWS_ENDPOINT_URL and AWS_DEFAULT_REGION"
    if isinstance(error, raised.ClientError):
        return f"{_one_line(error)} ({at}); {_fix_of(error)}"
    if isinstance(error, raised.NoCredentialsError):
        return f"{_one_line(error)}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    if isinstance(error, raised.ProfileNotFound):
        return f"{_one_line(error)}; check AWS_PROFILE"
    if isinstance(
        error,
        raised.PartialCredentialsError
        | raised.CredentialRetrievalError
        | raised.TokenRetrievalError
        | raised.UnauthorizedSSOTokenError
        | raised.SSOError,
    ):
        return f"{_one_line(error)}; {_KEYS}, or log in again"
    if isinstance(error, raised.SSLError):
        return f"{at}: {_one_line(error)}; check that AWS_ENDPOINT_URL is https, and AWS_CA_BUNDLE"
    if isinstance(error, raised.ConnectTimeoutError):
        return f"{at} can't be reached: no connection in time; {lost}"
    if isinstance(error, raised.ReadTimeoutError):
        return f"{at} accepts the request and then is silent; {lost}"
    if isinstance(error, raised.IncompleteReadError | raised.ResponseStreamingError):
        return f"{at} ends its answers too early; {lost}"
    if isinstance(error, raised.ConnectionClosedError):
        return f"{at} closes the connection without an answer; {lost}"
    if error.__class__.__name__ == "ResponseParserError":
        return f"{at} answers, but not as an S3 service does; check AWS_ENDPOINT_URL"
    if isinstance(error, raised.BotoCoreError | ValueError):  # an endpoint that is no URL is a ValueError
        text = _one_line(error)
        return f"{text if at in text else f'{at}: {text}'}; check AWS_ENDPOINT_URL and the network"
    return None


def _fix_of(error: Any) -> str:
    code, status = str(error.response.get("Error", {}).get("Code", "")), status_of(error)
    headers = error.response["ResponseMetadata"].get("HTTPHeaders", {})
    if code in FIXES:
        return FIXES[code]
    region = headers.get("x-amz-bucket-region") or error.response["Error"].get("Region")
    if code in _REGION or (300 <= status < 400 and region):
        return f"the bucket is in another region: set AWS_DEFAULT_REGION{f'={region}' if region else ''}"
    if 300 <= status < 400:
        return "it redirects: check AWS_ENDPOINT_URL and AWS_DEFAULT_REGION"
    if status in (401, 403):
        return _RIGHTS
    if status == 501:
        return "choose a service that supports conditional writes (If-None-Match)"
    if status >= 500:
        return "the service is not well: run again later, or check that AWS_ENDPOINT_URL is an S3 service's"
    return "check the bucket, AWS_DEFAULT_REGION and AWS_ENDPOINT_URL"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".")[:500]
