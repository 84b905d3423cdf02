"""Writes the pinned lists beside this file from what pyproject.toml asks for: `make lock`.

The lists are complete and are installed without dependency resolution, with the SHA-256 of every file that
pip could choose for a pinned version on Linux (glibc) on x86-64 and AArch64: its wheels for CPython 3.11, or
the source where there is no wheel. A file that was replaced in an index is refused. torchvision, torchaudio
and torchcodec stay out although vLLM asks for them: text needs none of them, and their CUDA builds break the
import of transformers beside a CPU build of torch.

The lists of requirements/peers/ are written by hand; here their hashes are renewed."""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
LEFT_OUT = {"ingot", "torchvision", "torchaudio", "torchcodec"}
# setuptools 77, which vLLM's build for CPUs pins, is older than the fixes of 78.1.1. vLLM needs it to be
# built, not to run, and the lists are installed without dependency resolution, so a later one does: the
# newest that still has pkg_resources.
INSTEAD = {"setuptools": "80.9.0"}
MACHINES = ("x86_64", "aarch64")
HEADER = "# Made by `make lock` from pyproject.toml; install with `pip install --no-deps -r`.\n"
TORCH_NOTE = """\
# The hash is of PyTorch's wheel torch-{version}+cpu for CPython 3.11 on Linux, x86-64. A build from
# elsewhere (for CUDA, another machine, or made by hand) has another hash and is refused: put its own here."""
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


@contextmanager
def _finders() -> Iterator[list[Any]]:
    """What lists the files of a package for pip, for each machine. pip has no command that tells the hashes
    of files without downloading them, so this takes pip's own parts; no other function does."""
    from pip._internal.commands import create_command
    from pip._internal.models.target_python import TargetPython

    command: Any = create_command("download")
    with command.main_context():
        options, _ = command.parse_args(["--no-deps"])
        session = command.get_default_session(options)
        targets = [
            TargetPython(
                platforms=[
                    *(f"manylinux_2_{glibc}_{machine}" for glibc in range(40, 4, -1)),
                    *(f"{kind}_{machine}" for kind in ("manylinux2014", "linux")),
                ],
                py_version_info=(3, 11),
                implementation="cp",
            )
            for machine in MACHINES
        ]
        yield [
            command._build_package_finder(options, session, target_python=target, ignore_requires_python=True)
            for target in targets
        ]


def hashes_of(pins: dict[str, str]) -> dict[str, list[str]]:
    """Name → the SHA-256 of every file that pip could choose for the pinned version. Exits where the index
    has no file of that version."""
    found = {}
    with _finders() as finders:
        for name, version in pins.items():
            hashes: set[str] = set()
            for finder in finders:
                links = [
                    each.link for each in finder.find_all_candidates(name) if str(each.version) == version
                ]
                wheels = [link for link in links if link.is_wheel]
                hashes |= {link.hash for link in wheels or links if link.hash_name == "sha256"}
            if not hashes:
                sys.exit(f"{name}=={version}: the index tells no SHA-256 of a file for {', '.join(MACHINES)}")
            found[name] = sorted(hashes)
    return found


def lines_of(pins: dict[str, str], hashes: dict[str, list[str]]) -> Iterable[str]:
    for name, version in pins.items():
        yield " \\\n    ".join([f"{name}=={version}", *(f"--hash=sha256:{each}" for each in hashes[name])])


def write(name: str, pins: dict[str, str]) -> None:
    (HERE / name).write_text(HEADER + "\n".join(lines_of(pins, hashes_of(pins))) + "\n")
    print(f"requirements/{name}: {len(pins)} packages")


def write_torch(version: str, wheel: Path) -> None:
    hashes = {"torch": [hashlib.sha256(wheel.read_bytes()).hexdigest()]}
    lines = [TORCH_NOTE.format(version=version), CPU_INDEX, *lines_of({"torch": version}, hashes)]
    (HERE / "torch-cpu.txt").write_text(HEADER + "\n".join(lines) + "\n")


def renew(path: Path) -> None:
    """The hashes of a list that is written by hand; its comments and versions stay."""
    lines = path.read_text().splitlines()
    comments = [line for line in lines if line.startswith("#")]
    pins = dict(line.removesuffix(" \\").split("==") for line in lines if "==" in line)
    path.write_text("\n".join([*comments, *lines_of(pins, hashes_of(pins))]) + "\n")
    print(f"requirements/{path.relative_to(HERE)}: {len(pins)} packages")


def main() -> None:
    with tempfile.TemporaryDirectory() as wheels:
        # The CPU build of torch is on PyTorch's own index, which is asked for nothing else. The version is
        # pyproject's: a list with the hash of the previous one would refuse it.
        asked = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]["dependencies"]
        [torch] = (each for each in asked if each.startswith("torch=="))
        subprocess.run(
            [
                *(*PIP, "download", "--no-deps", "--dest", wheels),
                *("--extra-index-url", CPU_INDEX.split()[1], torch),
            ],
            check=True,
        )
        [wheel] = Path(wheels).glob("torch-*.whl")
        if "+cpu" not in wheel.name:
            sys.exit(f"{wheel.name} is not the build for CPUs: PyTorch's index was not reached")
        cpu, everything = resolve("cpu", wheels), resolve("cpu,dev", wheels)
        differing = sorted(name for name in cpu if everything[name] != cpu[name])
        if differing:
            sys.exit(f"the dev extra changes {', '.join(differing)}: pin them in pyproject.toml")
        write_torch(cpu.pop("torch"), wheel)
    dev = {name: version for name, version in everything.items() if name not in {*cpu, "torch"}}
    write("cpu.txt", {**cpu, **INSTEAD})
    write("dev.txt", dev)
    write("gpu.txt", resolve("gpu", ""))
    for path in sorted((HERE / "peers").glob("*.txt")):
        renew(path)


if __name__ == "__main__":
    main()
