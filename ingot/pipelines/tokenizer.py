"""The tokenizer stage: a byte-level BPE trained on a deterministic sample of the documents that dedup kept.

Byte-level BPE (https://arxiv.org/abs/1909.03341 in the form GPT-2 gave it) begins with all 256 bytes, so any
text round-trips and nothing is unknown. The special tokens are control signs: text is always encoded with
`TextEncoder`, which never turns text into one of them, whatever it looks like."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from ingot.errors import IngotError
from ingot.pipelines.artifact import Artifact, File, put_file, put_table, read_table
from ingot.pipelines.sections import MOST_DIGITS, Tokenizer
from ingot.pipelines.store import Store
from ingot.pipelines.units import Unit, Workspace

if TYPE_CHECKING:
    import tokenizers

    from ingot.pipelines.bpe import ByteLevelBpe
    from ingot.pipelines.pipeline import Outcome

VERSION = 1
MOST_TRAINED = 1_000_000  # characters of a text that are cut into pieces at once, in training

END_OF_TEXT, SYSTEM, USER, ASSISTANT, STOP = (
    "<|endoftext|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|end|>",
)
SPECIAL = (END_OF_TEXT, SYSTEM, USER, ASSISTANT, STOP)

# `generation` marks what the assistant says, its stop token included: the span that fine-tuning learns.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('a message has the role ' + message['role'] + '; use system, user or assistant') }}"
    "{% endif %}"
    "{{ '<|' + message['role'] + '|>' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|end|>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def pattern(digits: int) -> str:
    """GPT-4's pattern without its possessive quantifiers: contractions, words with one leading sign, numbers
    of up to `digits` digits, runs of signs, line ends, other spaces (with the last one left to the word that
    follows)."""
    return (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
        rf"|\p{{N}}{{1,{digits}}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


def digits_of(serialized: str) -> int:
    """Of a number, in a piece. Raises IngotError for a tokenizer that cuts text in another way."""
    body = json.loads(serialized)
    parts = (body.get("pre_tokenizer") or {}).get("pretokenizers") or [{}]
    found = parts[0].get("pattern", {}).get("Regex")
    for digits in range(1, MOST_DIGITS + 1):
        if found == pattern(digits):
            return digits
    raise IngotError(
        "tokenizer.json: it cuts text in a way that is not Ingot's; take one that a tokenizer stage made"
    )


class TextEncoder:
    """A trained tokenizer, for text on its way to a model."""

    def __init__(self, serialized: str) -> None:
        import tokenizers

        self._serialized = serialized
        self._tokenizer = tokenizers.Tokenizer.from_str(serialized)
        self.vocabulary = self._tokenizer.get_vocab_size()
        ids: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        self.end_of_text, self.system, self.user, self.assistant, self.stop = (ids[sign] for sign in SPECIAL)
        self._roles = {"system": self.system, "user": self.user, "assistant": self.assistant}

    def encode_utf8(self, data: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The ids (uint32) of many texts one after another, and where each text's begin in them, with the end
        of the last. Text number i is `data[offsets[i]:offsets[i + 1]]` (uint8, int64). No id is a special
        token's."""
        return self._bpe.encode(data, offsets)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text; none of them is a special token's."""
        encoded = [text.encode() for text in texts]
        offsets = np.append(0, np.cumsum([len(each) for each in encoded])).astype(np.int64)
        ids, places = self.encode_utf8(np.frombuffer(b"".join(encoded), np.uint8), offsets)
        return [part.tolist() for part in np.split(ids, places[1:-1])] if encoded else []

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids, special tokens left out; bytes that are no UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        return b"".join(self.bytes_of[index] for index in ids)

    def conversation(self, messages: Sequence[Mapping[str, str]]) -> tuple[list[int], list[bool]]:
        """The ids of the conversation as the chat template renders it, and a mask that is True on what the
        assistant says, its stop token included."""
        ids: list[int] = []
        mask: list[bool] = []
        encoded = self.encode_batch([message["content"] for message in messages])
        for message, content in zip(messages, encoded, strict=True):
            answer = message["role"] == "assistant"
            ids += [self._roles[message["role"]], *content, self.stop]
            mask += [False] + [answer] * (len(content) + 1)
        return ids, mask

    @cached_property
    def _bpe(self) -> ByteLevelBpe:
        from ingot.pipelines.bpe import ByteLevelBpe  # brings numba, which only who encodes waits for

        return ByteLevelBpe(self._serialized, self.bytes_of, digits_of(self._serialized))

    @cached_property
    def bytes_of(self) -> list[bytes]:
        """The bytes each id stands for; none for a special token."""
        letters = _byte_letters()
        vocabulary = {
            index: token for token, index in self._tokenizer.get_vocab(with_added_tokens=True).items()
        }
        return [
            b"" if vocabulary[index] in SPECIAL else bytes(letters[letter] for letter in vocabulary[index])
            for index in range(self.vocabulary)
        ]

    @cached_property
    def token_bytes(self) -> np.ndarray:
        """How many bytes each id stands for (int64, by id); 0 for a special token."""
        return np.array([len(token) for token in self.bytes_of], dtype=np.int64)


def load_tokenizer(artifact: Artifact) -> TextEncoder:
    """The tokenizer of a tokenizer artifact, or of any checkpoint."""
    return TextEncoder(artifact.read("tokenizer.json").decode())


def refuse_other_tokenizer(artifact: Artifact, tokenizer: Artifact) -> None:
    """Raises IngotError where the artifact, token shards or a checkpoint, was made with another tokenizer:
    its ids mean other text."""
    own = artifact.files.get("tokenizer.json")
    if own is not None:
        made, given = own.sha256, tokenizer.files["tokenizer.json"].sha256
    else:
        inputs = artifact.made.get("inputs", {})
        made, given = inputs.get("tokenizer", {}).get("digest", "unknown"), tokenizer.digest
    if made != given:
        raise IngotError(
            f"{artifact.key} was made with another tokenizer ({made[:12]}) than {tokenizer.key} "
            f"({given[:12]}), so its ids mean other text; give the tokenizer it was made with, or delete all "
            f"below {artifact.key}/ and run again to make it with this one"
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
    body = {"samples": [record["sample"] for record in samples], **section.what()}
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

    tables = [read_table(store, File.from_json(entry), "a sample") for entry in body["samples"]]
    columns = {"text": pyarrow.large_string(), "draw": pyarrow.float64()}  # a string column ends at 2 GB
    sample = pyarrow.concat_tables(tables).cast(pyarrow.schema(columns)).sort_by("draw")
    texts, used = [], 0
    for text in sample["text"].to_pylist():
        if used >= body["sample_bytes"]:
            break
        texts.append(text)
        used += len(text.encode())
    tokenizer = train_bpe(texts, body["vocabulary"], body["digits"])
    files = _files(tokenizer)
    return {
        "files": {name: put_file(store, data).to_json() for name, data in files.items()},
        "vocabulary": tokenizer.get_vocab_size(),
        "documents": len(texts),
        "bytes": used,
    }


def train_bpe(texts: Sequence[str], vocabulary: int, digits: int = 3) -> tokenizers.Tokenizer:
    """A tokenizer of so many tokens, `SPECIAL` first, with so many digits of a number in a token at most."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(pattern(digits)), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # its engine of regular expressions gives up on a few million spaces in a row
    parts = (
        text[start : start + MOST_TRAINED] for text in texts for start in range(0, len(text), MOST_TRAINED)
    )
    tokenizer.train_from_iterator(parts, trainer)
    return tokenizer


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


def _byte_letters() -> dict[str, int]:
    """GPT-2's letters for bytes: printable ones stand for themselves, the rest for letters from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in set(printable))
    return letters | {chr(0x100 + count): byte for count, byte in enumerate(others)}
