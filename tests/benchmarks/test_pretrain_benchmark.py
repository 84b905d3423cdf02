"""`benchmarks/pretrain.py` as a person runs it; nothing here looks at how fast it was."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "pretrain.py"


@pytest.mark.long
def test_it_prints_what_it_measured_beside_tokenizers() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "--quick"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("the ids of all documents are equal") == 2
    body = json.loads(done.stdout.splitlines()[-1])
    assert set(body) == {"benchmark", "machine", "versions", "figures", "ratios"}
    assert set(body["ratios"]) == {"encode_vs_tokenizers", "encode_wordpiece_vs_tokenizers"}
    assert min(body["ratios"].values()) > 0
