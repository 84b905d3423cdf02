"""`benchmarks/pretrain.py` as a person runs it; nothing here looks at how fast it was."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "pretrain.py"


@pytest.mark.long
def test_it_prints_what_it_measured_beside_its_peers() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "--quick"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for agreed in ("ids of all documents are equal", "steps agree", "are those of bare steps"):
        assert agreed in done.stdout
    body = json.loads(done.stdout.splitlines()[-1])
    assert set(body) == {"benchmark", "machine", "versions", "figures", "ratios"}
    ratios, figures = body["ratios"], body["figures"]
    assert set(ratios) == {
        "encode_vs_tokenizers",
        "encode_wordpiece_vs_tokenizers",
        "train_vs_huggingface",
        "train_vs_huggingface_compiled",
        "train_vs_litgpt",
        "ray_vs_bare",
    }
    assert all(value > 0 for value in ratios.values())
    assert 0 <= figures["data_wait_share"] < 1
    assert figures["checkpoint_pause_share"] > 0
