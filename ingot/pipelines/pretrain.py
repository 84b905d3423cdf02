"""The pretrain stage: token shards → a model that predicts the next token, as a Hugging Face folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING

from ingot.pipelines.artifact import Artifact
from ingot.pipelines.sections import Pretrain
from ingot.pipelines.tokenizer import TextEncoder, load_tokenizer, refuse_other_tokenizer
from ingot.pipelines.training.evaluation import held_out_rows, unigram_bits_per_byte
from ingot.pipelines.training.job import Job, Part, Prompts, SpecialTokens
from ingot.pipelines.training.launch import train
from ingot.pipelines.training.packing import Packed, pack
from ingot.pipelines.training.stable import lineage_of
from ingot.pipelines.training.tokens import TokenDataset
from ingot.pipelines.units import Workspace

if TYPE_CHECKING:
    from ingot.pipelines.pipeline import Outcome

VERSION = 3


def run(workspace: Workspace, section: Pretrain, inputs: Mapping[str, Artifact]) -> Outcome:
    """Trains on random rows of the training split; measures bits per byte of the held-out split before and
    after, beside what token frequencies alone would give (bits_per_byte_unigram). Where rows are packed,
    padding_share tells how much of all rows is padding, and documents_cut how many documents are longer than
    a row. What is trained on what stands as `job.json` beside the checkpoints."""
    from ingot.pipelines.pipeline import Outcome
    from ingot.pipelines.training.build import tokenizer_files

    tokens, tokenizer = inputs["tokens"], inputs["tokenizer"]
    refuse_other_tokenizer(tokens, tokenizer)
    held_out = held_out_rows(tokens, section.model.context, section.evaluate_tokens)
    unigram = unigram_bits_per_byte(held_out.targets_BT, load_tokenizer(tokenizer).token_bytes)
    metrics = {"bits_per_byte_unigram": unigram}
    packed = None
    if section.packing == "best-fit":
        packed = pack(workspace, tokens, section.model.context)
        metrics |= {"padding_share": packed.padding_share, "documents_cut": packed.documents_cut}
    job = pretraining(section, tokens, tokenizer, packed)
    TokenDataset(workspace.store, job.dataset.spec)  # refuses a source without a row before workers begin
    workspace.store.create(f"{workspace.key}/job.json", json.dumps(job.to_json()).encode())
    outcome = train(workspace, section, job)
    folder = tokenizer_files(workspace.store, tokenizer, section.model.context)
    return Outcome({**outcome.files, **folder}, {**outcome.metrics, **metrics})


def pretraining(
    section: Pretrain, tokens: Artifact, tokenizer: Artifact, packed: Packed | None = None
) -> Job:
    """The job: next tokens, from nothing."""
    encoder = load_tokenizer(tokenizer)
    common = {
        "tokens": tokens.key,
        "context": section.model.context,
        "mask_documents": section.mask_documents,
    }
    evaluation = {**common, "tokenizer": tokenizer.key, "evaluate_tokens": section.evaluate_tokens}
    training = {
        **common,
        "rows": section.batch_tokens // section.model.context,
        "seed": section.seed,
        "mix": section.mix,
        "plans": packed.plans.to_json() if packed else None,
        "cache_bytes": section.cache_bytes,
    }
    identity = {"version": VERSION, "tokens": tokens.digest, "tokenizer": tokenizer.digest}
    return Job(
        lineage=lineage_of(section, identity),
        model=asdict(section.model.config(encoder.vocabulary)),
        dataset=Part("ingot.pipelines.training.tokens:TokenDataset", training),
        objective=Part("ingot.pipelines.training.job:next_token", {"z_loss": section.z_loss}),
        evaluation=Part("ingot.pipelines.training.evaluation:bits_per_byte", evaluation),
        evaluate_every=section.evaluate_every,
        samples=prompts(section, tokenizer, encoder),
        special=SpecialTokens(encoder.end_of_text, (encoder.end_of_text, encoder.stop), encoder.end_of_text),
    )


def prompts(section: Pretrain, tokenizer: Artifact, encoder: TextEncoder) -> Prompts | None:
    """What the model is asked to go on with; a document begins after an end-of-text, and so does a prompt."""
    if not section.prompts:
        return None
    ids = tuple((encoder.end_of_text, *ids) for ids in encoder.encode_batch(section.prompts))
    return Prompts(tokenizer.key, ids, section.sample_tokens)
