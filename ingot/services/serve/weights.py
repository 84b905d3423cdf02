"""A checkpoint on the machine that serves it: in a folder named by its digest, every file verified.

The folder is made whole by one rename, so a replica that is killed leaves none behind and two that race end
with one. A folder that is there already is hashed again before it is used: it may have been altered since.
The list of its files stands beside it, in `DIGEST.json`: its own SHA-256 is the digest, so a replica can
verify all of it while the store is away."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path

from ingot.errors import IngotError
from ingot.pipelines.artifact import Artifact, Damaged, File, digest_of


def cache_folder() -> Path:
    """`$INGOT_CACHE/models`, by default `~/.cache/ingot/models`."""
    return Path(os.environ.get("INGOT_CACHE") or "~/.cache/ingot").expanduser() / "models"


def cached_weights(digest: str) -> Path | None:
    """The folder with the files of that digest where it is on this machine, every file verified, or None.
    The store is not asked."""
    folder = cache_folder() / digest
    try:
        listed = json.loads(_list_of(folder).read_text(encoding="utf-8"))
        files = {name: File.from_json(entry) for name, entry in listed.items()}
    except (OSError, ValueError, AttributeError, RecursionError, Damaged):
        return None
    return folder if digest_of(files) == digest and _intact(folder, files) else None


def fetch_weights(artifact: Artifact) -> Path:
    """The folder that holds the artifact's files, fetched unless it is there. Raises Damaged where an object
    of the store is missing or altered, IngotError where the folder can't be written."""
    folder = cache_folder() / artifact.digest
    if cached_weights(artifact.digest):
        return folder
    temporary = folder.with_name(f".{artifact.digest}.{uuid.uuid4().hex}.part")
    try:
        temporary.mkdir(parents=True)
        if not _intact(folder, artifact.files):
            artifact.fetch(temporary)
            _put_in_place(temporary, folder, artifact)
        _write_list(folder, artifact)
    except OSError as error:
        raise IngotError(
            f"can't keep the model's weights in {folder.parent}: {error.strerror}; make room there, or name "
            "another folder with INGOT_CACHE"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _list_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.json")


def _write_list(folder: Path, artifact: Artifact) -> None:
    text = json.dumps({name: file.to_json() for name, file in artifact.files.items()})
    temporary = folder.with_name(f".{artifact.digest}.{uuid.uuid4().hex}.json")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(_list_of(folder))
    finally:
        temporary.unlink(missing_ok=True)


def _put_in_place(temporary: Path, folder: Path, artifact: Artifact) -> None:
    try:
        temporary.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
        if not _intact(folder, artifact.files):  # else another replica was first
            altered = temporary.with_suffix(".old")
            folder.rename(altered)
            shutil.rmtree(altered)
            temporary.rename(folder)


def _intact(folder: Path, files: Mapping[str, File]) -> bool:
    """Whether the folder holds these files and nothing else."""
    there = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return there == sorted(files) and all(_sha256(folder / name) == files[name].sha256 for name in there)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
