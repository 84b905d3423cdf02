"""The preference stage: direct preference optimisation (DPO, arXiv:2305.18290) of a fine-tuned checkpoint.

Pairs come from functions that fine-tuning never saw, and the accuracies from functions that neither training
saw (pretraining may have read their documents). The reference is the checkpoint itself: what it says of the
pairs is computed once, by Ray Data actors, before training, so training holds one model only. The artifact
is a Hugging Face folder at its root; below folders of their own lie the pairs (`pairs/`) and what the
reference and the new model say of them (`scores/`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from ingot.errors import IngotError
from ingot.pipelines.artifact import Artifact, File
from ingot.pipelines.conversations import first_functions
from ingot.pipelines.functions import Split
from ingot.pipelines.pairs import put_pairs
from ingot.pipelines.reference import Scores, score_pairs
from ingot.pipelines.sections import Preference
from ingot.pipelines.tokenizer import load_tokenizer, refuse_other_tokenizer
from ingot.pipelines.training.job import Job, Part, SpecialTokens
from ingot.pipelines.training.launch import train
from ingot.pipelines.units import Workspace

if TYPE_CHECKING:
    from ingot.pipelines.pipeline import Outcome

VERSION = 2

MARGIN = 100  # functions beyond the pairs asked for, as a few find no partner
FEWEST_HELD_OUT = 200  # fewer say little: with 200 pairs an accuracy's standard error is 3.5 points


def run(workspace: Workspace, section: Preference, inputs: Mapping[str, Artifact]) -> Outcome:
    """Makes the pairs, scores them under the reference, trains, and scores the held-out pairs again:
    accuracy (the chosen answer is likelier a token) and margin (by how many nats a token) before and after,
    and reward_accuracy_after (it has gained more than the rejected one)."""
    from ingot.pipelines.pipeline import Outcome
    from ingot.pipelines.training.build import read_config, tokenizer_files

    store, checkpoint, tokenizer = workspace.store, inputs["sft"], inputs["tokenizer"]
    refuse_other_tokenizer(checkpoint, tokenizer)
    context = read_config(checkpoint).context
    functions = {name: checkpoint.files[name] for name in checkpoint.names("functions/")}

    def pairs_of(split: Split, most: int) -> File:
        return put_pairs(store, first_functions(store, functions, split, most + MARGIN), context, most)

    pairs, held_out = pairs_of("preference", section.pairs), pairs_of("held-out", section.held_out_pairs)
    _refuse_too_few(section, pairs, held_out)

    (_, pairs_scores), (before, before_scores) = score_pairs(
        workspace, checkpoint.files, [pairs, held_out], section
    )
    encoder = load_tokenizer(tokenizer)
    dataset = {
        "pairs": pairs.to_json(),
        "scores": [file.to_json() for file in pairs_scores],
        "rows": section.batch_pairs,
        "seed": section.seed,
    }
    objective = {name: getattr(section, name) for name in ("beta", "average", "label_smoothing")}
    job = Job(
        initial=checkpoint.key,
        dataset=Part("ingot.pipelines.pairs:PairDataset", dataset),
        objective=Part("ingot.model:preference_objective", objective),
        special=SpecialTokens(encoder.end_of_text, (encoder.end_of_text, encoder.stop), encoder.end_of_text),
    )
    trained = train(workspace, section, job)
    [(after, after_scores)] = score_pairs(workspace, trained.files, [held_out], section)
    files = {"pairs/train.parquet": pairs, "pairs/held-out.parquet": held_out}
    for name, scores in (("train", pairs_scores), ("before", before_scores), ("after", after_scores)):
        files |= {f"scores/{name}-{number:05d}.parquet": file for number, file in enumerate(scores)}
    measured = {
        "pairs": pairs.rows,
        "held_out_pairs": held_out.rows,
        "accuracy_before": before.accuracy,
        "accuracy_after": after.accuracy,
        "margin_before": float(before.margins_P.mean()),
        "margin_after": float(after.margins_P.mean()),
        "reward_accuracy_after": _reward_accuracy(before, after, section.average),
    }
    folder = {**trained.files, **tokenizer_files(store, tokenizer, context)}
    return Outcome({**folder, **files}, {**measured, **trained.metrics})


def _refuse_too_few(section: Preference, pairs: File, held_out: File) -> None:
    for file, fewest, what in (
        (held_out, FEWEST_HELD_OUT, "pairs to hold out"),
        (pairs, section.batch_pairs, "pairs to train on"),
    ):
        assert file.rows is not None
        if file.rows < fewest:
            raise IngotError(
                f"preference: the corpus's functions give {file.rows} {what}, fewer than {fewest}; "
                "give the corpus more Python sources with docstrings, or leave preference out of the recipe"
            )


def _reward_accuracy(reference: Scores, policy: Scores, average: bool) -> float:
    """The share of pairs whose chosen answer has the higher implicit reward, the log-ratio of the two
    models, a token or a whole answer as training has it."""
    if average:
        return float((policy.margins_P > reference.margins_P).mean())
    chosen, rejected = policy.chosen_P - reference.chosen_P, policy.rejected_P - reference.rejected_P
    return float(np.mean(chosen > rejected))
