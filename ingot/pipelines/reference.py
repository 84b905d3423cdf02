"""Log-probabilities of the answers of preference pairs under a model: one pass of Ray Data actors, each of
which holds the model.

The reference of preference training is such a pass, and so is the measuring of held-out pairs. Its records
lie under the digest of the weights and named by that of the pairs (`reference/<weights>/…/<pairs>-N.json`):
the same model never reads the same pairs twice, in whichever run. Kept are sums and token counts, which serve
every loss and every beta."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ingot.pipelines.answers import Answer, padded
from ingot.pipelines.artifact import Artifact, File, digest_of, put_table, read_table
from ingot.pipelines.sections import Training
from ingot.pipelines.store import Store
from ingot.pipelines.units import Actors, Unit, Work, Workspace

if TYPE_CHECKING:
    from ingot.model import Transformer

VERSION = 1
PAIRS_PER_UNIT = 256


@dataclass(frozen=True)
class Scores:
    """The summed log-probabilities (nats) of both answers of P pairs, and how many tokens they have."""

    chosen_P: np.ndarray
    rejected_P: np.ndarray
    chosen_tokens_P: np.ndarray
    rejected_tokens_P: np.ndarray

    @property
    def margins_P(self) -> np.ndarray:
        """By how much the chosen answer is likelier, in nats a token."""
        return self.chosen_P / self.chosen_tokens_P - self.rejected_P / self.rejected_tokens_P

    @property
    def accuracy(self) -> float:
        """The share of pairs whose chosen answer has the higher mean log-probability a token."""
        return float((self.margins_P > 0).mean())


def weights_of(files: Mapping[str, File]) -> dict[str, File]:
    """Of a checkpoint's files those that make the model: its configuration and its tensors."""
    return {
        name: file
        for name, file in files.items()
        if name == "config.json" or name.endswith((".safetensors", ".safetensors.index.json"))
    }


def score_pairs(
    workspace: Workspace, checkpoint: Mapping[str, File], sets: Sequence[File], section: Training
) -> list[tuple[Scores, list[File]]]:
    """The scores of each set of pairs (a file of `pairs.put_pairs`) in their order, and the Parquet files
    that hold them: id, chosen, rejected, chosen_tokens, rejected_tokens. `section` says in which precision
    and where."""
    weights = weights_of(checkpoint)
    place = replace(workspace, key=f"reference/{digest_of(weights)}/{section.precision}-{VERSION}")
    units = [
        [
            Unit(f"{pairs.sha256}-{start // PAIRS_PER_UNIT:05d}", {"pairs": pairs.to_json(), "start": start})
            for start in range(0, pairs.rows or 0, PAIRS_PER_UNIT)
        ]
        for pairs in sets
    ]
    entries = {name: file.to_json() for name, file in weights.items()}
    make = partial(_load, entries, section.precision, section.gpus_per_worker > 0, section.micro_batch)
    actors = Actors(make, section.cpus_per_worker, section.gpus_per_worker)
    records = iter(place.run("scores", [unit for of_set in units for unit in of_set], actors))
    stored = [[File.from_json(next(records)["scores"]) for _ in of_set] for of_set in units]
    return [(read_scores(workspace.store, files), files) for files in stored]


def read_scores(store: Store, files: Sequence[File]) -> Scores:
    """What `score_pairs` stored, as one."""
    import pyarrow

    table = pyarrow.concat_tables(read_table(store, file, "scores") for file in files)
    names = ("chosen", "rejected", "chosen_tokens", "rejected_tokens")
    return Scores(*(table[name].to_numpy() for name in names))


def _load(weights: Mapping[str, Any], precision: str, on_gpu: bool, rows_at_once: int, store: Store) -> Work:
    """The model into this process's memory; gives the work on one block of pairs."""
    import torch

    from ingot.model import Transformer, parallelize
    from ingot.model.huggingface import import_folder

    files = {name: File.from_json(entry) for name, entry in weights.items()}
    with tempfile.TemporaryDirectory() as folder:
        Artifact(store, "", "", "", files).fetch(Path(folder))
        config, state_dict = import_folder(folder)
    with torch.device("meta"):
        model = Transformer(config)
    model.load_state_dict(state_dict, assign=True)
    model.float().to("cuda" if on_gpu else "cpu").eval()
    parallelize(model, precision="bf16" if precision == "bfloat16" else "fp32")

    return partial(_score_block, partial(answer_logprobs, model, rows_at_once))


Score = Callable[[Sequence[Answer]], tuple[np.ndarray, np.ndarray]]


def _score_block(score: Score, store: Store, body: Mapping[str, Any]) -> dict[str, Any]:
    import pyarrow

    block = read_table(store, File.from_json(body["pairs"]), "pairs").slice(body["start"], PAIRS_PER_UNIT)
    prompts = block["prompt"].to_pylist()
    columns: dict[str, Any] = {"id": block["id"]}
    for side in ("chosen", "rejected"):
        sums, tokens = score(list(zip(prompts, block[side].to_pylist(), strict=True)))
        columns |= {side: sums, f"{side}_tokens": tokens}
    return {"scores": put_table(store, pyarrow.table(columns).combine_chunks()).to_json()}


def answer_logprobs(
    model: Transformer, rows_at_once: int, answers: Sequence[Answer]
) -> tuple[np.ndarray, np.ndarray]:
    """The answers' summed log-probabilities (nats, float64) under the model
    and their numbers of tokens (int64)."""
    import torch

    from ingot.model import logprobs

    sums, tokens = np.zeros(len(answers)), np.zeros(len(answers), dtype=np.int64)
    by_length = sorted(range(len(answers)), key=lambda index: sum(map(len, answers[index])))
    device = next(model.parameters()).device
    for start in range(0, len(by_length), rows_at_once):
        rows = by_length[start : start + rows_at_once]
        tokens_BT, targets_BT = padded([answers[row] for row in rows])
        with torch.inference_mode():
            sums_B, tokens_B = logprobs(model, tokens_BT.to(device), targets_BT.to(device))
        sums[rows], tokens[rows] = sums_B.double().cpu().numpy(), tokens_B.long().cpu().numpy()
    return sums, tokens
