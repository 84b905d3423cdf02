"""A recipe is right as a whole, or every mistake in it is told at once, with its line and the mend."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from ingot.errors import UsageError
from ingot.pipelines.artifact import canonical_digest
from ingot.pipelines.pipeline import stages_of
from ingot.pipelines.recipe import Recipe, load_recipe
from ingot.pipelines.sections import Evaluate, Pretrain, Section, Training

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))

GOOD = """\
name: good
corpus:
  sources:
    - source: files
      name: books
      path: /books
    - source: python-packages
tokenizer:
  vocabulary: 512
pretrain:
  steps: 20
  learning_rate: 1e-3
  batch_tokens: 2048
  model: {width: 64, layers: 2, heads: 4, kv_heads: 2, hidden: 128, context: 128}
"""


def load(tmp_path: Path, text: str, *settings: str) -> Recipe:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return load_recipe(path, settings)


def complaints(tmp_path: Path, text: str, *settings: str) -> list[str]:
    with pytest.raises(UsageError) as caught:
        load(tmp_path, text, *settings)
    assert caught.value.exit_code == 2
    return [line.removeprefix(f"{tmp_path}/") for line in str(caught.value).splitlines()]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_the_recipes_that_come_with_ingot_are_right(path: Path) -> None:
    assert stages_of(load_recipe(path))[0] == "corpus"


def test_who_reads_a_recipe_does_not_wait_for_torch() -> None:
    words = "import sys; from ingot.pipelines.recipe import load_recipe; "
    words += "load_recipe(sys.argv[1]); print('torch' in sys.modules)"
    command = [sys.executable, "-c", words, str(RECIPES[0])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_good_recipe_is_read(tmp_path: Path) -> None:
    recipe = load(tmp_path, GOOD)
    assert [source.name for source in recipe.corpus.sources] == ["books", "python-packages"]
    assert recipe.pretrain is not None
    assert (recipe.pretrain.learning_rate, recipe.pretrain.model.width) == (0.001, 64)
    assert recipe.sft is None


def test_every_mistake_is_told_at_once_with_its_line(tmp_path: Path) -> None:
    text = """\
# a comment first
name: Bad Name
workers: 0
corpus:
  sources:
    - source: files
      name: books
      pth: /books
  unit_bytes: many
tokeniser:
  vocabulary: 512
tokens:
  held_out: 1.5
  held_out_share: 0.1
pretrain:
  steps: 20
"""
    found = complaints(tmp_path, text)
    expected = [
        ("recipe.yaml:2: name: ", "not 'Bad Name'"),
        ("recipe.yaml:3: workers: ", "not 0"),
        ("recipe.yaml:6: corpus.sources.0.path: missing", ""),
        ("recipe.yaml:8: corpus.sources.0.pth: no such key; nearest: path", ""),
        ("recipe.yaml:9: corpus.unit_bytes: ", "not 'many'"),
        ("recipe.yaml:10: tokeniser: no such key; nearest: tokenizer", ""),
        ("recipe.yaml:13: tokens.held_out: ", "not 1.5"),
        ("recipe.yaml:14: tokens.held_out_share: no such key; nearest: held_out", ""),
        ("recipe.yaml:15: pretrain.learning_rate: missing", ""),
    ]
    assert len(found) == len(expected)
    for begin, end in expected:
        assert [line for line in found if line.startswith(begin) and line.endswith(end)], (begin, found)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "batch_tokens: 2048",
            "batch_tokens: 2000",
            "recipe.yaml:10: pretrain: batch_tokens 2000 is no multiple",
        ),
        ("batch_tokens: 2048", "batch_tokens: 2000", "nearest: 2048"),
        ("batch_tokens: 2048", "batch_tokens: 128\n  workers: 2", "at least 256"),
        ("batch_tokens: 2048", "batch_tokens: 128\n  workers: [1, 2]", "at least 256"),
        ("steps: 20", "steps: 20\n  workers: 0", "recipe.yaml:12: pretrain.workers: 0 is no number of w"),
        ("steps: 20", "steps: 20\n  workers: two", "'two' is no number of workers; write 1 or more, or th"),
        ("steps: 20", "steps: 20\n  workers: [1]", "[1] is no number of workers; write 1 or more, or the"),
        ("steps: 20", "steps: 20\n  workers: [1, 2, 3]", "[1, 2, 3] is no number of workers"),
        ("steps: 20", "steps: 20\n  workers: [yes, 2]", "[True, 2] is no number of workers"),
        ("steps: 20", "steps: 20\n  workers: [4, 2]", "[4, 2]: the least comes first; write [2, 4]"),
        (
            "steps: 20",
            "steps: 20\n  workers: [2, 5]\n  replicas: 2",
            "replicas 2 does not divide workers (5), and each replica of the model is sharded over as many; "
            "nearest: 1",
        ),
        (
            "steps: 20",
            "steps: 20\n  workers: [4, 8]\n  replicas: 8",
            "replicas 8 does not divide workers (4), and each replica of the model is sharded over as many; "
            "nearest: 4",
        ),
        ("heads: 4", "heads: 3", "recipe.yaml:14: pretrain.model: model.heads: 3 does not cut width (64)"),
        ("kv_heads: 2", "kv_heads: 3", "nearest: 4"),
        (
            "width: 64",
            "depth: 6, width: 64",
            "recipe.yaml:14: pretrain.model: depth 6 gives width 512, not 64; leave out width, or leave out ",
        ),
        ("width: 64", "depth: 0, width: 64", "recipe.yaml:14: pretrain.model.depth: "),
        ("width: 64", "width: 0", "recipe.yaml:14: pretrain.model.width: "),
        ("steps: 20", "steps: 20\n  warmup_steps: 20", "leaves none of 20 steps; nearest: 19"),
        (
            "steps: 20",
            "steps: 20\n  schedule: warmup-stable-decay\n  warmup_steps: 6\n  decay: 0.8",
            "warmup_steps 6 and decay 0.8 (the last 16 steps) overlap in 20 steps; nearest: warmup_steps 4, "
            "or decay 0.7",
        ),
        ("steps: 20", "steps: 20\n  optimizer: lion", "recipe.yaml:12: pretrain.optimizer: "),
        ("vocabulary: 512", "vocabulary: 100", "recipe.yaml:9: tokenizer.vocabulary: "),
        ("steps: 20", "steps: true", "recipe.yaml:10: pretrain: steps: true is no number"),
        ("steps: 20", f"steps: 20\n  seed: {2**32}", "recipe.yaml:12: pretrain.seed: "),
        ("learning_rate: 1e-3", "learning_rate: .inf", "recipe.yaml:12: pretrain.learning_rate: "),
        ("learning_rate: 1e-3", "learning_rate: [1]", "recipe.yaml:12: pretrain.learning_rate: "),
        (
            "- source: python-packages",
            "- source: files\n      name: books\n      path: /b",
            "two sources are named",
        ),
        (
            "tokenizer:\n  vocabulary: 512",
            "tokenizer: 512",
            "recipe.yaml:8: tokenizer: a section: write its settings",
        ),
        (
            "tokenizer:\n",
            "publish: {model: a}\ntokenizer:\n",
            "publish: vLLM serves no heads 16 wide (pretrain.model: ",
        ),
        (
            "tokenizer:\n",
            "dedup: {priority: [wiki]}\ntokenizer:\n",
            "dedup.priority: no source is named 'wiki'; there are ",
        ),
        (
            "steps: 20",
            "steps: 20\n  mix: {books: 0.5, python-packages: 0.4}",
            "12: pretrain.mix: books 0.5, python",
        ),
        (
            "steps: 20",
            "steps: 20\n  mix: {books: 7, python-packages: 3, web: 1}",
            "no source is named 'web'; th",
        ),
        ("steps: 20", "steps: 20\n  mix: {books: 1}", "pretrain.mix: source 'python-packages' has no weight"),
        (
            "steps: 20",
            "steps: 20\n  mix: {books: yes}",
            "recipe.yaml:12: pretrain.mix.books: input should be a",
        ),
        ("steps: 20", "steps: 20\n  packing: best", "recipe.yaml:12: pretrain.packing: input should be 'con"),
        (
            "pretrain:\n",
            "evaluate: {}\npretrain:\n  mask_documents: true\n",
            "set evaluate.mask_documents to true as well",
        ),
        ("source: python-packages", "source: s3", "recipe.yaml:7: corpus.sources.1: give it a source: "),
        ("source: python-packages", "name: x", "recipe.yaml:7: corpus.sources.1: give it a source: "),
    ],
)
def test_what_can_not_be_is_refused(tmp_path: Path, old: str, new: str, expected: str) -> None:
    [line] = complaints(tmp_path, GOOD.replace(old, new))
    assert expected in line


def test_a_key_given_twice_is_told(tmp_path: Path) -> None:
    text = GOOD + "tokenizer:\n  vocabulary: 600\n"
    assert complaints(tmp_path, text) == ["recipe.yaml:15: tokenizer: given twice; keep one"]
    text = GOOD.replace("steps: 20", "steps: 20\n  steps: 30")
    assert complaints(tmp_path, text) == ["recipe.yaml:12: pretrain.steps: given twice; keep one"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "empty, or no mapping"),
        ("- a\n- b\n", "empty, or no mapping"),
        ("name: a\ncorpus: [\n", "recipe.yaml:3: not YAML"),
        ("name: a\n\tcorpus: x\n", "recipe.yaml:2: not YAML"),
        ("name: a\n? [b]\n: c\n", "recipe.yaml:2: not YAML"),
        ("name: 2024-13-45\n", "not YAML"),
        ("name: a\x00b\n", "not YAML"),
        ("name: !!python/object:os.system x\n", "recipe.yaml:1: not YAML"),
        ("corpus: &again [*again]\n", "an alias holds itself"),
        ("corpus: " + "[" * 3000, "nested too deeply"),
        ("1: a\n", "recipe.yaml:1: "),
    ],
)
def test_what_is_no_recipe_is_one_message(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in complaints(tmp_path, text)[0]


def test_a_file_that_can_not_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.yaml: can't read the recipe"):
        load_recipe(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes("name: caf\xe9".encode("latin-1"))
    with pytest.raises(UsageError, match="not UTF-8 at byte 9"):
        load_recipe(tmp_path / "latin.yaml")


def test_a_section_with_nothing_below_it_takes_the_defaults(tmp_path: Path) -> None:
    recipe = load(tmp_path, GOOD + "dedup:\nevaluate:\n")
    assert recipe.evaluate is not None
    assert "evaluate" in stages_of(recipe)


def test_settings_are_laid_over_the_recipe(tmp_path: Path) -> None:
    recipe = load(
        tmp_path,
        GOOD,
        "tokenizer.vocabulary=1024",
        "corpus.sources.1.packages=[numpy]",
        "tokens.held_out=0.2",
        "pretrain=null",
        "name=other",
    )
    assert recipe.tokenizer.vocabulary == 1024
    assert recipe.corpus.sources[1].model_dump()["packages"] == ["numpy"]
    assert (recipe.tokens.held_out, recipe.name, recipe.pretrain) == (0.2, "other", None)


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("tokenizer.vocabulary=1", "--set tokenizer.vocabulary=1: tokenizer.vocabulary: "),
        ("tokenizer.vocabulry=999", "tokenizer.vocabulry: no such key; nearest: vocabulary"),
        (
            "tokeniser.vocabulary=999",
            "--set tokeniser.vocabulary=999: tokeniser: no such key; nearest: tokenizer",
        ),
        ("sft.batch_conversations=4", "--set sft.batch_conversations=4: sft.steps: missing"),
        ("pretrain.model={width: 0}", "--set pretrain.model={width: 0}: pretrain.model.width: "),
        ("tokenizer", "write it as section.key=value"),
        ("tokenizer..vocabulary=1", "write it as section.key=value"),
        ("corpus.sources.7.name=x", "no such place"),
        ("name.first=x", "no such place"),
        ("name=[", "the value is not YAML"),
        ("corpus.sources.².name=x", "no such place"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, setting: str, expected: str) -> None:
    assert expected in complaints(tmp_path, GOOD, setting)[0]


def test_a_stage_whose_input_is_missing_is_refused(tmp_path: Path) -> None:
    without = GOOD.partition("pretrain:")[0]
    with pytest.raises(UsageError, match="no pretrain, which it reads; add pretrain:"):
        stages_of(load(tmp_path, without + "sft: {steps: 3, learning_rate: 1e-4}\n"))
    with pytest.raises(UsageError, match="trains nothing; add pretrain:"):
        stages_of(load(tmp_path, without + "evaluate: {}\n"))


def test_the_path_ends_where_it_is_told_to(tmp_path: Path) -> None:
    recipe = load(tmp_path, GOOD)
    assert stages_of(recipe) == ["corpus", "dedup", "tokenizer", "tokens", "pretrain"]
    assert stages_of(recipe, "tokenizer") == ["corpus", "dedup", "tokenizer"]
    with pytest.raises(UsageError, match="--until sft: the recipe's stages are corpus, dedup"):
        stages_of(recipe, "sft")


def sections(section: type[BaseModel], seen: set[type[BaseModel]]) -> Iterator[type[BaseModel]]:
    """The section and all below it."""
    if section in seen:
        return
    seen.add(section)
    yield section
    for field in section.model_fields.values():
        kinds = [field.annotation]
        for kind in kinds:
            kinds += get_args(kind)
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from sections(kind, seen)


def test_every_setting_is_declared_what_or_how() -> None:
    found = list(sections(Recipe, set()))
    assert {"Recipe", "Files", "PythonPackages", "Model", "Preference"} <= {kind.__name__ for kind in found}
    for section in found:
        assert issubclass(section, Section)
        for name, field in section.model_fields.items():
            extra = field.json_schema_extra
            assert isinstance(extra, dict), f"{section.__name__}.{name} is neither what() nor how()"
            assert extra.get("part") in ("what", "how"), f"{section.__name__}.{name}"


def test_workers_are_so_many_or_between_a_least_and_a_most(tmp_path: Path) -> None:
    bounds = []
    for setting in ("3", "[1,2]"):
        section = load(tmp_path, GOOD, f"pretrain.workers={setting}").pretrain
        assert section is not None
        assert type(section).model_validate_json(section.model_dump_json()) == section
        bounds.append((section.workers, section.least_workers, section.most_workers))
    assert bounds == [(3, 3, 3), ((1, 2), 1, 2)]


@pytest.mark.parametrize(
    ("setting", "changes"),
    [
        ("workers=2", False),
        ("store=/elsewhere", False),
        ("corpus.bad_records=quarantine", False),
        ("corpus.sources.0.path=/moved", False),  # the files below it are hashed instead
        ("corpus.sources.1.packages=[numpy]", False),
        ("corpus.sources.0.text=body", True),
        ("corpus.unit_bytes=5", True),
        ("tokenizer.seed=7", True),
        ("tokenizer.algorithm=wordpiece", True),
        ("tokenizer.whitespace=runs", True),
        ("tokenizer.vocabulary_multiple=128", True),
        ("pretrain.workers=2", False),
        ("pretrain.workers=[1,2]", False),
        ("pretrain.resize_every=5", False),
        ("pretrain.log_every=1", False),
        ("pretrain.checkpoint_every=1", False),
        ("pretrain.micro_batch=1", False),
        ("pretrain.checkpointing=selective", False),
        ("pretrain.optimizer=muon", True),
        ("pretrain.z_loss=1e-4", True),
        ("pretrain.read_ahead=1", False),
        ("pretrain.cache_bytes=0", False),
        ("pretrain.steps=21", True),
        ("pretrain.packing=best-fit", True),
        ("pretrain.mask_documents=true", True),
        ("pretrain.mix={books: 1, python-packages: 2}", True),
        ("pretrain.model.width=128", True),
        ("pretrain.model.qk_norm=true", True),
    ],
)
def test_what_a_setting_changes_is_what_it_was_declared_to(
    tmp_path: Path, setting: str, changes: bool
) -> None:
    def identity(recipe: Recipe) -> str:
        stages = [getattr(recipe, stage) for stage in stages_of(recipe)]
        return canonical_digest([section.what() for section in stages])

    assert (identity(load(tmp_path, GOOD, setting)) != identity(load(tmp_path, GOOD))) == changes


def test_a_model_of_a_depth_is_that_of_the_sizes_that_follow_from_it(tmp_path: Path) -> None:
    dial = load(tmp_path, GOOD, "pretrain.model={depth: 3, context: 64, tied: false}").pretrain
    sizes = "width: 256, layers: 3, heads: 2, kv_heads: 1, hidden: 768, context: 64, tied: false"
    by_hand = load(tmp_path, GOOD, f"pretrain.model={{{sizes}}}").pretrain
    assert dial is not None
    assert by_hand is not None
    assert dial.what() == by_hand.what()
    assert dial.model.config(512) == by_hand.model.config(512)
    assert type(dial).model_validate_json(dial.model_dump_json()) == dial


def test_the_order_of_sources_does_not_matter(tmp_path: Path) -> None:
    packages, books = "    - source: python-packages\n", "    - {source: files, name: books, path: /books}\n"
    head = "name: a\ncorpus:\n  sources:\n"
    first, second = load(tmp_path, head + packages + books), load(tmp_path, head + books + packages)
    assert first.corpus.what() == second.corpus.what()


@pytest.mark.parametrize(
    ("steps", "decay", "falls"), [(1, 0.2, 1), (3, 1e-6, 1), (10, 0.05, 1), (100, 0.05, 5), (7, 1.0, 7)]
)
def test_a_decay_has_at_least_the_last_step(steps: int, decay: float, falls: int) -> None:
    section = Training(steps=steps, learning_rate=1.0, schedule="warmup-stable-decay", decay=decay)
    assert section.decay_steps == falls


def test_default_prompts_end_where_a_token_of_the_text_ends() -> None:
    """A space at the end would be a token of its own, where texts have it at the beginning of the next."""
    for section in (Pretrain(steps=1, learning_rate=1.0), Evaluate()):
        assert all(prompt == prompt.rstrip() for prompt in section.prompts)
