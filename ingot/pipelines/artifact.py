"""Artifacts: sets of content-named objects made whole by one manifest.

The bytes of a file are cut into pieces of at most 256 MB and each is stored once under its own SHA-256
(`objects/ab/abcd…`), so a late or doubled writer can only write the same bytes. The manifest, created last
at `<key>/manifest.json`, maps the artifact's file names to pieces: without it the artifact does not exist.
The artifact's digest is the SHA-256 of that mapping in canonical JSON; when, where and by what code it was
made stands beside the mapping and does not change the digest."""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ingot import __version__
from ingot.errors import IngotError
from ingot.pipelines.records import LARGEST, damaged, is_sha256, parse, read_object, wrong_names
from ingot.pipelines.records import Damaged as Damaged
from ingot.pipelines.store import ObjectMissing, Store, StoreError

if TYPE_CHECKING:
    import pyarrow

PIECE_BYTES = 256_000_000
LARGEST_PIECE = 1_000_000_000  # bytes that a manifest may ask a reader to hold at once


@dataclass(frozen=True)
class Piece:
    """One stored object: the SHA-256 of its bytes, and how many they are."""

    sha256: str
    bytes: int

    @property
    def key(self) -> str:
        return f"objects/{self.sha256[:2]}/{self.sha256}"


@dataclass(frozen=True)
class File:
    """One file of an artifact. `rows` and `tokens` say what is in it, where that means something."""

    pieces: tuple[Piece, ...]
    bytes: int
    sha256: str
    rows: int | None = None
    tokens: int | None = None

    @staticmethod
    def from_json(body: Any) -> File:
        """From an entry of a manifest or a record. Raises Damaged where it is none."""
        try:
            pieces = tuple(Piece(**piece) for piece in body["pieces"])
            file = File(pieces, body["bytes"], body["sha256"], body["rows"], body["tokens"])
        except (KeyError, TypeError) as error:
            raise Damaged(_no_entry(f"{error!r}")) from None
        sizes = [piece.bytes for piece in pieces]
        if not all(is_sha256(digest) for digest in (file.sha256, *(piece.sha256 for piece in pieces))):
            raise Damaged(_no_entry("a SHA-256 is 64 hexadecimal digits"))
        if not all(_is_count(size) and 0 < size <= LARGEST_PIECE for size in sizes):
            raise Damaged(_no_entry(f"a piece has 1 to {LARGEST_PIECE:,} bytes"))
        if not _is_count(file.bytes) or sum(sizes) != file.bytes:
            raise Damaged(_no_entry("its pieces are not as many bytes as the file"))
        if not all(count is None or _is_count(count) for count in (file.rows, file.tokens)):
            raise Damaged(_no_entry("rows and tokens are counts"))
        return file

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Artifact:
    """A committed artifact, read through its manifest."""

    store: Store
    key: str
    stage: str
    fingerprint: str
    files: Mapping[str, File]
    metrics: Mapping[str, Any] = field(default_factory=dict)
    made: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises Damaged where a file's name could lead out of the folder that it is fetched into. Every
        artifact passes here, whoever wrote its manifest, so whoever uses its names need not check them."""
        if wrong := wrong_names(self.files):
            raise damaged(f"{self.store.uri}/{self.key}/manifest.json", wrong)

    @property
    def digest(self) -> str:
        return digest_of(self.files)

    def read(self, name: str) -> bytes:
        """The whole file, verified. Raises Damaged."""
        return b"".join(_verified_pieces(self.store, self._file(name), *self._place(name)))

    def read_range(self, name: str, start: int, length: int) -> bytes:
        """`length` bytes of the file from `start`, fewer at its end. Raises Damaged where they are missing;
        they are not verified, as a part has no digest of its own."""
        return read_range(self.store, self._file(name), start, length, *self._place(name))

    def damaged(self, name: str, at: int) -> Damaged:
        """The error for a file whose byte `at`, or what is around it, is not what was stored."""
        first = 0
        for piece in self.files[name].pieces:
            if at < (first := first + piece.bytes):
                break
        what, artifact = self._place(name)
        return _damage(self.store, what, piece, "was altered", artifact)

    def _file(self, name: str) -> File:
        """Raises Damaged where the manifest lists no such file: the stage writes one."""
        if name not in self.files:
            raise damaged(f"{self.store.uri}/{self.key}/manifest.json", f"it lists no file {name!r}")
        return self.files[name]

    def _place(self, name: str) -> tuple[str, str]:
        """A file's words in an error, and the artifact it is of."""
        return (f"{self.key}/{name}" if self.key else name), self.key

    def json(self, name: str) -> Any:
        """The JSON file. Raises Damaged."""
        return parse(self.read(name), f"{self.store.uri}/{self._place(name)[0]}")

    def table(self, name: str, columns: list[str] | None = None) -> pyarrow.Table:
        """The Parquet file as an Arrow table."""
        return parquet_table(self.read(name), columns)

    def names(self, prefix: str = "") -> list[str]:
        """The names of the files that start with `prefix`, sorted."""
        return sorted(name for name in self.files if name.startswith(prefix))

    def fetch(self, folder: Path, names: list[str] | None = None) -> Path:
        """Writes the files below `folder`, every one verified; a file stands under its name only whole."""
        for name in self.names() if names is None else names:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{uuid.uuid4().hex}.part")
            try:
                with open(temporary, "wb") as file:
                    for part in _verified_pieces(self.store, self._file(name), *self._place(name)):
                        file.write(part)
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
        return folder


def put_file(
    store: Store, data: bytes | memoryview, rows: int | None = None, tokens: int | None = None
) -> File:
    """Stores the bytes as pieces and returns their entry for a manifest. Safe to repeat."""
    view = memoryview(data)
    pieces = []
    for start in range(0, len(view), PIECE_BYTES):
        part = bytes(view[start : start + PIECE_BYTES])
        piece = Piece(hashlib.sha256(part).hexdigest(), len(part))
        store.create(piece.key, part)
        pieces.append(piece)
    whole = pieces[0].sha256 if len(pieces) == 1 else hashlib.sha256(view).hexdigest()
    return File(tuple(pieces), len(view), whole, rows, tokens)


def put_table(store: Store, table: pyarrow.Table) -> File:
    """Stores an Arrow table as one Parquet file; the same table gives the same bytes."""
    return put_file(store, parquet_bytes(table), rows=table.num_rows)


def put_json(store: Store, body: Any) -> File:
    return put_file(store, json.dumps(body, indent=1, sort_keys=True, ensure_ascii=False).encode())


def read_file(store: Store, file: File, what: str) -> bytes:
    """The file's bytes, every piece verified. Raises Damaged, naming `what`."""
    return b"".join(_verified_pieces(store, file, what))


def read_range(store: Store, file: File, start: int, length: int, what: str, artifact: str = "") -> bytes:
    """`length` bytes of the file from `start`, fewer at its end, unverified. Raises Damaged, naming `what`,
    where they are missing."""
    parts, offset = [], 0
    for piece in file.pieces:
        first, last = max(start, offset), min(start + length, offset + piece.bytes)
        if first < last:
            try:
                part = store.read(piece.key, first - offset, last - first)
            except ObjectMissing:
                part = b""
            if len(part) != last - first:
                raise _damage(store, what, piece, "is missing or cut short", artifact)
            parts.append(part)
        offset += piece.bytes
    return b"".join(parts)


def read_table(store: Store, file: File, what: str, columns: list[str] | None = None) -> pyarrow.Table:
    return parquet_table(read_file(store, file, what), columns)


def parquet_bytes(table: pyarrow.Table) -> bytes:
    import pyarrow.parquet

    sink = io.BytesIO()
    pyarrow.parquet.write_table(table, sink, compression="zstd", store_schema=False)
    return sink.getvalue()


def parquet_table(data: bytes, columns: list[str] | None = None) -> pyarrow.Table:
    import pyarrow.parquet

    return pyarrow.parquet.read_table(io.BytesIO(data), columns=columns)


def commit(
    store: Store,
    key: str,
    stage: str,
    fingerprint: str,
    files: Mapping[str, File],
    metrics: Mapping[str, Any],
    made: Mapping[str, Any],
) -> Artifact:
    """Creates the manifest and returns the artifact that stands there: this one, or, where another writer
    was first, that writer's. All objects of `files` must be stored already. Raises IngotError where no
    reader would take the manifest."""
    if wrong := wrong_names(files):
        raise IngotError(f"{store.uri}/{key}: can't be committed: {wrong}")
    body = {
        "stage": stage,
        "fingerprint": fingerprint,
        "digest": digest_of(files),
        "files": {name: files[name].to_json() for name in sorted(files)},
        "metrics": dict(metrics),
        "made": {"host": platform.node(), "at": time.time(), "ingot": __version__, **made},
    }
    text = json.dumps(body, indent=1).encode()
    if len(text) > LARGEST:
        raise IngotError(
            f"{store.uri}/{key}: can't be committed: its manifest of {len(files):,} files is larger than "
            f"{LARGEST:,} bytes; divide the work into several runs"
        )
    store.create(f"{key}/manifest.json", text)
    artifact = load(store, key)
    if artifact is None:  # of checkpoints the older ones are deleted, by another run too
        raise StoreError(f"{store.uri}/{key}: deleted by another run as soon as it was committed")
    return artifact


def load(store: Store, key: str) -> Artifact | None:
    """The artifact committed at `key`, or None. Raises Damaged for a manifest that was altered."""
    where = f"{store.uri}/{key}/manifest.json"
    try:
        body = read_object(
            store,
            f"{key}/manifest.json",
            stage=str,
            fingerprint=str,
            digest=str,
            files=dict[str, Any],
            metrics=dict[str, Any],
            made=dict[str, Any],
        )
    except ObjectMissing:
        return None
    if wrong := wrong_names(body["files"]):
        raise damaged(where, wrong)
    try:
        files = {name: File.from_json(entry) for name, entry in body["files"].items()}
    except Damaged as error:
        raise damaged(where, f"it lists a file wrongly ({error})") from None
    artifact = Artifact(store, key, body["stage"], body["fingerprint"], files, body["metrics"], body["made"])
    if artifact.digest != body["digest"]:
        listed, said = artifact.digest[:12], body["digest"][:12]
        raise damaged(where, f"it lists files of digest {listed}, not {said}")
    return artifact


def digest_of(files: Mapping[str, File]) -> str:
    """The digest of a set of files, whatever order they come in."""
    return canonical_digest({name: file.to_json() for name, file in files.items()})


def entries_of(body: Any) -> list[dict[str, Any]]:
    """The entries of all files that a JSON body names, wherever they stand in it."""
    if isinstance(body, dict):
        own = [body] if "pieces" in body else []
        return own + [entry for value in body.values() for entry in entries_of(value)]
    return [entry for value in body for entry in entries_of(value)] if isinstance(body, list) else []


def canonical_digest(body: Any) -> str:
    """SHA-256 of the canonical JSON: sorted keys, no spaces, UTF-8."""
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _no_entry(why: str) -> str:
    return f"a record or manifest lists a file wrongly: {why}"


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def _verified_pieces(store: Store, file: File, what: str, artifact: str = "") -> Iterator[bytes]:
    for piece in file.pieces:
        try:
            data = store.read(piece.key, 0, piece.bytes + 1)  # the digest is wrong where there is more
        except ObjectMissing:
            raise _damage(store, what, piece, "is missing", artifact) from None
        if hashlib.sha256(data).hexdigest() != piece.sha256:
            raise _damage(store, what, piece, "was altered", artifact)
        yield data


def _damage(store: Store, what: str, piece: Piece, how: str, artifact: str) -> Damaged:
    """The error for an object of `what`. Where the reader does not know the key of the artifact that names
    the object, the manifests do; an object that none names is of the artifact that is being made."""
    owners = [artifact] if artifact else _owners(store, piece)
    below = " and ".join(f"all below {owner}/" for owner in owners)
    return Damaged(
        f"{store.uri}: {what} is damaged: its object {piece.key} {how}; restore the object, or delete it and "
        f"{below or 'what the stage that failed has below artifacts/'}, and run again"
    )


def _owners(store: Store, piece: Piece) -> list[str]:
    manifests = [key for key in store.list("artifacts/") if key.endswith("/manifest.json")]
    digest = piece.sha256.encode()
    return [key.removesuffix("/manifest.json") for key in manifests if digest in store.read(key)]
