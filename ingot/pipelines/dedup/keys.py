"""Copies: documents of one address, and documents of equal normalised content, found by a hash of 128 bits.

They are found before anything is signed, as they are most of what goes from web text and cost least to find:
addresses first, then contents among those that stay. Of each group the document of the best rank is the
leader and the others follow it: whether the leader itself goes is settled later, and what goes for it then
is theirs too."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
import pyarrow

from ingot.pipelines.columns import utf8
from ingot.pipelines.dedup.characters import compared
from ingot.pipelines.dedup.documents import ids, read_columns
from ingot.pipelines.dedup.exchange import (
    hash_bounds,
    location_bounds,
    look_up,
    partitions_of,
    put_index,
    put_rows,
    put_run,
    read_partition,
    read_rows,
)
from ingot.pipelines.dedup.rank import qualities, ranks
from ingot.pipelines.dedup.rows import (
    DOCUMENT,
    FOLLOWER,
    KEY,
    PLACE,
    ROW,
    begins,
    by_rank,
    files_of,
    locations,
    rows_of,
)
from ingot.pipelines.store import Store

_DEFAULT_PORTS = {"http": 80, "https": 443}

Keys = npt.NDArray[np.uint64]


def find_keys(store: Store, body: Mapping[str, Any]) -> dict[str, Any]:
    """A documents file → `documents` (DOCUMENT rows in the file's order, not signed yet), and KEY rows for
    the `contents` of all and, where `url` is set, the `addresses` of those that have one: as runs cut by the
    key, but for `contents` with `url`, which `leave_followers_out` makes a run.

    body: `documents` (the file's entry), `number` (which of the documents files), `partitions`, `scope`,
    `url`, `priority`, `quality`, `snapshot`, `normalize`, `casefold`."""
    from ingot.pipelines.dedup.kernels import content_keys

    wanted = ["id", "text", "source", "url"] + (["metadata"] if body["quality"] else [])
    table = read_columns(store, body["documents"], wanted)
    _, offsets = utf8(table["text"])
    lengths = np.diff(offsets)
    rows = np.empty(table.num_rows, KEY)
    rows["id_high"], rows["id_low"] = ids(table["id"]).T
    rows["location"] = locations(body["number"], len(rows))
    rows["rank"] = _ranks(table, lengths, body)
    documents = np.zeros(len(rows), DOCUMENT)
    for name in ("id_high", "id_low", "rank"):
        documents[name] = rows[name]
    documents["length"] = lengths

    salt = salts(table["source"], body["scope"])
    keys = np.empty((len(rows), 2), np.uint64)
    content_keys(*compared(table["text"], body), keys)
    rows["key_high"], rows["key_low"] = (keys ^ salt[:, None]).T
    bounds = hash_bounds(body["partitions"])
    record = {"documents": put_rows(store, documents)}
    if not body["url"]:
        return {
            **record,
            "contents": put_run(store, np.sort(rows, order="key_high", kind="stable"), "key_high", bounds),
        }
    addressed = rows.copy()
    keys, there = address_keys(table["url"].to_pylist())
    addressed["key_high"], addressed["key_low"] = (keys ^ salt[:, None]).T
    addressed = np.sort(addressed[there], order="key_high", kind="stable")
    return {
        **record,
        "contents": put_rows(store, rows),
        "addresses": put_run(store, addressed, "key_high", bounds),
    }


def _ranks(table: pyarrow.Table, lengths: npt.NDArray[np.int64], body: Mapping[str, Any]) -> Keys:
    quality = None
    if body["quality"]:
        where = f"documents file {body['number']}"
        quality = qualities(table["metadata"].to_pylist(), body["quality"], where)
    sources = table["source"].combine_chunks().dictionary_encode()
    found = np.zeros(table.num_rows, np.uint64)
    for number, source in enumerate(sources.dictionary.to_pylist()):
        own = sources.indices.to_numpy() == number
        place = body["priority"].index(source) if source in body["priority"] else len(body["priority"])
        ranked = ranks(body["snapshot"], place, None if quality is None else quality[own], lengths[own])
        found[own] = ranked
    return found


def salts(sources: pyarrow.ChunkedArray, scope: str) -> Keys:
    """What is laid over the hashes of each document: 0, or where documents are compared within their source
    alone, a hash of its name, so that no hash of one source is one of another."""
    if scope == "all":
        return np.zeros(len(sources), np.uint64)
    encoded = sources.combine_chunks().dictionary_encode()
    names = [hashlib.sha256(name.encode()).digest()[:8] for name in encoded.dictionary.to_pylist()]
    return np.frombuffer(b"".join(names), "<u8")[encoded.indices.to_numpy()].astype(np.uint64)


def address_keys(urls: Sequence[str | None]) -> tuple[Keys, npt.NDArray[np.bool_]]:
    """The hash [documents, 2] of each normalised address, and which documents have one."""
    pages = [address(url) for url in urls]
    digests = [hashlib.sha256(page.encode()).digest()[:16] if page else bytes(16) for page in pages]
    keys = np.frombuffer(b"".join(digests), "<u8").reshape(-1, 2).astype(np.uint64)
    return keys, np.array([page is not None for page in pages], bool)


def address(url: str | None) -> str | None:
    """What two addresses of one page share: the host in lower case, without the scheme's own port, and the
    path and query as they are (RFC 3986, 6.2.2 and 6.2.3); http is https, and the fragment names a place in
    the page. None for what is no such address: "N/A" is no page that many documents share."""
    try:
        parts = urlsplit((url or "").strip())
        port = parts.port
    except ValueError:
        return None
    if parts.scheme not in _DEFAULT_PORTS or not parts.hostname:
        return None
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    suffix = "" if port in (None, _DEFAULT_PORTS[parts.scheme]) else f":{port}"
    query = f"?{parts.query}" if parts.query else ""
    return f"//{host}{suffix}{parts.path or '/'}{query}"


def join_keys(store: Store, body: Mapping[str, Any]) -> dict[str, Any]:
    """A partition of the keys → `followers`, runs of FOLLOWER rows cut by the leader's location and (`gone`)
    by their own; their `count`; `led`, the partitions that hold leaders; and an index of the new leaders.

    body: `runs` (of KEY rows), `partition`, `indexes` (of the leaders of earlier snapshots), `excluded`
    (the entry of PLACE rows of documents that are as if they were not, or None), `cuts`."""
    new = read_partition(store, body["runs"], body["partition"], KEY)
    if body["excluded"]:
        new = new[~np.isin(new["location"], read_rows(store, body["excluded"], PLACE)["location"])]
    earlier = look_up(store, body["indexes"], "key_high", np.unique(new["key_high"]), KEY)
    rows = np.concatenate([earlier, new])
    is_new = np.arange(len(rows)) >= len(earlier)
    order = by_rank(rows, "key_high", "key_low")
    rows, is_new = rows[order], is_new[order]
    first = np.flatnonzero(begins(rows, "key_high", "key_low"))
    leader = np.repeat(first, np.diff(np.append(first, len(rows))))
    follows = leader != np.arange(len(rows))
    followers = np.empty(int(follows.sum()), FOLLOWER)
    followers["location"] = rows["location"][follows]
    followers["leader"] = rows["location"][leader[follows]]
    followers["leader_high"] = rows["id_high"][leader[follows]]
    followers["leader_low"] = rows["id_low"][leader[follows]]
    bounds = location_bounds(body["cuts"])
    by_leader = np.sort(followers, order=("leader", "location"))
    by_location = np.sort(followers, order="location")
    return {
        "followers": put_run(store, by_leader, "leader", bounds),
        "gone": put_run(store, by_location, "location", bounds),
        "count": len(followers),
        "led": np.unique(partitions_of(bounds, followers["leader"])).tolist(),
        "index": put_index(store, rows[first[is_new[first]]], "key_high"),
    }


def find_gone(store: Store, body: Mapping[str, Any]) -> dict[str, Any]:
    """A partition of the documents → for each of its files the rows that follow others, sorted: an entry of
    its own, that changes only with them.

    body: `runs` (of FOLLOWER rows by location), `partition`, `files` (their numbers)."""
    gone = read_partition(store, body["runs"], body["partition"], FOLLOWER)["location"]
    own = (np.sort(rows_of(gone[files_of(gone) == number])).astype(ROW) for number in body["files"])
    return {"files": [put_rows(store, rows) for rows in own]}


def stay(store: Store, documents: int, entry: Mapping[str, Any]) -> npt.NDArray[np.bool_]:
    """Which of a file's documents follow no other: all but those of find_gone's entry."""
    stays = np.ones(documents, bool)
    stays[read_rows(store, entry, ROW)["row"].astype(np.int64)] = False
    return stays


def leave_followers_out(store: Store, body: Mapping[str, Any]) -> dict[str, Any]:
    """The KEY rows of a file's contents, without those that go for their address, as a run.

    body: `contents` (the entry of the rows), `gone` (find_gone's of the file), `number`, `partitions`."""
    rows = read_rows(store, body["contents"], KEY)
    rows = rows[stay(store, len(rows), body["gone"])]
    rows = np.sort(rows, order="key_high", kind="stable")
    return {"contents": put_run(store, rows, "key_high", hash_bounds(body["partitions"]))}
