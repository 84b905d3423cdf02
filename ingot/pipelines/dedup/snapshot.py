"""One snapshot: what goes of its documents, for documents of its own or of earlier snapshots.

Nothing of an earlier snapshot is decided anew, as all its documents rank before. So of the earlier ones a
snapshot reads what it touches of their indexes (the leaders of copies, the representatives of buckets), the
shingles of those representatives that stay, and what leaders went for; it writes anew the tables of kept
documents that stand for more now. The result is that of a single pass over all."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np

from ingot.pipelines.artifact import Artifact, File, entries_of, put_json
from ingot.pipelines.dedup.banding import banding_of
from ingot.pipelines.dedup.candidates import find_candidates
from ingot.pipelines.dedup.components import join_components
from ingot.pipelines.dedup.examples import find_examples
from ingot.pipelines.dedup.exchange import Column, Run, put_rows
from ingot.pipelines.dedup.follow import follow_leaders
from ingot.pipelines.dedup.keys import find_gone, find_keys, join_keys, leave_followers_out
from ingot.pipelines.dedup.rows import KINDS, PLACE
from ingot.pipelines.dedup.settle import settle_edges
from ingot.pipelines.dedup.ship import ship_shingles
from ingot.pipelines.dedup.sign import sign_documents
from ingot.pipelines.dedup.steps import Exchange, Record, Steps, choose_partitions
from ingot.pipelines.dedup.takedown import find_taken_down
from ingot.pipelines.dedup.verify import verify_pairs
from ingot.pipelines.dedup.write import EXAMPLES, add_gains, write_files
from ingot.pipelines.pipeline import Outcome
from ingot.pipelines.sections import Dedup
from ingot.pipelines.units import Workspace

TABLES = ("removed/", "kept/")
TOTALS = (
    *("documents_in", "documents_out", "bytes_in", "bytes_out"),
    *(f"{what}_{kind}" for kind in KINDS for what in ("removed", "removed_bytes")),
)


@dataclass(frozen=True)
class Base:
    """What is decided of the snapshots up to one, and the indexes of it and of those before."""

    artifact: Artifact
    before: Base | None

    @cached_property
    def index(self) -> Record:
        body: Record = self.artifact.json("index.json")
        return body

    @property
    def all(self) -> list[Base]:
        return [*(self.before.all if self.before else []), self]


class Earlier:
    """The earlier snapshots, as the steps ask for them."""

    def __init__(self, base: Base | None) -> None:
        self.bases = base.all if base else []
        self.metrics: Mapping[str, Any] = base.artifact.metrics if base else {}
        self.artifact = base.artifact if base else None
        self.cuts: list[Sequence[int]] = [each.index["cut"] for each in self.bases]
        self.files: list[Record] = [entry for each in self.bases for entry in each.index["files"]]
        self._removals = [
            Exchange(
                [Column(column["first"], column["end"], column["runs"]) for column in each.index["removals"]]
            )
            for each in self.bases
        ]
        self._owners = [at for at, (_, parts) in enumerate(self.cuts) for _ in range(parts)]

    def indexes(self, name: str, part: int, partitions: int) -> list[Record]:
        """The indexes that may hold hashes of a partition."""
        least, end = (part << 64) // partitions, (part + 1 << 64) // partitions
        found: list[Record] = []
        for each in self.bases:
            filled = each.index[name]  # in the order of their hashes
            first = bisect_left(filled, least, key=lambda index: int(index["greatest"]))
            last = bisect_left(filled, end, key=lambda index: int(index["least"]))
            found += filled[first:last]
        return found

    def removals(self, part: int) -> Sequence[Run]:
        """The runs of what went of an earlier partition of the documents."""
        return self._removals[self._owners[part]][part]


class Snapshot:
    """The steps of one snapshot."""

    def __init__(
        self, steps: Steps, section: Dedup, earlier: Earlier, texts: Sequence[Record], stems: Sequence[str]
    ) -> None:
        self.steps, self.section, self.earlier, self.texts, self.stems = steps, section, earlier, texts, stems
        self.indexes: dict[str, list[Record]] = {}
        self.removals = Exchange([])
        self.taken: list[Record] = []
        self.excluded: Record | None = None

    def take_down(self) -> None:
        """Finds what is to be nowhere."""
        if self.section.takedown:
            names = put_json(self.steps.workspace.store, self.section.takedown)
            common = {"takedown": names.to_json(), **self.steps.places}
            self.taken = self.steps.for_files("takedown", find_taken_down, self.texts.__getitem__, common)
            places = np.array(sorted(_flat(self.taken, "excluded")), np.uint64).astype(PLACE)
            self.excluded = put_rows(self.steps.workspace.store, places)

    def copies(self, keyed: Mapping[int, Record]) -> dict[str, list[Record]]:
        """Kind of copy → join_keys' records."""
        steps = self.steps
        found: dict[str, list[Record]] = {}
        contents = [each["contents"] for each in keyed.values()]
        if self.section.url:
            found["url"] = self._join("url", [each["addresses"] for each in keyed.values()])
            gone = self.gone("url-gone", _values(found["url"], "gone"))
            remaining = steps.for_files(
                "contents",
                leave_followers_out,
                lambda number: {"contents": keyed[number]["contents"], "gone": gone[number]},
                {"partitions": steps.partitions},
            )
            contents = _values(remaining, "contents")
        found["exact"] = self._join("exact", contents)
        return found

    def _join(self, kind: str, runs: Iterable[Record]) -> list[Record]:
        keys = self.steps.exchange(f"{kind}-keys", runs, self.steps.partitions)
        records = self.steps.for_hashes(
            kind,
            join_keys,
            lambda part: {"runs": keys[part], "indexes": self._earlier(kind, part)},
            {"excluded": self.excluded, **self.steps.places},
        )
        self._keep_indexes(kind, records)
        word = {"url": "of an address that a better one has", "exact": "equal to a better one"}[kind]
        self.steps.workspace.progress.say(f"  {sum(_values(records, 'count')):,} documents are {word}")
        return records

    def _keep_indexes(self, name: str, records: Sequence[Record]) -> None:
        self.indexes[name] = [index for index in _values(records, "index") if index["rows"]]

    def _earlier(self, name: str, part: int) -> list[Record]:
        return self.earlier.indexes(name, part, self.steps.partitions)

    def gone(self, step: str, runs: Iterable[Run]) -> dict[int, Record]:
        """What find_gone gives of each new file."""
        steps = self.steps
        gone = steps.exchange(f"{step}-runs", runs, steps.file_partitions)
        records = steps.for_places(
            step, find_gone, lambda part: {"runs": gone[part], "files": list(steps.files_of(part))}, {}
        )
        return _numbered(steps, _flat(records, "files"))

    def near(self, signed: Mapping[int, Record]) -> list[Record]:
        """verify_pairs' records."""
        steps, banding = self.steps, banding_of(self.section)
        bands = steps.exchange("bands", _values(signed.values(), "bands"), steps.partitions)
        found = steps.for_hashes(
            "candidates",
            find_candidates,
            lambda part: {"runs": bands[part], "indexes": self._earlier("bands", part)},
            steps.places,
        )
        self._keep_indexes("bands", found)
        asks = steps.exchange("asks", _flat(found, "asks"), steps.file_partitions)
        pairs = steps.exchange("pairs", _flat(found, "pairs"), steps.file_partitions)

        def own(part: int) -> Record:
            files = steps.files_of(part)
            entries = [signed[n] if n in signed else self.earlier.files[n] for n in files]
            needed = [{name: entry[name] for name in ("documents", "shingles")} for entry in entries]
            return {"first": files.start, "signed": needed}

        shipped = steps.for_places(
            "ship",
            ship_shingles,
            lambda part: {"asks": asks[part], **own(part)},
            steps.places,
            steps.touched(found, "asked"),
        )
        sets = steps.exchange("sets", _flat(shipped, "sets"), steps.file_partitions)
        return steps.for_places(
            "verify",
            verify_pairs,
            lambda part: {"pairs": pairs[part], "sets": sets[part], **own(part)},
            {
                "threshold": self.section.threshold,
                "signatures": banding.bands * banding.rows if self.section.decide == "signature" else 0,
                **steps.places,
            },
        )

    def follow(self, kind: str, copies: Sequence[Record], removed: Sequence[Record]) -> list[Record]:
        """put_removals' records of the copies of this kind."""
        steps = self.steps
        followers = steps.exchange(f"{kind}-followers", _values(copies, "followers"), steps.file_partitions)
        gone = steps.exchange(f"{kind}-leaders", _values(removed, "removals"), steps.file_partitions)

        def own(part: int) -> Record:
            went = gone[part] if part in steps.new_parts else self.earlier.removals(part)
            return {"followers": followers[part], "removals": went}

        return steps.for_places(
            f"{kind}-follow",
            follow_leaders,
            own,
            {"kind": kind, **steps.places},
            steps.touched(copies, "led"),
        )

    def write(
        self, signed: Mapping[int, Record], removed: Sequence[Record]
    ) -> tuple[list[Record], list[Record]]:
        """write_files' records, and add_gains' of the earlier partitions."""
        steps = self.steps
        self.removals = steps.exchange("removals", _values(removed, "removals"), steps.file_partitions)
        gains = steps.exchange("gains", _values(removed, "gains"), steps.file_partitions)

        def own(part: int) -> Record:
            files = steps.files_of(part)
            documents = [signed[number]["documents"] for number in files]
            return {
                "first": files.start,
                "documents": documents,
                "removals": self.removals[part],
                "gains": gains[part],
            }

        def earlier(part: int) -> Record:
            files, tables = steps.files_of(part), self.earlier.artifact
            assert tables is not None
            return {
                "first": files.start,
                "documents": [self.earlier.files[number]["documents"] for number in files],
                "kept": [tables.files[f"kept/{self.stems[number]}"].to_json() for number in files],
                "gains": gains[part],
            }

        gaining = [part for part in steps.touched(removed, "gaining") if part not in steps.new_parts]
        changed = steps.for_places("gains", add_gains, earlier, {}, gaining) if gaining else []
        return steps.for_places("write", write_files, own, {"new": steps.new_files.start}), changed

    def examples(self, written: Sequence[Record]) -> Record:
        chosen = {
            "examples": [pair[1:] for pair in sorted(_flat(written, "examples"))[:EXAMPLES]],
            "shown": [pair[2:] for pair in sorted(_flat(written, "shown"))[:1]],
        }
        held = sorted({place >> 32 for pairs in chosen.values() for pair in pairs for place in pair[:2]})
        where = {str(number): self.texts[number]["documents"] for number in held}
        return self.steps.once("examples", find_examples, {"documents": where, **chosen})


def add_snapshot(
    workspace: Workspace,
    section: Dedup,
    corpus: Artifact,
    names: Sequence[str],
    base: Base | None,
    snapshots: Sequence[int],
) -> Outcome:
    """The tables of all documents files of `names`, of which `base` says all but what is new, and
    `index.json` with the files it names (`index/…`). `snapshots`: of each documents file."""
    earlier = Earlier(base)
    files = [corpus.files[name] for name in names]
    new = files[len(earlier.files) :]
    banding = banding_of(section)
    partitions, file_partitions = choose_partitions(new, banding.bands, section.partitions)
    steps = Steps(workspace, partitions, [*earlier.cuts, (len(new), file_partitions)])
    texts = [{"documents": file.to_json()} for file in files]
    stems = [name.removeprefix("documents/") for name in names]
    snapshot = Snapshot(steps, section, earlier, texts, stems)

    comparing: Record = {"scope": section.scope, "normalize": section.normalize, "casefold": section.casefold}
    keying: Record = {**comparing, "url": section.url, "priority": section.priority}
    keying |= {"quality": section.quality, "partitions": partitions}
    snapshot.take_down()

    def key(number: int) -> Record:
        return {**texts[number], "snapshot": snapshots[number]}

    keyed = _numbered(steps, steps.for_texts("keys", find_keys, key, keying))
    copies = snapshot.copies(keyed)
    gone = snapshot.gone("gone", _values([*chain(*copies.values()), *snapshot.taken], "gone"))

    def signing(number: int) -> Record:
        return {**texts[number], "rows": keyed[number]["documents"], "gone": gone[number]}

    settings: Record = {**comparing, "ngram": section.ngram, "seed": section.seed}
    settings |= {"bands": banding.bands, "band_rows": banding.rows, "partitions": partitions}
    settings |= {"decide": section.decide}
    signed = _numbered(steps, steps.for_texts("sign", sign_documents, signing, settings))
    verified: list[Record] = []
    if section.decide == "components":
        removed = join_components(steps, _values(signed.values(), "bands"), signed)
    else:
        verified = snapshot.near(signed)
        removed = settle_edges(steps, verified)
        pairs, near = (sum(_values(verified, name)) for name in ("pairs", "verified"))
        went = sum(_values(removed, "count"))
        workspace.progress.say(f"  {pairs:,} pairs compared, {near:,} near: {went:,} documents go")
    for kind in ("exact", "url"):
        if kind in copies:
            removed += snapshot.follow(kind, copies[kind], removed)
    written, changed = snapshot.write(signed, [*removed, *snapshot.taken])
    examples = snapshot.examples(written)

    metrics = _metrics(earlier.metrics, written, changed)
    metrics |= {"bands": banding.bands, "rows": banding.rows, "partitions": partitions}
    for name, key_of in (("candidate_pairs", "pairs"), ("verified_pairs", "verified")):
        metrics[name] = earlier.metrics.get(name, 0) + sum(_values(verified, key_of))
    metrics["taken_down"] = sorted({*earlier.metrics.get("taken_down", []), *_flat(snapshot.taken, "found")})
    metrics["steps"] = steps.done
    shown = [*earlier.metrics.get("examples", []), *examples["examples"]]
    metrics["examples"] = sorted(shown, key=lambda example: str(example["id"]))[:EXAMPLES]
    metrics["pair"] = earlier.metrics.get("pair") or examples["pair"]

    tables: dict[str, File] = {}
    if earlier.artifact is not None:
        tables |= {name: file for name, file in earlier.artifact.files.items() if name.startswith(TABLES)}
    for record in changed:
        tables |= {f"kept/{stems[int(n)]}": File.from_json(entry) for n, entry in record["kept"].items()}
    new_tables = [own for record in written for own in record["files"]]
    for number, own in zip(steps.new_files, new_tables, strict=True):
        tables |= {f"{table}/{stems[number]}": File.from_json(own[table]) for table in ("removed", "kept")}
    index = {
        "cut": list(steps.cuts[-1]),
        "files": [
            {"documents": own["index"], "shingles": signed[number]["shingles"]}
            for number, own in zip(steps.new_files, new_tables, strict=True)
        ],
        "removals": [
            {"first": column.first, "end": column.end, "runs": column.runs}
            for column in snapshot.removals.columns
        ],
        **snapshot.indexes,
    }
    tables |= {f"index/{entry['sha256'][:32]}": File.from_json(entry) for entry in entries_of(index)}
    return Outcome({**tables, "index.json": put_json(workspace.store, index)}, metrics)


def _metrics(before: Mapping[str, Any], written: Sequence[Record], changed: Sequence[Record]) -> Record:
    """The sums, `clusters` (how many kept documents stand for 1 document, 2, up to 4, up to 8, …) and the
    `funnel`."""
    sums = {name: before.get(name, 0) + sum(_values(written, name)) for name in TOTALS}
    clusters = [before.get("clusters", {}), *_values([*written, *changed], "clusters")]
    sizes = sorted({int(size) for each in clusters for size in each})
    counts = {str(size): sum(each.get(str(size), 0) for each in clusters) for size in sizes}
    return {
        **sums,
        "clusters": {size: count for size, count in counts.items() if count},
        "funnel": _funnel(sums),
    }


def _funnel(sums: Mapping[str, int]) -> list[Record]:
    """What each kind of removal found and left, in the order in which they take place."""
    found: list[Record] = []
    documents, size = sums["documents_in"], sums["bytes_in"]
    for kind in reversed(KINDS):
        step = {"step": kind, "documents_in": documents, "bytes_in": size}
        documents, size = documents - sums[f"removed_{kind}"], size - sums[f"removed_bytes_{kind}"]
        found.append({**step, "documents_out": documents, "bytes_out": size})
    return found


def _numbered(steps: Steps, records: Sequence[Record]) -> dict[int, Record]:
    """By the number of the new documents file."""
    return dict(zip(steps.new_files, records, strict=True))


def _values(records: Iterable[Record], key: str) -> list[Any]:
    return [record[key] for record in records]


def _flat(records: Iterable[Record], key: str) -> list[Any]:
    return [value for record in records for value in record[key]]
