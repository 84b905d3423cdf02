"""What a run prints."""

from __future__ import annotations

import io
import re

import pytest
from rich.cells import cell_len
from rich.console import Console

from ingot.pipelines.training.show import Show
from ingot.services import screen as module
from ingot.services.panel import sparkline
from ingot.services.screen import Screen
from ingot.services.summaries import scaled, size

FIGURES = {
    "loss": 5.43219,
    "bits_per_byte": 2.3141,
    "learning_rate": 0.003,
    "gradient_norm": 0.8,
    "tokens_per_second": 2538.4,
    "flops_per_second": 31_417_591_804.0,
    "share_of_peak": 0.243,
    "share_waited": 0.0012,
    "memory_bytes": 812_000_000.0,
    "goodput": 0.93,
    "seconds_left": 134.2,
}


METRICS = {
    "parameters": 1,
    "tokens_trained": 1,
    "tokens_per_second": 1.0,
    "bits_per_byte_before": 8.0,
    "bits_per_byte_after": 2.0,
    "bits_per_byte_unigram": 4.0,
}


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every advance is told, however quick."""
    monkeypatch.setattr(module, "INTERVAL", -1.0)


def screen_on(terminal: bool, width: int = 200) -> tuple[Screen, io.StringIO]:
    printed = io.StringIO()
    return Screen(Console(file=printed, force_terminal=terminal, width=width, highlight=False)), printed


def test_a_training_step_is_a_line_with_all_a_person_asks_for(patient: None) -> None:
    screen, printed = screen_on(terminal=False)
    screen.begin_stage("pretrain")
    screen.step("train", 880, "steps")
    screen.advance(120, **FIGURES)
    screen.close()
    assert printed.getvalue() == (
        "  pretrain · train 120/880 steps · loss 5.432 · bits per byte 2.314 · learning rate 0.003 · "
        "2,538 tokens/s · 24% of the peak · waiting for data 0.1% · memory 812.0 MB · goodput 93% · "
        "0:02:14 left\n"
    )


@pytest.mark.parametrize("width", [50, 80, 200])
def test_a_training_on_a_terminal_is_a_panel_that_fits(width: int) -> None:
    screen, printed = screen_on(terminal=True, width=width)
    screen.begin_stage("pretrain")
    screen.step("train", 880, "steps")
    screen.advance(0)
    for step in range(1, 121):
        screen.advance(1, **{**FIGURES, "loss": 9 - step * 0.03, "bits_per_byte": 4 - step // 40})
    screen.say("  step 120 of 880: bits per byte 1")
    screen.advance(760, **{**FIGURES, "bits_per_byte": 3.0, "seconds_left": 0.0})
    screen.advance(0, bits_per_byte=FIGURES["bits_per_byte"])  # measured after the last step
    screen.end_stage("pretrain", METRICS, False, 12.0)
    # what stays, without the signs that move the cursor and colour the words
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", printed.getvalue().rpartition("\x1b[1A")[2])
    lines = [line for line in shown.splitlines() if line and not line.startswith("pretrain")]
    assert lines[0].startswith("╭─ pretrain · step 880 of 880 ─")
    assert max(map(len, lines)) <= width
    for words in (
        "loss           5.432  █",
        "bits per byte  2.314  █",
        "learning rate  0.003 ",
        "gradient norm  0.8 ",
        "tokens/s          2,538 ",
        "FLOP/s            31.4 G ",
        "of the peak       24% ",
        "waiting for data  0.1% ",
        "memory            812.0 MB ",
        "goodput           93% ",
    ):
        assert any(words in line for line in lines), words
    assert "step 120 of 880: bits per byte 1" in printed.getvalue()


def test_a_sparkline_goes_from_the_most_to_the_least() -> None:
    assert sparkline([8, 7, 6, 5, 4, 3, 2, 1], 20) == "█▇▆▅▄▃▂▁"
    assert sparkline([8, 6, 4, 2, 2, 0, 1, 1], 4) == "█▃▁▁"
    assert sparkline([3.0, 3.0], 20) == "▁▁"
    assert sparkline([3.0], 20) == ""


@pytest.mark.parametrize(("terminal", "columns"), [(True, 40), (False, 120)])
def test_what_a_model_writes_is_cut_to_a_line(terminal: bool, columns: int) -> None:
    screen, printed = screen_on(terminal, width=40)
    show = Show(screen, 10)
    sample = {"prompt": "def ", "continuation": "f():\n\t\x1b[31m" + "漢字" * 100}
    show({"kind": "evaluation", "step": 5, "metrics": {"bits_per_byte": 2.5}, "samples": [sample]})
    screen.close()
    [line] = [line for line in printed.getvalue().splitlines() if "def" in line]
    line = line.rpartition("\x1b[2K")[2]
    assert line.startswith("    def  → f():\\n\\t\\x1b[31m漢字")
    assert columns - 1 <= cell_len(line) <= columns
    assert line.endswith("…")


def test_units_without_figures_are_told_where_there_is_no_bar(patient: None) -> None:
    for terminal in (False, True):
        screen, printed = screen_on(terminal)
        screen.begin_stage("dedup")
        screen.step("sign", 9)
        screen.advance()
        screen.close()
        assert ("  dedup · sign 1/9 units\n" in printed.getvalue()) is not terminal


def test_the_rate_is_that_of_what_was_seen_done(patient: None, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    screen, printed = screen_on(False)
    screen.begin_stage("dedup")
    screen.step("sign", 900)
    screen.advance(500)  # were there already
    now[0] = 20.0
    screen.advance(40)
    assert "sign 540/900 units · 2 units/s\n" in printed.getvalue()


def test_lines_about_one_step_keep_their_distance() -> None:
    screen, printed = screen_on(False)
    screen.begin_stage("dedup")
    screen.step("sign", 9)
    for _ in range(9):
        screen.advance()
    assert printed.getvalue() == ""


def test_numbers_are_for_people() -> None:
    assert [size(999), size(1000), size(141_200_000)] == ["999 B", "1.0 kB", "141.2 MB"]
    assert [scaled(9.6e9), scaled(999.96), scaled(2e15)] == ["9.6 G", "1.0 K", "2.0 P"]
