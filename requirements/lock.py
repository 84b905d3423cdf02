"""Writes the pinned lists beside this file from what pyproject.toml asks for: `make lock`.

The lists are complete and are installed without dependency resolution. torchvision, torchaudio and
torchcodec stay out although vLLM asks for them: text needs none of them, and their CUDA builds break the
import of transformers beside a CPU build of torch."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
LEFT_OUT = {"ingot", "torchvision", "torchaudio", "torchcodec"}
HEADER = "# Made by `make lock` from pyproject.toml; install with `pip install --no-deps -r`.\n"
CPU_INDEX = "--extra-index-url https://download.pytorch.org/whl/cpu"


def resolve(extras: str, wheels: str) -> dict[str, str]:
    """Name → version of all that ingot with these extras needs, as pip resolves it today, with the wheels
    of a folder preferred."""
    # without a configuration file, so that no other place offers another build of torch
    environment = {**os.environ, "PIP_FIND_LINKS": wheels, "PIP_CONFIG_FILE": os.devnull}
    with tempfile.NamedTemporaryFile(suffix=".json") as report:
        subprocess.run(
            [
                *(*PIP, "install", "--dry-run", "--ignore-installed"),
                *("--report", report.name, f"{HERE.parent}[{extras}]"),
            ],
            check=True,
            env=environment,
        )
        found = [entry["metadata"] for entry in json.loads(Path(report.name).read_text())["install"]]
    names = {entry["name"].lower().replace("_", "-"): entry["version"].partition("+")[0] for entry in found}
    return {name: names[name] for name in sorted(names) if name not in LEFT_OUT}


def write(name: str, pins: dict[str, str], option: str = "") -> None:
    lines = [*([option] if option else []), *(f"{package}=={version}" for package, version in pins.items())]
    (HERE / name).write_text(HEADER + "\n".join(lines) + "\n")
    print(f"requirements/{name}: {len(pins)} packages")


def main() -> None:
    with tempfile.TemporaryDirectory() as wheels:
        # the CPU build of torch stands on PyTorch's own index, which is asked for nothing else
        subprocess.run(
            [*PIP, "download", "--no-deps", "--dest", wheels, "-r", HERE / "torch-cpu.txt"], check=True
        )
        cpu, everything = resolve("cpu", wheels), resolve("cpu,dev", wheels)
    differing = sorted(name for name in cpu if everything[name] != cpu[name])
    if differing:
        sys.exit(f"the dev extra changes {', '.join(differing)}: pin them in pyproject.toml")
    write("torch-cpu.txt", {"torch": cpu.pop("torch")}, CPU_INDEX)
    write("cpu.txt", cpu)
    write("dev.txt", {name: version for name, version in everything.items() if name not in {*cpu, "torch"}})
    write("gpu.txt", resolve("gpu", ""))


if __name__ == "__main__":
    main()
