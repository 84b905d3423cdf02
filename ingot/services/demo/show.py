"""What the demo prints: the answers after each stage side by side, what dedup removed, and the numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from ingot.services.beside import side_by_side
from ingot.services.demo.answers import NEW_TOKENS, QUESTIONS, Answer
from ingot.services.summaries import size

STAGES = {
    "untrained": "untrained",
    "pretrain": "pretrained",
    "sft": "fine-tuned",
    "preference": "preference-tuned",
}
SIDE_BY_SIDE = 110  # columns: below it code has too few to be read in four columns
LINES = {True: 9, False: 4}  # the most that are shown of an answer: side by side, and stacked
UNTRAINED_SHARE = 20  # columns of a hundred: noise needs less room than code
INDENT = 2  # columns: between two, and of a line's continuation

Metrics = Mapping[str, Any]
Answers = Mapping[str, Sequence[Answer]]


def show_answers(console: Console, answers: Answers, metrics: Metrics) -> None:
    """Each question and what the model of each of STAGES answers it: beside each other where the terminal is
    wide enough, else one below the other."""
    console.rule("what each stage taught it: three functions to write")
    beside = console.width >= SIDE_BY_SIDE
    for number, question in enumerate(QUESTIONS):
        of_question = {stage: answers[stage][number] for stage in STAGES}
        console.print()
        console.print(_code(question))
        console.print()
        if beside:
            console.print(_columns(console, of_question, {} if number else _figures(metrics)))
        else:
            console.print(_stack(console, of_question))
    console.print()


def _columns(console: Console, answers: Mapping[str, Answer], figures: Mapping[str, str]) -> Table:
    table = Table.grid(padding=(0, INDENT, 0, 0))
    widths = _widths(console.width)
    for width in widths.values():
        table.add_column(width=width)
    table.add_row(*(Text(name, style="bold") for name in STAGES.values()))
    if figures:
        table.add_row(*(Text(figures[stage], style="dim") for stage in STAGES))
    table.add_row(*(Text("─" * width, style="dim") for width in widths.values()))
    table.add_row(
        *(_cell(console, stage, answers[stage], width, beside=True) for stage, width in widths.items())
    )
    return table


def _stack(console: Console, answers: Mapping[str, Answer]) -> Table:
    labels = max(map(len, STAGES.values()))
    width = max(20, console.width - labels - INDENT)
    table = Table.grid(padding=(0, INDENT, 0, 0))
    table.add_column(width=labels, style="bold")
    table.add_column(width=width)
    for number, (stage, name) in enumerate(STAGES.items()):
        if number:
            table.add_row()
        table.add_row(name, _cell(console, stage, answers[stage], width, beside=False))
    return table


def _widths(whole: int) -> dict[str, int]:
    room = whole - INDENT * (len(STAGES) - 1)
    first = room * UNTRAINED_SHARE // 100
    others = (room - first) // (len(STAGES) - 1)
    return {stage: others if number else first for number, stage in enumerate(STAGES)}


def _cell(console: Console, stage: str, answer: Answer, width: int, beside: bool) -> Text:
    """The answer's first lines, and whether it ended by itself."""
    text = printable(answer.text).strip("\n").rstrip()
    shown = Text(text, style="dim") if stage == "untrained" else _code(text)
    lines = [part for line in shown.split("\n", allow_blank=True) for part in folded(console, line, width)]
    if not text:
        lines = [Text("(nothing)", style="dim")]
    most = LINES[beside]
    if len(lines) > most:
        lines = [*lines[: most - 1], Text("⋮", style="dim")]
    cut = Text(f"… cut at {NEW_TOKENS} tokens", "yellow")
    return Text("\n").join([*lines, Text("✓ ended by itself", "green") if answer.ended else cut])


def _code(text: str) -> Text:
    code = Syntax("", "python", theme="ansi_dark", background_color="default").highlight(text)
    code.rstrip()
    return code


def folded(console: Console, line: Text, width: int) -> list[Text]:
    """The line of code in parts of at most `width` columns; all but the first are indented by two more."""
    own = len(line.plain) - len(line.plain.lstrip(" "))
    if line.cell_len <= width or own > width // 2:
        return [*line.wrap(console, width, overflow="fold", no_wrap=False)]
    parts = line[own:].wrap(console, width - own - INDENT, overflow="fold", no_wrap=False)
    return [Text(" " * (own + (INDENT if number else 0))) + part for number, part in enumerate(parts)]


def printable(text: str) -> str:
    """The text without what would move the cursor or change the terminal's state: a model with random weights
    writes any bytes."""
    return "".join(
        letter if letter.isprintable() or letter == "\n" else "\ufffd" for letter in text.expandtabs(4)
    )


def _figures(metrics: Metrics) -> dict[str, str]:
    """Each stage's own measure, short enough for a column."""
    pretrain, tuned, preferred = (metrics[stage] for stage in ("pretrain", "sft", "preference"))
    return {
        "untrained": f"{pretrain['bits_per_byte_before']:.2f} bits per byte",
        "pretrain": f"{pretrain['bits_per_byte_after']:.2f} bits per byte",
        "sft": f"held-out loss {tuned['held_out_loss_before']:.2f} → {tuned['held_out_loss_after']:.2f}",
        "preference": f"accuracy {preferred['accuracy_before']:.2f} → {preferred['accuracy_after']:.2f}",
    }


def show_removed(console: Console, dedup: Metrics) -> None:
    """What dedup removed, and one pair side by side."""
    console.rule("what dedup removed")
    console.print(
        f"{dedup['removed_exact']:,} exact and {dedup['removed_near']:,} near duplicates of "
        f"{dedup['documents_in']:,} documents: {size(dedup['bytes_in'] - dedup['bytes_out'])} of text"
    )
    pair = dedup.get("pair")
    if pair:
        console.print(f"for example, at a Jaccard similarity of {pair['similarity']:.3f},", end=" ")
        side_by_side(console, pair["removed"], pair["witness"])


def show_numbers(
    console: Console, metrics: Metrics, *, stages_seconds: float, seconds: float, peak: int
) -> None:
    """The run's figures. `stages_seconds`: what the stages took when they were made; `seconds`: the demo;
    `peak`: bytes of memory."""
    console.rule("the numbers")
    pretrain, tuned, preference = metrics["pretrain"], metrics["sft"], metrics["preference"]
    corpus, dedup, published = metrics["corpus"], metrics["dedup"], metrics["publish"]
    before, after = pretrain["bits_per_byte_before"], pretrain["bits_per_byte_after"]
    loss_before, loss_after = tuned["held_out_loss_before"], tuned["held_out_loss_after"]
    right_before, right_after = preference["accuracy_before"], preference["accuracy_after"]
    lines = {
        "bytes read": f"{corpus['bytes_in']:,} ({size(corpus['bytes_in'])})",
        "documents": f"{corpus['documents_out']:,}, {dedup['documents_out']:,} after dedup",
        "tokens trained": f"{pretrain['tokens_trained']:,} at {pretrain['tokens_per_second']:,.0f}/s",
        "parameters": f"{pretrain['parameters']:,}",
        "pretraining": f"{before:.3f} → {after:.3f} bits per byte of held-out text "
        f"(unigram entropy {pretrain['bits_per_byte_unigram']:.3f})",
        "fine-tuning": f"{loss_before:.3f} → {loss_after:.3f} loss on held-out conversations",
        "preference": f"{right_before:.3f} → {right_after:.3f} accuracy on "
        f"{preference['held_out_pairs']:,} held-out pairs",
        "model": f"{published['model']}@{published['version']}",
        "time": f"{seconds / 60:.1f} min in all; the stages took {stages_seconds / 60:.1f} min "
        "when they were made",
        "peak memory": size(peak),
    }
    for name, value in lines.items():
        console.print(Text.assemble((f"{name:<16}", "bold"), value), soft_wrap=True)
