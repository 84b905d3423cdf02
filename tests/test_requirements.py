"""The pinned lists: a hash for every package, and no version that is known to be unsafe."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from packaging.version import Version

ROOT = Path(__file__).parents[1]
LISTS = sorted((ROOT / "requirements").rglob("*.txt"))


@pytest.mark.parametrize("path", LISTS, ids=lambda path: path.stem)
def test_every_package_is_pinned_with_hashes(path):
    text = path.read_text().replace(" \\\n", " ")
    packages = [line for line in text.splitlines() if not line.startswith(("#", "--"))]
    assert packages
    for line in packages:
        assert re.fullmatch(r"[A-Za-z0-9_.-]+==\S+( +--hash=sha256:[0-9a-f]{64})+", line), line
    for found in re.findall(r"^setuptools==(\S+)", text, re.MULTILINE):
        assert Version(found) >= Version("78.1.1")


def test_every_installation_of_a_list_requires_the_hashes():
    installs = re.findall(r"pip\)? install.*requirements/.*", (ROOT / "Makefile").read_text(), re.IGNORECASE)
    assert len(installs) == 2
    assert all("--no-deps --require-hashes" in each for each in installs)
