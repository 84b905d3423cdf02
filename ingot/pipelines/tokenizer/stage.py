"""The tokenizer stage: trained on a deterministic sample of the documents that dedup kept.

It makes the tokenizer's part of a Hugging Face folder. The special tokens are control tokens, which only the
chat template sets. A template can't mark a message's text as plain for the tokenizer that reads the result:
for other programs it refuses a message that holds the text of a control token, where Ingot's own endpoint
takes it with the ids of training. Programs that tokenize a user's text without the template must ask for
`split_special_tokens=True`; as the folder's default, that would split the template's tokens too."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from ingot.errors import IngotError
from ingot.pipelines.artifact import Artifact, File, put_file, put_table, read_table
from ingot.pipelines.sections import LEAST_VOCABULARY, Tokenizer
from ingot.pipelines.store import Store
from ingot.pipelines.tokenizer.scheme import ASSISTANT, END_OF_TEXT, SPECIAL, STOP, SYSTEM, USER, Scheme
from ingot.pipelines.units import Unit, Workspace

if TYPE_CHECKING:
    import pyarrow
    import tokenizers

    from ingot.pipelines.pipeline import Outcome

# Raised where ordinary text gives another tokenizer, so that the stage runs again. A change that concerns
# unusual text alone, such as runs of more than LONGEST_TRAINED characters, leaves it: a tokenizer made before
# stays valid, is kept, and differs in its digest from the one that such text gives today.
VERSION = 3
MOST_TRAINED = 1_000_000  # characters of a text that are cut into pieces at once, in training

# `generation` marks what the assistant says, its stop token included: the span that fine-tuning learns.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('a message has the role ' + message['role'] + '; use system, user or assistant') }}"
    "{% endif %}"
    f"{{% for token in {list(SPECIAL)} %}}"
    "{% if token in message['content'] %}"
    "{{ raise_exception('a message holds the control token ' + token + ' as text; remove it') }}"
    "{% endif %}"
    "{% endfor %}"
    "{{ '<|' + message['role'] + '|>' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|end|>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def run(workspace: Workspace, section: Tokenizer, inputs: Mapping[str, Artifact]) -> Outcome:
    """Draws the sample where the documents are, then trains on it in one task."""
    from ingot.pipelines.pipeline import Outcome

    corpus, dedup = inputs["corpus"], inputs["dedup"]
    # a little more than is asked for, as documents differ in size; training takes it up to sample_bytes
    share = min(1.0, (1.2 * section.sample_bytes + 1_000_000) / max(1, dedup.metrics["bytes_out"]))
    units = [
        Unit(
            name.removeprefix("documents/").removesuffix(".parquet"),
            {
                "documents": corpus.files[name].to_json(),
                "kept": dedup.files[name.replace("documents/", "kept/")].to_json(),
                "share": share,
                "seed": section.seed,
            },
        )
        for name in corpus.names("documents/")
    ]
    samples = workspace.run("sample", units, _sample)
    body = {
        "samples": [record["sample"] for record in samples],
        "sample_bytes": section.sample_bytes,
        "corpus_bytes": dedup.metrics["bytes_out"],
        "vocabulary": section.rounded_vocabulary,
        "multiple": section.vocabulary_multiple,
        "scheme": asdict(Scheme(section.algorithm, section.digits, section.whitespace)),
    }
    [trained] = workspace.run("train", [Unit("tokenizer", body)], _train)
    files = {name: File.from_json(entry) for name, entry in trained["files"].items()}
    sample = {"sample_documents": trained["documents"], "sample_bytes": trained["bytes"]}
    return Outcome(files, {"vocabulary": trained["vocabulary"], **sample})


def _sample(store: Store, body: Mapping[str, Any]) -> dict[str, Any]:
    import pyarrow.compute

    documents = read_table(store, File.from_json(body["documents"]), "documents", ["id", "text"])
    kept = read_table(store, File.from_json(body["kept"]), "kept", ["id"])
    documents = documents.filter(
        pyarrow.compute.is_in(documents["id"], value_set=kept["id"].combine_chunks())
    )
    draws = [_draw(body["seed"], document) for document in documents["id"].to_pylist()]
    drawn = documents.select(["text"]).append_column("draw", pyarrow.array(draws, pyarrow.float64()))
    table = drawn.filter(pyarrow.compute.less(drawn["draw"], body["share"]))
    return {"sample": put_table(store, table).to_json()}


def _draw(seed: int, document: str) -> float:
    """A number in [0, 1) that depends on the document's id alone."""
    digest = hashlib.blake2b(f"{seed}:{document}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64


def _train(store: Store, body: Mapping[str, Any]) -> dict[str, Any]:
    os.environ["TOKENIZERS_PARALLELISM"] = "true"  # the only task of its step: it may use every core
    import pyarrow
    import pyarrow.compute

    tables = [read_table(store, File.from_json(entry), "a sample") for entry in body["samples"]]
    columns = {"text": pyarrow.large_string(), "draw": pyarrow.float64()}  # a string column ends at 2 GB
    texts = pyarrow.concat_tables(tables).cast(pyarrow.schema(columns)).sort_by("draw")["text"]
    sizes = np.cumsum(pyarrow.compute.binary_length(texts).to_numpy())
    documents = min(len(sizes), int(np.searchsorted(sizes, body["sample_bytes"])) + 1)
    used = int(sizes[documents - 1]) if documents else 0
    tokenizer = Scheme(**body["scheme"]).train(_parts(texts[:documents]), body["vocabulary"])
    if (learned := tokenizer.get_vocab_size()) < body["vocabulary"]:
        raise IngotError(_too_few(learned, used, body))
    files = _files(tokenizer)
    return {
        "files": {name: put_file(store, data).to_json() for name, data in files.items()},
        "vocabulary": learned,
        "documents": documents,
        "bytes": used,
    }


def _parts(texts: pyarrow.ChunkedArray) -> Iterator[str]:
    """The texts as strings, one at a time and in parts: the engine of regular expressions that `tokenizers`
    cuts with gives up on a few million spaces in a row."""
    for scalar in texts:
        text = scalar.as_py()
        for start in range(0, len(text), MOST_TRAINED):
            yield text[start : start + MOST_TRAINED]


def _too_few(learned: int, used: int, body: Mapping[str, Any]) -> str:
    most = learned // body["multiple"] * body["multiple"]
    mends = [f"set it to at most {most}"] if most >= LEAST_VOCABULARY else []
    mends.append("raise tokenizer.sample_bytes" if used < body["corpus_bytes"] else "give more text")
    return (
        f"tokenizer.vocabulary {body['vocabulary']}: {used:,} bytes of sample gave {learned} tokens and no "
        f"more; {' or '.join(mends)}"
    )


def _files(tokenizer: tokenizers.Tokenizer) -> dict[str, bytes]:
    """The tokenizer's part of a Hugging Face folder."""
    signs = {"eos_token": END_OF_TEXT, "pad_token": END_OF_TEXT}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "additional_special_tokens": [SYSTEM, USER, ASSISTANT, STOP],
        **signs,
    }
    special = {"additional_special_tokens": [SYSTEM, USER, ASSISTANT, STOP], **signs}
    return {
        "tokenizer.json": tokenizer.to_str(pretty=True).encode(),
        "tokenizer_config.json": json.dumps(config, indent=2).encode(),
        "special_tokens_map.json": json.dumps(special, indent=2).encode(),
        "chat_template.jinja": CHAT_TEMPLATE.encode(),
    }
