"""Who stays, among whom, and what a later snapshot or a takedown changes."""

from __future__ import annotations

import json
import random
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from dedup_corpora import documents_table, name_of, planted_pair, unique_words
from dedup_workspaces import InProcess, Quiet

from ingot.errors import IngotError, UsageError
from ingot.pipelines import dedup
from ingot.pipelines.artifact import Artifact, File, commit, digest_of, put_json, put_table, read_table
from ingot.pipelines.dedup.keys import address
from ingot.pipelines.dedup.why import explain
from ingot.pipelines.pipeline import Outcome
from ingot.pipelines.recipe import load_recipe
from ingot.pipelines.sections import Dedup
from ingot.pipelines.store import LocalStore

PATHS: dict[str, str] = {}  # by id


@dataclass(frozen=True)
class Source:
    """Documents path → text, cut into files."""

    name: str
    texts: Mapping[str, str]
    snapshot: int = 0
    files: int = 2
    urls: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)


def make(store: LocalStore, *sources: Source) -> Artifact:
    """The corpus of the sources, in the order of their snapshots."""
    entries: dict[str, File] = {}
    numbers = []
    PATHS.update({name_of(path): path for source in sources for path in source.texts})
    for source in sources:
        paths = list(source.texts)
        for number in range(source.files):
            own = paths[len(paths) * number // source.files : len(paths) * (number + 1) // source.files]
            table = documents_table(own, source.texts, source.name, source.urls, source.metadata)
            entries[f"documents/{len(entries):06d}.parquet"] = put_table(store, table)
            numbers.append(source.snapshot)
    snapshots = {"sources": {source.name: source.snapshot for source in sources}, "files": numbers}
    entries["snapshots.json"] = put_json(store, snapshots)
    return commit(store, f"artifacts/corpus/{digest_of(entries)}", "corpus", "", entries, {}, {})


@dataclass(frozen=True)
class Result:
    """By path: (witness, kind) of what went, and for how many each of the others stands."""

    removed: dict[str, tuple[str | None, str]]
    kept: dict[str, int]
    outcome: Outcome


def deduplicate(store: LocalStore, corpus: Artifact, **settings: Any) -> Result:
    workspace = InProcess(store, "artifacts/dedup/test", Quiet())
    outcome = dedup.run(workspace, Dedup(**settings), {"corpus": corpus})
    names = [name for name in outcome.files if name.startswith("removed/")]
    rows = {
        kind: [
            row
            for name in names
            for row in read_table(store, outcome.files[name.replace("removed", kind)], name).to_pylist()
        ]
        for kind in ("removed", "kept")
    }
    removed = {PATHS[row["id"]]: (PATHS.get(row["witness_id"]), row["kind"]) for row in rows["removed"]}
    return Result(removed, {PATHS[row["id"]]: row["copies"] for row in rows["kept"]}, outcome)


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(str(tmp_path))


def text(seed: int, words: int = 60) -> str:
    return " ".join(unique_words(random.Random(seed), words))


def near(seed: int) -> tuple[str, str]:
    """Two near duplicates of the same length."""
    left, right, _ = planted_pair(random.Random(seed), 0.9, 100)
    return left, right


def test_the_earlier_snapshot_stays_before_all_else(store: LocalStore) -> None:
    first, second = near(1)
    corpus = make(store, Source("old", {"a": first}, 1), Source("new", {"b": second + " and more of it"}, 2))
    assert deduplicate(store, corpus, priority=["new"]).removed == {"b": ("a", "near")}
    assert deduplicate(store, corpus, decide="components").removed == {"b": ("a", "near")}


def test_texts_may_be_compared_in_a_form_of_unicode_and_without_case(store: LocalStore) -> None:
    plain = " ".join(f"{word}é" for word in text(1).split())
    decomposed, upper = unicodedata.normalize("NFD", plain), plain.upper()
    longer = upper + " and more of it"  # near to the others where case is folded
    corpus = make(store, Source("one", {"a": plain, "b": decomposed, "c": upper, "d": longer}))

    def kinds(**settings: Any) -> list[str]:
        return sorted(kind for _, kind in deduplicate(store, corpus, **settings).removed.values())

    assert kinds() == ["near"]  # c, which differs from d in its end alone
    assert kinds(normalize="nfc") == ["exact", "near"]
    assert kinds(casefold=True) == ["near", "near"]  # a goes with c, its copy now, for d
    assert kinds(normalize="nfkc", casefold=True) == ["exact", "exact", "near"]
    assert deduplicate(store, corpus, normalize="nfc", casefold=True).kept == {"b": 4}  # the longest in bytes


def test_then_the_source_that_is_named_first_then_quality_then_length(store: LocalStore) -> None:
    first, second = near(1)
    longer = second + " and more of it"
    two = Source("one", {"a": first}), Source("two", {"b": longer})
    assert deduplicate(store, make(store, *two)).removed == {"a": ("b", "near")}
    assert deduplicate(store, make(store, *two), priority=["one"]).removed == {"b": ("a", "near")}
    assert deduplicate(store, make(store, *two), priority=["two", "one"]).removed == {"a": ("b", "near")}
    scores = {"a": json.dumps({"score": 0.5}), "b": json.dumps({"score": -3, "other": "x"})}
    scored = Source("one", {"a": first, "b": longer, "c": longer + " still"}, metadata=scores)
    result = deduplicate(store, make(store, scored), quality="score")
    assert result.removed == {"b": ("a", "near"), "c": ("a", "near")}


def test_a_quality_that_is_no_number_is_told(store: LocalStore) -> None:
    source = Source("one", {"a": text(1)}, files=1, metadata={"a": json.dumps({"score": "high"})})
    with pytest.raises(IngotError, match=r'dedup\.quality: score is "high" in row 0 of documents file 0, no'):
        deduplicate(store, make(store, source), quality="score")


def test_within_a_source_another_source_does_not_count(store: LocalStore) -> None:
    first, second = near(1)
    texts = {"near": first, "copy": text(2), "copied": text(2)}
    two = Source("one", texts), Source("two", {"far": second, "far copy": text(2)})
    assert len(deduplicate(store, make(store, *two)).removed) == 3
    result = deduplicate(store, make(store, *two), scope="source")
    [(gone, (witness, kind))] = result.removed.items()
    assert ({gone, witness}, kind) == ({"copy", "copied"}, "exact")


@pytest.mark.parametrize(
    ("url", "other", "same"),
    [
        ("http://Example.org/a?b=C#d", "https://example.org:443/a?b=C", True),
        ("https://example.org", "https://example.org/", True),
        ("https://example.org/a", "https://example.org/A", False),
        ("https://example.org:8080/", "https://example.org/", False),
        ("https://example.org/?a", "https://example.org/?b", False),
        ("http://[::1]:8080/", "http://[::1:8080]/", False),
    ],
)
def test_addresses_of_one_page_are_one(url: str, other: str, same: bool) -> None:
    assert (address(url) == address(other)) == same


@pytest.mark.parametrize(
    "url", [None, "", " ", "N/A", "b.org/2", "http://[broken", "ftp://b.org/", "http:///a"]
)
def test_what_is_no_address_is_shared_by_no_documents(url: str | None) -> None:
    assert address(url) is None


def test_of_one_address_the_best_stays_and_what_it_goes_for_is_told(store: LocalStore) -> None:
    first, second = near(1)
    texts = {"page": text(2, 80), "page, earlier": text(3), "kept": first + " some more", "gone": second}
    texts |= {
        "gone, earlier": text(4, 20),
        "alone": text(5),
        "copy": text(2, 80),
        "no address": text(6),
        "alone, too": text(7),
    }
    urls = {"page": "http://a.org/1", "page, earlier": "https://A.org/1#top", "gone": "http://b.org/2"}
    urls |= {"alone, too": "N/A", "no address": "N/A"}
    urls |= {"gone, earlier": "https://b.org/2", "alone": "https://a.org/3", "copy": "https://a.org/1"}
    corpus = make(store, Source("one", texts, urls=urls, files=3))
    expected: dict[str, tuple[str | None, str]] = {"gone": ("kept", "near")}
    best, copy = sorted(["page", "copy"], key=name_of)
    assert deduplicate(store, corpus).removed == {**expected, copy: (best, "exact")}
    result = deduplicate(store, corpus, url=True)
    # the leader of `gone, earlier` went itself, so its witness is that one's
    assert result.removed == {
        **expected,
        copy: (best, "url"),
        "page, earlier": (best, "url"),
        "gone, earlier": ("kept", "url"),
    }
    assert result.kept == {best: 3, "kept": 3, "alone": 1, "no address": 1, "alone, too": 1}
    assert result.outcome.metrics["removed_url"] == 3
    assert result.outcome.metrics["clusters"] == {"1": 3, "4": 2}


def web(seed: int) -> dict[str, str]:
    """Near duplicates, chains and copies, in a random order."""
    draw = random.Random(seed)
    texts: dict[str, str] = {}
    for wanted in (0.5, 0.79, 0.86, 0.95):
        for number in range(12):
            left, right, _ = planted_pair(draw, wanted, 80)
            texts |= {f"{wanted}/{number}/left": left, f"{wanted}/{number}/right": right}
    for number in range(10):
        words = unique_words(draw, 140)
        texts |= {f"chain/{number}/{link}": " ".join(words[7 * link : 7 * link + 90]) for link in range(5)}
        copied = " ".join(words)
        texts |= {f"copy/{number}/{link}": copied.replace(" ", " " * link) for link in (1, 2, 3)}
    paths = draw.sample(sorted(texts), len(texts))
    return {path: texts[path] for path in paths}


def cut(texts: Mapping[str, str], *ends: int) -> Iterator[dict[str, str]]:
    paths = list(texts)
    for start, end in zip((0, *ends), (*ends, len(paths)), strict=True):
        yield {path: texts[path] for path in paths[start:end]}


def addresses(texts: Mapping[str, str], seed: int) -> dict[str, str]:
    draw = random.Random(seed)
    return {path: f"https://a.org/{draw.randrange(60)}" for path in texts if draw.random() < 0.4}


def forget_texts(store: LocalStore, corpus: Artifact) -> None:
    for name in corpus.names("documents/"):
        for piece in corpus.files[name].pieces:
            store.delete(piece.key)


@pytest.mark.parametrize("seed", range(3))
def test_adding_a_snapshot_gives_what_one_run_over_all_gives_and_reads_no_text_of_earlier_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    texts = web(seed)
    urls = addresses(texts, seed)
    parts = zip("abc", cut(texts, 70, 120), strict=True)
    sources = [Source(name, own, number, urls=urls) for number, (name, own) in enumerate(parts, start=1)]
    settings = {"url": seed == 2}
    whole_store = LocalStore(str(tmp_path / "whole"))
    with monkeypatch.context() as patch:
        patch.setattr(dedup, "ends_of_passes", lambda section, numbers: [len(numbers)])
        whole = deduplicate(whole_store, make(whole_store, *sources), **settings)

    store = LocalStore(str(tmp_path / "grown"))
    for count in (1, 2, 3):
        corpus = make(store, *sources[:count])
        if count > 1:
            forget_texts(store, make(store, *sources[: count - 1]))
        grown = deduplicate(store, corpus, **settings)
        whole_metrics, metrics = whole.outcome.metrics, grown.outcome.metrics
    assert digest_of(grown.outcome.files) == digest_of(whole.outcome.files)
    names = (*dedup.TOTALS, "clusters")
    assert {name: metrics[name] for name in names} == {name: whole_metrics[name] for name in names}
    assert len(grown.removed) > 60
    crossing = [
        path
        for path, (witness, _) in grown.removed.items()
        if (witness in sources[0].texts) != (path in sources[0].texts)
    ]
    assert len(crossing) > 10


@pytest.mark.parametrize("decide", ["jaccard", "components"])
def test_what_had_gone_for_a_document_that_is_taken_down_is_decided_anew(tmp_path: Path, decide: str) -> None:
    texts = web(7)
    first, second = cut(texts, 80)
    urls = addresses(texts, 7)

    def both(store: LocalStore, left: Mapping[str, str], right: Mapping[str, str]) -> Artifact:
        return make(store, Source("a", left, 1, urls=urls), Source("b", right, 2, urls=urls))

    store = LocalStore(str(tmp_path / "taken"))
    corpus = both(store, first, second)
    before = deduplicate(store, corpus, decide=decide, url=True)
    witnesses = [witness for witness, _ in before.removed.values()]
    most = max(sorted(before.kept), key=witnesses.count)
    leader = next(path for path in sorted(before.kept) if path.startswith("copy/"))
    page = next(path for path in sorted(before.kept) if path in urls)
    after = deduplicate(
        store,
        corpus,
        decide=decide,
        url=True,
        takedown=[name_of(most), name_of(leader), urls[page].upper()[:5] + urls[page][5:]],
    )
    gone = {path for path, (_, kind) in after.removed.items() if kind == "takedown"}
    of_page = {path for path, url in urls.items() if url == urls[page]}
    assert gone == {most, leader} | of_page
    assert {witness for path, (witness, _) in after.removed.items() if path in gone} == {None}

    elsewhere = LocalStore(str(tmp_path / "never"))
    left = [{path: own[path] for path in own if path not in gone} for own in (first, second)]
    never = deduplicate(elsewhere, both(elsewhere, *left), decide=decide, url=True)
    assert after.kept == never.kept
    assert {path: row for path, row in after.removed.items() if path not in gone} == never.removed


def test_a_takedown_that_finds_nothing_is_told(store: LocalStore, recorder: Any) -> None:
    corpus = make(store, Source("a", {"a": text(1), "b": text(2)}))
    settings = Dedup(takedown=[name_of("a"), name_of("z"), name_of("z"), " "])
    assert settings.takedown == sorted([name_of("a"), name_of("z")])
    outcome = dedup.run(InProcess(store, "artifacts/dedup/test", recorder), settings, {"corpus": corpus})
    assert outcome.metrics["removed_takedown"] == 1
    told = [words for kind, *words in recorder.told if kind == "say"]
    assert told[-1] == [f"  takedown names 1 that no document has, such as {name_of('z')}"]


def test_a_document_is_explained_by_id_path_or_address_and_by_nothing_else(store: LocalStore) -> None:
    texts = {"one.py": text(1), "two.py": text(1), "three.py": text(2)}
    urls = {"one.py": "N/A", "two.py": "http://a.org/2", "three.py": "N/A"}
    corpus = make(store, Source("a", texts, urls=urls))
    outcome = deduplicate(store, corpus).outcome
    tables = commit(store, "artifacts/dedup/explained", "dedup", "", outcome.files, outcome.metrics, {})
    for name in ("two.py", name_of("two.py"), "https://A.org:443/2#top"):
        assert [found["path"] for found in explain(corpus, tables, name)] == ["two.py"]
    [alone] = explain(corpus, tables, "three.py")
    assert (alone["kind"], alone["copies"]) == ("kept", 1)
    [removed] = [
        found
        for path in ("one.py", "two.py")
        for found in explain(corpus, tables, path)
        if found["kind"] != "kept"
    ]
    assert removed["kind"] == "exact"
    assert removed["witness"]["path"] in {"one.py", "two.py"} - {removed["path"]}
    with pytest.raises(UsageError, match="the corpus has no document 'N/A'; give an id, a path"):
        explain(corpus, tables, "N/A")


def test_what_was_lost_of_a_snapshot_is_made_anew(store: LocalStore) -> None:
    corpus = make(store, Source("a", web(3)))
    before = deduplicate(store, corpus)
    for name in ("kept/000001.parquet", "removed/000000.parquet"):
        store.delete(before.outcome.files[name].pieces[0].key)
    assert deduplicate(store, corpus).removed == before.removed


def test_an_unread_file_is_read_again_only_where_its_copies_changed(store: LocalStore) -> None:
    texts = web(3)
    corpus = make(store, Source("a", texts, files=6))
    before = deduplicate(store, corpus)
    alone = next(path for path, copies in before.kept.items() if copies == 1)
    records = list(store.list("shared/dedup/units/sign/"))
    deduplicate(store, corpus, takedown=[name_of(alone)])
    assert len(list(store.list("shared/dedup/units/sign/"))) == len(records) + 1
    assert len(list(store.list("shared/dedup/units/keys/"))) == 6


def test_by_signature_alone_what_goes_is_about_what_goes_by_the_text(store: LocalStore) -> None:
    texts: dict[str, str] = {}
    for wanted in (0.5, 0.95):
        for number in range(30):
            pair = planted_pair(random.Random(f"{wanted}/{number}"), wanted, 120)
            texts |= {f"{wanted}/{number}/{side}": text for side, text in enumerate(pair[:2])}
    texts |= {"dots": "...", "dashes": "---", "few": "words", "fewer": "Words!"}
    corpus = make(store, Source("a", texts))
    exact, about = (deduplicate(store, corpus, decide=decide) for decide in ("jaccard", "signature"))
    assert about.removed == exact.removed
    assert len(about.removed) == 31
    similarities = [
        row["similarity"]
        for name, file in about.outcome.files.items()
        if name.startswith("removed/")
        for row in read_table(store, file, name).to_pylist()
    ]
    assert sum(similarities) / len(similarities) == pytest.approx(0.95, abs=0.01)
    bands = about.outcome.metrics["bands"] * about.outcome.metrics["rows"]
    assert all(round(similarity * bands, 6).is_integer() for similarity in similarities)


def test_components_go_where_a_chain_of_buckets_leads(store: LocalStore) -> None:
    words = unique_words(random.Random(4), 140)
    texts = {f"{link}": " ".join(words[7 * link : 7 * link + 90]) for link in range(5)}
    texts |= {"copy": texts["3"], "alone": text(5)}
    result = deduplicate(store, make(store, Source("a", texts)), decide="components")
    assert set(result.kept) == {max(result.kept, key=lambda path: result.kept[path]), "alone"}
    assert max(result.kept.values()) == 6


RECIPE = """\
name: r
corpus:
  sources:
    - {source: python-packages}
dedup:
"""


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("threshold: 1.2", r"threshold 1\.2 is no similarity between 0 and 1, both excluded; nearest: 0\.99"),
        ("threshold: 0", r"threshold 0 is no similarity between 0 and 1, both excluded; nearest: 0\.01"),
        (
            "{permutations: 256, bands: 30, rows: 9}",
            r"bands 30 x rows 9 are 270 permutations, not 256; nearest: bands 32 and rows 8, or perm",
        ),
        ("{permutations: 256, bands: 32}", r"bands without rows; add rows: 8, or leave out both"),
        ("bands: 65", r"bands.*64"),
    ],
)
def test_impossible_choices_are_refused_with_the_nearest_possible(
    tmp_path: Path, settings: str, message: str
) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(RECIPE + f"  {settings}\n")
    with pytest.raises(UsageError, match=message):
        load_recipe(path)
