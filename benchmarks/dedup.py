"""How fast and how well near duplicates are found, beside datatrove and datasketch.

    python benchmarks/dedup.py [--quick] [--megabytes N] [--without PEER]

Three parts, on source code and docs of the installed packages:
- signing: from text in memory to a MinHash signature (word 5-grams, 256 permutations) on one core, in turns
  with datatrove's own functions and with a loop over documents in datasketch;
- the stage: `ingot run --until dedup`, reading and writing included, beside datatrove's four stages on two
  workers and the same documents; and while the text grows from 1x to 4x to 16x, the last with one worker and
  with two;
- what was found: planted pairs of Jaccard similarity 0.5 to 0.95, and how far datatrove's removals are ours.

Notes. Two cores of a virtual machine sign 1.4 to 1.8 times as fast as one, without Ray and files, and driver,
raylet and page cache share them: read `workers_2_over_1` beside `signing_processes_2_over_1`. Some five
seconds of the stage, with one worker as with two, are Ray Data and worker processes that start. Units that
wait for the driver between them cost most before tasks had several (1.1 times instead of 1.4). Allocator
thresholds that keep pages (`MALLOC_TRIM_THRESHOLD_`) save 12 % in one process; they were left out.

Each peer runs in an environment of its own, made on first use from requirements/peers/. The last line is one
JSON object with all figures.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dedup_memory import watched
from dedup_texts import Pair, gather, grown, planted, put, write
from peers.environment import HERE, ROOT, Peer, Unavailable, pinned, python_of

from ingot.pipelines.artifact import Artifact, load
from ingot.pipelines.dedup.banding import choose_banding
from ingot.pipelines.dedup.characters import character_classes
from ingot.pipelines.dedup.kernels import capacity, permutations, sign
from ingot.pipelines.store import open_store

NGRAM, BANDS, ROWS = 5, 32, 8
PERMUTATIONS = BANDS * ROWS
THRESHOLD = 0.8
ALIKE = 0.85  # from here on a pair must be found
MOST_BIAS = 0.01  # of a mean over hundreds of estimates, each with a standard deviation of 0.03
LEAST_CONFIRMED = 0.9  # of our removals: its candidates are pairs from 0.8 on with probability 0.98 and more
WORKERS = (1, 2)
GROWTH = (1, 4, 16)  # the second of them is the texts as they are


@dataclass(frozen=True)
class Size:
    megabytes: int  # signed in memory, and deduplicated
    sample: float  # MB of it that the peers sign too
    peer_megabytes: int  # deduplicated beside datatrove
    pairs: int  # planted, of each level
    turns: int
    runs: int


FULL = Size(220, 2.5, 220, 200, 5, 2)
QUICK = Size(12, 0.4, 4, 50, 3, 1)


@dataclass(frozen=True)
class Run:
    """One `ingot run --until dedup`."""

    seconds: float  # of the stage
    command_seconds: float  # of all, Ray's start included
    driver_mb: float
    worker_mb: float
    removed: dict[str, str]  # url → its witness's
    urls: set[str]


def main() -> None:
    options = parse()
    size = QUICK if options.quick else FULL
    megabytes = options.megabytes or size.megabytes
    texts = gather(megabytes * 10**6)
    total = sum(len(text.encode()) for text in texts)
    short = "" if total > megabytes * 0.9e6 else f": all there is, not the {megabytes} MB asked for"
    print(f"{len(texts)} documents, {total / 1e6:.0f} MB of text{short}", flush=True)
    pairs = planted(size.pairs)
    figures: dict[str, float] = {"megabytes": total / 1e6, "documents": len(texts)}
    ratios: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="ingot-bench-") as folder:
        for part in (measure_signing, measure_stage):
            found, compared = part(Path(folder), texts, pairs, size, set(options.without))
            figures |= found
            ratios |= compared
    body = {
        "benchmark": "dedup",
        "machine": machine(),
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("numpy", "numba", "pyarrow", "ray")}
        | pinned("datatrove", "datasketch"),
        "figures": {name: round(value, 4) for name, value in figures.items()},
        "ratios": {name: round(value, 3) for name, value in ratios.items()},
    }
    print(json.dumps(body))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="less text and fewer turns: within three minutes"
    )
    parser.add_argument("--megabytes", type=int, metavar="N", help="of text that Ingot reads")
    peers = ("datatrove", "datasketch")
    parser.add_argument("--without", choices=peers, action="append", default=[], help="leave this peer out")
    return parser.parse_args()


def measure_signing(
    folder: Path, texts: list[str], pairs: list[Pair], size: Size, without: set[str]
) -> tuple[dict[str, float], dict[str, float]]:
    """MB/s of one core, beside the peers in turns."""
    drawn = sample(texts, size.sample * 1e6)
    documents = put(folder / "sample.parquet", text=drawn)
    sides = put(folder / "pairs.parquet", left=(p.left for p in pairs), right=(p.right for p in pairs))
    exact = np.array([pair.similarity for pair in pairs])
    whole, part = buffers(texts), buffers(drawn)
    bytes_whole, bytes_part = len(whole[0]), len(part[0])
    sign_all(*part)  # compiles
    repeats = max(1, round(10e6 / bytes_part))

    takers: dict[str, Callable[[], float]] = {
        "ingot, all": lambda: bytes_whole / timed(lambda: sign_all(*whole)),
        "ingot": lambda: repeats * bytes_part / timed(lambda: [sign_all(*part) for _ in range(repeats)]),
    }
    check_estimates("ingot", similarities(pairs), exact)
    with ExitStack() as stack:
        for name in ("datatrove", "datasketch"):
            if name in without:
                continue
            try:
                peer = stack.enter_context(Peer(name, f"{name}_signing", documents, sides))
                check_estimates(name, np.array(peer.ask("pairs")["similarities"]), exact)
            except Unavailable as reason:
                print(reason, flush=True)
                continue
            takers[name] = lambda peer=peer: bytes_part / peer.ask("time")["seconds"]  # type: ignore[misc]
        rates: dict[str, list[float]] = {name: [] for name in takers}
        for _ in range(size.turns):
            for name, take in takers.items():
                rates[name].append(take() / 1e6)

    scaling = statistics.median(kernel_scaling(whole) for _ in range(size.turns))
    print(
        f"\nsigning ({PERMUTATIONS} permutations, word {NGRAM}-grams), MB/s of one core in {size.turns} turns"
    )
    for name, own in rates.items():
        print(f"  {name:12} {statistics.median(own):9.2f}   {min(own):.2f} … {max(own):.2f}")
    print(f"  two processes that only sign do {scaling:.2f} times as much as one: what two cores give here")
    figures = {"signing_mb_per_s_per_core": statistics.median(rates.pop("ingot, all"))}
    figures["signing_processes_2_over_1"] = scaling
    ratios = {}
    ours = rates.pop("ingot")
    for name, own in rates.items():
        figures[f"{name}_signing_mb_per_s_per_core"] = statistics.median(own)
        ratios[f"signing_vs_{name}"] = statistics.median(a / b for a, b in zip(ours, own, strict=True))
        print(f"  {ratios[f'signing_vs_{name}']:.0f} times {name}, on the same {len(drawn)} documents")
    return figures, ratios


def kernel_scaling(whole: tuple[np.ndarray, np.ndarray]) -> float:
    """How much more two processes sign at once than one alone, without Ray, files or a driver: they share a
    memory bus and, where the machine says cores and means threads, a core."""
    context = multiprocessing.get_context("fork")
    seconds = []
    for processes in (1, 2):
        barrier, answers = context.Barrier(processes), context.SimpleQueue()
        started = [
            context.Process(target=sign_beside, args=(whole, barrier, answers)) for _ in range(processes)
        ]
        for process in started:
            process.start()
        seconds.append(max(answers.get() for _ in started))
        for process in started:
            process.join()
    return 2 * seconds[0] / seconds[1]


def sign_beside(whole: tuple[np.ndarray, np.ndarray], barrier: Any, answers: Any) -> None:
    barrier.wait()
    answers.put(timed(lambda: sign_all(*whole)))


def measure_stage(
    folder: Path, texts: list[str], pairs: list[Pair], size: Size, without: set[str]
) -> tuple[dict[str, float], dict[str, float]]:
    """MB/s of the stage, what it finds, and datatrove beside it."""
    print("\nthe stage: ingot run --until dedup", flush=True)
    figures, ratios = beside_datatrove(folder, texts, pairs, size, "datatrove" in without)
    base = sample(texts, sum(map(len, texts)) / GROWTH[1])
    for factor in GROWTH:
        corpus = Corpus(folder / f"{factor}x", grown(base, factor), pairs)
        largest = factor == GROWTH[-1]
        counts = WORKERS if largest else WORKERS[-1:]
        runs: dict[int, list[Run]] = {workers: [] for workers in counts}
        for _ in range(size.runs if largest else 1):
            for workers in counts:
                runs[workers].append(corpus.deduplicate(workers))
        rates = {workers: corpus.bytes / 1e6 / median_seconds(own) for workers, own in runs.items()}
        every = [run for own in runs.values() for run in own]
        driver, worker = max(run.driver_mb for run in every), max(run.worker_mb for run in every)
        for workers, rate in rates.items():
            seconds = ", ".join(f"{run.seconds:.1f}" for run in runs[workers])
            print(
                f"  {factor}x, {corpus.bytes / 1e6:.0f} MB, {workers} workers: {rate:.1f} MB/s ({seconds} s);"
                f" at most {driver:.0f} MB of memory in the driver, {worker:.0f} MB in a worker",
                flush=True,
            )
        figures |= {f"peak_worker_mb_{factor}x": worker, f"peak_driver_mb_{factor}x": driver}
        shutil.rmtree(corpus.folder)
    figures |= {
        "dedup_mb_per_s_per_core": rates[2] / 2,
        "dedup_mb_per_s_1_worker": rates[1],
        "workers_2_over_1": rates[2] / rates[1],
        "command_seconds": statistics.median(run.command_seconds for run in runs[2]),
        "peak_worker_mb": worker,
        "peak_driver_mb": driver,
        "removed_share": len(every[-1].removed) / len(every[-1].urls),
        **check_found(every[-1], pairs),
    }
    print(f"  removed {figures['removed_share']:.1%}; recall from {ALIKE} on: {figures['recall']:.4f}")
    return figures, ratios


def beside_datatrove(
    folder: Path, texts: list[str], pairs: list[Pair], size: Size, alone: bool
) -> tuple[dict[str, float], dict[str, float]]:
    """Part of the documents, deduplicated by both. The first run compiles the kernels and is not timed."""
    shared = Corpus(folder / "shared", sample(texts, size.peer_megabytes * 1e6), pairs)
    first = shared.deduplicate(2)
    check_found(first, pairs)
    theirs = None if alone else datatrove(shared)
    if theirs is None:
        return {}, {}
    seconds, kept = theirs
    agreed = agreement(first, kept)
    own, taken = median_seconds([shared.deduplicate(2) for _ in range(size.runs)]), sum(seconds.values())
    spent = ", ".join(f"{name} {each:.1f}" for name, each in seconds.items())
    print(
        f"  {shared.bytes / 1e6:.0f} MB, 2 workers: {own:.1f} s; datatrove {taken:.1f} s ({spent})",
        flush=True,
    )
    went = [not {f"{number} left", f"{number} right"} <= kept for number in range(len(pairs))]
    figures = {
        **agreed,
        **{f"datatrove_{name}": value for name, value in shares(went, pairs).items()},
        "datatrove_mb_per_s_per_core": shared.bytes / 1e6 / taken / 2,
        "shared_mb_per_s_per_core": shared.bytes / 1e6 / own / 2,
    }
    return figures, {"dedup_vs_datatrove": taken / own}


def median_seconds(runs: list[Run]) -> float:
    return statistics.median(run.seconds for run in runs)


class Corpus:
    """Texts and planted pairs as Parquet files, and as a corpus artifact in a store."""

    def __init__(self, folder: Path, texts: Sequence[str], pairs: list[Pair]) -> None:
        self.folder, self.runs = folder, 0
        self.bytes = write(folder / "texts", list(texts), pairs)
        self.recipe = folder / "recipe.yaml"
        source = {"source": "files", "name": "texts", "path": str(folder / "texts")}
        body = {
            "name": "bench",
            "corpus": {"sources": [source]},
            "dedup": {"ngram": NGRAM, "permutations": PERMUTATIONS, "threshold": THRESHOLD},
        }
        self.recipe.write_text(json.dumps(body))  # JSON is YAML
        self._ingot("corpus", folder / "store", 2)

    def deduplicate(self, workers: int) -> Run:
        """In a fresh copy of the store, so that nothing of it is there already."""
        self.runs += 1
        copy = self.folder / f"store-{self.runs}"
        shutil.copytree(self.folder / "store", copy, copy_function=os.link)
        began = time.perf_counter()
        driver, worker = self._ingot("dedup", copy, workers)
        command_seconds = time.perf_counter() - began
        stages = {stage: artifact(copy, stage) for stage in ("corpus", "dedup")}
        urls: dict[str, str] = {}
        for name in stages["corpus"].names("documents/"):
            table = stages["corpus"].table(name)
            urls |= zip(table["id"].to_pylist(), table["url"].to_pylist(), strict=True)
        removed: dict[str, str] = {}
        for name in stages["dedup"].names("removed/"):
            table = stages["dedup"].table(name)
            both = zip(table["id"].to_pylist(), table["witness_id"].to_pylist(), strict=True)
            removed |= {urls[gone]: urls[witness] for gone, witness in both}
        seconds = shown(copy)["dedup"]["seconds"]
        shutil.rmtree(copy)
        return Run(seconds, command_seconds, driver, worker, removed, set(urls.values()))

    def _ingot(self, until: str, store: Path, workers: int) -> tuple[float, float]:
        """Peaks in MB of the driver and of the largest worker."""
        words = ["run", str(self.recipe), "--store", str(store), "--until", until]
        command = [sys.executable, "-m", "ingot.services.cli", *words, "--set", f"workers={workers}"]
        status, driver, worker, said = watched(command, env=environment())
        if status:
            raise SystemExit(f"{' '.join(command)}\n{said}")
        return driver, worker


def datatrove(corpus: Corpus) -> tuple[dict[str, float], set[str]] | None:
    """The seconds of its stages on two workers, and the urls that it keeps; None where it can't be had."""
    banding = choose_banding(THRESHOLD, PERMUTATIONS)
    out = corpus.folder / "datatrove"
    try:
        script, texts = HERE / "datatrove_stages.py", corpus.folder / "texts"
        words = (python_of("datatrove"), script, texts, out, 2, banding.bands, banding.rows)
        command = [str(word) for word in words]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise Unavailable(f"datatrove failed: {(done.stderr.strip() or '?').splitlines()[-1]}")
    except Unavailable as reason:
        print(reason, flush=True)
        return None
    answer = json.loads(done.stdout.splitlines()[-1])
    shutil.rmtree(out)
    return answer["seconds"], set(answer["kept"])


def agreement(ours: Run, kept: set[str]) -> dict[str, float]:
    """How far both remove the same of the real documents, but for which of two like ones stays: the share of
    our removals that datatrove confirms, and of either's that the other's account for. It verifies no pair,
    joins what is alike in chains and leaves numbers and punctuation out, so it removes more; stops where it
    does not remove what we do."""
    theirs = {url for url in ours.urls - kept if url.isdecimal()}
    mine = {url: witness for url, witness in ours.removed.items() if url.isdecimal()}
    confirmed = sum(url in theirs or witness in theirs for url, witness in mine.items())
    explained = len(theirs & {*mine, *mine.values()})
    print(
        f"  of the real documents {len(mine)} are removed here, {len(theirs)} by datatrove; it confirms "
        f"{confirmed} of ours, and ours account for {explained} of its",
        flush=True,
    )
    if confirmed < LEAST_CONFIRMED * len(mine):
        raise SystemExit(f"datatrove does something else: it was expected to confirm {LEAST_CONFIRMED:.0%}")
    return {
        "confirmed_by_datatrove": confirmed / max(1, len(mine)),
        "agreement_with_datatrove": (confirmed + explained) / max(1, len(mine) + len(theirs)),
    }


def check_found(run: Run, pairs: list[Pair]) -> dict[str, float]:
    """The shares of planted pairs that were found; stops where one below the threshold went."""
    went = [
        run.removed.get(f"{number} left") == f"{number} right"
        or run.removed.get(f"{number} right") == f"{number} left"
        for number in range(len(pairs))
    ]
    found = shares(went, pairs)
    if found["found_below_threshold"]:
        raise SystemExit(f"planted pairs less alike than {THRESHOLD} were removed: {found}")
    return found


def shares(went: list[bool], pairs: list[Pair]) -> dict[str, float]:
    """Of the pairs in each range of similarity, how many went."""
    ranges = {
        "found_below_threshold": (0.0, THRESHOLD),
        "recall_from_threshold_on": (THRESHOLD, ALIKE),
        "recall": (ALIKE, 1.0),
    }
    both = list(zip(went, pairs, strict=True))
    return {
        name: statistics.mean(gone for gone, pair in both if low <= pair.similarity < high)
        for name, (low, high) in ranges.items()
    }


def check_estimates(name: str, found: np.ndarray, exact: np.ndarray) -> None:
    """Stops where signatures estimate something else than the Jaccard similarity of word 5-grams."""
    bias = float((found - exact).mean())
    print(f"{name}: the mean of {len(exact)} estimated similarities is off by {bias:+.4f}", flush=True)
    if abs(bias) > MOST_BIAS:
        raise SystemExit(f"{name} signs something else: at most {MOST_BIAS} was expected")


def similarities(pairs: list[Pair]) -> np.ndarray:
    """Ours: the share of permutations whose minima agree."""
    texts = [text for pair in pairs for text in (pair.left, pair.right)]
    minima = sign_all(*buffers(texts), bands=PERMUTATIONS)
    shares: np.ndarray = (minima[0::2] == minima[1::2]).mean(axis=1)
    return shares


def sign_all(data: np.ndarray, offsets: np.ndarray, bands: int = BANDS) -> np.ndarray:
    """The band hashes [documents, bands]."""
    count = len(offsets) - 1
    hashes = np.zeros((count, bands), np.uint64)
    shingles, counts = np.empty(capacity(offsets), np.uint64), np.empty(count, np.int64)
    wanted = np.ones(count, bool)
    drawn = permutations(PERMUTATIONS, 1)
    sign(data, offsets, wanted, character_classes(), NGRAM, *drawn, bands, hashes, shingles, counts)
    return hashes


def buffers(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    encoded = [text.encode() for text in texts]
    offsets = np.append(0, np.cumsum([len(each) for each in encoded])).astype(np.int64)
    return np.frombuffer(b"".join(encoded), np.uint8), offsets


def sample(texts: list[str], wanted: float) -> list[str]:
    """About `wanted` bytes of them, evenly drawn."""
    step = max(1, round(sum(len(text) for text in texts) / wanted))
    return texts[step // 2 :: step]


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def artifact(store: Path, stage: str) -> Artifact:
    found = load(open_store(str(store)), f"artifacts/{stage}/{shown(store)[stage]['fingerprint']}")
    assert found is not None
    return found


def shown(store: Path) -> dict[str, dict[str, Any]]:
    """What `ingot runs show` says of each stage."""
    words = ["runs", "show", "bench", "--store", str(store), "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "ingot.services.cli", *words],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    return {stage["stage"]: stage for stage in json.loads(done.stdout)["stages"]}


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def machine() -> dict[str, Any]:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if "model name" in line]
    return {
        "processor": names[0] if names else platform.machine(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }


if __name__ == "__main__":
    main()
