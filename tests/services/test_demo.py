"""The demo: what it shows, and that nothing of it is left however it ends."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from processes import started
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from ingot.pipelines.tokenizer import TextEncoder
from ingot.pipelines.tokenizer.scheme import Scheme
from ingot.services.demo.answers import NEW_TOKENS, QUESTIONS, Answer, from_json, prompt_ids, to_json
from ingot.services.demo.show import STAGES, folded, printable, show_answers, show_numbers

METRICS: dict[str, dict[str, Any]] = {
    "corpus": {"bytes_in": 94_798_763, "documents_out": 6052},
    "dedup": {"documents_out": 5521},
    "pretrain": {
        "bits_per_byte_before": 3.793,
        "bits_per_byte_after": 1.876,
        "bits_per_byte_unigram": 2.984,
        "tokens_trained": 1_536_000,
        "tokens_per_second": 4400.0,
        "parameters": 1_647_552,
    },
    "sft": {"held_out_loss_before": 4.379, "held_out_loss_after": 3.961},
    "preference": {"accuracy_before": 0.54, "accuracy_after": 0.642, "held_out_pairs": 400},
    "publish": {"model": "tiny", "version": 1},
}
ANSWERS = {
    "untrained": [Answer("   noise" * 60, False)] * 3,
    "pretrain": [Answer("    return self._get(self._name, self._other, self._name)", False)] * 3,
    "sft": [Answer("    return tuned", True)] * 3,
    "preference": [
        Answer("    return preferred", True),
        Answer("", True),
        Answer("\x1b[2J\n    pass", False),
    ],
}


def shown(width: int) -> list[str]:
    console = Console(width=width, record=True, file=io.StringIO())
    show_answers(console, ANSWERS, METRICS)
    return console.export_text().splitlines()


def line_with(lines: list[str], text: str) -> str:
    return next(line for line in lines if text in line)


def test_a_wide_terminal_shows_the_stages_beside_each_other():
    lines = shown(120)
    header = line_with(lines, "untrained")
    places = [header.index(name) for name in STAGES.values()]
    assert places == sorted(places)
    figures = line_with(lines, "bits per byte")
    for text in (
        "3.79 bits per byte",
        "1.88 bits per byte",
        "held-out loss 4.38 → 3.96",
        "accuracy 0.54 → 0.64",
    ):
        assert text in figures
    first = line_with(lines, "return tuned")
    assert first.index("return tuned") == places[2] + 4
    assert first.index("return preferred") == places[3] + 4
    assert max(map(cell_len, lines)) <= 120


def test_a_narrow_terminal_shows_the_stages_below_each_other():
    lines = shown(80)
    beginnings = [line.split()[0] for line in lines if line and line.split(" ")[0] in STAGES.values()]
    assert beginnings == [*STAGES.values()] * len(QUESTIONS)
    assert "return tuned" in line_with(lines, "fine-tuned")
    assert max(map(cell_len, lines)) <= 80


@pytest.mark.parametrize("width", [40, 80, 110, 120, 200])
def test_an_answer_says_whether_it_ended_by_itself_and_long_ones_are_shortened(width):
    text = "\n".join(shown(width))
    assert text.count("✓ ended by itself") == 5
    assert text.count(f"… cut at {NEW_TOKENS} tokens") == 7
    assert text.count("⋮") >= 3
    assert text.count("(nothing)") == 1
    for question in QUESTIONS:
        assert question.splitlines()[0] in text


def test_what_a_model_writes_does_not_change_the_terminal():
    assert "\x1b" not in "\n".join(shown(80))
    assert printable("a\tb\x1b[2J\x07\r\n\u202e漢") == "a   b\ufffd[2J\ufffd\ufffd\n\ufffd漢"


def test_a_long_line_of_code_is_folded_below_its_indentation():
    line = Text("    return " + "x" * 30)
    parts = [part.plain for part in folded(Console(width=80), line, 20)]
    assert [part.rstrip() for part in parts] == [
        "    return",
        "      " + "x" * 14,
        "      " + "x" * 14,
        "      xx",
    ]


def test_the_numbers_say_what_each_stage_changed():
    console = Console(width=120, record=True, file=io.StringIO())
    show_numbers(console, METRICS, stages_seconds=300, seconds=420, peak=3_200_000_000)
    text = console.export_text()
    for figure in (
        "94.8 MB",
        "3.793 → 1.876",
        "4.379 → 3.961",
        "0.540 → 0.642",
        "tiny@1",
        "7.0 min",
        "3.2 GB",
    ):
        assert figure in text


def test_answers_go_through_json():
    assert from_json(to_json(ANSWERS)) == ANSWERS


def test_a_model_is_asked_in_the_form_that_it_was_trained_on():
    texts = [f"{question}\n    return self.x + 1\n\n\n" for question in QUESTIONS] * 20
    encoder = TextEncoder(Scheme().train(texts, 400).to_str())
    for question in QUESTIONS:
        [document] = encoder.encode_batch([f"{question}\n    return self.x"])
        asked = prompt_ids(encoder, question, chat=False)
        assert asked == [encoder.end_of_text, *document][: len(asked)]
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": "    return 1"}]
        ids, mask = encoder.conversation(messages)
        assert prompt_ids(encoder, question, chat=True) == ids[: mask.index(True)]


RECIPE = {
    "name": "stand-in",
    "corpus": {"sources": [{"source": "python-packages", "packages": ["numpy"]}], "unit_bytes": 4_000_000},
    "tokenizer": {"vocabulary": 1024, "sample_bytes": 1_000_000},
    "pretrain": {
        "model": {"width": 64, "layers": 1, "heads": 2, "kv_heads": 1, "hidden": 128, "context": 256},
        "batch_tokens": 2048,
        "evaluate_tokens": 8192,
    },
    "sft": {"batch_conversations": 4, "most": 200, "documents": 300},
    "preference": {"batch_pairs": 4, "pairs": 100, "held_out_pairs": 200},
    "evaluate": {"evaluate_tokens": 8192, "sample_tokens": 8},
    "publish": {"model": "little"},
}
TRAINING = {"steps": 3, "warmup_steps": 1, "learning_rate": 0.001, "workers": 1}


@dataclass(frozen=True)
class Demo:
    """A demo at work."""

    process: subprocess.Popen[str]
    root: Path  # holds the recipe, the store and the temporary folders

    def read_until(self, what: str) -> str:
        said = []
        for line in self.process.stdout:
            said.append(line)
            if what in line:
                return "".join(said)
        raise AssertionError("".join(said))

    def family(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def remains(self, family: list[psutil.Process]) -> list[str]:
        """Its processes that still run after some seconds, and its temporary folders."""
        strays = [process for process in psutil.process_iter() if self._started(process)]
        _, alive = psutil.wait_procs([*family, *strays], timeout=40)
        running = [str(process) for process in alive if process.status() != psutil.STATUS_ZOMBIE]
        return running + [path.name for path in (self.root / "tmp").iterdir()]

    def _started(self, process: psutil.Process) -> bool:
        """Whether the process has inherited the demo's environment, whoever is its parent now."""
        try:
            return process.environ().get("INGOT_CACHE") == str(self.root / "cache")
        except psutil.Error:
            return False


@pytest.fixture(scope="module")
def root() -> Iterator[Path]:
    """With a short path, as Ray's sockets below it need."""
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        (folder / "tmp").mkdir()
        trained = {stage: {**RECIPE[stage], **TRAINING} for stage in ("pretrain", "sft", "preference")}
        (folder / "recipe.yaml").write_text(yaml.safe_dump({**RECIPE, **trained}))
        yield folder


@contextmanager
def demo(root: Path, **options: Any) -> Iterator[Demo]:
    environment = {
        **os.environ,
        "COLUMNS": "120",
        "TMPDIR": str(root / "tmp"),
        "INGOT_CACHE": str(root / "cache"),
        "INGOT_STORE": str(root / "store"),
        "TORCHINDUCTOR_CACHE_DIR": str(root / "compiled"),
    }
    command = [sys.executable, "-m", "ingot.services.demo", str(root / "recipe.yaml")]
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with started(command, cwd=root, env=environment, **output, **options) as process:
        yield Demo(process, root)


def ignoring_interrupts() -> None:
    """As `nohup` and a background job of a script start their commands."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_demo_killed_while_it_trains_and_one_that_nobody_ends(root):
    with demo(root) as killed:
        killed.read_until("tokens  ")
        family = killed.family()
        killed.process.kill()
        killed.process.wait()
        assert killed.remains(family) == []
    with demo(root, preexec_fn=ignoring_interrupts) as whole:
        said = whole.read_until("peak memory")
        assert "preference-tuned" in line_with(said.splitlines(), "pretrained ")
        assert whole.process.wait(60) == 0
        assert whole.remains([]) == []


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_while_it_serves_ends_all_of_it(root, sign):
    with demo(root) as ended:
        ended.read_until("loading vLLM")
        family = ended.family()
        assert len(family) > 5
        if sign in (signal.SIGINT, signal.SIGHUP):  # as a terminal: to every process of the group
            os.killpg(ended.process.pid, sign)
        else:
            ended.process.send_signal(sign)
        assert ended.process.wait(60) == (-sign if sign == signal.SIGKILL else 130)
        assert ended.remains(family) == []
