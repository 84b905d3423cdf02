"""The tokens stage: what dedup kept → shards of token ids, and an index from documents to places in them.

A shard holds raw little-endian integers, uint16 where the vocabulary fits, with an end-of-text after every
document. The documents of each file of the corpus, which are of one source, give one training shard and one
held-out shard; which of the two a document goes to depends on its id alone. `index/` has a table of the
documents of each pair of shards in their order, and `lookup/` leads from any id to its row (places.py)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from ingot.errors import IngotError
from ingot.pipelines.artifact import Artifact, File, put_json, put_table, read_file, read_table
from ingot.pipelines.columns import utf8
from ingot.pipelines.places import lookups_for, merge_lookups, put_run
from ingot.pipelines.sections import Tokens
from ingot.pipelines.shards import put_shard
from ingot.pipelines.store import Store
from ingot.pipelines.tokenizer import SPECIAL, TextEncoder, load_tokenizer
from ingot.pipelines.units import Unit, Workspace

if TYPE_CHECKING:
    from ingot.pipelines.pipeline import Outcome

VERSION = 3
SPLITS = ("train", "held-out")


def run(workspace: Workspace, section: Tokens, inputs: Mapping[str, Artifact]) -> Outcome:
    from ingot.pipelines.pipeline import Outcome

    corpus, dedup, tokenizer = inputs["corpus"], inputs["dedup"], inputs["tokenizer"]
    encoder = load_tokenizer(tokenizer)
    lookups = lookups_for(dedup.metrics["documents_out"])
    units = []
    for number, name in enumerate(corpus.names("documents/")):
        body = {
            "documents": corpus.files[name].to_json(),
            "kept": dedup.files[name.replace("documents/", "kept/")].to_json(),
            "tokenizer": tokenizer.files["tokenizer.json"].to_json(),
            "held_out": section.held_out,
            "shard": number,
            "lookups": lookups,
        }
        units.append(Unit(f"{number:05d}", body))
    records = workspace.run("encode", units, _encode)
    files: dict[str, File] = {}
    shards: dict[str, list[list[Any]]] = {split: [] for split in SPLITS}
    for unit, record in zip(units, records, strict=True):
        files[f"index/{unit.name}.parquet"] = File.from_json(record["index"])
        for split in SPLITS:
            name = f"{split}/{unit.name}.bin"
            files[name], files[f"blocks/{name}"] = (File.from_json(entry) for entry in record[split])
            shards[split].append([name, files[name].tokens])
    counts = {split: sum(tokens for _, tokens in shards[split]) for split in SPLITS}
    for split in SPLITS:
        if not counts[split]:
            raise IngotError(_without(split, dedup.metrics["documents_out"], section.held_out))
    meta = {
        "dtype": _dtype(encoder.vocabulary).name,
        "vocabulary": encoder.vocabulary,
        "end_of_text": encoder.end_of_text,
        "shards": shards,
        "sources": [record["source"] for record in records],  # of each pair of shards
    }
    files |= merge_lookups(workspace, [record["lookup"] for record in records], lookups)
    files["meta.json"] = put_json(workspace.store, meta)
    documents, text = (sum(record[name] for record in records) for name in ("documents", "bytes"))
    metrics = {
        "documents": documents,
        "bytes": text,
        "tokens": sum(counts.values()),
        "train_tokens": counts["train"],
        "held_out_tokens": counts["held-out"],
        "bytes_per_token": text / (sum(counts.values()) - documents),
        "bytes_per_token_by_source": _by_source(records),
        "unused_tokens": encoder.vocabulary - len(SPECIAL) - _used(records),
    }
    return Outcome(files, metrics)


def _without(split: str, documents: int, share: float) -> str:
    """Why a split has no document, and what gives it one."""
    cut = (
        "more files, or split: below a files source, which cuts its text files into documents (blank-lines, "
        "a separator, or the most characters of each)"
    )
    if documents == 1:
        return (
            "tokens: dedup left a single document, and there must be one to train on and one to hold out; "
            f"give more documents: {cut}"
        )
    wanted = share if split == "held-out" else 1 - share
    way = "raise" if split == "held-out" else "lower"
    return (
        f"tokens: none of {documents:,} documents fell to the {split} split, where tokens.held_out {share:g} "
        f"sends {wanted * documents:.2g} of them on average; {way} tokens.held_out, or give more documents: "
        f"{cut}"
    )


def _by_source(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    found: dict[str, list[int]] = {}
    for record in records:
        before = found.setdefault(record["source"], [0, 0])
        found[record["source"]] = [before[0] + record["bytes"], before[1] + record["tokens"]]
    return {name: text / max(1, tokens) for name, (text, tokens) in sorted(found.items()) if text}


def _used(records: Sequence[Mapping[str, Any]]) -> int:
    """How many ids occur anywhere."""
    masks = [np.frombuffer(bytes.fromhex(record["used"]), np.uint8) for record in records]
    return int(np.unpackbits(np.bitwise_or.reduce(masks)).sum())


def _encode(store: Store, body: Mapping[str, Any]) -> dict[str, Any]:
    import pyarrow
    import pyarrow.compute

    documents = read_table(store, File.from_json(body["documents"]), "documents", ["id", "text", "source"])
    kept = read_table(store, File.from_json(body["kept"]), "kept", ["id"])
    [source] = documents["source"].unique().to_pylist()  # a file of the corpus is of one
    documents = documents.filter(
        pyarrow.compute.is_in(documents["id"], value_set=kept["id"].combine_chunks())
    )
    encoder = _encoder(read_file(store, File.from_json(body["tokenizer"]), "the tokenizer").decode())
    dtype = _dtype(encoder.vocabulary)
    data, offsets = utf8(documents["text"])
    ids, places = encoder.encode_utf8(data, offsets)
    tokens = np.diff(places)
    ended = np.full(len(ids) + len(tokens), encoder.end_of_text, dtype)
    text = np.ones(len(ended), bool)
    text[places[1:] + np.arange(len(tokens))] = False  # the end of text that follows each document
    ended[text] = ids
    names = documents["id"].to_pylist()
    held = np.array([held_out(name, body["held_out"]) for name in names], bool)
    offset = np.zeros(len(names), np.int64)
    shards = {}
    for split, own in (("train", ~held), ("held-out", held)):
        sizes = tokens[own] + 1
        offset[own] = np.cumsum(sizes) - sizes
        shard = ended[np.repeat(own, tokens + 1)]
        shards[split] = [file.to_json() for file in put_shard(store, shard)]
    index = pyarrow.table(
        {
            "id": documents["id"],
            "split": pyarrow.array(np.where(held, "held-out", "train"), pyarrow.string()),
            "shard": pyarrow.array(np.full(len(names), body["shard"], np.int32)),
            "offset": offset,
            "tokens": tokens,
            "bytes": np.diff(offsets),
        }
    )
    used = np.zeros(encoder.vocabulary, bool)
    used[ids] = True
    return {
        **shards,
        "index": put_table(store, index).to_json(),
        "lookup": put_run(store, names, body["shard"], body["lookups"]),
        "source": source,
        "documents": len(names),
        "bytes": int(offsets[-1] - offsets[0]),
        "tokens": len(ids),
        "used": np.packbits(used).tobytes().hex(),  # a bit for each id that occurs
    }


@lru_cache(maxsize=1)
def _encoder(serialized: str) -> TextEncoder:
    # one for a process: it knows the words of the unit before
    return TextEncoder(serialized)


def held_out(document: str, share: float) -> bool:
    """Whether the document is kept from training: a share of all ids, drawn by hash."""
    digest = hashlib.blake2b(f"held-out:{document}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64 < share


def _dtype(vocabulary: int) -> np.dtype[Any]:
    return np.dtype("<u2") if vocabulary <= 2**16 else np.dtype("<u4")
