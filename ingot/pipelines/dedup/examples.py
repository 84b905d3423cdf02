"""Examples of what was removed, for people to judge."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ingot.pipelines.dedup.documents import read_columns
from ingot.pipelines.store import Store

SHOWN_CHARACTERS = 1200

Place = tuple[int, int]  # documents file, row


def find_examples(store: Store, body: Mapping[str, Any]) -> dict[str, Any]:
    """`examples`: ids, paths and similarity of some near duplicates and their witnesses. `pair`: one of them
    with the beginnings of both texts, as {"similarity", "removed": {"id", "path", "text"}, "witness": {…}},
    or None.

    body: `documents` (the entries of the documents files that hold them, by number), `examples` and `shown`
    (as write_files gives them, without what they are sorted by)."""
    pairs = [*body["examples"], *body["shown"]]
    rows = _read(store, body["documents"], pairs, ["id", "path"])
    examples = []
    for location, witness, similarity in body["examples"]:
        removed, kept = rows[_place(location)], rows[_place(witness)]
        witnesses = {f"witness_{name}": value for name, value in kept.items()}
        examples.append({**removed, **witnesses, "similarity": similarity})
    pair = None
    for location, witness, similarity in body["shown"]:
        texts = _read(store, body["documents"], body["shown"], ["text"])
        removed, kept = (
            {**rows[place], "text": texts[place]["text"][:SHOWN_CHARACTERS]}
            for place in (_place(location), _place(witness))
        )
        pair = {"similarity": similarity, "removed": removed, "witness": kept}
    return {"examples": examples, "pair": pair}


def _read(
    store: Store, documents: Mapping[str, Any], pairs: list[list[Any]], columns: list[str]
) -> dict[Place, dict[str, Any]]:
    """These columns of the documents of the pairs, a file at a time."""
    found: dict[Place, dict[str, Any]] = {}
    places = {_place(location) for pair in pairs for location in pair[:2]}
    for number in sorted({number for number, _ in places}):
        table = read_columns(store, documents[str(number)], columns)
        rows = [place for place in places if place[0] == number]
        found |= {place: table.slice(place[1], 1).to_pylist()[0] for place in rows}
    return found


def _place(location: int) -> Place:
    return location >> 32, location & 0xFFFFFFFF
