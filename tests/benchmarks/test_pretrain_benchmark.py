"""`benchmarks/pretrain.py` as a person runs it, a part at a time; nothing here looks at how fast it was."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "pretrain.py"

PARTS = {  # part → what agrees with the peers, and the ratios
    "encode": ("ids of all documents are equal", {"encode_vs_tokenizers", "encode_wordpiece_vs_tokenizers"}),
    "step": ("steps agree", {"train_vs_huggingface", "train_vs_huggingface_compiled", "train_vs_litgpt"}),
    "stage": ("are those of bare steps", {"ray_vs_bare"}),
}


@pytest.mark.long
@pytest.mark.parametrize("part", PARTS)
def test_it_prints_what_it_measured_beside_its_peers(part: str) -> None:
    command = [sys.executable, str(SCRIPT), "--quick", "--only", part]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    agreed, names = PARTS[part]
    assert agreed in done.stdout
    body = json.loads(done.stdout.splitlines()[-1])
    assert set(body) == {"benchmark", "machine", "versions", "figures", "ratios"}
    ratios, figures = body["ratios"], body["figures"]
    assert set(ratios) == names
    assert all(value > 0 for value in ratios.values())
    if part == "stage":
        assert 0 <= figures["data_wait_share"] < 1
        assert figures["checkpoint_pause_share"] > 0
