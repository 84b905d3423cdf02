"""Recipes: one YAML file, checked whole, every error at once with its line and the nearest valid name."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError, model_validator

from ingot.errors import UsageError
from ingot.pipelines.sections import (
    Corpus,
    Dedup,
    Evaluate,
    Files,
    Name,
    Preference,
    Pretrain,
    Publish,
    PythonPackages,
    Section,
    Sft,
    Tokenizer,
    Tokens,
    how,
    what,
)

Place = tuple[Any, ...]  # the keys and list positions that lead to a setting
# What the attention kernels of vLLM 0.29 take on a CPU, which is less than they take on GPUs.
SERVED_HEADS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256)

_SOURCES: dict[str, type[BaseModel]] = {"python-packages": PythonPackages, "files": Files}


class Recipe(Section):
    """A whole run: one section for each stage, in the order they run. Stages after the last given section
    are left out."""

    name: Name = how()
    store: str = how(".ingot/store")
    workers: int | None = how(
        None, ge=1
    )  # Ray Data tasks at once; by default as many as the cluster has CPUs
    corpus: Corpus = what()
    dedup: Dedup = what(default_factory=Dedup)
    tokenizer: Tokenizer = what(default_factory=Tokenizer)
    tokens: Tokens = what(default_factory=Tokens)
    pretrain: Pretrain | None = what(None)
    sft: Sft | None = what(None)
    preference: Preference | None = what(None)
    evaluate: Evaluate | None = what(None)
    publish: Publish | None = what(None)

    @model_validator(mode="after")
    def _can_be_served(self) -> Recipe:
        if self.publish and self.pretrain:
            model = self.pretrain.model
            if (wide := model.width // model.heads) not in SERVED_HEADS:
                raise ValueError(
                    f"publish: vLLM serves no heads {wide} wide (pretrain.model: width {model.width} / heads "
                    f"{model.heads}); make them one of {', '.join(map(str, SERVED_HEADS))}"
                )
        return self

    @model_validator(mode="after")
    def _priority_names_sources(self) -> Recipe:
        names = [source.name for source in self.corpus.sources]
        for name in self.dedup.priority:
            if name not in names:
                raise ValueError(f"dedup.priority: no source is named {name!r}; there are {', '.join(names)}")
        return self

    @model_validator(mode="after")
    def _measured_as_trained(self) -> Recipe:
        if self.pretrain and self.evaluate and self.pretrain.mask_documents > self.evaluate.mask_documents:
            raise ValueError(
                "pretrain.mask_documents: a model that sees each document alone is to be measured so; "
                "set evaluate.mask_documents to true as well"
            )
        return self

    @model_validator(mode="after")
    def _mix_names_sources(self) -> Recipe:
        names = [source.name for source in self.corpus.sources]
        mix = self.pretrain.mix if self.pretrain else None
        for name in mix or ():
            if name not in names:
                raise ValueError(f"pretrain.mix: no source is named {name!r}; there are {', '.join(names)}")
        for name in names:
            if mix and name not in mix:
                raise ValueError(
                    f"pretrain.mix: source {name!r} has no weight; give it one, 0 to leave it out"
                )
        return self


def load_recipe(path: str | Path, settings: Sequence[str] = ()) -> Recipe:
    """The recipe at `path` with `settings` (`section.key=value`, the value in YAML) laid over it. Raises
    UsageError with every error, each with its line."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path}: can't read the recipe: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path}: not UTF-8 at byte {error.start}; a recipe is a YAML file in UTF-8"
        ) from None
    lines: dict[Place, int] = {}
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        body = yaml.safe_load(text)
        if not isinstance(root, yaml.MappingNode):
            raise UsageError(f"{path}: empty, or no mapping; a recipe begins with `name:` and `corpus:`")
        twice = _lines(root, (), lines)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UsageError(f"{path}:{line}: not YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError) as error:  # a control character, or 2024-13-45 for a date
        raise UsageError(f"{path}: not YAML: {str(error).splitlines()[0]}") from None
    except RecursionError:
        raise UsageError(f"{path}: nested too deeply, or an alias holds itself") from None
    for name, field in Recipe.model_fields.items():
        if name in body and body[name] is None and _section_of(field.annotation):
            body[name] = {}  # `evaluate:` with nothing below it: all as by default
    origin: dict[Place, str] = {}
    for setting in settings:
        _lay_over(body, setting, origin)
    errors = [f"{path}:{line}: {'.'.join(map(str, key))}: given twice; keep one" for key, line in twice]
    try:
        recipe = Recipe.model_validate(body)
    except ValidationError as error:
        errors += [_explain(path, lines, origin, detail) for detail in error.errors()]
        raise UsageError("\n".join(errors)) from None
    if errors:
        raise UsageError("\n".join(errors))
    return recipe


def _lines(node: yaml.Node, key: Place, lines: dict[Place, int]) -> list[tuple[Place, int]]:
    """Fills `lines` with the line of every key and item; returns the keys that are given twice."""
    lines[key] = node.start_mark.line + 1
    twice = []
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            below = (*key, name.value)
            if below in lines:
                twice.append((below, name.start_mark.line + 1))
                for earlier in [place for place in lines if place[: len(below)] == below]:
                    del lines[earlier]  # YAML takes the last
            twice += _lines(value, below, lines)
            lines[below] = name.start_mark.line + 1
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            twice += _lines(item, (*key, index), lines)
    return twice


def _lay_over(body: dict[str, Any], setting: str, origin: dict[Place, str]) -> None:
    name, equals, value = setting.partition("=")
    keys: Place = tuple(int(part) if part.isdecimal() else part for part in name.strip().split("."))
    if not equals or not all(str(key) for key in keys):
        raise UsageError(f"--set {setting}: write it as section.key=value")
    place: Any = body
    try:
        for depth, key in enumerate(keys[:-1]):
            if isinstance(place, dict) and key not in place:
                place[key] = {}
                origin[keys[: depth + 1]] = f"--set {setting}"
            place = place[key]
        place[keys[-1]] = yaml.safe_load(value)
    except (TypeError, IndexError, KeyError):
        raise UsageError(f"--set {setting}: the recipe has no such place") from None
    except (yaml.YAMLError, ValueError, RecursionError):
        raise UsageError(f"--set {setting}: the value is not YAML") from None
    origin[keys] = f"--set {setting}"


def _explain(path: str | Path, lines: dict[Place, int], origin: dict[Place, str], detail: Any) -> str:
    place: Place = detail["loc"]
    branch = None
    if place[:2] == ("corpus", "sources") and len(place) > 3:
        # pydantic puts the name of a union's chosen branch into the place: it is no key of the recipe
        branch = _SOURCES[place[3]]
        place = (*place[:3], *place[4:])
    prefixes = [place[:length] for length in range(len(place), -1, -1)]
    where = next((origin[prefix] for prefix in prefixes if prefix in origin), None)
    if where is None:
        where = f"{path}:{next(lines[prefix] for prefix in prefixes if prefix in lines)}"
    name = ".".join(map(str, place))
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "extra_forbidden":
        message = f"no such key{_nearest(place, branch)}"
    elif detail["type"] == "missing":
        message = "missing; give it a value"
    elif detail["type"] in ("union_tag_not_found", "union_tag_invalid"):
        message = f"give it a source: that is one of {', '.join(_SOURCES)}"
    elif detail["type"] == "model_type":
        message = f"a section: write its settings below it as key: value, not {detail['input']!r}"
    elif not isinstance(detail["input"], dict | list) and detail["type"] != "value_error":
        message = f"{message[0].lower()}{message[1:]}, not {detail['input']!r}"
    return f"{where}: {name}: {message}" if name else f"{where}: {message}"


def _nearest(place: Place, section: type[BaseModel] | None) -> str:
    if section is None:
        section = Recipe
        for key in place[:-1]:
            section = _section_of(section.model_fields[key].annotation)
            assert section is not None, place
    near = difflib.get_close_matches(str(place[-1]), section.model_fields, n=1, cutoff=0.5)
    if near:
        return f"; nearest: {near[0]}"
    return f"; there are: {', '.join(section.model_fields)}"


def _section_of(annotation: Any) -> type[BaseModel] | None:
    """The section that a setting of this type is, or may be."""
    kinds = [kind for kind in (annotation, *get_args(annotation)) if isinstance(kind, type)]
    return next((kind for kind in kinds if issubclass(kind, BaseModel)), None)
