"""The steps of dedup, cut into units of work."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ingot.pipelines.artifact import File
from ingot.pipelines.dedup.exchange import FAN_IN, Column, Cuts, Run, first_files, merge_runs
from ingot.pipelines.store import Store
from ingot.pipelines.units import Unit, Workspace

VERSION = 3  # of the stage

PARTITION_ENTRIES = 500_000  # band entries of a partition of the hashes: 16 MB
PARTITION_BYTES = 16_000_000  # of documents files, compressed: about 64 MB of text, and as much of shingles
SMALL_PARTITIONS = 8  # a corpus of as many files is joined in as many parts, however small

Record = dict[str, Any]
Work = Callable[[Store, Mapping[str, Any]], Record]


@dataclass(frozen=True)
class Exchange:
    """The runs of one step, by the partitions of the next."""

    columns: Sequence[Column]  # in the order of partitions, which they share out

    def __getitem__(self, part: int) -> Sequence[Run]:
        return self.columns[bisect_right(self.columns, part, key=lambda column: column.first) - 1].runs


@dataclass
class Steps:
    """The ways this stage cuts a step into units. `partitions` are those of the hashes; `cuts` say how the
    documents files of each snapshot are cut into partitions, those of the new one last."""

    workspace: Workspace
    partitions: int
    cuts: Cuts
    done: dict[str, Record] = field(default_factory=dict)  # of each step: units, processes and seconds

    def __post_init__(self) -> None:
        self.firsts = first_files(self.cuts)
        self.files = sum(files for files, _ in self.cuts)
        self.new_files = range(self.files - self.cuts[-1][0], self.files)
        self.file_partitions = len(self.firsts)
        self.new_parts = range(self.file_partitions - self.cuts[-1][1], self.file_partitions)
        self.places: Record = {
            "cuts": [list(cut) for cut in self.cuts]
        }  # what units take that cut by location

    def files_of(self, part: int) -> range:
        """The numbers of a partition's documents files."""
        return range(self.firsts[part], [*self.firsts, self.files][part + 1])

    def for_files(self, step: str, work: Work, own: Callable[[int], Record], common: Record) -> list[Record]:
        """A unit for each new documents file, whose body is its number, its `own` and the `common`."""
        bodies = [{"number": number, **own(number), **common} for number in self.new_files]
        return self._run(step, work, [Unit(f"{body['number']:06d}", body) for body in bodies])

    def for_texts(self, step: str, work: Work, own: Callable[[int], Record], common: Record) -> list[Record]:
        """As `for_files`, for a step that reads text: what it gives for a body is kept for any later run."""
        bodies = [
            {"number": number, "version": VERSION, **own(number), **common} for number in self.new_files
        ]
        return self._noted(step, lambda: self.workspace.run_shared("dedup", step, bodies, work))

    def for_hashes(self, step: str, work: Work, own: Callable[[int], Record], common: Record) -> list[Record]:
        """A unit for each partition of the hashes."""
        return self._for(range(self.partitions), step, work, own, common)

    def for_places(
        self,
        step: str,
        work: Work,
        own: Callable[[int], Record],
        common: Record,
        parts: Iterable[int] | None = None,
    ) -> list[Record]:
        """A unit for each new partition of the documents files, or each of `parts`."""
        return self._for(self.new_parts if parts is None else parts, step, work, own, common)

    def touched(self, records: Iterable[Record], key: str) -> list[int]:
        """The earlier partitions that the records name under `key`, and all new ones."""
        named = {part for record in records for part in record[key]}
        return [*sorted(named - set(self.new_parts)), *self.new_parts]

    def _for(
        self, parts: Iterable[int], step: str, work: Work, own: Callable[[int], Record], common: Record
    ) -> list[Record]:
        bodies = [{"partition": part, **own(part), **common} for part in parts]
        return self._run(step, work, [Unit(f"{body['partition']:06d}", body) for body in bodies])

    def once(self, step: str, work: Work, body: Record) -> Record:
        """One unit for all."""
        return self._run(step, work, [Unit("all", body)])[0]

    def exchange(self, step: str, runs: Iterable[Run], partitions: int) -> Exchange:
        """The runs, merged as often as it takes for every partition to lie in few of them."""
        columns = [Column(0, partitions, [run for run in runs if run["bytes"]])]
        level = 0
        while any(len(column.runs) > FAN_IN for column in columns):
            level += 1
            narrow = [column for column in columns if len(column.runs) <= FAN_IN]
            wide = [cut for column in columns if len(column.runs) > FAN_IN for cut in column.cut()]
            merges = [(column, group) for column in wide for group in column.groups()]
            units = [
                Unit(f"{at:06d}", {"runs": group, "first": column.first, "end": column.end})
                for at, (column, group) in enumerate(merges)
            ]
            merged = iter(self._run(f"{step}-merge-{level}", merge_runs, units))
            for column in wide:
                own = [next(merged)["run"] for _ in column.groups()]
                narrow.append(Column(column.first, column.end, [run for run in own if run["bytes"]]))
            columns = sorted(narrow, key=lambda column: column.first)
        return Exchange(columns)

    def _run(self, step: str, work: Work, units: Sequence[Unit]) -> list[Record]:
        return self._noted(step, lambda: self.workspace.run(step, units, work))

    def _noted(self, step: str, run: Callable[[], list[Record]]) -> list[Record]:
        began = time.monotonic()
        records = run()
        processes = {(record["ran"]["host"], record["ran"]["pid"]) for record in records}
        seconds = round(time.monotonic() - began, 3)
        self.done[step] = {"units": len(records), "processes": len(processes), "seconds": seconds}
        return records


def choose_partitions(files: Sequence[File], bands: int, given: int | None) -> tuple[int, int]:
    """Of the hashes and of the documents files: as the snapshot asks, never as the cluster does, or a run
    that goes on elsewhere would find the records of another cut."""
    documents = sum(file.rows or 0 for file in files)
    asked = -(-documents * bands // PARTITION_ENTRIES)
    hashes = given or max(1, asked, min(len(files), SMALL_PARTITIONS))
    by_text = sum(file.bytes for file in files) // PARTITION_BYTES
    return hashes, max(1, min(len(files), given or max(by_text, SMALL_PARTITIONS)))
