"""Raw files become the same documents on any machine, and what is bad in them is never passed over."""

from __future__ import annotations

import codecs
import gzip
import io
import json
import random
import shutil
import sys
import sysconfig
import unicodedata
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from pydantic import ValidationError

from ingot.errors import IngotError, UsageError
from ingot.pipelines import sources
from ingot.pipelines.artifact import Artifact
from ingot.pipelines.characters import is_blank
from ingot.pipelines.corpus import document_id
from ingot.pipelines.dedup.rank import qualities
from ingot.pipelines.sections import PythonPackages
from ingot.pipelines.store import LocalStore, Store, open_store

Corpus = Callable[..., Artifact]
ELSEWHERE = LocalStore("/nowhere")


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(str(tmp_path / "store"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "raw"
    path.mkdir()
    return path


@pytest.fixture
def corpus(store: LocalStore, run_one_stage: Callable[..., Artifact]) -> Corpus:
    """The corpus of a folder or S3 prefix, or of several sources."""

    def run(raw: Any, store: Store = store, workers: int = 2, **settings: Any) -> Artifact:
        given = raw if isinstance(raw, list) else [files("raw", raw)]
        return run_one_stage(store, "corpus", {"sources": given, **settings}, workers=workers)

    return run


def files(name: str, path: Any, **fields: Any) -> dict[str, Any]:
    return {"source": "files", "name": name, "path": str(path), **fields}


def documents(artifact: Artifact) -> list[dict[str, Any]]:
    return [row for name in artifact.names("documents/") for row in artifact.table(name).to_pylist()]


def quarantine(artifact: Artifact) -> list[dict[str, Any]]:
    return [row for name in artifact.names("quarantine/") for row in artifact.table(name).to_pylist()]


def parquet(table: pyarrow.Table) -> bytes:
    sink = io.BytesIO()
    pyarrow.parquet.write_table(table, sink)
    return sink.getvalue()


def zstd(data: bytes) -> bytes:
    return bytes(pyarrow.compress(data, codec="zstd", asbytes=True))


def json_lines(*records: Any) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def noise(count: int) -> list[str]:
    """Words that hardly compress, the same in every run."""
    draw = random.Random(1)
    return [f"{draw.getrandbits(128):032x}" for _ in range(count)]


def test_every_kind_of_file_becomes_documents(folder: Path, corpus: Corpus) -> None:
    lines = json_lines({"text": "one", "url": "http://a", "tags": ["x"], "n": 1}, {"text": "zwei ü"})
    (folder / "a.txt").write_text("plain ä")
    (folder / "b.txt.gz").write_bytes(gzip.compress(b"zipped"))
    (folder / "c.txt.zst").write_bytes(zstd(b"first ") + zstd(b"second frame"))
    (folder / "d.jsonl").write_bytes(lines)
    (folder / "e.jsonl.gz").write_bytes(gzip.compress(lines))
    (folder / "f.jsonl.zst").write_bytes(zstd(lines))
    (folder / "g.parquet").write_bytes(
        parquet(pyarrow.table({"text": ["row 0", "row 1"], "url": [None, "http://b"]}))
    )
    (folder / "deep").mkdir()
    (folder / "deep" / "h.md").write_text("deep")
    artifact = corpus(folder)
    rows = documents(artifact)
    assert [(row["path"], row["record"], row["text"]) for row in rows] == [
        ("a.txt", 0, "plain ä"),
        ("b.txt.gz", 0, "zipped"),
        ("c.txt.zst", 0, "first second frame"),
        ("d.jsonl", 0, "one"),
        ("d.jsonl", 1, "zwei ü"),
        ("deep/h.md", 0, "deep"),
        ("e.jsonl.gz", 0, "one"),
        ("e.jsonl.gz", 1, "zwei ü"),
        ("f.jsonl.zst", 0, "one"),
        ("f.jsonl.zst", 1, "zwei ü"),
        ("g.parquet", 0, "row 0"),
        ("g.parquet", 1, "row 1"),
    ]
    assert {row["source"] for row in rows} == {"raw"}
    assert (rows[3]["url"], json.loads(rows[3]["metadata"])) == ("http://a", {"n": 1, "tags": ["x"]})
    assert (rows[10]["url"], rows[11]["url"], rows[10]["metadata"]) == (None, "http://b", None)
    assert all(row["id"] == document_id("raw", row["path"], row["record"]) for row in rows)
    metrics = artifact.metrics
    assert (metrics["files"], metrics["documents_in"], metrics["documents_out"]) == (8, 12, 12)
    assert metrics["bytes_in"] == sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert metrics["bytes_out"] == sum(len(row["text"].encode()) for row in rows)


def test_the_fields_of_text_and_address_can_be_named(folder: Path, corpus: Corpus) -> None:
    (folder / "a.jsonl").write_bytes(json_lines({"body": "one", "link": "http://a", "text": "not this"}))
    [row] = documents(corpus([files("raw", folder, text="body", url="link")]))
    assert (row["text"], row["url"]) == ("one", "http://a")


def test_empty_texts_are_counted_and_left_out(folder: Path, corpus: Corpus) -> None:
    (folder / "a.jsonl").write_bytes(json_lines({"text": ""}, {"text": "one"}, {"text": " \n"}))
    (folder / "b.txt").touch()
    artifact = corpus(folder)
    assert [row["record"] for row in documents(artifact)] == [1]
    assert (artifact.metrics["empty"], artifact.metrics["documents_in"]) == (3, 4)


def test_a_text_of_which_nothing_can_be_seen_is_empty(folder: Path, corpus: Corpus) -> None:
    invisible = [" \t", "\u200b\u200f", "\u2060\n", "\ufeff", "\xad", "\x00\x1b\x85", "\u3164", "\U000e0041"]
    visible = ["\u200bx", ".", "\u0301", "😀", "\u0600"]
    (folder / "a.jsonl").write_bytes(json_lines(*({"text": text} for text in invisible + visible)))
    (folder / "b.txt").write_bytes(codecs.BOM_UTF8)
    (folder / "c.txt").write_bytes("\u200b\n".encode("utf-16"))
    artifact = corpus(folder)
    assert [row["text"] for row in documents(artifact)] == visible
    assert artifact.metrics["empty"] == len(invisible) + 2


def test_what_unicode_calls_format_control_or_separator_is_blank() -> None:
    drawn = {0x070F, 0x08E2, 0x110BD, 0x110CD, *range(0x0600, 0x0606), 0x06DD, 0x0890, 0x0891}
    drawn |= set(range(0x13430, 0x13440))  # signs that enclose numbers, and joiners of hieroglyphs
    for code in set(range(sys.maxunicode + 1)) - drawn:
        if unicodedata.category(chr(code)) in ("Cc", "Cf", "Zs", "Zl", "Zp"):
            assert is_blank(chr(code)), hex(code)
    letters = [
        chr(code) for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code))[0] in "LNPS"
    ]
    assert [each for each in letters if is_blank(each)] == list("\u115f\u1160\u2800\u3164\uffa0")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-8"])
@pytest.mark.parametrize(("name", "pack"), [("a.txt", bytes), ("a.txt.gz", gzip.compress), ("a", bytes)])
def test_a_byte_order_mark_is_no_part_of_a_text(
    encoding: str, name: str, pack: Callable[[bytes], bytes]
) -> None:
    source = sources.Files(source="files", name="raw", path="/raw")
    [record] = sources.records(source, name, pack("naïve 漢字\n".encode(encoding)))
    assert (record.text, record.bad) == ("naïve 漢字\n", None)


BAD = {
    "latin.txt": ("café".encode("latin-1"), "not UTF-8 at byte 3"),
    "cut.txt.gz": (gzip.compress(b"text")[:10], "the compressed file is truncated"),
    "cut.txt.zst": (zstd(b"text")[:6], "the compressed file is truncated"),
    "junk.txt.gz": (b"this is no archive", "not a readable archive"),
    "junk.txt.zst": (b"this is no archive", "not a readable archive"),
    # a frame of one raw block whose header asks for a window of 256 MiB
    "long.txt.zst": (b"\x28\xb5\x2f\xfd\x00\x90\x21\x00\x00text", "compress it again with --long=27"),
    "bad.jsonl": (b'{"text": "good"}\n{"text": \n', "line 2 is not JSON"),
    "latin.jsonl": (b'{"text": "good"}\n{"text": "caf\xe9"}\n', "line 2 is not JSON in UTF-8"),
    "list.jsonl": (b'{"text": "good"}\n[1]\n', "line 2 is no JSON object"),
    "deep.jsonl": (b'{"text": "good"}\n' + b"[" * 100_000 + b"\n", "line 2 is not JSON"),
    "field.jsonl": (b'{"text": "good"}\n{"txt": "x"}\n', "line 2 has no text field 'text'"),
    "number.jsonl": (b'{"text": "good"}\n{"text": 3}\n', "line 2 has no text field 'text'"),
    "half.jsonl": (
        b'{"text": "good"}\n{"text": "\\ud800"}\n',
        "line 2 holds half of a surrogate pair in its field 'text'",
    ),
    "url.jsonl": (
        b'{"text": "good"}\n{"text": "x", "url": "\\udc00"}\n',
        "line 2 holds half of a surrogate pair in its field 'url'",
    ),
    "cut.jsonl.gz": (gzip.compress(json_lines({"text": "good"}) * 9000)[:-9], "truncated, after "),
    "cut.parquet": (parquet(pyarrow.table({"text": ["x" * 99] * 99}))[:-40], "not a readable Parquet file"),
    "junk.parquet": (b"PAR1" + b"\xff" * 99 + b"PAR1", "not a readable Parquet file"),
    "empty.parquet": (b"", "not a readable Parquet file"),
    "table.csv": (b"text,url\na,b\n", "the file is CSV, which can't be read; convert it"),
    "Page.HTML": (b"<p>hello</p>", "the file is HTML"),
    "page": (b"<!DOCTYPE html><p>hello</p>", "the file is HTML"),
    "crawl.warc.gz": (gzip.compress(b"WARC/1.0"), "the file is WARC"),
    "paper": (b"%PDF-1.7", "the file is PDF"),
    "binary.txt": (b"a\0b", "the file is binary"),
    "key.jsonl": (b'{"text": "good"}\n{"\\ud800": "x"}\n', "line 2 has no text field"),
    "bomb.txt.gz": (
        gzip.compress(b"a" * 20_000_000),
        "more than 200 times its size; if that is right, raise",
    ),
    "column.parquet": (parquet(pyarrow.table({"body": ["x"]})), "record 0 has no text field"),
}


@pytest.mark.parametrize("name", BAD)
def test_every_kind_of_badness_is_noticed(name: str) -> None:
    data, reason = BAD[name]
    source = sources.Files(source="files", name="raw", path="/raw")
    *before, last = sources.records(source, name, data)
    assert last.bad is not None
    assert reason in last.bad
    assert all(record.text == "good" for record in before)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.JSONL", b'{"text": "one"}\n{"text": "two"}\n'),
        ("a.json", b'{"text": "one"}\n{"text": "two"}\n'),
        ("a.json", b'[{"text": "one"},\n {"text": "two"}]'),
        ("a.json.gz", gzip.compress(b'[{"text": "one"}, {"text": "two"}]')),
        ("lines", b'{"text": "one"}\n{"text": "two"}\n'),
        ("a.jsonl", '{"text": "one"}\n{"text": "two"}\n'.encode("utf-16")),
        ("a.jsonl", '{"text": "one"}\n{"text": "two"}\n'.encode("utf-8-sig")),
        ("table", parquet(pyarrow.table({"text": ["one", "two"]}))),
    ],
)
def test_the_format_is_recognised_by_name_and_content(name: str, data: bytes) -> None:
    source = sources.Files(source="files", name="raw", path="/raw")
    assert [(record.text, record.bad) for record in sources.records(source, name, data)] == [
        ("one", None),
        ("two", None),
    ]


def test_a_declared_format_decides() -> None:
    source = sources.Files(source="files", name="raw", path="/raw", format="text")
    assert [record.text for record in sources.records(source, "a.html", b"<p>")] == ["<p>"]


@pytest.mark.parametrize(
    ("split", "text", "expected"),
    [
        ("blank-lines", "a\nb\n\nc\n \t\n\n\nd\n\n", ["a\nb", "c", "d"]),
        ("blank-lines", "a\r\nb\r\n\r\nc", ["a\r\nb", "c"]),
        ("\n---\n", "a\n\nb\n---\nc---\n---\n", ["a\n\nb", "c---"]),
        (".", "a.b", ["a", "b"]),
        (6, "abcd\nefgh ijklmnopqr", ["abcd\n", "efgh ", "ijklmn", "opqr"]),
        (6, "ä" * 6, ["ä" * 6]),
        (1, "abc", ["a", "b", "c"]),
        (None, "a\n\nb", ["a\n\nb"]),
        ("blank-lines", "", [""]),
        ("blank-lines", "\n\n\n", [""]),
    ],
)
def test_a_text_file_is_split_where_asked(split: Any, text: str, expected: list[str]) -> None:
    source = sources.Files(source="files", name="raw", path="/raw", split=split)
    for name, data in (("a.txt", text.encode()), ("a.md.gz", gzip.compress(text.encode()))):
        found = list(sources.records(source, name, data))
        assert [(record.number, record.text) for record in found] == list(enumerate(expected))


def test_a_split_by_size_loses_nothing_and_leaves_records_of_other_formats_whole() -> None:
    text = "a line of several words\n" * 500
    source = sources.Files(source="files", name="raw", path="/raw", split=500)
    found = [record.text for record in sources.records(source, "a.txt", text.encode())]
    assert "".join(found) == text
    assert all(250 < len(piece) <= 500 and piece[-1] == "\n" for piece in found[:-1])
    [record] = sources.records(source, "a.jsonl", json_lines({"text": text}))
    assert record.text == text


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"split": ""}, "does not say where to cut; write blank-lines, a separator"),
        ({"split": 0}, "the most characters of a document"),
        ({"split": 1.5}, "does not say where to cut"),
        ({"split": True}, "no number"),
        ({"split": "Blank Lines"}, "write blank-lines"),
        ({"split": 9, "format": "jsonl"}, "split cuts text files, and format: jsonl"),
    ],
)
def test_a_split_that_cuts_nothing_is_refused(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        sources.Files(source="files", name="raw", path="/raw", **settings)


def test_a_bad_value_of_parquet_costs_that_value_or_row() -> None:
    times = pyarrow.array([0, 2**62, 1], pyarrow.timestamp("us"))
    broken = pyarrow.Array.from_buffers(
        pyarrow.string(), 3, pyarrow.array([b"a", b"\xff", b"c"], pyarrow.binary()).buffers()
    )
    source = sources.Files(source="files", name="raw", path="/raw")
    table = parquet(pyarrow.table({"text": ["a", "b", "c"], "at": times}))
    found = list(sources.records(source, "a.parquet", table))
    assert [(record.text, record.bad) for record in found] == [("a", None), ("b", None), ("c", None)]
    assert json.loads(found[1].metadata or "") == {"at": None}
    assert [record.lost_values for record in found] == [0, 1, 0]
    found = list(sources.records(source, "a.parquet", parquet(pyarrow.table({"text": broken}))))
    assert [record.text for record in found] == ["a", "", "c"]
    assert "record 1: text: " in (found[1].bad or "")


@pytest.mark.parametrize(("name", "pack"), [("a.jsonl.gz", gzip.compress), ("a.jsonl.zst", zstd)])
def test_a_truncated_file_keeps_what_came_before(name: str, pack: Callable[[bytes], bytes]) -> None:
    source = sources.Files(source="files", name="raw", path="/raw")
    texts = [4 * word for word in noise(9000)]
    data = pack(json_lines(*({"text": text} for text in texts)))
    *before, last = sources.records(source, name, data[: len(data) * 3 // 4])
    assert [record.text for record in before] == texts[: len(before)]
    assert len(before) > 4000
    assert last.bad == f"the compressed file is truncated, after {len(before)} records"


@pytest.mark.parametrize(("suffix", "pack"), [("gz", gzip.compress), ("zst", zstd)])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_truncated_text_keeps_what_came_before(
    suffix: str, pack: Callable[[bytes], bytes], encoding: str
) -> None:
    text = "\n\n".join(word + "ä漢" for word in noise(9000))
    data = pack(text.encode(encoding))
    data = data[: len(data) * 3 // 4]
    source = sources.Files(source="files", name="raw", path="/raw")
    whole, last = sources.records(source, f"a.txt.{suffix}", data)
    assert text.startswith(whole.text)
    assert len(whole.text) > len(text) // 3
    reason = f"the compressed file is truncated, after {len(whole.text):,} characters, which are kept"
    assert (last.number, last.text, last.bad) == (1, "", reason)
    source = sources.Files(source="files", name="raw", path="/raw", split="blank-lines")
    *found, last = sources.records(source, f"a.txt.{suffix}", data)
    assert [record.text for record in found] == [part for part in whole.text.split("\n\n") if part]
    assert (last.number, last.bad) == (len(found), reason)


def test_a_truncated_json_file_keeps_whole_lines_and_reports_the_cut() -> None:
    source = sources.Files(source="files", name="raw", path="/raw")
    texts = noise(9000)
    lines = gzip.compress(json_lines(*({"text": text} for text in texts)))
    *found, last = sources.records(source, "a.json.gz", lines[: len(lines) * 3 // 4])
    assert [record.text for record in found] == texts[: len(found)]
    assert len(found) > 4000
    assert last.bad == f"the compressed file is truncated, after {len(found)} records"
    array = gzip.compress(json.dumps([{"text": text} for text in texts]).encode())
    [only] = sources.records(source, "a.json.gz", array[: len(array) * 3 // 4])
    assert only.bad == "the compressed file is truncated"
    found = list(sources.records(source, "a.json.gz", array[:-4]))  # the array is whole, the checksum is not
    assert [record.text for record in found] == [*texts, ""]
    assert found[-1].bad == "the compressed file is truncated, after 9000 records"


def test_what_a_damaged_row_group_loses_is_counted(folder: Path, corpus: Corpus) -> None:
    texts = [f"text {number}" for number in range(30)]
    columns = {"text": texts, "note": [f"note {number}" for number in range(30)], "n": list(range(30))}

    def damaged(column: int) -> bytes:
        """With the pages of one column of the second of three row groups overwritten."""
        sink = io.BytesIO()
        pyarrow.parquet.write_table(
            pyarrow.table(columns), sink, row_group_size=10, compression="none", use_dictionary=False
        )
        data = bytearray(sink.getvalue())
        chunk = pyarrow.parquet.read_metadata(io.BytesIO(data)).row_group(1).column(column)
        start = chunk.data_page_offset
        data[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
        return bytes(data)

    (folder / "a.parquet").write_bytes(damaged(column=0))
    (folder / "b.parquet").write_bytes(damaged(column=1))
    artifact = corpus(folder, bad_records="quarantine")
    rows = documents(artifact)
    kept = [*range(10), *range(20, 30)]
    assert [(row["path"], row["record"]) for row in rows] == [
        *(("a.parquet", number) for number in kept),
        *(("b.parquet", number) for number in range(30)),
    ]
    assert [row["text"] for row in rows] == [texts[number] for number in kept] + texts
    assert json.loads(rows[20 + 15]["metadata"]) == {"n": 15}
    lost = quarantine(artifact)
    assert [(row["path"], row["record"]) for row in lost] == [("a.parquet", n) for n in range(10, 20)]
    assert all("not a readable Parquet file: row " in row["reason"] for row in lost)
    assert (artifact.metrics["bad"], artifact.metrics["lost_values"]) == (10, 10)


def test_by_default_a_bad_record_stops_the_run(folder: Path, corpus: Corpus, store: LocalStore) -> None:
    (folder / "good.txt").write_text("good")
    for name, (data, _) in BAD.items():
        (folder / name).write_bytes(data)
    with pytest.raises(IngotError) as caught:
        corpus(folder)
    message = str(caught.value)
    first = min(BAD)  # files are read in the order of their paths
    assert f"corpus: raw: {first}: " in message
    assert BAD[first][1] in message
    assert f"({len(BAD) - 1} more bad records)" in message
    assert "corpus.bad_records: quarantine" in message
    assert [key for key in store.list("artifacts/") if key.endswith("manifest.json")] == []


def test_bad_records_go_to_quarantine_when_asked(folder: Path, corpus: Corpus) -> None:
    (folder / "good.txt").write_text("good")
    for name, (data, _) in BAD.items():
        (folder / name).write_bytes(data)
    artifact = corpus(folder, bad_records="quarantine")
    found = {row["path"]: row for row in quarantine(artifact)}
    assert found.keys() == BAD.keys()
    for name, (_, reason) in BAD.items():
        assert reason in found[name]["reason"]
        assert found[name]["source"] == "raw"
    metrics = artifact.metrics
    assert metrics["documents_in"] == metrics["documents_out"] + metrics["bad"] + metrics["empty"]
    assert {row["text"] for row in documents(artifact)} == {"good"}


HALVES = {
    "name": b'{"text": "good"}\n{"\\ud800": "text"}\n',
    "text": b'{"text": "good"}\n{"text": "a \\udc00"}\n',
    "url": b'{"text": "good"}\n{"text": "a", "url": "http://\\ud800"}\n',
}


@pytest.mark.parametrize("field", HALVES)
def test_half_of_a_surrogate_pair_is_named_by_file_and_line(field: str, folder: Path, corpus: Corpus) -> None:
    (folder / "half.jsonl").write_bytes(HALVES[field])
    with pytest.raises(IngotError, match=r"^corpus: raw: half\.jsonl: line 2 ") as caught:
        corpus(folder)
    str(caught.value).encode()
    artifact = corpus(folder, bad_records="quarantine")
    assert [row["text"] for row in documents(artifact)] == ["good"]
    [row] = quarantine(artifact)
    assert (row["path"], row["record"]) == ("half.jsonl", 1)
    assert row["reason"].startswith("line 2 ")


def test_half_of_a_surrogate_pair_in_metadata_stays_an_escape(folder: Path, corpus: Corpus) -> None:
    body = b'{"text": "good", "q": 2, "\\ud800": "x", "deep": {"\\udc00": ["\\ud801"]}}\n'
    (folder / "half.jsonl").write_bytes(body)
    artifact = corpus(folder)
    [row] = documents(artifact)
    assert row["metadata"].isascii()
    assert json.loads(row["metadata"]) == {"q": 2, "\ud800": "x", "deep": {"\udc00": ["\ud801"]}}
    assert qualities([row["metadata"]], "q", "a file").tolist() == [2]
    assert artifact.metrics["bad"] == 0


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.JSONL.gz", "a.txt", "a"])
def test_an_encoding_that_is_not_read_is_one_reason_for_the_whole_file(name: str, encoding: str) -> None:
    data = json_lines({"text": "one"}, {"text": "two"}).decode().encode(encoding)
    source = sources.Files(source="files", name="raw", path="/raw")
    [record] = sources.records(source, name, gzip.compress(data) if name.endswith(".gz") else data)
    assert record.bad is not None
    assert "UTF-16" in record.bad or "binary" in record.bad


def test_a_corpus_without_text_says_so(folder: Path, corpus: Corpus) -> None:
    with pytest.raises(UsageError, match="raw: no files at"):
        corpus(folder)
    (folder / "blank.txt").write_text(" \n")
    with pytest.raises(IngotError, match=r"corpus: 1 files hold no text \(0 bad records, 1 empty\); point"):
        corpus(folder)
    with pytest.raises(UsageError, match="no such folder"):
        corpus(folder / "none")


def test_a_file_name_that_is_not_utf8_is_refused(folder: Path, corpus: Corpus) -> None:
    (folder / "caf\udce9.txt").write_text("text")
    with pytest.raises(UsageError, match="is not UTF-8; rename it"):
        corpus(folder)


def test_a_source_that_holds_the_store_is_refused(folder: Path, corpus: Corpus) -> None:
    (folder / "a.txt").write_text("text")
    with pytest.raises(
        UsageError, match=r"corpus.sources: raw: .* holds the store, .*; name a folder of texts"
    ):
        corpus(folder, store=LocalStore(str(folder / ".ingot" / "store")))


def test_what_was_passed_over_is_told_again_where_it_must_not_be(folder: Path, corpus: Corpus) -> None:
    (folder / "a.jsonl").write_bytes(json_lines({"text": "good"}) + b"{")
    made = corpus(folder, bad_records="quarantine")
    assert corpus(folder, bad_records="quarantine").digest == made.digest
    with pytest.raises(IngotError, match=r"a.jsonl: line 2 is not JSON.* corpus.bad_records: quarantine"):
        corpus(folder)


def test_adding_a_file_renumbers_nothing(folder: Path, corpus: Corpus) -> None:
    (folder / "b.jsonl").write_bytes(json_lines({"text": "one"}, {"text": "two"}))
    before = {row["id"]: row["text"] for row in documents(corpus(folder))}
    (folder / "a.txt").write_text("three")
    after = {row["id"]: row["text"] for row in documents(corpus(folder))}
    assert after.items() > before.items()
    assert len(after) == 3


def test_a_source_that_is_added_leaves_the_others_unread_and_a_later_snapshot_comes_last(
    small_texts: Path, folder: Path, store: LocalStore, corpus: Corpus
) -> None:
    texts = files("texts", small_texts, snapshot=1)
    before = corpus([texts], unit_bytes=20_000)
    (folder / "a.jsonl").write_bytes(json_lines({"text": "one"}))
    records = {key: store.read(key) for key in store.list("shared/corpus/units/read/")}
    after = corpus([files("new", folder, snapshot=2), texts], unit_bytes=20_000)
    now = {key: store.read(key) for key in store.list("shared/corpus/units/read/")}
    assert now.items() > records.items()
    assert len(now) == len(records) + 1
    names = before.names("documents/")
    assert after.names("documents/") == [*names, f"documents/{len(names):06d}.parquet"]
    assert {name: after.files[name] for name in names} == {name: before.files[name] for name in names}
    numbers = {"sources": {"new": 2, "texts": 1}, "files": [1] * len(names) + [2]}
    assert after.json("snapshots.json") == numbers


def test_a_file_that_changes_while_it_is_read_stops_the_run(folder: Path) -> None:
    (folder / "a.txt").write_text("one")
    source = sources.Files(source="files", name="raw", path=str(folder))
    [[entry], _] = sources.inventory(source, ELSEWHERE)
    (folder / "a.txt").write_text("two")
    with pytest.raises(IngotError, match="not what it was"):
        sources.read_unchanged(source, entry)


def test_the_digest_depends_on_neither_workers_nor_order_nor_place(
    small_texts: Path, folder: Path, tmp_path: Path, corpus: Corpus
) -> None:
    (folder / "other.jsonl").write_bytes(json_lines(*({"text": f"record {number}"} for number in range(99))))
    moved = shutil.copytree(small_texts, tmp_path / "moved")
    given = [files("texts", small_texts), files("lines", folder)]
    first = corpus(given, LocalStore(str(tmp_path / "1")), workers=1, unit_bytes=20_000)
    given = [files("lines", folder), files("texts", moved)]
    second = corpus(given, LocalStore(str(tmp_path / "2")), workers=2, unit_bytes=20_000)
    assert len(first.names("documents/")) >= 6
    assert first.digest == second.digest
    # the golden digest: where it changes, corpus.VERSION (or the pinned pyarrow) must have changed
    assert first.digest == "77ca331d56d711eb042c7a410316c05c651b3caf95100664387d6edd5610db09"


def test_two_worker_processes_read(folder: Path, corpus: Corpus, store: LocalStore) -> None:
    for number in range(6):
        (folder / f"{number}.jsonl").write_bytes(json_lines({"text": "one line of many"}) * 30_000)
    corpus(folder, unit_bytes=750_000)
    ran = [json.loads(store.read(key))["ran"] for key in store.list("shared/corpus/units/read/")]
    assert len(ran) == 6
    assert len({(each["host"], each["pid"]) for each in ran}) >= 2


def test_large_files_are_cut_and_small_ones_gathered(folder: Path, corpus: Corpus) -> None:
    (folder / "a.jsonl").write_bytes(json_lines(*({"text": "x" * 100} for _ in range(100))))
    for number in range(20):
        (folder / f"b{number:02d}.txt").write_text("y" * 100)
    artifact = corpus(folder, unit_bytes=2_000)
    sizes = [sum(map(len, artifact.table(name)["text"].to_pylist())) for name in artifact.names("documents/")]
    assert sizes == [2_500, 2_500, 2_500, 2_500, 2_000]
    assert len(documents(artifact)) == 120


def test_a_prefix_of_s3_is_read_like_a_folder(s3: Any, folder: Path, corpus: Corpus, tmp_path: Path) -> None:
    remote = open_store(s3.uri(uuid.uuid4().hex))
    for name in ("a.txt", "deep/b.txt"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(name)
        remote.create(name, name.encode())
    local = [sources.Files(source="files", name="raw", path=str(place)) for place in (folder, remote.uri)]
    read = [
        [(e.key, sources.read_unchanged(source, e)) for e in sources.inventory(source, ELSEWHERE)[0]]
        for source in local
    ]
    assert read[0] == read[1] == [("a.txt", b"a.txt"), ("deep/b.txt", b"deep/b.txt")]


def test_installed_packages_are_read_without_their_tests() -> None:
    source = PythonPackages(source="python-packages", packages=["yaml", "yaml"])
    found, _ = sources.inventory(source, ELSEWHERE)
    paths = [entry.key for entry in found]
    assert paths == sorted(set(paths))
    assert {"python/json/decoder.py", "python/ast.py", "yaml/loader.py"} <= set(paths)
    assert not [path for path in paths if {"test", "tests", "site-packages"} & set(path.split("/"))]
    entry = next(entry for entry in found if entry.key == "python/ast.py")
    data = sources.read_unchanged(PythonPackages(source="python-packages"), entry)
    assert data == (Path(sysconfig.get_paths()["stdlib"]) / "ast.py").read_bytes()


def test_a_package_that_is_not_installed_is_named() -> None:
    for package in ("no_such_package", "../x", "os.path"):
        with pytest.raises(UsageError, match="is installed; install it or leave it out"):
            sources.inventory(PythonPackages(source="python-packages", packages=[package]), ELSEWHERE)


@pytest.mark.parametrize(
    ("fields", "text", "url", "metadata"),
    [
        ({"text": "doc.text", "url": "meta.url"}, "deep", "http://a", {"meta": {"n": 1}, "x": "y"}),
        (
            {"text": "x", "metadata": ["meta.n", "doc", "none"]},
            "y",
            None,
            {"meta.n": 1, "doc": {"text": "deep"}},
        ),
        ({"text": "x", "metadata": []}, "y", None, None),
    ],
)
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_fields_inside_others_are_named_with_a_dot(
    kind: str, fields: dict[str, Any], text: str, url: str | None, metadata: Any
) -> None:
    body = {"doc": {"text": "deep"}, "meta": {"url": "http://a", "n": 1}, "x": "y"}
    data = json_lines(body) if kind == "jsonl" else parquet(pyarrow.Table.from_pylist([body]))
    source = sources.Files(source="files", name="raw", path="/raw", **fields)
    [record] = sources.records(source, f"a.{kind}", data)
    assert (record.text, record.url, record.bad) == (text, url, None)
    assert (json.loads(record.metadata) if record.metadata else None) == metadata


def test_a_field_of_the_whole_name_comes_first() -> None:
    source = sources.Files(source="files", name="raw", path="/raw", text="a.b")
    [record] = sources.records(source, "a.jsonl", json_lines({"a.b": "this", "a": {"b": "not this"}}))
    assert record.text == "this"


def test_bytes_are_text_where_they_are_utf8_and_null_is_no_text() -> None:
    source = sources.Files(source="files", name="raw", path="/raw")
    values = ["ä".encode(), b"\xff", None]
    table = pyarrow.table({"text": pyarrow.array(values, pyarrow.binary()), "more": [b"b", b"b", b"b"]})
    found = list(sources.records(source, "a.parquet", parquet(table)))
    assert [record.text for record in found] == ["ä", "", ""]
    assert [record.bad for record in found] == [None, "record 1: text: not UTF-8 at byte 0", None]
    assert json.loads(found[0].metadata or "") == {"more": "b"}


@pytest.mark.parametrize("where", ["a folder", "s3"])
@pytest.mark.parametrize(
    ("path", "read"),
    [
        ("one.txt", ["one.txt"]),
        ("deep/two.txt", ["two.txt"]),
        ("*.txt", ["one.txt"]),
        ("**/*.txt", ["deep/two.txt", "one.txt"]),
        ("de*/t[w]o.txt", ["deep/two.txt"]),
        ("", ["deep/two.txt", "one.md", "one.txt"]),
    ],
)
def test_a_path_is_a_folder_a_glob_or_a_file(
    where: str, path: str, read: list[str], folder: Path, request: pytest.FixtureRequest
) -> None:
    root = str(folder) if where == "a folder" else request.getfixturevalue("s3").uri("globs")
    raw = open_store(root)
    for name in ("one.txt", "one.md", "deep/two.txt"):
        raw.create(name, name.encode())
    source = sources.Files(source="files", name="raw", path=f"{root}/{path}".rstrip("/"))
    entries, _ = sources.inventory(source, ELSEWHERE)
    assert [entry.key for entry in entries] == read
    there = sources.absolute(source)
    texts = [sources.read_unchanged(there, entry).decode() for entry in entries]
    assert [text.endswith(name) for text, name in zip(texts, read, strict=True)] == [True] * len(read)


def test_a_file_or_a_glob_beside_the_store_is_no_source_that_holds_it(folder: Path) -> None:
    (folder / "a.txt").write_text("text")
    (folder / "deep").mkdir()
    (folder / "deep" / "b.txt").write_text("text")
    store = LocalStore(str(folder / "store"))
    for path in ("a.txt", "*.txt", "deep/*"):
        sources.check_apart(sources.Files(source="files", name="raw", path=f"{folder}/{path}"), store)
    for path in ("**/*.txt", "*/*", "st*/x/y.parquet"):
        with pytest.raises(UsageError, match="holds the store"):
            sources.check_apart(sources.Files(source="files", name="raw", path=f"{folder}/{path}"), store)
