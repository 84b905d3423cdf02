"""Text → token ids, in turns with `tokenizers`' own `encode_batch` on the same cores; part of pretrain.py."""

from __future__ import annotations

import os
import statistics
import threading
import time

import numpy as np
import tokenizers
from dedup_texts import gather

from ingot.pipelines.tokenizer import TextEncoder
from ingot.pipelines.tokenizer.scheme import Scheme

THREADS = 2
BATCH = 256  # texts of one call of `encode_batch`
FULL, QUICK = (60, 16_384, 5), (6, 4096, 3)  # MB of text, vocabulary, turns
SCHEMES = {"encode": Scheme("bpe"), "encode_wordpiece": Scheme("wordpiece")}


def measure_encoding(quick: bool) -> tuple[dict[str, float], dict[str, float]]:
    """MB/s of both, of documentation and sources with vocabularies trained on them, and what one is over the
    other. Refuses other ids."""
    megabytes, vocabulary, turns = QUICK if quick else FULL
    texts = gather(megabytes * 10**6)
    total = sum(len(text.encode()) for text in texts) / 1e6
    print(
        f"encoding {len(texts)} documents, {total:.0f} MB; vocabulary {vocabulary}, {THREADS} threads",
        flush=True,
    )
    os.environ["RAYON_NUM_THREADS"] = str(THREADS)
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    figures, ratios = {"encode_megabytes": total}, {}
    for part, scheme in SCHEMES.items():
        serialized = scheme.train(texts[:: max(1, round(total / 10))], vocabulary).to_str()
        rates = in_turns(serialized, texts, total, turns)
        for name, own in rates.items():
            figures[f"{name}_{part}_mb_per_s"] = statistics.median(own)
            print(f"  {name:12} {statistics.median(own):8.2f} MB/s   {min(own):.2f} … {max(own):.2f}")
        ratio = statistics.median(a / b for a, b in zip(*rates.values(), strict=True))
        ratios[f"{part}_vs_tokenizers"] = ratio
        print(f"  {scheme.algorithm}: {ratio:.1f} times tokenizers", flush=True)
    return figures, ratios


def in_turns(serialized: str, texts: list[str], total: float, turns: int) -> dict[str, list[float]]:
    """MB/s of each turn, of both."""
    ours, theirs = Ours(serialized, texts), Theirs(serialized, texts)
    refuse_difference(ours, theirs)
    rates: dict[str, list[float]] = {"ingot": [], "tokenizers": []}
    for _ in range(turns):
        for name, side in (("ingot", ours), ("tokenizers", theirs)):
            began = time.perf_counter()
            side.encode()
            rates[name].append(total / (time.perf_counter() - began))
    return rates


class Ours:
    """A thread for each core, each with texts of its own as bytes, as a column of them is."""

    def __init__(self, serialized: str, texts: list[str]) -> None:
        self.parts = []
        for number in range(THREADS):
            encoded = [text.encode() for text in texts[number::THREADS]]
            offsets = np.append(0, np.cumsum([len(each) for each in encoded])).astype(np.int64)
            self.parts.append((TextEncoder(serialized), np.frombuffer(b"".join(encoded), np.uint8), offsets))
        self.found: list[tuple[np.ndarray, np.ndarray]] = [(np.empty(0), np.empty(0))] * THREADS

    def encode(self) -> None:
        def work(number: int) -> None:
            encoder, data, offsets = self.parts[number]
            self.found[number] = encoder.encode_utf8(data, offsets)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


class Theirs:
    """Its threads are its own; it takes strings and gives objects."""

    def __init__(self, serialized: str, texts: list[str]) -> None:
        self.tokenizer = tokenizers.Tokenizer.from_str(serialized)
        self.tokenizer.encode_special_tokens = True
        self.texts = texts
        self.found: list[list[int]] = []

    def encode(self) -> None:
        self.found = [
            encoding.ids
            for start in range(0, len(self.texts), BATCH)
            for encoding in self.tokenizer.encode_batch_fast(
                self.texts[start : start + BATCH], add_special_tokens=False
            )
        ]


def refuse_difference(ours: Ours, theirs: Theirs) -> None:
    ours.encode()
    theirs.encode()
    for number, (ids, places) in enumerate(ours.found):
        for index, expected in enumerate(theirs.found[number::THREADS]):
            if ids[places[index] : places[index + 1]].tolist() != expected:
                raise SystemExit(f"text {number + index * THREADS}: other ids than those of tokenizers")
    print("  the ids of all documents are equal", flush=True)
