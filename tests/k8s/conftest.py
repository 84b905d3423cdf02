"""The manifests as kubectl renders them, and the script that checks them."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session", autouse=True)
def _kubectl() -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("needs kubectl")


@pytest.fixture(scope="session")
def linter() -> ModuleType:
    spec = importlib.util.spec_from_file_location("k8s_lint", ROOT / "k8s" / "lint.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["k8s_lint"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def crds() -> dict[str, Path]:
    """KubeRay's version -> the folder of its schemas."""
    if "KUBERAY_CRD_DIR" not in os.environ:
        pytest.skip("needs KubeRay's schemas in KUBERAY_CRD_DIR")
    folder = Path(os.environ["KUBERAY_CRD_DIR"])
    return {"1.7.0": folder, "1.6.2": folder / "v1.6.2"}
