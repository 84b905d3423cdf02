"""`benchmarks/dedup.py` as a person runs it; nothing here looks at how fast it was."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
FIGURES = {
    "signing_mb_per_s_per_core",
    "dedup_mb_per_s_per_core",
    "recall",
    "workers_2_over_1",
    "peak_worker_mb",
    "peak_driver_mb",
}
RATIOS = {"signing_vs_datatrove", "signing_vs_datasketch", "dedup_vs_datatrove"}


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(BENCHMARKS / "dedup.py"), *words], capture_output=True, text=True
    )


@pytest.mark.long
@pytest.mark.timeout(900)  # the peers are installed first
def test_it_prints_what_it_measured_beside_both_peers() -> None:
    done = run("--quick")
    assert done.returncode == 0, done.stdout + done.stderr
    body = json.loads(done.stdout.splitlines()[-1])
    assert set(body) == {"benchmark", "machine", "versions", "figures", "ratios"}
    assert set(body["figures"]) >= FIGURES
    assert set(body["ratios"]) == RATIOS
    assert all(
        value > 0 for value in (*(body["figures"][name] for name in FIGURES), *body["ratios"].values())
    )
    assert body["figures"]["recall"] >= 0.99
    assert body["figures"]["datatrove_recall"] >= 0.99
    assert body["figures"]["confirmed_by_datatrove"] >= 0.9
    assert "the mean of 400 estimated similarities is off by" in done.stdout


def test_a_peer_that_cannot_be_installed_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    from peers import environment

    monkeypatch.setattr(environment, "ROOT", tmp_path)
    pins = tmp_path / "requirements" / "peers" / "nothing.txt"
    pins.parent.mkdir(parents=True)
    pins.write_text("./not-there.whl\n")
    with pytest.raises(
        environment.Unavailable, match=r"^nothing can't be installed here: .*not-there"
    ) as told:
        environment.python_of("nothing")
    assert "\n" not in str(told.value)
    assert not (tmp_path / ".venv-peers" / "nothing" / "installed.txt").exists()


def test_planted_pairs_are_as_alike_as_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import dedup_texts

    pairs = dedup_texts.planted(3)
    assert len(pairs) == 3 * len(dedup_texts.LEVELS)
    for number, pair in enumerate(pairs):
        left, right = (
            {tuple(words[at : at + 5]) for at in range(len(words) - 4)}
            for words in (pair.left.split(), pair.right.split())
        )
        assert pair.similarity == len(left & right) / len(left | right)
        assert 0 <= pair.similarity - dedup_texts.LEVELS[number // 3] < 0.02
