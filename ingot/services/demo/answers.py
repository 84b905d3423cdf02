"""What a run's model answers after each of its trainings.

Run as a program it prints the answers as JSON: torch takes some hundred megabytes, which a short process of
its own gives back."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ingot.errors import IngotError
from ingot.pipelines.artifact import load
from ingot.pipelines.records import read_object
from ingot.pipelines.runs import artifact_keys, last_attempt
from ingot.pipelines.store import Store, open_store
from ingot.pipelines.tokenizer import TextEncoder, load_tokenizer
from ingot.services.running import end_on_signals

if TYPE_CHECKING:
    from ingot.model import Transformer

NEW_TOKENS = 64  # the most that an answer may have
QUESTIONS = (
    'def add(a, b):\n    """Return the sum of a and b."""',
    'def is_empty(self):\n    """Return True if there is nothing left."""',
    'def get_name(self):\n    """Return the name of this object."""',
)
# What a model continues after a question: cut where tokens end in running text, as a line's last sign and its
# end are one token, and so are a word and the space before it.
_NEXT_LINE = "\n   "


@dataclass(frozen=True)
class Answer:
    """The text, and whether the model ended it by itself within NEW_TOKENS tokens."""

    text: str
    ended: bool


def answers_before_serving(store: Store, run: str) -> dict[str, list[Answer]]:
    """The likeliest answer to each of QUESTIONS: of the model with its first random weights ("untrained"),
    after pretraining ("pretrain") and after fine-tuning ("sft"). Raises IngotError."""
    import torch

    from ingot.model import Transformer
    from ingot.pipelines.training.build import read_weights

    torch.set_num_threads(1)  # so small a model only waits for more
    keys = artifact_keys(store, run)
    pretrained = load(store, keys["pretrain"])
    assert pretrained is not None, keys["pretrain"]
    encoder = load_tokenizer(pretrained)
    recipe = read_object(store, f"{last_attempt(store, run).key}/run.json", recipe=dict[str, Any])["recipe"]
    answers = {}
    for stage in ("untrained", "pretrain", "sft"):
        config, weights = read_weights(store, keys["sft" if stage == "sft" else "pretrain"])
        model = Transformer(config)
        if stage == "untrained":
            model.init_weights(recipe["pretrain"]["seed"])
        else:
            model.load_state_dict({name: weight.float() for name, weight in weights.items()})
        answers[stage] = _answer(model.eval(), encoder, chat=stage == "sft")
    return answers


def prompt_ids(encoder: TextEncoder, question: str, chat: bool) -> list[int]:
    """A model tuned on conversations is asked in one; one that knows only documents continues the function,
    at the beginning of a document."""
    if chat:
        ids, _ = encoder.conversation([{"role": "user", "content": question}])
        return [*ids, encoder.assistant]
    [ids] = encoder.encode_batch([question + _NEXT_LINE])
    return [encoder.end_of_text, *ids]


def _answer(model: Transformer, encoder: TextEncoder, chat: bool) -> list[Answer]:
    from ingot.model import generate

    prompts = [prompt_ids(encoder, question, chat) for question in QUESTIONS]
    continuations = generate(model, prompts, new_tokens=NEW_TOKENS, stop=(encoder.end_of_text, encoder.stop))
    begun = "" if chat else _NEXT_LINE.removeprefix("\n")
    return [Answer(begun + encoder.decode(ids), len(ids) < NEW_TOKENS) for ids in continuations]


def to_json(answers: Mapping[str, Sequence[Answer]]) -> str:
    return json.dumps({stage: [asdict(answer) for answer in of] for stage, of in answers.items()})


def from_json(text: str | bytes) -> dict[str, list[Answer]]:
    return {stage: [Answer(**answer) for answer in of] for stage, of in json.loads(text).items()}


def main() -> None:
    end_on_signals()
    try:
        print(to_json(answers_before_serving(open_store(sys.argv[1]), sys.argv[2])))
    except KeyboardInterrupt:
        sys.exit(130)
    except IngotError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
