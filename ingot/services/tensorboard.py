"""The metrics of a run as event files, for TensorBoard: written from the JSON lines in the store, wherever
that can be read, while the run is under way or afterwards.

A file each for a chunk of a training's log and for an evaluation, named after it, so what is written already
is not written again. A chunk's file begins with the sign of a session that starts at its first step: readers
then drop what they have of that step and later ones, which an attempt had taken and lost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ingot.pipelines.pipeline import TRAINING
from ingot.pipelines.records import read_lines
from ingot.pipelines.runs import artifact_keys, has_ended
from ingot.pipelines.store import Store

if TYPE_CHECKING:
    from tensorboardX.proto.event_pb2 import Event

Lines = list[dict[str, Any]]

FOLLOW_SECONDS = 5.0
NO_METRICS = ("step", "at", "attempt")


def export(store: Store, run: str, folder: Path, follow: bool, say: Callable[[str], object]) -> None:
    """Writes below `folder`, in RUN/STAGE-FINGERPRINT and in held-out/ there, what is not there yet; with
    `follow` until the run has ended. With other settings a run has other fingerprints, and so stands beside
    what it was before. Raises UsageError where there is no such run."""
    ended = False
    while not ended:
        ended = not follow or has_ended(store, run)  # asked first: what is committed then is written below
        count = sum(
            _export(store, key, folder / run / f"{stage}-{key.rpartition('/')[2][:8]}")
            for stage, key in artifact_keys(store, run).items()
            if stage in TRAINING
        )
        if count:
            say(f"{count} event files written below {folder / run}")
        if not ended:
            time.sleep(FOLLOW_SECONDS)


def _export(store: Store, key: str, folder: Path) -> int:
    """Of one training; the number of files."""
    from ingot.pipelines.training.log import chunks

    evaluations = sorted(store.list(f"{key}/evaluation/"))
    files = [_write(store, name, folder, _steps) for name in chunks(store, key)]
    files += [_write(store, name, folder / "held-out", _evaluation) for name in evaluations]
    return sum(files)


def _write(store: Store, name: str, folder: Path, events: Callable[[Lines], Iterable[Event]]) -> bool:
    """The events of an object's lines in a file named after it, if there is none yet."""
    from tensorboardX.record_writer import RecordWriter

    path = folder / f"events.out.tfevents.{Path(name).stem}"
    if path.exists():
        return False
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f".{Path(name).stem}.part"  # readers take every file with tfevents in its name
    writer = RecordWriter(str(part))
    for event in events(read_lines(store, name)):
        writer.write(event.SerializeToString())
    writer.close()
    part.replace(path)
    return True


def _steps(lines: Lines) -> Iterable[Event]:
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    first = lines[0]
    yield Event(wall_time=first["at"], file_version="brain.Event:2")
    start = SessionLog(status=SessionLog.SessionStatus.Value("START"))
    yield Event(wall_time=first["at"], step=first["step"], session_log=start)
    for line in lines:
        figures = {name: value for name, value in line.items() if isinstance(value, int | float)}
        figures["tokens_per_second"] = line["tokens"] / line["seconds"]
        yield from _scalars(figures, line["step"], line["at"])


def _evaluation(lines: Lines) -> Iterable[Event]:
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.summary import text

    [line] = lines
    yield Event(wall_time=line["at"], file_version="brain.Event:2")
    yield from _scalars(line["metrics"], line["step"], line["at"])
    for number, sample in enumerate(line["samples"]):
        words = "\n".join(f"    {row}" for row in (sample["prompt"] + sample["continuation"]).splitlines())
        yield Event(wall_time=line["at"], step=line["step"], summary=text(f"sample {number}", words))


def _scalars(figures: dict[str, float], step: int, at: float) -> Iterable[Event]:
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.summary import scalar

    for name in sorted(figures.keys() - NO_METRICS):
        yield Event(wall_time=at, step=step, summary=scalar(name, figures[name]))
