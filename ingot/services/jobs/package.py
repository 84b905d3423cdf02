"""What is sent to a cluster: the wheel of this very Ingot with the recipe put beside the package.

A wheel is a zip archive; as the job's working folder it is unpacked on every node and comes first in the
import path there. So nothing is installed and nothing downloaded: the cluster must have what Ingot needs
(Ray, torch, …), and needs no Ingot. The same wheel and recipe are the same bytes, which a cluster takes and
unpacks once; what Numba compiles is kept beside them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import PackagePath, distribution
from pathlib import Path

import ingot
from ingot.errors import IngotError

RECIPE = "recipe.yaml"  # its name in the job's working folder
_PACKAGE = Path(ingot.__file__).parent
_CHECKOUT = ("pyproject.toml", "README.md", "LICENSE", _PACKAGE.name)
_BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"


def package(recipe: Path, folder: Path) -> Path:
    """Makes the archive in an empty folder."""
    in_checkout = (_PACKAGE.parent / "pyproject.toml").exists()
    wheel = _built(folder) if in_checkout else _gathered(folder)
    archive = wheel.rename(folder / "ingot.zip")  # Ray takes no .whl for a working folder
    with zipfile.ZipFile(archive, "a", zipfile.ZIP_DEFLATED) as file:
        file.writestr(_entry(RECIPE), recipe.read_bytes())
    return archive


def _built(folder: Path) -> Path:
    """From a checkout: by setuptools, out of a copy, as it leaves folders where it works."""
    source = folder / "source"
    source.mkdir()
    for name in _CHECKOUT:
        there = _PACKAGE.parent / name
        if there.is_dir():
            shutil.copytree(there, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(there, source)
    try:
        subprocess.run(
            [sys.executable, "-c", _BUILD, str(folder)],
            cwd=source,
            env={**os.environ, "SOURCE_DATE_EPOCH": "315532800"},  # 1980, when zip's time begins
            capture_output=True,
            text=True,
            check=True,
        )
    except subprocess.CalledProcessError as error:
        said = (error.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise IngotError(f"{_PACKAGE.parent}: its wheel can't be built: {said}") from error
    [wheel] = folder.glob("*.whl")
    return wheel


def _gathered(folder: Path) -> Path:
    """From an installation: the files that its wheel brought, as its RECORD lists them."""
    wheel = folder / "ingot.whl"
    installed = distribution(ingot.__name__)
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as file:
        for path in installed.files or []:
            if _is_of_wheel(path):
                file.writestr(_entry(str(path)), path.read_binary())
    return wheel


def _entry(name: str) -> zipfile.ZipInfo:
    """An entry that does not tell when it was made."""
    entry = zipfile.ZipInfo(name)
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.external_attr = 0o644 << 16
    return entry


def _is_of_wheel(path: PackagePath) -> bool:
    top = path.parts[0]
    return (top == _PACKAGE.name or top.endswith(".dist-info")) and "__pycache__" not in path.parts
