"""From a row of a pretraining back to the documents it was made of."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from ingot.errors import UsageError
from ingot.pipelines.artifact import load
from ingot.pipelines.places import Places
from ingot.pipelines.records import damaged, read_object
from ingot.pipelines.store import Store
from ingot.pipelines.training.job import Job
from ingot.pipelines.training.tokens import TokenDataset


def documents_of_sample(store: Store, key: str, number: int) -> list[dict[str, Any]]:
    """The documents that the row of this number in the pretraining at `key` predicts tokens of, in its order:
    each one's place (see `Place`), and which of its tokens, [first, stop). The end-of-text after a document
    counts as its last token. Raises UsageError for a number that no row has."""
    try:
        job = Job.from_json(read_object(store, f"{key}/job.json"))
    except (KeyError, TypeError) as error:
        raise damaged(f"{store.uri}/{key}/job.json", f"it is no training ({error!r})") from None
    dataset = TokenDataset(store, {**job.dataset.spec, "cache_bytes": 0})
    if not 0 <= number < dataset.count:
        raise UsageError(f"no sample {number}: the rows of {key} are numbered 0 to {dataset.count - 1}")
    tokens = load(store, job.dataset.spec["tokens"])
    assert tokens is not None, job.dataset.spec["tokens"]
    places = Places(tokens)
    return [
        {
            **asdict(place),
            "first": max(0, span.start - place.offset),
            "stop": min(place.tokens + 1, span.stop - place.offset),
        }
        for span in dataset.spans(number)
        for place in places.within(span)
    ]
