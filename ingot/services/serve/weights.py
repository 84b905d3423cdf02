"""A checkpoint on the machine that serves it: in a folder named by its digest, every file verified.

The folder is made whole by one rename, so a replica that is killed leaves none behind and two that race end
with one. A folder that is there already is hashed again before it is used: it may have been altered since."""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from pathlib import Path

from ingot.errors import IngotError
from ingot.pipelines.artifact import Artifact


def cache_folder() -> Path:
    """`$INGOT_CACHE/models`, by default `~/.cache/ingot/models`."""
    return Path(os.environ.get("INGOT_CACHE") or "~/.cache/ingot").expanduser() / "models"


def fetch_weights(artifact: Artifact) -> Path:
    """The folder that holds the artifact's files, fetched unless it is there. Raises Damaged where an object
    of the store is missing or altered, IngotError where the folder can't be written."""
    folder = cache_folder() / artifact.digest
    if _intact(folder, artifact):
        return folder
    temporary = folder.with_name(f".{artifact.digest}.{uuid.uuid4().hex}.part")
    try:
        temporary.mkdir(parents=True)
        artifact.fetch(temporary)
        _put_in_place(temporary, folder, artifact)
    except OSError as error:
        raise IngotError(
            f"can't keep the model's weights in {folder.parent}: {error.strerror}; make room there, or name "
            "another folder with INGOT_CACHE"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _put_in_place(temporary: Path, folder: Path, artifact: Artifact) -> None:
    try:
        temporary.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
        if not _intact(folder, artifact):  # else another replica was first
            altered = temporary.with_suffix(".old")
            folder.rename(altered)
            shutil.rmtree(altered)
            temporary.rename(folder)


def _intact(folder: Path, artifact: Artifact) -> bool:
    """Whether the folder holds the artifact's files and nothing else."""
    there = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return there == artifact.names() and all(
        _sha256(folder / name) == artifact.files[name].sha256 for name in there
    )


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
