"""A removed document and its witness, for people: side by side, around where they first differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

SHOWN_LINES = 16


def side_by_side(console: Console, removed: Mapping[str, Any], witness: Mapping[str, Any]) -> None:
    """Prints the texts of two documents ({"path", "text"})."""
    sides = {"removed": removed, "witness": witness}
    lines = [side["text"].splitlines() for side in sides.values()]
    shorter = min(map(len, lines))
    first = next((n for n in range(shorter) if lines[0][n] != lines[1][n]), 0)
    begin = max(0, first - SHOWN_LINES // 4)
    table = Table.grid(expand=True)
    for _ in sides:
        table.add_column(ratio=1)
    table.add_row(
        *(
            Panel(
                _code(side["path"], "\n".join(own[begin : begin + SHOWN_LINES]), begin + 1),
                title=name,
                subtitle=side["path"].rpartition("/")[2],
            )
            for (name, side), own in zip(sides.items(), lines, strict=True)
        )
    )
    console.print(f"from line {begin + 1}:")
    console.print(table)


def _code(path: str, text: str, begin: int) -> Syntax | Text:
    return Syntax(text, "python", start_line=begin) if path.endswith(".py") else Text(text)


def explain(console: Console, document: Mapping[str, Any]) -> None:
    """Prints what `documents.document` says of a document."""
    console.print(f"{document['id']}  {document['source']}: {document['path']}", markup=False, soft_wrap=True)
    if document["kind"] == "kept":
        others = document["copies"] - 1
        stands = (
            f"it stands for {others:,} other{'s' * (others != 1)}" if others else "it stands for no other"
        )
        console.print(f"kept: {stands}")
        if place := document["place"]:
            console.print(
                f"its {place['tokens']:,} tokens: in {place['shard']} from {place['offset']:,} on, which is "
                f"{place['position']:,} of the {place['split']} split"
            )
        return
    if document["kind"] == "takedown":
        console.print("removed: named in dedup.takedown")
        return
    console.print(f"removed: {_reason(document)} this one, which is kept:")
    witness = document["witness"]
    console.print(f"{witness['id']}  {witness['source']}: {witness['path']}", markup=False, soft_wrap=True)
    side_by_side(console, document, witness)


def _reason(document: Mapping[str, Any]) -> str:
    if document["kind"] == "exact":
        return "equal, but for case and spaces, to"
    if document["kind"] == "url":
        return "its address is also that of, or of a document that went for,"
    if document["similarity"] is None:
        return "in one component of shared buckets with"
    bands = document["bands"]
    shared = f"bands {', '.join(map(str, bands))}" if len(bands) > 1 else f"band {bands[0]}"
    return f"at a Jaccard similarity of {document['similarity']:.3f} (they share {shared}) to"
