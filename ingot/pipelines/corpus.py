"""The corpus stage: raw sources → documents, in the order of source, path and record.

A document's id is a 128-bit hash of where it came from, so adding a file renumbers nothing. Bad records go
to a quarantine table with the reason; by default they also stop the run, before anything is committed."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from ingot.errors import IngotError
from ingot.pipelines import sources
from ingot.pipelines.artifact import Artifact, File, put_json, put_table, read_table
from ingot.pipelines.characters import is_blank
from ingot.pipelines.sections import Corpus, Files, PythonPackages
from ingot.pipelines.store import Entry, Store
from ingot.pipelines.units import Workspace

if TYPE_CHECKING:
    import pyarrow

    from ingot.pipelines.pipeline import Outcome

VERSION = 3

_SOURCE: TypeAdapter[PythonPackages | Files] = TypeAdapter(PythonPackages | Files)


def inventory(section: Corpus, store: Store) -> dict[str, Any]:
    """`files`: source name → its files: path, size and content hash. `skipped`: how many files and folders
    below the sources are not read, of which kinds, and the first of them by name."""
    files, first, kinds = {}, [], Counter[str]()
    for source in section.sources:
        entries, skipped = sources.inventory(source, store)
        files[source.name] = [asdict(entry) for entry in entries]
        kinds.update(each.kind for each in skipped)
        first += [f"{source.name}: {sources.described(each)}" for each in skipped[: sources.NAMED]]
    count = {"count": kinds.total(), "kinds": dict(sorted(kinds.items())), "first": first[: sources.NAMED]}
    return {"files": files, "skipped": count}


def check_sources(section: Corpus, store: Store) -> None:
    """What is wrong with the sources and seen at once, before anything is written. Raises UsageError."""
    for source in section.sources:
        sources.check_apart(source, store)
        sources.check_there(source)


def check(section: Corpus, artifact: Artifact) -> None:
    """Raises IngotError for an artifact that was made while bad records were passed over, and now are not."""
    if artifact.metrics["bad"] and section.bad_records == "fail":
        [first, *_] = artifact.names("quarantine/")
        raise IngotError(_complaint(artifact.table(first).to_pylist()[0], artifact.metrics["bad"]))


def run(workspace: Workspace, section: Corpus, inventory: Mapping[str, Any]) -> Outcome:
    from ingot.pipelines.pipeline import Outcome

    groups = [
        (source, group)
        for source in section.sources
        for group in _groups(inventory["files"][source.name], section.unit_bytes)
    ]
    bodies = [
        {
            "source": sources.absolute(source).model_dump(exclude={"snapshot"}),
            "entries": group,
            "file_bytes": section.unit_bytes,
            "version": VERSION,
        }
        for source, group in groups
    ]
    # A corpus to which a source is added, or taken from, reads the others' files no second time.
    records = workspace.run_shared("corpus", "read", bodies, _read)
    total = {
        name: sum(record[name] for record in records)
        for name in (
            *("files", "bytes_in", "documents_in", "documents_out", "bytes_out", "empty", "bad"),
            "lost_values",
        )
    }
    if total["bad"] and section.bad_records == "fail":
        entry = next(record["quarantine"] for record in records if record["quarantine"])
        table = read_table(workspace.store, File.from_json(entry), "the quarantine")
        raise IngotError(_complaint(table.to_pylist()[0], total["bad"]))
    if not total["documents_out"]:
        raise IngotError(
            f"corpus: {total['files']} files hold no text "
            f"({total['bad']} bad records, {total['empty']} empty); "
            "point corpus.sources at files with text, or name the field that holds it with text:"
        )
    parts = [part for record in records for part in record["documents"]]
    files = {f"documents/{number:06d}.parquet": File.from_json(part) for number, part in enumerate(parts)}
    snapshots = {source.name: source.snapshot for source in section.sources}
    of_files = [
        source.snapshot
        for (source, _), record in zip(groups, records, strict=True)
        for _ in record["documents"]
    ]
    files["snapshots.json"] = put_json(workspace.store, {"sources": snapshots, "files": of_files})
    bad = [record["quarantine"] for record in records if record["quarantine"]]
    files |= {f"quarantine/{number:05d}.parquet": File.from_json(part) for number, part in enumerate(bad)}
    listed = {name: len(entries) for name, entries in inventory["files"].items()}
    metrics = {**total, "skipped": inventory["skipped"], "sources": listed}
    return Outcome(files, metrics)


def _groups(entries: Sequence[Mapping[str, Any]], size: int) -> list[list[Mapping[str, Any]]]:
    """The files in order, cut into groups of about `size` bytes."""
    groups: list[list[Mapping[str, Any]]] = []
    filled = size
    for entry in entries:
        if filled >= size:
            groups.append([])
            filled = 0
        groups[-1].append(entry)
        filled += entry["bytes"]
    return groups


def _read(store: Store, body: Mapping[str, Any]) -> dict[str, Any]:
    source = _SOURCE.validate_python(body["source"])
    documents = _Documents(store, body["file_bytes"])
    bad: list[dict[str, Any]] = []
    count = {"files": 0, "bytes_in": 0, "documents_in": 0, "empty": 0, "lost_values": 0}
    for entry in (Entry(**entry) for entry in body["entries"]):
        data = sources.read_unchanged(source, entry)
        count["files"] += 1
        count["bytes_in"] += len(data)
        for record in sources.records(source, entry.key, data):
            count["documents_in"] += 1
            if record.bad:
                bad.append(
                    {"source": source.name, "path": entry.key, "record": record.number, "reason": record.bad}
                )
            elif is_blank(record.text):
                count["empty"] += 1
            else:
                count["lost_values"] += record.lost_values
                documents.add(source.name, entry.key, record)
    return {
        **count,
        "documents": documents.finish(),
        "documents_out": documents.count,
        "bytes_out": documents.bytes,
        "quarantine": put_table(store, _quarantine(bad)).to_json() if bad else None,
        "bad": len(bad),
    }


class _Documents:
    """Collects documents and stores them as Parquet files of about `size` bytes of text."""

    def __init__(self, store: Store, size: int) -> None:
        self.store, self.size = store, size
        self.count = self.bytes = 0
        self.rows: list[dict[str, Any]] = []
        self.filled = 0
        self.files: list[dict[str, Any]] = []

    def add(self, source: str, path: str, record: sources.Record) -> None:
        size = len(record.text.encode())
        self.rows.append(
            {
                "id": document_id(source, path, record.number),
                "text": record.text,
                "source": source,
                "path": path,
                "record": record.number,
                "url": record.url,
                "metadata": record.metadata,
            }
        )
        self.count, self.bytes, self.filled = self.count + 1, self.bytes + size, self.filled + size
        if (
            self.filled >= self.size * 1.25
        ):  # a group of whole files is about `size`; only a large file is cut
            self._flush()

    def finish(self) -> list[dict[str, Any]]:
        if self.rows:
            self._flush()
        return self.files

    def _flush(self) -> None:
        import pyarrow

        table = pyarrow.Table.from_pylist(self.rows, schema=_schema())
        self.files.append(put_table(self.store, table).to_json())
        self.rows, self.filled = [], 0


def document_id(source: str, path: str, record: int) -> str:
    """128 bits, as 32 hexadecimal digits."""
    place = json.dumps([source, path, record], ensure_ascii=False)
    return hashlib.blake2b(place.encode(), digest_size=16).hexdigest()


def _schema() -> pyarrow.Schema:
    import pyarrow

    text, number = pyarrow.string(), pyarrow.int64()
    fields = {
        "id": text,
        "text": text,
        "source": text,
        "path": text,
        "record": number,
        "url": text,
        "metadata": text,
    }
    return pyarrow.schema(fields.items())


def _quarantine(bad: list[dict[str, Any]]) -> pyarrow.Table:
    import pyarrow

    text = pyarrow.string()
    fields = {"source": text, "path": text, "record": pyarrow.int64(), "reason": text}
    return pyarrow.Table.from_pylist(bad, schema=pyarrow.schema(fields.items()))


def _complaint(first: Mapping[str, Any], bad: int) -> str:
    more = f" ({bad - 1} more bad records)" if bad > 1 else ""
    return (
        f"corpus: {first['source']}: {first['path']}: {first['reason']}{more}; mend the file, or set "
        "corpus.bad_records: quarantine to go on without what is bad"
    )
