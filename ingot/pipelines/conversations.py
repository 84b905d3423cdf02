"""The functions of the corpus as conversations, distinct and in an order that is a fair sample.

Two steps of units. `functions` parses the Python documents of one file of the corpus and leaves one sorted
run per range of body hashes; `distinct` merges the runs of one range and keeps, of equal bodies, the one
with the smallest id. What comes out, `functions/NNNNN.parquet`, is therefore in the order of the bodies'
hashes over all files: the first so many of a split are a sample that no number of workers changes, and a
body is in one split only.

Columns: id, document, name, line, split ("sft", "preference" or "held-out", by the document's id), body
(the hash of the answer), messages (JSON), prompt and answer (token ids: the conversation up to and with the
sign that the assistant speaks, and what it says, its stop token included)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from ingot.pipelines.answers import dealt, padded
from ingot.pipelines.artifact import Artifact, File, put_table, read_file, read_table
from ingot.pipelines.functions import Function, NotPython, Split, functions_of, position_of, split_of
from ingot.pipelines.store import Store
from ingot.pipelines.tokenizer import TextEncoder
from ingot.pipelines.training.dataset import Share, shares
from ingot.pipelines.training.permutation import shuffled_epochs
from ingot.pipelines.units import Unit, Workspace

if TYPE_CHECKING:
    import pyarrow

FILES_PER_RANGE = 32  # of the corpus: a range's runs, some tens of megabytes, are merged in memory


def make_functions(
    workspace: Workspace, inputs: Mapping[str, Artifact], context: int, documents: int
) -> tuple[dict[str, File], dict[str, int]]:
    """The functions of about `documents` of the documents that dedup kept, drawn by their ids, as far as a
    conversation fits into `context` tokens: the files `functions/NNNNN.parquet`, and counts:
    documents_parsed, documents_failed (no Python of this version, or too large), functions, functions_long
    (left out), functions_distinct. `inputs`: corpus, dedup and tokenizer."""
    corpus, dedup, tokenizer = inputs["corpus"], inputs["dedup"], inputs["tokenizer"]
    names = corpus.names("documents/")
    share = documents / max(1, dedup.metrics["documents_out"])
    ranges = 1 + len(names) // FILES_PER_RANGE
    units = [
        Unit(
            name.removeprefix("documents/").removesuffix(".parquet"),
            {
                "documents": corpus.files[name].to_json(),
                "kept": dedup.files[name.replace("documents/", "kept/")].to_json(),
                "tokenizer": tokenizer.files["tokenizer.json"].to_json(),
                "context": context,
                "ranges": ranges,
                "share": share,
            },
        )
        for name in names
    ]
    parsed = workspace.run("functions", units, _parse)
    runs = [[record["runs"][number] for record in parsed] for number in range(ranges)]
    merges = [Unit(f"{number:05d}", {"runs": of_range}) for number, of_range in enumerate(runs)]
    merged = workspace.run("distinct", merges, _merge)
    files = {
        f"functions/{unit.name}.parquet": File.from_json(record["functions"])
        for unit, record in zip(merges, merged, strict=True)
    }
    counted = ("documents_parsed", "documents_failed", "functions", "functions_long")
    counts = {name: sum(record[name] for record in parsed) for name in counted}
    return files, {**counts, "functions_distinct": sum(file.rows or 0 for file in files.values())}


def first_functions(store: Store, files: Mapping[str, File], split: Split, most: int) -> pyarrow.Table:
    """The first `most` functions of the split, or all there are; all columns but messages."""
    import pyarrow
    import pyarrow.compute

    tables, rows = [], 0
    columns = [name for name in _schema().names if name != "messages"]
    for name in sorted(name for name in files if name.startswith("functions/")):
        table = read_table(store, files[name], name, columns)
        tables.append(table.filter(pyarrow.compute.field("split") == split))
        rows += tables[-1].num_rows
        if rows >= most:
            break
    return pyarrow.concat_tables(tables).slice(0, most).combine_chunks()


class ConversationDataset:
    """A training `Dataset` (see training/dataset.py) of conversations. `spec`: conversations (a file with the
    columns prompt and answer), rows (a step), seed."""

    def __init__(self, store: Store, spec: Mapping[str, Any]) -> None:
        table = read_table(
            store, File.from_json(spec["conversations"]), "conversations", ["prompt", "answer"]
        )
        self.prompts, self.answers = (table[name].combine_chunks() for name in ("prompt", "answer"))
        self.rows, self.seed = spec["rows"], spec["seed"]

    def share(self, step: int, rank: int, world: int, micro_batch: int) -> Share:
        from ingot.model import Batch

        positions = range(step * self.rows, (step + 1) * self.rows)
        chosen = shuffled_epochs(positions, len(self.prompts), self.seed)
        prompts, answers = (column.take(chosen).to_pylist() for column in (self.prompts, self.answers))
        pairs = list(zip(prompts, answers, strict=True))
        order = dealt(np.array([len(prompt) + len(answer) for prompt, answer in pairs]), world)
        ranges, size = shares(self.rows, rank, world, micro_batch)
        batches = [Batch(*padded([pairs[order[place]] for place in own], size)) for own in ranges]
        places = order[ranges[0].start : ranges[-1].stop]
        return Share(batches, places, chosen[places])


def conversation_of(function: Function) -> list[dict[str, str]]:
    """What is asked and what is answered."""
    return [{"role": "user", "content": function.prompt}, {"role": "assistant", "content": function.body}]


def _parse(store: Store, body: Mapping[str, Any]) -> dict[str, Any]:
    import pyarrow.compute

    documents = read_table(store, File.from_json(body["documents"]), "documents", ["id", "text", "path"])
    kept = read_table(store, File.from_json(body["kept"]), "kept", ["id"])
    wanted = pyarrow.compute.and_(
        pyarrow.compute.is_in(documents["id"], value_set=kept["id"].combine_chunks()),
        pyarrow.compute.ends_with(documents["path"], ".py"),
    )
    documents = documents.filter(wanted)
    encoder = TextEncoder(read_file(store, File.from_json(body["tokenizer"]), "the tokenizer").decode())
    count = {"documents_parsed": 0, "documents_failed": 0, "functions": 0, "functions_long": 0}
    rows: list[dict[str, Any]] = []
    for document, text in zip(documents["id"].to_pylist(), documents["text"], strict=True):
        if position_of(document, "read") >= body["share"]:
            continue
        try:
            functions = functions_of(text.as_py())
        except NotPython:
            count["documents_failed"] += 1
            continue
        count["documents_parsed"] += 1
        count["functions"] += len(functions)
        fitting = [row for row in map(_Rows(document, encoder), functions) if _length(row) <= body["context"]]
        count["functions_long"] += len(functions) - len(fitting)
        rows += fitting
    table = _distinct(pyarrow.Table.from_pylist(rows, schema=_schema()))
    runs = _cut(table, body["ranges"])
    return {**count, "runs": [put_table(store, run).to_json() for run in runs]}


def _merge(store: Store, body: Mapping[str, Any]) -> dict[str, Any]:
    import pyarrow

    runs = [read_table(store, File.from_json(entry), "a run of functions") for entry in body["runs"]]
    return {"functions": put_table(store, _distinct(pyarrow.concat_tables(runs))).to_json()}


class _Rows:
    """Functions of one document → rows of the table."""

    def __init__(self, document: str, encoder: TextEncoder) -> None:
        self.document, self.encoder = document, encoder
        self.split = split_of(document)

    def __call__(self, function: Function) -> dict[str, Any]:
        messages = conversation_of(function)
        ids, mask = self.encoder.conversation(messages)
        begins = mask.index(True)
        return {
            "id": function.identifier(self.document),
            "document": self.document,
            "name": function.name,
            "line": function.line,
            "split": self.split,
            "body": function.body_digest,
            "messages": json.dumps(messages, ensure_ascii=False),
            "prompt": ids[:begins],
            "answer": ids[begins:],
        }


def _length(row: Mapping[str, Any]) -> int:
    return len(row["prompt"]) + len(row["answer"])


def _distinct(table: pyarrow.Table) -> pyarrow.Table:
    """The rows in the order of their bodies' hashes; of equal bodies the row with the smallest id."""
    table = table.sort_by([("body", "ascending"), ("id", "ascending")])
    bodies = table["body"].to_numpy()
    first = np.ones(len(bodies), dtype=bool)
    first[1:] = bodies[1:] != bodies[:-1]
    return table.filter(first)


def _cut(table: pyarrow.Table, ranges: int) -> list[pyarrow.Table]:
    """A sorted table cut into equal ranges of body hashes."""
    bounds = [f"{(number << 32) // ranges:08x}" for number in range(1, ranges)]
    places = [0, *np.searchsorted(table["body"].to_numpy().astype(str), bounds).tolist(), table.num_rows]
    return [table.slice(start, end - start) for start, end in pairwise(places)]


def _schema() -> pyarrow.Schema:
    import pyarrow

    text, tokens = pyarrow.string(), pyarrow.list_(pyarrow.int32())
    return pyarrow.schema(
        [
            ("id", text),
            ("document", text),
            ("name", text),
            ("line", pyarrow.int32()),
            ("split", text),
            ("body", text),
            ("messages", text),
            ("prompt", tokens),
            ("answer", tokens),
        ]
    )
