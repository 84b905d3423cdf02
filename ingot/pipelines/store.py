"""The store: a local folder or an S3 prefix with one writing primitive, create once.

Nothing is ever overwritten. An object either exists whole or does not exist, whatever was killed when, so
every writer may be retried and two writers may race. On S3 this is the conditional PUT
(`If-None-Match: *`, https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html); in a
folder it is a temporary file, fsync and `link`, which fails where the name exists already."""

from __future__ import annotations

import hashlib
import os
import re
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ingot.errors import IngotError, UsageError

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client


READ_TRIES = 4  # of an answer whose connection breaks midway
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{2,62}")
_TEMPORARY = re.compile(r"\.[0-9a-f]{32}\.part")  # what a killed writer leaves behind


class StoreError(IngotError):
    """The store can't be reached, read or written."""


class ObjectMissing(StoreError):
    """No object has this key."""


@dataclass(frozen=True)
class Entry:
    """A file that this store did not write. `content` is the SHA-256 of a local file, or S3's ETag."""

    key: str
    bytes: int
    content: str


class Store(Protocol):
    """Keys are relative paths with forward slashes. A store travels to workers by its `uri` alone:
    credentials and endpoints come from each machine's own environment."""

    uri: str
    shared: bool  # whether every node of a cluster sees the same objects

    def create(self, key: str, data: bytes) -> bool:
        """Stores `data` under `key` unless the key exists; True where the stored bytes are this call's."""

    def read(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        """The object's bytes from `start`, at most `length` of them. Raises ObjectMissing."""

    def exists(self, key: str) -> bool:
        """Whether an object has this key."""

    def list(self, prefix: str) -> Iterator[str]:
        """The keys that start with `prefix`, sorted."""

    def delete(self, key: str) -> None:
        """Removes the object; a key that does not exist is no error."""

    def inventory(self) -> Iterator[Entry]:
        """Every object with its size and what tells its content, sorted by key; for folders others fill."""

    def read_unchanged(self, entry: Entry) -> bytes:
        """The object's bytes. Raises StoreError where they are not those the inventory saw."""


def open_store(uri: str) -> Store:
    """The store behind `uri`: `s3://bucket/prefix`, or a folder, which is made on the first write."""
    if uri.startswith("s3://"):
        return S3Store(uri)
    if "://" in uri:
        raise UsageError(f"store {uri!r}: neither a folder nor s3://bucket/prefix")
    if not uri:
        raise UsageError("store: an empty name; name a folder, or s3://bucket/prefix")
    return LocalStore(uri)


class LocalStore:
    """A store in a folder of this machine."""

    shared = False

    def __init__(self, uri: str) -> None:
        self.root = Path(uri).expanduser().absolute()
        self.uri = str(self.root)

    def __repr__(self) -> str:
        return f"LocalStore({self.uri!r})"

    def _path(self, key: str) -> Path:
        """Where the object is. A key may have been read from a record that anybody wrote: raises StoreError
        where it would lead out of the store."""
        if key.startswith("/") or "\0" in key or ".." in key.split("/"):
            raise StoreError(f"store {self.uri}: {key[:200]!a} is no key: it leads out of the store")
        return self.root / key

    def create(self, key: str, data: bytes) -> bool:
        path = self._path(key)
        temporary = path.parent / f".{uuid.uuid4().hex}.part"
        try:
            if path.exists():
                return False
            made = [folder for folder in path.parents if not folder.exists()]
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with open(temporary, "xb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                os.link(temporary, path)
            except FileExistsError:
                return False
            finally:
                temporary.unlink(missing_ok=True)
            for folder in [path.parent, *(folder.parent for folder in made)]:
                _sync_folder(folder)  # the names, not only the bytes, must survive a crash of the machine
        except OSError as error:
            raise StoreError(
                f"store {self.uri}: can't write {key}: {error.strerror}; "
                "choose a folder you may write to with --store, or make room on its disk"
            ) from error
        return True

    def read(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        try:
            with open(self._path(key), "rb") as file:
                file.seek(start)
                return file.read() if length is None else file.read(length)
        except (FileNotFoundError, NotADirectoryError):
            raise ObjectMissing(f"store {self.uri}: no object {key}") from None
        except OSError as error:
            raise StoreError(f"store {self.uri}: can't read {key}: {error.strerror}") from error

    def exists(self, key: str) -> bool:
        return self._path(key).is_file()

    def list(self, prefix: str) -> Iterator[str]:
        def refuse(error: OSError) -> None:
            if not isinstance(
                error, FileNotFoundError | NotADirectoryError
            ):  # deleted meanwhile, or never there
                raise StoreError(
                    f"store {self.uri}: can't list {error.filename}: {error.strerror}"
                ) from error

        folder = self._path(prefix.rpartition("/")[0] or ".")
        keys = []
        for directory, _, names in os.walk(folder, onerror=refuse):
            below = Path(directory).relative_to(self.root).as_posix()
            for name in names:
                key = name if below == "." else f"{below}/{name}"
                if key.startswith(prefix) and not _TEMPORARY.fullmatch(name):
                    keys.append(key)
        return iter(sorted(keys))

    def delete(self, key: str) -> None:
        try:
            self._path(key).unlink()
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError as error:
            raise StoreError(f"store {self.uri}: can't delete {key}: {error.strerror}") from error

    def inventory(self) -> Iterator[Entry]:
        if not self.root.is_dir():
            raise UsageError(f"{self.root}: no such folder")

        def entry(key: str) -> Entry:
            try:
                with open(self.root / key, "rb") as file:
                    digest = hashlib.file_digest(file, "sha256")  # a large file is not held in memory
                    return Entry(key, file.tell(), digest.hexdigest())
            except OSError as error:
                raise StoreError(f"{self.root / key}: can't read it: {error.strerror}") from error

        with ThreadPoolExecutor(8) as pool:
            yield from pool.map(entry, self.list(""))

    def read_unchanged(self, entry: Entry) -> bytes:
        try:
            data = self.read(entry.key)
        except ObjectMissing:
            data = None
        if data is None or hashlib.sha256(data).hexdigest() != entry.content:
            raise StoreError(
                f"{self.root / entry.key} is not what it was when the run began, or differs between the "
                "cluster's nodes; let it come to rest and run again"
            )
        return data


class S3Store:
    """A store under a prefix of an S3 bucket (AWS, MinIO, Ceph, R2), reached as the standard AWS
    environment variables say."""

    shared = True

    def __init__(self, uri: str) -> None:
        self.bucket, _, prefix = uri.removeprefix("s3://").rstrip("/").partition("/")
        if not self.bucket:
            raise UsageError(f"store {uri!r}: names no bucket; write s3://bucket/prefix")
        if not _BUCKET.fullmatch(self.bucket):
            raise UsageError(
                f"store {uri!r}: {self.bucket!r} is no bucket's name: letters, digits, dots and hyphens, at "
                "least 3; write s3://bucket/prefix"
            )
        self.uri = f"s3://{self.bucket}/{prefix}".rstrip("/")
        self.prefix = f"{prefix}/" if prefix else ""

    def __repr__(self) -> str:
        return f"S3Store({self.uri!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return S3Store, (self.uri,)  # a client holds sockets and must not travel

    @cached_property
    def client(self) -> S3Client:
        import boto3
        from botocore.config import Config

        # "when_required": some S3 services refuse the checksum trailers that botocore sends by default.
        config = Config(
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            retries={"max_attempts": 6, "mode": "standard"},
            connect_timeout=10,
            read_timeout=60,
            max_pool_connections=32,
        )
        return boto3.client("s3", config=config)

    def create(self, key: str, data: bytes) -> bool:
        from botocore.exceptions import ClientError
        from tenacity import retry, retry_if_exception, stop_after_attempt, wait_random_exponential

        tries = 0

        def conflict(error: BaseException) -> bool:
            # 409: another conditional write on this key is under way; only its end tells who won.
            return isinstance(error, ClientError) and _status(error) == 409

        @retry(
            retry=retry_if_exception(conflict),
            stop=stop_after_attempt(8),
            wait=wait_random_exponential(multiplier=0.05, max=2),
            reraise=True,
        )
        def put() -> None:
            nonlocal tries
            tries += 1
            self.client.put_object(Bucket=self.bucket, Key=self.prefix + key, Body=data, IfNoneMatch="*")

        with self._explained("write", key):
            try:
                put()
            except ClientError as error:
                if _status(error) != 412:
                    raise
                if tries == 1 and not error.response["ResponseMetadata"].get("RetryAttempts"):
                    return False
                # A first try may have been stored although its answer was lost: what is there decides.
                return self.read(key) == data
        return True

    def read(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        from botocore.exceptions import ClientError

        if length == 0:
            return b""
        end = "" if length is None else start + length - 1
        ranged = {} if start == 0 and length is None else {"Range": f"bytes={start}-{end}"}
        with self._explained("read", key):
            try:
                return self._get(key, **ranged)
            except ClientError as error:
                if error.response["Error"]["Code"] in ("NoSuchKey", "404"):
                    raise ObjectMissing(f"store {self.uri}: no object {key}") from None
                if _status(error) == 416:  # a start at or past the end: no bytes, as in a file
                    return b""
                raise

    def _get(self, key: str, **request: str) -> bytes:
        """The body of the answer, asked for again where the connection breaks midway: botocore repeats
        requests, but not the reading of what they bring."""
        from botocore.exceptions import HTTPClientError, IncompleteReadError

        for tries_left in reversed(range(READ_TRIES)):
            answer = self.client.get_object(Bucket=self.bucket, Key=self.prefix + key, **request)  # type: ignore[arg-type]
            try:
                return answer["Body"].read()
            except (HTTPClientError, IncompleteReadError):
                if not tries_left:
                    raise
        raise AssertionError("READ_TRIES is at least 1")

    def exists(self, key: str) -> bool:
        from botocore.exceptions import ClientError

        with self._explained("look up", key):
            try:
                self.client.head_object(Bucket=self.bucket, Key=self.prefix + key)
            except ClientError as error:
                if _status(error) == 404:
                    return False
                raise
        return True

    def list(self, prefix: str) -> Iterator[str]:
        with self._explained("list", prefix):
            pages = self.client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=self.prefix + prefix
            )
            for page in pages:
                for entry in page.get("Contents", []):
                    yield entry["Key"].removeprefix(self.prefix)

    def delete(self, key: str) -> None:
        with self._explained("delete", key):
            self.client.delete_object(Bucket=self.bucket, Key=self.prefix + key)

    def inventory(self) -> Iterator[Entry]:
        with self._explained("list", ""):
            pages = self.client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=self.prefix
            )
            for page in pages:
                for found in page.get("Contents", []):
                    if not found["Key"].endswith("/"):  # what consoles make to stand for a folder
                        yield Entry(found["Key"].removeprefix(self.prefix), found["Size"], found["ETag"])

    def read_unchanged(self, entry: Entry) -> bytes:
        from botocore.exceptions import ClientError

        with self._explained("read", entry.key):
            try:
                return self._get(entry.key, IfMatch=entry.content)
            except ClientError as error:
                if _status(error) not in (404, 412):
                    raise
                raise StoreError(
                    f"{self.uri}/{entry.key} is not what it was when the run began; let it come to rest and "
                    "run again"
                ) from None

    def _explained(self, verb: str, key: str) -> _Explained:
        return _Explained(f"store {self.uri}: can't {verb} {key or 'it'}")


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class _Explained:
    """Turns what boto3 raises into a StoreError that says what to mend."""

    def __init__(self, what: str) -> None:
        self.what = what

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

        if isinstance(error, NoCredentialsError):
            mend = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        elif isinstance(error, ClientError) and error.response["Error"]["Code"] == "NoSuchBucket":
            mend = "make the bucket, or name one that exists"
        elif isinstance(error, ClientError) and _status(error) in (401, 403):
            mend = "check the credentials and their rights on this bucket"
        elif isinstance(error, ClientError) and _status(error) == 501:
            mend = "choose a service that knows conditional writes (If-None-Match)"
        elif isinstance(error, ClientError) and _status(error) >= 500:
            mend = "the service is not well: run again later"
        elif isinstance(error, ClientError):
            mend = "check the bucket, AWS_DEFAULT_REGION and AWS_ENDPOINT_URL"
        elif isinstance(error, BotoCoreError | ValueError):  # an endpoint that is no URL is a ValueError
            mend = "check AWS_ENDPOINT_URL and the network"
        else:
            return
        raise StoreError(f"{self.what}: {error}; {mend}") from error


def _status(error: Any) -> int:
    return int(error.response["ResponseMetadata"]["HTTPStatusCode"])
