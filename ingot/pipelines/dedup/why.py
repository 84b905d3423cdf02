"""Why a document went, or that it stayed: what a run's artifacts say of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow.compute

from ingot.errors import UsageError
from ingot.pipelines.artifact import Artifact
from ingot.pipelines.dedup.keys import address

READERS = 8
TEXT = 4000  # characters of a text that are given

_ID = re.compile("[0-9a-f]{32}")


def explain(corpus: Artifact, dedup: Artifact, name: str) -> list[dict[str, Any]]:
    """Of each document that `name` (an id, a path or an address) stands for: id, source, path, url and the
    beginning of its text; `kind` ("kept", or of its removal), `similarity` and `bands`; `copies` of a kept
    one; of what went the `witness`, described likewise, or None. Raises UsageError where there is none."""
    found = [_described(corpus, dedup, file, document) for file, document in _find(corpus, name)]
    if not found:
        raise UsageError(
            f"the corpus has no document {name!r}; give an id, a path as the sources list it, or an address"
        )
    return found


def _find(corpus: Artifact, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(documents file, row) of each document."""
    by_id = _ID.fullmatch(name) is not None
    columns = ["id"] if by_id else ["id", "path", "url"]

    def rows_of(file: str) -> list[int]:
        table = corpus.table(file, columns)
        if by_id:
            return pyarrow.compute.indices_nonzero(pyarrow.compute.equal(table["id"], name)).to_pylist()
        wanted = address(name)
        return [
            row
            for row, (path, url) in enumerate(
                zip(table["path"].to_pylist(), table["url"].to_pylist(), strict=True)
            )
            if path == name or (wanted is not None and address(url) == wanted)
        ]

    files = corpus.names("documents/")
    with ThreadPoolExecutor(READERS) as pool:
        for file, rows in zip(files, pool.map(rows_of, files), strict=True):
            for row in rows:
                yield file, corpus.table(file).slice(row, 1).to_pylist()[0]


def _described(corpus: Artifact, dedup: Artifact, file: str, document: dict[str, Any]) -> dict[str, Any]:
    described = _description(document)
    for table in ("removed", "kept"):
        rows = dedup.table(file.replace("documents/", f"{table}/"))
        rows = rows.filter(pyarrow.compute.equal(rows["id"], document["id"])).to_pylist()
        if rows and table == "kept":
            return {**described, "kind": "kept", "copies": rows[0]["copies"]}
        if rows:
            [row] = rows
            witness = None
            if row["witness_id"] is not None:
                [(_, found)] = _find(corpus, row["witness_id"])
                witness = _description(found)
            why = {name: row[name] for name in ("kind", "similarity", "bands")}
            return {**described, **why, "witness": witness}
    raise AssertionError(f"{document['id']} neither went nor stayed")


def _description(document: dict[str, Any]) -> dict[str, Any]:
    shown = {name: document[name] for name in ("id", "source", "path", "url")}
    return {**shown, "text": document["text"][:TEXT]}
