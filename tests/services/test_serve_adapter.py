"""The adapter against the sources of the installed vLLM: read, as importing them would take half a minute."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import ingot
from ingot.services.serve.limits import CHAT, COMPLETION

FLOORS = Path(ingot.__file__).parent
ADAPTER = FLOORS / "services" / "serve" / "adapter.py"

# Methods and attributes that the adapter uses of what it imports: they are not in its calls by name.
MEMBERS = {
    "AsyncEngineArgs": ["create_engine_config"],
    "AsyncLLM": ["check_health", "errored", "from_vllm_config", "shutdown"],
    "OpenAIServingChat": ["create_chat_completion"],
    "OpenAIServingCompletion": ["create_completion"],
    "UsageContext": ["OPENAI_API_SERVER"],
    "GracefulHTTPError": [],
    "VLLMClientError": [],
    "ChatCompletionRequest": sorted(set(CHAT) - {"response_format"}),
    "CompletionRequest": sorted(set(COMPLETION) - {"response_format"}),
    "ErrorResponse": ["error"],
    "BaseModelPath": ["model_path", "name"],
    "OpenAIServingModels": [],
    "OnlineRenderer": ["preprocess_completion", "render_chat"],
    "StructuredOutputsConfig": ["backend"],
    "LlamaForCausalLM": [],
    "Qwen3ForCausalLM": [],
    "ModelRegistry": ["register_model"],
    "engine_utils": ["get_mp_context"],
    "set_default_fingerprint_mode": [],
}
PRIVATE_OF_RAY = re.compile(r"ray\..*\b_(private|internal)\b")


def imports(path: Path) -> Iterator[tuple[str, str | None, str]]:
    """(module, name, what it is called here) of every import in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield from ((node.module or "", name.name, name.asname or name.name) for name in node.names)
        elif isinstance(node, ast.Import):
            yield from ((name.name, None, name.asname or name.name) for name in node.names)


USED = [(module, name, known) for module, name, known in imports(ADAPTER) if module.split(".")[0] == "vllm"]


@cache
def source(module: str) -> ast.Module:
    spec = importlib.util.find_spec("vllm")
    assert spec is not None
    assert spec.origin is not None
    place = Path(spec.origin).parent.joinpath(*module.split(".")[1:])
    return ast.parse((place / "__init__.py" if place.is_dir() else place.with_suffix(".py")).read_text())


def definition(module: str, name: str) -> ast.AST | None:
    """Where the module itself defines the name; of an object that it makes, the class."""
    for node in source(module).body:
        if getattr(node, "name", None) == name:
            return node
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            assert isinstance(node.value, ast.Call)
            return definition(module, ast.unparse(node.value.func))
    return None


def members(node: ast.AST, module: str) -> dict[str, ast.AST]:
    """What a class has of its own and of bases that its module defines or imports from vLLM."""
    found: dict[str, ast.AST] = {}
    for base in getattr(node, "bases", []):
        if isinstance(base, ast.Name) and (inherited := lookup(module, base.id)):
            found |= members(*inherited)
    for item in getattr(node, "body", []):
        if isinstance(item, ast.AnnAssign):
            found[ast.unparse(item.target)] = item
        elif isinstance(item, ast.Assign):
            found |= {ast.unparse(target): item for target in item.targets}
        elif isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef):
            found[item.name] = item
    return found


def lookup(module: str, name: str) -> tuple[ast.AST, str] | None:
    """The definition of the name as the module sees it, and the module that holds it."""
    if found := definition(module, name):
        return found, module
    for node in source(module).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vllm") and not node.level:
            for entry in node.names:
                if (entry.asname or entry.name) == name:
                    return lookup(str(node.module), entry.name)
    return None


def test_the_list_names_all_that_the_adapter_imports():
    assert {known for _, _, known in USED} == set(MEMBERS)


@pytest.mark.parametrize(("module", "name", "known"), USED, ids=[known for _, _, known in USED])
def test_every_name_and_what_is_used_of_it_is_there(module, name, known):
    if known == "engine_utils":
        there = {entry for node in source(f"{module}.{name}").body for entry in bound(node)}
    else:
        found = lookup(module, name)
        assert found, f"{module} has no {name}"
        there = set(members(*found))
    assert set(MEMBERS[known]) <= there


def bound(node: ast.AST) -> list[str]:
    return [entry.asname or entry.name for entry in node.names] if isinstance(node, ast.ImportFrom) else []


def calls() -> list[tuple[str, ast.Call]]:
    """The adapter's calls of what it imports, and of methods in MEMBERS."""
    made = []
    methods = {member: known for known, names in MEMBERS.items() for member in names}
    for node in ast.walk(ast.parse(ADAPTER.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in MEMBERS:
            made.append((node.func.id, node))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            method = node.func.attr
            if method in methods and ast.unparse(node.func) != "self.model.check_health":
                made.append((f"{methods[method]}.{method}", node))
    return made


@pytest.mark.parametrize(("callee", "call"), calls(), ids=[callee for callee, _ in calls()])
def test_every_call_fits_its_signature(callee, call):
    name, _, method = callee.partition(".")
    module, original = next((module, name_) for module, name_, known in USED if known == name)
    node, home = lookup(module, original)
    if isinstance(node, ast.ClassDef):
        own = members(node, home)
        function = own.get(method or "__init__")
    else:
        own, function = {}, node
    if function is None:  # a dataclass
        accepted, required = set(own), set()
        makers = {ast.unparse(decorator).partition("(")[0] for decorator in node.decorator_list}
        assert makers & {"dataclass", "config"}, "config is vLLM's dataclass that validates"
        count = len(own)
    else:
        arguments = function.args
        positional = [argument.arg for argument in arguments.args]
        positional = positional[1:] if isinstance(node, ast.ClassDef) else positional
        accepted = {*positional, *(argument.arg for argument in arguments.kwonlyargs)}
        without = len(positional) - len(arguments.defaults)
        required = {*positional[:without]} | {
            argument.arg
            for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
            if default is None
        }
        required -= set(positional[: len(call.args)])
        count = len(positional)
    given = {keyword.arg for keyword in call.keywords if keyword.arg}
    assert len(call.args) <= count
    assert given <= accepted
    if all(keyword.arg for keyword in call.keywords):
        assert required <= given


def test_the_engine_arguments_are_all_known():
    """Those that are given as a dictionary."""
    node, home = lookup("vllm.engine.arg_utils", "AsyncEngineArgs")
    fields = set(members(node, home))
    function = next(
        node
        for node in ast.parse(ADAPTER.read_text()).body
        if getattr(node, "name", "") == "engine_arguments"
    )
    keys = [key.value for node in ast.walk(function) if isinstance(node, ast.Dict) for key in node.keys]
    assert len(keys) > 5
    assert set(keys) <= fields


# Each with tests of its own, on a real cluster or the real manifests.
TRAIN = "ray.train.v2._internal"
PRIVATE_BY_FILE = {
    "pipelines/tasks.py": {"ray.data._internal.execution.resource_manager"},
    "services/serve/loopback.py": {"ray.serve._private"},
    "services/capacity.py": {"ray.autoscaler._private.kuberay.autoscaling_config"},
    "services/doctor/ray_cluster.py": {"ray._private.authentication.authentication_token_setup"},
    "services/jobs/api.py": {"ray._private.authentication.http_token_authentication"},
    "pipelines/ray_lifetime.py": {"ray._private"},
    "pipelines/training/reservations.py": {"ray._private"},
    "pipelines/training/elastic.py": {
        f"{TRAIN}.execution.failure_handling",
        f"{TRAIN}.execution.scaling_policy",
    },
    "pipelines/training/trainer.py": {
        "ray.train._internal.utils",
        f"{TRAIN}.callbacks",
        f"{TRAIN}.callbacks.placement_group_callback",
    },
}


def test_no_other_file_reaches_into_vllm_or_ray():
    for path in FLOORS.rglob("*.py"):
        for module, _, _ in imports(path):
            inner = module.split(".")[0] == "vllm" and path != ADAPTER
            assert not inner, f"{path}: imports {module}; only services/serve/adapter.py may"
            allowed = module in PRIVATE_BY_FILE.get(path.relative_to(FLOORS).as_posix(), set())
            assert allowed or not PRIVATE_OF_RAY.match(module), f"{path}: imports {module}, private to Ray"
