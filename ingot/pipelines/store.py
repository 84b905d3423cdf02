"""The store: a local folder or an S3 prefix with one writing primitive, create once.

Nothing is ever overwritten. An object either exists whole or does not exist, whatever was killed when, so
every writer may be retried and two writers may race. On S3 this is the conditional PUT
(`If-None-Match: *`, https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html); in a
folder it is a temporary file, fsync and `link`, which fails where the name exists already."""

from __future__ import annotations

import hashlib
import io
import os
import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from ingot.errors import IngotError, UsageError
from ingot.pipelines.listing import HIDDEN, Skipped, open_regular, regular_files
from ingot.pipelines.patience import RATE, Limits, Moved, TooSlow, patiently
from ingot.pipelines.s3_errors import explain, status_of

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client


READ_TRIES = 4  # of an answer whose connection breaks midway
BLOCK = 1 << 18  # bytes of an answer read at once
_Result = TypeVar("_Result")
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

    def inventory(
        self, hidden: bool = False, wanted: Callable[[str], object] | None = None
    ) -> Iterator[Entry | Skipped]:
        """Every object with its size and what tells its content, sorted by key, then what is skipped: for
        folders others fill. Names that begin with a dot are skipped unless `hidden`. Where `wanted` is given
        other keys are not there."""

    def read_unchanged(self, entry: Entry) -> bytes:
        """The object's bytes. Raises StoreError where they are not those the inventory saw."""


def open_store(uri: str, seconds: float | None = None) -> Store:
    """The store behind `uri`: `s3://bucket/prefix`, or a folder, which is made on the first write. An
    operation on S3 may take `seconds`, by default $INGOT_STORE_SECONDS, else 120."""
    if uri.startswith("s3://"):
        return S3Store(uri, seconds)
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

    def inventory(
        self, hidden: bool = False, wanted: Callable[[str], object] | None = None
    ) -> Iterator[Entry | Skipped]:
        if not self.root.is_dir():
            raise UsageError(f"{self.root}: no such folder")

        def entry(key: str) -> Entry:
            try:
                with self._open(key) as file:
                    digest = hashlib.file_digest(file, "sha256")  # a large file is not held in memory
                    return Entry(key, file.tell(), digest.hexdigest())
            except OSError as error:
                raise StoreError(f"{self.root / key}: can't read it: {error.strerror}") from error

        keys, skipped = self._files(hidden)
        with ThreadPoolExecutor(8) as pool:
            yield from pool.map(entry, (key for key in keys if wanted is None or wanted(key)))
        yield from (each for each in skipped if wanted is None or wanted(each.key))

    def _files(self, hidden: bool) -> tuple[Sequence[str], Sequence[Skipped]]:
        try:
            return regular_files(self.root, hidden, leave_out=_TEMPORARY.fullmatch)
        except OSError as error:
            raise StoreError(f"{error.filename}: can't list it: {error.strerror}") from error

    def _open(self, key: str) -> BufferedReader:
        return open_regular(self.root, key)

    def read_unchanged(self, entry: Entry) -> bytes:
        data = None
        with suppress(OSError), self._open(entry.key) as file:
            data = file.read()
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

    def __init__(self, uri: str, seconds: float | None = None) -> None:
        self.seconds = seconds
        self.limits = Limits.of(seconds or _default_seconds())
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
        return S3Store, (self.uri, self.seconds)  # a client holds sockets and must not travel

    @cached_property
    def client(self) -> S3Client:
        import boto3
        from botocore.config import Config

        # "when_required": some S3 services refuse the checksum trailers that botocore sends by default.
        config = Config(
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            retries={"max_attempts": self.limits.tries, "mode": "standard"},
            connect_timeout=self.limits.connect,
            read_timeout=self.limits.read,
            max_pool_connections=32,
        )
        return boto3.client("s3", config=config)

    def create(self, key: str, data: bytes) -> bool:
        from botocore.exceptions import ClientError
        from tenacity import retry, retry_if_exception, stop_after_attempt, wait_random_exponential

        tries = 0

        def conflict(error: BaseException) -> bool:
            # 409: another conditional write on this key is under way; only its end tells who won.
            return isinstance(error, ClientError) and status_of(error) == 409

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

        try:
            self._call("write", key, put, size=len(data), expected=(412,))
        except ClientError as error:
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
        try:
            return self._get(key, **ranged)
        except ClientError as error:
            if status_of(error) == 416:  # a start at or past the end: no bytes, as in a file
                return b""
            raise ObjectMissing(f"store {self.uri}: no object {key}") from None

    def _get(self, key: str, **request: str) -> bytes:
        """The body of the answer, asked for again where the connection breaks midway: botocore repeats
        requests, but not the reading of what they bring."""
        from botocore.exceptions import HTTPClientError, IncompleteReadError

        moved = Moved()

        def get() -> bytes:
            for tries_left in reversed(range(READ_TRIES)):
                answer = self.client.get_object(Bucket=self.bucket, Key=self.prefix + key, **request)  # type: ignore[arg-type]
                body = io.BytesIO()
                try:
                    while part := answer["Body"].read(BLOCK):
                        body.write(part)
                        moved.add(len(part))
                    return body.getvalue()
                except (HTTPClientError, IncompleteReadError):
                    answer["Body"].close()
                    if not tries_left:
                        raise
            raise AssertionError("READ_TRIES is at least 1")

        return self._call("read", key, get, moved=moved, expected=(404, 412, 416))

    def exists(self, key: str) -> bool:
        from botocore.exceptions import ClientError

        def look() -> bool:
            try:
                self.client.head_object(Bucket=self.bucket, Key=self.prefix + key)
            except ClientError as error:
                if status_of(error) == 404:
                    return False
                if 300 <= status_of(error) < 500:
                    # The answer to a HEAD has no body that could say what is wrong; that of a GET has one.
                    self.client.get_object(Bucket=self.bucket, Key=self.prefix + key, Range="bytes=0-0")
                raise
            return True

        return self._call("look up", key, look)

    def list(self, prefix: str) -> Iterator[str]:
        for found in self._pages(prefix):
            yield found["Key"].removeprefix(self.prefix)

    def _pages(self, prefix: str) -> Iterator[Any]:
        """What the answers to a listing say of each object; every page is an operation of its own."""
        pages: Iterator[Any] | None = None

        def next_page() -> Any:
            nonlocal pages
            if pages is None:
                paginator = self.client.get_paginator("list_objects_v2")
                pages = iter(paginator.paginate(Bucket=self.bucket, Prefix=self.prefix + prefix))
            return next(pages, None)

        while (page := self._call("list", prefix, next_page)) is not None:
            yield from page.get("Contents", [])

    def delete(self, key: str) -> None:
        def delete() -> None:
            self.client.delete_object(Bucket=self.bucket, Key=self.prefix + key)

        self._call("delete", key, delete)

    def inventory(
        self, hidden: bool = False, wanted: Callable[[str], object] | None = None
    ) -> Iterator[Entry | Skipped]:
        skipped: dict[str, None] = {}  # the file, or the outermost hidden folder that holds it
        for found in self._pages(""):
            key = found["Key"].removeprefix(self.prefix)
            if wanted is not None and not wanted(key):
                continue
            if key.endswith("/"):  # what consoles make to stand for a folder
                continue
            dotted = re.match(r"(?:.*?/)??\.[^/]*", key, re.DOTALL)
            if dotted and not hidden:
                skipped[dotted[0]] = None
            else:
                yield Entry(key, found["Size"], found["ETag"])
        yield from (Skipped(key, HIDDEN) for key in skipped)

    def read_unchanged(self, entry: Entry) -> bytes:
        from botocore.exceptions import ClientError

        try:
            return self._get(entry.key, IfMatch=entry.content)
        except ClientError:
            raise StoreError(
                f"{self.uri}/{entry.key} is not what it was when the run began; let it come to rest and "
                "run again"
            ) from None

    def _endpoint(self) -> str | None:
        """The service's address, as far as it is known: a client may still be in the making."""
        client = self.__dict__.get("client")
        return client.meta.endpoint_url if client else None

    def _call(
        self,
        verb: str,
        key: str,
        work: Callable[[], _Result],
        size: int = 0,
        moved: Moved | None = None,
        expected: tuple[int, ...] = (),
    ) -> _Result:
        """What `work()` returns, within the limits and what moving `size` bytes takes. Raises ClientError
        of these statuses, which say something of the object, and StoreError for all else that goes wrong."""
        from botocore.exceptions import ClientError

        what = f"store {self.uri}: can't {verb} {key or 'it'}"
        at = self._endpoint() or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        try:
            waited = f"the store {self.uri} at {at or 'AWS'}"
            return patiently(work, waited, self.limits.whole + size / RATE, moved)
        except TooSlow as error:
            raise StoreError(
                f"{what}: {self._endpoint() or at} gave {error}; check AWS_ENDPOINT_URL and the network, and "
                "that the service is well; slow ones need a larger INGOT_STORE_SECONDS"
            ) from error
        except Exception as error:
            code = error.response.get("Error", {}).get("Code") if isinstance(error, ClientError) else None
            if code and code != "NoSuchBucket" and status_of(error) in expected:
                raise
            if (said := explain(error, self._endpoint())) is None:
                raise
            raise StoreError(f"{what}: {said}") from error


def _default_seconds() -> float:
    text = os.environ.get("INGOT_STORE_SECONDS") or "120"
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0
    if not 0 < seconds < float("inf"):
        raise UsageError(f"INGOT_STORE_SECONDS={text}: write a number of seconds above 0, such as 120")
    return seconds


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
