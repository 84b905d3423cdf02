"""A published model as a Hugging Face folder on this machine, for programs that know nothing of a store."""

from __future__ import annotations

import hashlib
import shutil
import uuid
from pathlib import Path

from ingot.errors import IngotError, UsageError
from ingot.pipelines.artifact import File
from ingot.pipelines.registry import ModelVersion
from ingot.pipelines.store import Store


def export_model(store: Store, version: ModelVersion, target: Path) -> dict[str, File]:
    """Writes the model's files to the folder `target` and returns them by name. They are written to a
    temporary folder beside it, verified there and renamed into place, so `target` is never half filled.

    Raises UsageError where `target` is not empty or no folder, Damaged where an object of the store is, and
    IngotError where the checkpoint is gone or the folder can't be written."""
    artifact = version.artifact(store)
    # What stages keep below folders of their own (functions, pairs, scores) is no part of the model.
    names = [name for name in artifact.names() if "/" not in name]
    folder = target.expanduser().resolve()
    _refuse_what_is_there(folder, target)
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.part")
    try:
        temporary.mkdir(parents=True)
        artifact.fetch(temporary, names)
        for name in names:
            with open(temporary / name, "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != artifact.files[name].sha256:
                    raise IngotError(
                        f"{temporary / name} does not hold what was written to it; check the disk, or name a "
                        "folder on another one with --to"
                    )
        _refuse_what_is_there(folder, target)  # another export may have been quicker
        temporary.rename(folder)
    except OSError as error:
        raise IngotError(
            f"can't write {version.id} to {target}: {error.strerror}; make room there, or name a new folder "
            "that you may write to with --to"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return {name: artifact.files[name] for name in names}


def _refuse_what_is_there(folder: Path, target: Path) -> None:
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            what = "is not empty" if folder.is_dir() else "is a file"
            raise UsageError(f"--to {target} {what}; name an empty folder, or one that does not exist yet")
    except OSError as error:
        raise IngotError(
            f"--to {target}: can't look into it: {error.strerror}; name another folder"
        ) from error
