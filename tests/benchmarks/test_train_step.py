"""`benchmarks/train_step.py` as a person runs it; nothing here looks at how fast it was."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "train_step.py"


@pytest.mark.long
def test_it_prints_what_it_measured_for_both_models() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "--quick"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    body = json.loads(done.stdout.splitlines()[-1])
    assert set(body) == {"benchmark", "machine", "versions", "figures", "ratios"}
    figures = body["figures"]
    assert figures["tiny_parameters"] == 1_705_600
    for kind in ("full", "causal"):
        assert figures[f"tiny_share_of_peak_{kind}"] > 0
        assert any(name.startswith("base_1b") and name.endswith(f"peak_{kind}") for name in figures)
    assert "FLOPs a token" in done.stdout


def test_it_needs_nothing_but_torch() -> None:
    """The script and what it imports of ours, in an interpreter that refuses the rest."""
    refuse = "import sys; sys.modules.update(dict.fromkeys(('ray', 'vllm', 'pydantic', 'transformers')));"
    code = f"{refuse} import runpy; runpy.run_path({str(SCRIPT)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
