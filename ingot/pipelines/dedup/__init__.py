"""Documents → which of them go, each with the witness that it goes for: exact copies by normalised content
and near duplicates by MinHash-LSH over word n-grams, every pair verified by the exact Jaccard similarity of
its shingle sets.

`run` is the path; `kernels` holds what reads text, `exchange` and `rows` what passes between the steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ingot.pipelines.artifact import Artifact, File
from ingot.pipelines.dedup.banding import choose_banding
from ingot.pipelines.dedup.candidates import find_candidates
from ingot.pipelines.dedup.contents import find_contents, join_contents
from ingot.pipelines.dedup.examples import find_examples
from ingot.pipelines.dedup.exchange import put_catalogue
from ingot.pipelines.dedup.resolve import resolve_pairs
from ingot.pipelines.dedup.sign import sign_documents
from ingot.pipelines.dedup.verify import verify_pairs
from ingot.pipelines.dedup.write import write_file
from ingot.pipelines.pipeline import Outcome
from ingot.pipelines.sections import Dedup
from ingot.pipelines.store import Store
from ingot.pipelines.units import Unit, Workspace

__all__ = ["VERSION", "run"]

VERSION = 1

PARTITION_ENTRIES = 500_000  # band entries of a partition, by default: 16 MB
SMALL_PARTITIONS = 8  # a corpus of as many files is joined in as many parts, however small
TOTALS = ("documents_in", "documents_out", "bytes_in", "bytes_out", "removed_exact", "removed_near")

Record = dict[str, Any]
Work = Callable[[Store, Mapping[str, Any]], Record]


def run(workspace: Workspace, section: Dedup, inputs: Mapping[str, Artifact]) -> Outcome:
    """Reads the corpus stage's `documents/NNNNN.parquet`; makes `removed/NNNNN.parquet` (id, witness_id,
    similarity, kind) and `kept/NNNNN.parquet` (id, copies), rows in the documents file's order.

    Every witness is kept. A removal's kind is `exact` where its normalised content is its witness's, else
    `near`. `copies` is how many documents a kept one stands for, itself included."""
    store, corpus = workspace.store, inputs["corpus"]
    names = corpus.names("documents/")
    files = [corpus.files[name] for name in names]
    banding = choose_banding(section.threshold, section.permutations)
    parts = _partitions(section, files, banding.bands)
    file_parts = max(1, min(parts, len(files)))
    common = {"files": len(files), "location_partitions": file_parts}
    texts = [{"documents": file.to_json()} for file in files]
    stems = [name.removeprefix("documents/").removesuffix(".parquet") for name in names]
    steps = _Steps(workspace, stems)

    contents = steps.for_files("contents", find_contents, texts, {"partitions": parts})
    runs = put_catalogue(store, _column(contents, "run"))
    copies = steps.for_partitions("exact", join_contents, parts, {"runs": runs, **common})

    runs = put_catalogue(store, _column(copies, "run"))
    settings = {"ngram": section.ngram, "seed": section.seed, "bands": banding.bands, "rows": banding.rows}
    signing = {"copies": runs, "partitions": parts, **settings, **common}
    signed = steps.for_files("sign", sign_documents, texts, signing)

    runs = put_catalogue(store, _column(signed, "bands"))
    pairs = steps.for_partitions("candidates", find_candidates, parts, {"runs": runs, **common})

    verifying = {
        "pairs": put_catalogue(store, (run for record in pairs for run in record["runs"])),
        "signed": put_catalogue(store, _columns(signed, "documents", "shingles")),
        "threshold": section.threshold,
    }
    verified = steps.for_partitions("verify", verify_pairs, file_parts, verifying)

    edges = put_catalogue(store, _columns(verified, "edges", "nodes"))
    resolved = steps.once("resolve", resolve_pairs, {"verified": edges, **common})

    [result] = _columns([resolved], "removals", "gains", "moved")
    rows = [{"documents": record["documents"]} for record in signed]
    written = steps.for_files("write", write_file, rows, {"resolved": result, **common})

    [chosen] = _columns([resolved], "examples", "shown")
    held = sorted({place >> 32 for pairs in chosen.values() for pair in pairs for place in pair[:2]})
    where = {str(number): files[number].to_json() for number in held}
    examples = steps.once("examples", find_examples, {"documents": where, **chosen})

    metrics = {
        **{key: sum(_column(written, key)) for key in TOTALS},
        "bands": banding.bands,
        "rows": banding.rows,
        "partitions": parts,
        "candidate_pairs": sum(_column(verified, "pairs")),
        "verified_pairs": sum(_column(verified, "verified")),
        "worker_processes": steps.processes,
        "examples": examples["examples"],
        "pair": examples["pair"],
    }
    made = {
        f"{table}/{stem}.parquet": File.from_json(record[table])
        for stem, record in zip(stems, written, strict=True)
        for table in ("removed", "kept")
    }
    return Outcome(made, metrics)


@dataclass
class _Steps:
    """The ways this stage cuts a step into units."""

    workspace: Workspace
    stems: Sequence[str]  # of the documents files
    processes: dict[str, int] = field(default_factory=dict)  # that took part in each step

    def for_files(self, step: str, work: Work, own: Sequence[Record], common: Record) -> list[Record]:
        """A unit for each documents file, whose body is its number, its `own` and the `common`."""
        bodies = [{"number": number, **body, **common} for number, body in enumerate(own)]
        return self._run(step, work, [Unit(*unit) for unit in zip(self.stems, bodies, strict=True)])

    def for_partitions(self, step: str, work: Work, partitions: int, common: Record) -> list[Record]:
        """A unit for each partition of an exchange."""
        units = [Unit(f"{part:05d}", {"partition": part, **common}) for part in range(partitions)]
        return self._run(step, work, units)

    def once(self, step: str, work: Work, body: Record) -> Record:
        """One unit for all."""
        return self._run(step, work, [Unit("all", body)])[0]

    def _run(self, step: str, work: Work, units: Sequence[Unit]) -> list[Record]:
        records = self.workspace.run(step, units, work)
        processes = {(record["ran"]["host"], record["ran"]["pid"]) for record in records}
        self.processes[step] = len(processes)
        return records


def _partitions(section: Dedup, files: Sequence[File], bands: int) -> int:
    """Of each exchange: as the corpus asks, never as the cluster does, or a run that goes on elsewhere would
    find the records of another cut."""
    documents = sum(file.rows or 0 for file in files)
    asked = -(-documents * bands // PARTITION_ENTRIES)
    return section.partitions or max(1, asked, min(len(files), SMALL_PARTITIONS))


def _column(records: Iterable[Record], key: str) -> list[Any]:
    return [record[key] for record in records]


def _columns(records: Iterable[Record], *keys: str) -> list[Record]:
    return [{key: record[key] for key in keys} for record in records]
