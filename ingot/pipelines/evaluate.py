"""The evaluate stage: the last checkpoint, measured on held-out text and sampled from, as one JSON file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ingot.pipelines.artifact import Artifact, File, put_json
from ingot.pipelines.sections import Evaluate
from ingot.pipelines.store import Store
from ingot.pipelines.tokenizer import refuse_other_tokenizer
from ingot.pipelines.units import Unit, Workspace

if TYPE_CHECKING:
    from ingot.pipelines.pipeline import Outcome

VERSION = 2


def run(workspace: Workspace, section: Evaluate, inputs: Mapping[str, Artifact]) -> Outcome:
    from ingot.pipelines.pipeline import Outcome

    for artifact in (inputs["checkpoint"], inputs["tokens"]):
        refuse_other_tokenizer(artifact, inputs["tokenizer"])
    keys = {name: artifact.key for name, artifact in inputs.items()}
    body = {**keys, **section.what(), "weights": inputs["checkpoint"].digest}
    [record] = workspace.run("measure", [Unit("checkpoint", body)], _measure)
    metrics = {"bits_per_byte": record["bits_per_byte"], "samples": record["samples"]}
    return Outcome({"evaluation.json": File.from_json(record["evaluation"])}, metrics)


def _measure(store: Store, body: Mapping[str, Any]) -> dict[str, Any]:
    import torch

    from ingot.model.generation import generate
    from ingot.model.transformer import Transformer
    from ingot.pipelines.artifact import load
    from ingot.pipelines.tokenizer import load_tokenizer
    from ingot.pipelines.training.build import read_weights
    from ingot.pipelines.training.evaluation import bits_per_byte
    from ingot.pipelines.training.group import Group

    config, weights = read_weights(store, body["checkpoint"])
    model = Transformer(config)
    model.load_state_dict({name: weight.float() for name, weight in weights.items()})
    model.eval()
    spec = {
        **{name: body[name] for name in ("tokens", "tokenizer", "evaluate_tokens", "mask_documents")},
        "context": config.context,
    }
    alone = Group(rank=0, world=1, device=torch.device("cpu"), micro_batch=8)
    measured = bits_per_byte(model, store, spec, alone)
    tokenizer = load(store, body["tokenizer"])
    assert tokenizer is not None, body["tokenizer"]
    encoder = load_tokenizer(tokenizer)
    continuations = generate(
        model,
        # a document begins after an end-of-text: so does a prompt
        [[encoder.end_of_text, *ids] for ids in encoder.encode_batch(body["prompts"])],
        new_tokens=body["sample_tokens"],
        temperature=body["temperature"],
        seed=body["seed"],
        stop=(encoder.end_of_text, encoder.stop),
    )
    samples = [
        {"prompt": prompt, "continuation": encoder.decode(ids)}
        for prompt, ids in zip(body["prompts"], continuations, strict=True)
    ]
    evaluation = {"weights": body["weights"], **measured, "samples": samples}
    return {**measured, "samples": samples, "evaluation": put_json(store, evaluation).to_json()}
