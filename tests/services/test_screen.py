"""What a run prints."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from ingot.services import screen as module
from ingot.services.screen import Screen
from ingot.services.summaries import scaled, size

FIGURES = {
    "loss": 5.43219,
    "learning_rate": 0.003,
    "tokens_per_second": 2538.4,
    "flops_per_second": 31_417_591_804.0,
    "seconds_left": 134.2,
}


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every advance is told, however quick."""
    monkeypatch.setattr(module, "INTERVAL", -1.0)


def screen_on(terminal: bool) -> tuple[Screen, io.StringIO]:
    printed = io.StringIO()
    return Screen(Console(file=printed, force_terminal=terminal, width=200, highlight=False)), printed


@pytest.mark.parametrize("terminal", [False, True])
def test_a_training_step_is_a_line_with_all_a_person_asks_for(patient: None, terminal: bool) -> None:
    screen, printed = screen_on(terminal)
    screen.begin_stage("pretrain")
    screen.step("train", 880, "steps")
    screen.advance(120, **FIGURES)
    screen.close()
    line = (
        "  pretrain · train 120/880 steps · loss 5.432 · learning rate 0.003 · 2,538 tokens/s · "
        "31.4 GFLOP/s · 0:02:14 left"
    )
    assert line in printed.getvalue()


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
