"""The steps of dedup, cut into units of work."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ingot.pipelines.artifact import File
from ingot.pipelines.dedup.exchange import (
    FAN_IN,
    Column,
    Run,
    first_file,
    location_bounds,
    merge_runs,
    partitions_of,
)
from ingot.pipelines.dedup.rows import ROW_BITS
from ingot.pipelines.store import Store
from ingot.pipelines.units import Unit, Workspace

Record = dict[str, Any]
Work = Callable[[Store, Mapping[str, Any]], Record]


@dataclass(frozen=True)
class Exchange:
    """The runs of one step, by the partitions of the next."""

    columns: Sequence[Column]

    def __getitem__(self, part: int) -> list[Run]:
        return [run for column in self.columns if column.first <= part < column.end for run in column.runs]


@dataclass
class Steps:
    """The ways this stage cuts a step into units. `partitions` are those of the hashes, `file_partitions`
    those of the documents files."""

    workspace: Workspace
    stems: Sequence[str]  # of the documents files
    partitions: int
    file_partitions: int
    processes: dict[str, int] = field(default_factory=dict)  # that took part in each step

    @property
    def places(self) -> Record:
        """What every unit that cuts by location takes."""
        return {"files": len(self.stems), "file_partitions": self.file_partitions}

    def files_of(self, part: int) -> range:
        """The numbers of a partition's documents files."""
        first, end = (first_file(at, self.file_partitions, len(self.stems)) for at in (part, part + 1))
        return range(first, end)

    def partition_of(self, number: int) -> int:
        """The partition of a documents file."""
        bounds = location_bounds(self.file_partitions, len(self.stems))
        return int(partitions_of(bounds, np.array([number << ROW_BITS], np.uint64))[0])

    def for_files(self, step: str, work: Work, own: Callable[[int], Record], common: Record) -> list[Record]:
        """A unit for each documents file, whose body is its number, its `own` and the `common`."""
        bodies = [{"number": number, **own(number), **common} for number in range(len(self.stems))]
        return self._run(step, work, [Unit(*unit) for unit in zip(self.stems, bodies, strict=True)])

    def for_hashes(self, step: str, work: Work, own: Callable[[int], Record], common: Record) -> list[Record]:
        """A unit for each partition of the hashes."""
        return self._for(self.partitions, step, work, own, common)

    def for_places(self, step: str, work: Work, own: Callable[[int], Record], common: Record) -> list[Record]:
        """A unit for each partition of the documents files."""
        return self._for(self.file_partitions, step, work, own, common)

    def _for(
        self, partitions: int, step: str, work: Work, own: Callable[[int], Record], common: Record
    ) -> list[Record]:
        bodies = [{"partition": part, **own(part), **common} for part in range(partitions)]
        return self._run(step, work, [Unit(f"{part:05d}", body) for part, body in enumerate(bodies)])

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
            columns = narrow
        return Exchange(columns)

    def _run(self, step: str, work: Work, units: Sequence[Unit]) -> list[Record]:
        records = self.workspace.run(step, units, work)
        processes = {(record["ran"]["host"], record["ran"]["pid"]) for record in records}
        self.processes[step] = len(processes)
        return records


def choose_partitions(files: Sequence[File], bands: int, most: int | None) -> tuple[int, int]:
    """Of the hashes and of the documents files: as the corpus asks, never as the cluster does, or a run that
    goes on elsewhere would find the records of another cut."""
    documents = sum(file.rows or 0 for file in files)
    asked = -(-documents * bands // PARTITION_ENTRIES)
    hashes = most or max(1, asked, min(len(files), SMALL_PARTITIONS))
    by_text = sum(file.bytes for file in files) // PARTITION_BYTES
    return hashes, max(1, min(len(files), most or max(by_text, SMALL_PARTITIONS)))


PARTITION_ENTRIES = 500_000  # band entries of a partition of the hashes: 16 MB
PARTITION_BYTES = 16_000_000  # of documents files, compressed: about 64 MB of text, and as much of shingles
SMALL_PARTITIONS = 8  # a corpus of as many files is joined in as many parts, however small
