"""Measuring a model while it is trained: bits per byte of held-out text, which no tokenizer flatters, and
what it writes after fixed prompts.

Each evaluation of a training leaves one JSON line in the store, `<key>/evaluation/<step>.jsonl`, which is
created once: what was measured is not measured again after a resume."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ingot.pipelines.artifact import Artifact, load
from ingot.pipelines.records import read_object
from ingot.pipelines.shards import ShardReader
from ingot.pipelines.store import Store
from ingot.pipelines.tokenizer import load_tokenizer
from ingot.pipelines.training.dataset import load_by_name, shares
from ingot.pipelines.training.rows import Rows, Windows

if TYPE_CHECKING:
    from ingot.model import Transformer
    from ingot.pipelines.training.group import Group
    from ingot.pipelines.training.job import Job, Prompts


class Evaluation(Protocol):
    """Called on all workers together; gives the same metrics on each. The model may be sharded, so each must
    run it equally often."""

    def __call__(
        self, model: Transformer, store: Store, spec: Mapping[str, Any], group: Group
    ) -> dict[str, float]: ...


def evaluate(
    job: Job, model: Transformer, store: Store, key: str, step: int, attempt: int, group: Group
) -> bool:
    """Measures the model after `step` steps of the training at `key`, on all workers together, if no attempt
    has yet; whether it had to be done."""
    assert job.evaluation is not None
    record = _record(key, step)
    # Agreed, as another run may finish between two workers' looks.
    if group.agree(store.exists(record)):
        return False
    began = time.time()
    measure: Evaluation = load_by_name(job.evaluation.name)
    metrics = measure(model, store, job.evaluation.spec, group)
    samples = write_samples(model, store, job.samples, group) if job.samples else []
    if group.rank == 0:
        line = {
            "step": step,
            "metrics": metrics,
            "samples": samples,
            "seconds": time.time() - began,
            "attempt": attempt,
            "at": time.time(),
        }
        store.create(record, (json.dumps(line) + "\n").encode())
    group.agree(0)  # the record is there
    return True


def read_evaluation(store: Store, key: str, step: int) -> dict[str, Any]:
    """What was measured after `step` steps. Raises ObjectMissing."""
    return read_object(store, _record(key, step))


def read_evaluations(store: Store, key: str) -> list[dict[str, Any]]:
    """The lines of all evaluations of the training at `key`, in the order of steps."""
    names = sorted(store.list(f"{key}/evaluation/"))
    return [read_object(store, name) for name in names]


def copy_evaluations(store: Store, source: str, key: str, step: int) -> None:
    """Those of the training at `source` until `step`, for the training at `key`."""
    for line in read_evaluations(store, source):
        if line["step"] <= step:
            store.create(_record(key, line["step"]), (json.dumps(line) + "\n").encode())


def _record(key: str, step: int) -> str:
    return f"{key}/evaluation/{step:08d}.jsonl"


def write_samples(model: Transformer, store: Store, prompts: Prompts, group: Group) -> list[dict[str, str]]:
    """The likeliest continuation of each prompt, as texts: [{"prompt", "continuation"}…]. All workers go
    through the same passes of the model, which may be sharded over them; rank 0's words count."""
    from ingot.model import generate

    tokenizer = load(store, prompts.tokenizer)
    assert tokenizer is not None, prompts.tokenizer
    encoder = load_tokenizer(tokenizer)
    # No pass depends on what was written before: on unlike devices two workers may differ about a token.
    written = generate(model, prompts.ids, new_tokens=prompts.new_tokens)
    ends = (encoder.end_of_text, encoder.stop)
    samples = []
    for prompt, ids in zip(prompts.ids, written, strict=True):
        end = next((place for place, token in enumerate(ids) if token in ends), len(ids))
        samples.append({"prompt": encoder.decode(prompt), "continuation": encoder.decode(ids[:end])})
    return samples


def held_out_rows(tokens: Artifact, context: int, at_most: int, masked: bool = False) -> Rows:
    """The first rows of the held-out split, about `at_most` tokens of them."""
    reader = ShardReader(tokens, cache_bytes=0)
    shards = reader.meta["shards"]["held-out"]
    windows = Windows(reader, shards, context, masked, "its held-out shards")
    return windows.read(range(min(windows.count, -(-at_most // context))))


def bits_per_byte(
    model: Transformer, store: Store, spec: Mapping[str, Any], group: Group
) -> dict[str, float]:
    """The model's information about held-out text: the summed negative log-likelihood of all targets that
    stand for text, in bits, over the bytes they stand for. `spec`: tokens and tokenizer (keys of artifacts),
    context, evaluate_tokens, and mask_documents where documents are to be seen alone."""
    import torch

    tokens, tokenizer = load(store, spec["tokens"]), load(store, spec["tokenizer"])
    assert tokens is not None, spec["tokens"]
    assert tokenizer is not None, spec["tokenizer"]
    masked = spec.get("mask_documents", False)
    rows = held_out_rows(tokens, spec["context"], spec["evaluate_tokens"], masked)
    bytes_V = torch.from_numpy(load_tokenizer(tokenizer).token_bytes).to(group.device)
    nats = size = 0.0
    ranges, filled = shares(len(rows.tokens_BT), group.rank, group.world, group.micro_batch)
    with torch.no_grad():
        for own in ranges:
            batch = group.here(rows.batch(slice(own.start, own.stop), filled))
            bytes_BT = bytes_V[batch.targets_BT.clamp(min=0)] * (batch.targets_BT >= 0)
            nll_BT = model(batch.tokens_BT, batch.targets_BT, documents_BT=batch.documents_BT)
            nats += float((nll_BT.double() * (bytes_BT > 0)).sum())
            size += int(bytes_BT.sum())
    nats, size = group.totals(nats, size)
    return {"bits_per_byte": nats / math.log(2) / size}


def unigram_bits_per_byte(targets: np.ndarray, token_bytes: np.ndarray) -> float:
    """What a model would reach that knows how frequent each token is among these very targets, and nothing
    else: the entropy of their frequencies, over the same bytes."""
    counts = np.bincount(targets.ravel(), minlength=len(token_bytes)) * (token_bytes > 0)
    seen = counts[counts > 0]
    return float(-(seen * np.log2(seen / seen.sum())).sum() / (counts * token_bytes).sum())
