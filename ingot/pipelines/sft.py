"""The sft stage: a checkpoint and the functions of the corpus → a model that answers.

Fine-tuning is pretraining on other rows: conversations, with the loss on the assistant's words and its stop
token alone. The artifact is a Hugging Face folder at its root; below folders of their own lie all functions
of the corpus in their three splits (`functions/`, which preference training reads) and those that were
trained on (`conversations/train.parquet`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ingot.errors import IngotError
from ingot.pipelines.answers import padded
from ingot.pipelines.artifact import Artifact, File, put_table, read_table
from ingot.pipelines.conversations import first_functions, make_functions
from ingot.pipelines.sections import Sft
from ingot.pipelines.store import Store
from ingot.pipelines.tokenizer import load_tokenizer, refuse_other_tokenizer
from ingot.pipelines.training.dataset import shares
from ingot.pipelines.training.job import Job, Part, Prompts, SpecialTokens
from ingot.pipelines.training.launch import train
from ingot.pipelines.units import Workspace

if TYPE_CHECKING:
    from ingot.model import Transformer
    from ingot.pipelines.pipeline import Outcome
    from ingot.pipelines.training.group import Group

VERSION = 2

HELD_OUT = 256  # conversations that the loss before and after is measured on, at most
SAMPLES = 3  # of those, what the model answers is shown


def run(workspace: Workspace, section: Sft, inputs: Mapping[str, Artifact]) -> Outcome:
    """Makes the functions, trains on the first of them, and measures nats a token on held-out ones before
    and after (held_out_loss)."""
    from ingot.pipelines.pipeline import Outcome
    from ingot.pipelines.training.build import read_config, tokenizer_files

    store, checkpoint, tokenizer = workspace.store, inputs["pretrain"], inputs["tokenizer"]
    refuse_other_tokenizer(checkpoint, tokenizer)
    context = read_config(checkpoint).context
    functions, counts = make_functions(workspace, inputs, context, section.documents)
    columns = ["id", "prompt", "answer"]
    conversations = first_functions(store, functions, "sft", section.most).select(columns)
    held_out = first_functions(store, functions, "held-out", HELD_OUT).select(columns)
    if conversations.num_rows < section.batch_conversations or not held_out.num_rows:
        raise IngotError(
            f"sft: {counts['documents_parsed']} Python documents give {conversations.num_rows} conversations "
            f"to train on and {held_out.num_rows} to hold out; {section.batch_conversations} and 1 are "
            "needed: give the corpus more Python (files that end in .py) with docstrings, set "
            "sft.batch_conversations lower if it is more than 1, or leave sft out"
        )
    files = {"conversations/train.parquet": put_table(store, conversations)}
    encoder = load_tokenizer(tokenizer)
    dataset = {
        "conversations": files["conversations/train.parquet"].to_json(),
        "rows": section.batch_conversations,
        "seed": section.seed,
    }
    asked = tuple(map(tuple, held_out["prompt"].to_pylist()[:SAMPLES]))
    job = Job(
        initial=checkpoint.key,
        dataset=Part("ingot.pipelines.conversations:ConversationDataset", dataset),
        objective=Part("ingot.pipelines.training.job:next_token", {"z_loss": section.z_loss}),
        evaluation=Part(
            "ingot.pipelines.sft:held_out_loss", {"conversations": put_table(store, held_out).to_json()}
        ),
        evaluate_every=section.evaluate_every,
        samples=Prompts(tokenizer.key, asked, section.sample_tokens),
        special=SpecialTokens(encoder.end_of_text, (encoder.end_of_text, encoder.stop), encoder.end_of_text),
    )
    trained = train(workspace, section, job)
    metrics = {**counts, "conversations": conversations.num_rows, **trained.metrics}
    folder = {**trained.files, **tokenizer_files(store, tokenizer, context)}
    return Outcome({**folder, **functions, **files}, metrics)


def held_out_loss(
    model: Transformer, store: Store, spec: Mapping[str, Any], group: Group
) -> dict[str, float]:
    """An `Evaluation`: the mean negative log-likelihood, in nats, of the tokens that the assistant says.
    `spec`: conversations (a file with the columns prompt and answer)."""
    import torch

    from ingot.model import IGNORED, Batch

    table = read_table(store, File.from_json(spec["conversations"]), "conversations", ["prompt", "answer"])
    answers = list(zip(table["prompt"].to_pylist(), table["answer"].to_pylist(), strict=True))
    answers.sort(key=lambda answer: sum(map(len, answer)))
    nats = tokens = 0.0
    ranges, filled = shares(len(answers), group.rank, group.world, group.micro_batch)
    with torch.no_grad():
        for own in ranges:
            batch = group.here(Batch(*padded(answers[own.start : own.stop], filled)))
            nats += float(model(batch.tokens_BT, batch.targets_BT).double().sum())
            tokens += int((batch.targets_BT != IGNORED).sum())
    nats, tokens = group.totals(nats, tokens)
    return {"held_out_loss": nats / tokens}
