"""What a request may ask for: every parameter that is honoured, with its bounds.

All of it is checked on the parsed JSON before vLLM sees the request, because values beyond these bounds stop
or exhaust the engine that all clients share. A parameter that is not listed here is refused by name: a client
must not believe that it had an effect."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

BODY_BYTES = 4 << 20
NESTING = 64  # levels of lists and objects in a body
CHOICES = 128  # answers of one request: its prompts times n
LOGPROBS = 20  # alternatives per token
STOP_STRINGS, STOP_CHARACTERS = 16, 256
BAD_WORDS, BAD_WORD_CHARACTERS = 64, 64
TOKEN_IDS = 1024  # entries of logit_bias and of lists of token ids, except in prompts
NAME_CHARACTERS = 256
MESSAGES = 1024
GRAMMAR_BYTES = 64 << 10  # of a JSON schema, regular expression, grammar or list of choices
REPEATS = 10_000  # minItems, maxItems, minLength, maxLength, minProperties, maxProperties
PATTERN_REPEATS = 1_000  # the numbers of {n,m} in a regular expression or grammar

ROLES = ("system", "user", "assistant")
COUNTS = ("minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties", "minContains")
CONSTRAINTS = ("json", "regex", "choice", "grammar", "json_object")
NOT_WITH_GRAMMAR = ("allowed_token_ids", "bad_words", "logit_bias", "min_tokens")


class Refused(Exception):
    """A request was refused; the message is meant for the client, the code for programs."""

    def __init__(
        self, status: int, message: str, parameter: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.parameter = parameter
        self.code = code


@dataclass(frozen=True)
class Bounds:
    """What depends on the model."""

    vocabulary: int  # tokens
    context: int  # tokens of prompt and answer together
    token_bytes: int  # of the longest token

    @property
    def prompt_characters(self) -> int:
        """A longer text can't fit in the context, whatever its tokens are."""
        return self.context * self.token_bytes


Check = Callable[[str, Any, Bounds], Any]  # returns the value as vLLM gets it; raises Refused


def parse_body(raw: bytes) -> dict[str, Any]:
    """The body as a JSON object without its null values. Raises Refused for one that is not JSON, nests too
    deeply, or holds a lone surrogate or a number that is not finite."""
    if len(raw) > BODY_BYTES:
        raise Refused(413, f"the body is larger than {BODY_BYTES:,} bytes")
    try:
        body = json.loads(raw, parse_constant=_not_json)
    except RecursionError:
        raise Refused(400, f"the body nests more than {NESTING} levels") from None
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are kinds of it
        where = f" at character {error.pos}" if isinstance(error, json.JSONDecodeError) else ""
        raise Refused(400, f"the body must be a JSON object, but is not valid JSON{where}") from None
    if not isinstance(body, dict):
        raise Refused(400, "the body must be a JSON object")
    for name, value in body.items():
        _printable(name, "the body")
        _check_tree(name, value)
    return {name: value for name, value in body.items() if value is not None}


def check_completion(body: dict[str, Any], bounds: Bounds) -> dict[str, Any]:
    """The parameters of a completion within their bounds. Raises Refused."""
    checked = _check(body, COMPLETION, bounds)
    if "prompt" not in checked:
        raise Refused(400, "prompt: is missing", "prompt")
    _check_choices(len(checked["prompt"]), checked)
    return checked


def check_chat(body: dict[str, Any], bounds: Bounds) -> dict[str, Any]:
    """The parameters of a chat completion within their bounds. Raises Refused."""
    checked = _check(body, CHAT, bounds)
    if "messages" not in checked:
        raise Refused(400, "messages: is missing", "messages")
    if checked.get("top_logprobs") and not checked.get("logprobs"):
        raise Refused(400, "top_logprobs: needs logprobs: true", "top_logprobs")
    _check_choices(1, checked)
    return checked


def _check(body: dict[str, Any], known: dict[str, Check], bounds: Bounds) -> dict[str, Any]:
    checked = {}
    for name, value in body.items():
        if name not in known:
            shown = name if len(name) <= NAME_CHARACTERS else name[:NAME_CHARACTERS] + "…"
            reason = REFUSED.get(name, "is not a parameter of this server; leave it out")
            raise Refused(400, f"{shown}: {reason}", shown)
        checked[name] = known[name](name, value, bounds)
    if "model" not in checked:
        raise Refused(400, "model: is missing; GET /v1/models lists the names", "model")
    if checked.get("stream_options") is not None and not checked.get("stream"):
        raise Refused(400, "stream_options: needs stream: true", "stream_options")
    if checked.get("stream") and checked.get("prompt_logprobs") is not None:
        raise Refused(400, "prompt_logprobs: can't be combined with stream", "prompt_logprobs")
    if "response_format" in checked and "structured_outputs" in checked:
        raise Refused(400, "structured_outputs: can't be combined with response_format", "structured_outputs")
    structured = checked.pop("response_format", None) or checked.get("structured_outputs")
    if structured is not None:
        checked["structured_outputs"] = structured
        for name in NOT_WITH_GRAMMAR:
            if checked.get(name):
                raise Refused(400, f"{name}: can't be combined with structured output", name)
    return checked


def _check_choices(prompts: int, checked: dict[str, Any]) -> None:
    if prompts * checked.get("n", 1) > CHOICES:
        raise Refused(400, f"n: prompts times n may be at most {CHOICES}", "n")


def _not_json(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _check_tree(name: str, tree: Any) -> None:
    """Every string and number below a parameter, without recursion."""
    left = [(tree, 2)]
    while left:
        value, level = left.pop()
        if isinstance(value, str):
            _printable(value, name)
        elif isinstance(value, float | int):
            if not math.isfinite(value) if isinstance(value, float) else abs(value) >= 1 << 63:
                raise Refused(400, f"{name}: holds a number outside the range of 64 bits", name)
        elif isinstance(value, dict | list):
            if level > NESTING:
                raise Refused(400, f"{name}: nests more than {NESTING} levels", name)
            parts = [*value.keys(), *value.values()] if isinstance(value, dict) else value
            left += [(part, level + 1) for part in parts]


def _printable(text: str, name: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        shown = None if name == "the body" else name
        raise Refused(400, f"{name}: holds a lone surrogate, which is not text", shown) from None


def _text(name: str, value: Any, bounds: Bounds) -> str:
    if not isinstance(value, str) or len(value) > NAME_CHARACTERS:
        raise Refused(400, f"{name}: must be a string of at most {NAME_CHARACTERS} characters", name)
    return value


def _filled(name: str, value: Any, bounds: Bounds) -> str:
    if not _text(name, value, bounds):
        raise Refused(400, f"{name}: is empty", name)
    return str(value)


def _boolean(name: str, value: Any, bounds: Bounds) -> bool:
    if not isinstance(value, bool):
        raise Refused(400, f"{name}: must be true or false", name)
    return value


def _integer(least: int, most: int | Callable[[Bounds], int]) -> Check:
    def check(name: str, value: Any, bounds: Bounds) -> int:
        top = most if isinstance(most, int) else most(bounds)
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole or not least <= value <= top:
            raise Refused(400, f"{name}: must be a whole number from {least} to {top}", name)
        return int(value)

    return check


def _number(least: float, most: float) -> Check:
    def check(name: str, value: Any, bounds: Bounds) -> float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not least <= value <= most:
            raise Refused(400, f"{name}: must be a number from {least:g} to {most:g}", name)
        return float(value)

    return check


def _strings(most: int, characters: int) -> Check:
    def check(name: str, value: Any, bounds: Bounds) -> list[str]:
        values = [value] if isinstance(value, str) else value
        if not isinstance(values, list) or not all(isinstance(each, str) for each in values):
            raise Refused(400, f"{name}: must be a string or a list of strings", name)
        if len(values) > most:
            raise Refused(400, f"{name}: has {len(values)} strings; at most {most} are allowed", name)
        if not all(1 <= len(each) <= characters for each in values):
            raise Refused(400, f"{name}: each string must have 1 to {characters} characters", name)
        return values

    return check


def _ids(name: str, value: Any, bounds: Bounds, most: int = TOKEN_IDS) -> list[int]:
    if not isinstance(value, list) or len(value) > most:
        raise Refused(400, f"{name}: must be a list of at most {most} token ids", name)
    for each in value:
        if not isinstance(each, int) or isinstance(each, bool) or not 0 <= each < bounds.vocabulary:
            raise Refused(400, f"{name}: token ids are whole numbers from 0 to {bounds.vocabulary - 1}", name)
    return value


def _some_ids(name: str, value: Any, bounds: Bounds) -> list[int]:
    if value == []:
        raise Refused(400, f"{name}: is empty; leave it out", name)
    return _ids(name, value, bounds)


def _logit_bias(name: str, value: Any, bounds: Bounds) -> dict[str, float]:
    if not isinstance(value, dict) or len(value) > TOKEN_IDS:
        raise Refused(400, f"{name}: must be an object of at most {TOKEN_IDS} token ids", name)
    checked = {}
    for key, bias in value.items():
        known = key.isascii() and key.isdigit() and len(key) < 10 and int(key) < bounds.vocabulary
        if not known:
            raise Refused(400, f"{name}: its keys are token ids from 0 to {bounds.vocabulary - 1}", name)
        checked[str(int(key))] = _number(-100, 100)(name, bias, bounds)
    return checked


def _stream_options(name: str, value: Any, bounds: Bounds) -> dict[str, bool]:
    known = ("include_usage", "continuous_usage_stats")
    if not isinstance(value, dict) or not all(key in known for key in value):
        raise Refused(400, f"{name}: must be an object with {' or '.join(known)}", name)
    return {key: _boolean(f"{name}.{key}", each, bounds) for key, each in value.items() if each is not None}


def _one_of(*choices: str) -> Check:
    def check(name: str, value: Any, bounds: Bounds) -> str:
        if not isinstance(value, str) or value not in choices:
            raise Refused(400, f"{name}: must be one of {', '.join(choices)}", name)
        return value

    return check


def _prompt(name: str, value: Any, bounds: Bounds) -> list[str | list[int]]:
    """A list of prompts, each a text or a list of token ids."""
    one = isinstance(value, str) or (
        isinstance(value, list) and bool(value) and not isinstance(value[0], str | list)
    )
    prompts = [value] if one else value
    if not isinstance(prompts, list) or not prompts:
        raise Refused(400, f"{name}: must be a text, a list of token ids, or a list of these", name)
    if len(prompts) > CHOICES:
        raise Refused(400, f"{name}: has {len(prompts)} prompts; at most {CHOICES} are allowed", name)
    for prompt in prompts:
        if not isinstance(prompt, str | list):
            raise Refused(400, f"{name}: must be a text, a list of token ids, or a list of these", name)
        if not prompt:
            raise Refused(400, f"{name}: is empty", name)
        if isinstance(prompt, str):
            check_length(len(prompt), bounds)
        elif len(prompt) > bounds.context:
            raise _too_long(bounds)
        else:
            _ids(name, prompt, bounds, bounds.context)
    return prompts


def check_length(characters: int, bounds: Bounds) -> None:
    """Raises Refused for a text that can't fit, before it is tokenised."""
    if characters > bounds.prompt_characters:
        raise _too_long(bounds)


def _too_long(bounds: Bounds) -> Refused:
    message = f"the prompt is too long: this model's maximum context length is {bounds.context} tokens"
    return Refused(400, message, None, "context_length_exceeded")


def _messages(name: str, value: Any, bounds: Bounds) -> list[dict[str, str]]:
    if not isinstance(value, list):
        raise Refused(400, f"{name}: must be a list", name)
    if not value:
        raise Refused(400, f"{name}: is empty", name)
    if len(value) > MESSAGES:
        raise Refused(400, f"{name}: has {len(value)} messages; at most {MESSAGES} are allowed", name)
    messages = [_message(f"{name}[{index}]", message) for index, message in enumerate(value)]
    check_length(sum(len(message["content"]) for message in messages), bounds)
    return messages


def _message(place: str, message: Any) -> dict[str, str]:
    if not isinstance(message, dict):
        raise Refused(400, f"{place}: must be an object with role and content", "messages")
    message = {name: value for name, value in message.items() if value is not None}
    if extra := sorted(message.keys() - {"role", "content"}):
        raise Refused(400, f"{place}.{extra[0][:64]}: is not supported; leave it out", "messages")
    if message.get("role") not in ROLES:
        raise Refused(400, f"{place}.role: must be one of {', '.join(ROLES)}", "messages")
    content = message.get("content")
    if isinstance(content, list):
        for part in content:
            text = isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
            if not text:
                raise Refused(400, f"{place}.content: only parts of type text are supported", "messages")
        content = "\n".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise Refused(400, f"{place}.content: must be a text", "messages")
    return {"role": message["role"], "content": content}


def _response_format(name: str, value: Any, bounds: Bounds) -> dict[str, Any] | None:
    """As the structured_outputs that it stands for."""
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return {"json_object": True}
    if kind == "json_schema":
        schema = value.get("json_schema")
        if not isinstance(schema, dict) or not isinstance(schema.get("schema"), dict):
            raise Refused(400, f"{name}.json_schema.schema: must be a JSON schema", name)
        return _structured_outputs(name, {"json": schema["schema"]}, bounds)
    raise Refused(400, f"{name}.type: must be text, json_object or json_schema", name)


def _structured_outputs(name: str, value: Any, bounds: Bounds) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Refused(400, f"{name}: must be an object with one of {', '.join(CONSTRAINTS)}", name)
    value = {key: each for key, each in value.items() if each is not None}
    if len(value) != 1 or next(iter(value)) not in CONSTRAINTS:
        raise Refused(400, f"{name}: must have exactly one of {', '.join(CONSTRAINTS)}", name)
    [(kind, constraint)] = value.items()
    if kind == "json_object":
        if constraint is not True:
            raise Refused(400, f"{name}.json_object: must be true; leave {name} out otherwise", name)
        return value
    if kind == "json":
        constraint = _schema(name, constraint)
    elif kind == "choice":
        if not isinstance(constraint, list) or not constraint:
            raise Refused(400, f"{name}.choice: must be a list of strings", name)
        if not all(isinstance(each, str) and each for each in constraint):
            raise Refused(400, f"{name}.choice: must be a list of strings, none of them empty", name)
    elif not isinstance(constraint, str) or not constraint.strip():
        raise Refused(400, f"{name}.{kind}: must be a text", name)
    elif "\0" in constraint:
        raise Refused(400, f"{name}.{kind}: holds a NUL character", name)
    else:
        _check_repeats(name, constraint)
    if len(json.dumps(constraint, ensure_ascii=False).encode()) > GRAMMAR_BYTES:
        raise Refused(400, f"{name}.{kind}: is larger than {GRAMMAR_BYTES:,} bytes", name)
    return {kind: constraint}


def _schema(name: str, schema: Any) -> dict[str, Any]:
    if isinstance(schema, str):
        try:
            schema = parse_body(schema.encode())
        except Refused:
            raise Refused(400, f"{name}.json: is not a JSON schema", name) from None
    if not isinstance(schema, dict):
        raise Refused(400, f"{name}.json: must be a JSON schema, an object", name)
    left: list[Any] = [schema]
    while left:
        part = left.pop()
        if isinstance(part, list):
            left += part
        elif isinstance(part, dict):
            for key in COUNTS:
                count = part.get(key, 0)
                if isinstance(count, int | float) and count > REPEATS:
                    raise Refused(400, f"{name}: {key} is {count}; at most {REPEATS} is allowed", name)
            if isinstance(part.get("pattern"), str):
                _check_repeats(name, part["pattern"])
            left += part.values()
    return schema


def _check_repeats(name: str, pattern: str) -> None:
    for repeat in re.finditer(r"[{~](\d+)\s*(?:[,.]+\s*(\d+))?", pattern, re.ASCII):
        if any(len(count) > 9 or int(count) > PATTERN_REPEATS for count in repeat.groups() if count):
            raise Refused(400, f"{name}: repeats more than {PATTERN_REPEATS} times", name)


COMMON: dict[str, Check] = {
    "model": _filled,
    "user": _text,  # an identifier for the client's own records; nothing here depends on it
    "max_tokens": _integer(0, lambda bounds: bounds.context),
    "min_tokens": _integer(0, lambda bounds: bounds.context),
    "n": _integer(1, CHOICES),
    "stream": _boolean,
    "stream_options": _stream_options,
    "temperature": _number(0, 100),
    "top_p": _number(1e-6, 1),
    "top_k": _integer(-1, lambda bounds: bounds.vocabulary),
    "min_p": _number(0, 1),
    "frequency_penalty": _number(-2, 2),
    "presence_penalty": _number(-2, 2),
    "repetition_penalty": _number(0.01, 100),
    "seed": _integer(-(1 << 63), (1 << 63) - 1),
    "stop": _strings(STOP_STRINGS, STOP_CHARACTERS),
    "stop_token_ids": _ids,
    "include_stop_str_in_output": _boolean,
    "ignore_eos": _boolean,
    "skip_special_tokens": _boolean,
    "logit_bias": _logit_bias,
    "allowed_token_ids": _some_ids,
    "bad_words": _strings(BAD_WORDS, BAD_WORD_CHARACTERS),
    "prompt_logprobs": _integer(0, LOGPROBS),
    "response_format": _response_format,
    "structured_outputs": _structured_outputs,
    "return_token_ids": _boolean,
    "return_tokens_as_token_ids": _boolean,
    "truncate_prompt_tokens": _integer(1, lambda bounds: bounds.context),
    "truncation_side": _one_of("left", "right"),
    "cache_salt": _filled,
}
COMPLETION: dict[str, Check] = {
    **COMMON,
    "prompt": _prompt,
    "echo": _boolean,
    "logprobs": _integer(0, LOGPROBS),
}
CHAT: dict[str, Check] = {
    **COMMON,
    "messages": _messages,
    "logprobs": _boolean,
    "top_logprobs": _integer(0, LOGPROBS),
    "max_completion_tokens": _integer(1, lambda bounds: bounds.context),
    "add_generation_prompt": _boolean,
    "continue_final_message": _boolean,
}
_NO_TOOLS = "this server has no tools; leave it out"
_STRUCTURED = "is not supported; use response_format or structured_outputs"
REFUSED = {
    "best_of": "is not supported; use n",
    "suffix": "is not supported; leave it out",
    **dict.fromkeys(("tools", "tool_choice", "functions", "function_call", "parallel_tool_calls"), _NO_TOOLS),
    **dict.fromkeys(
        ("guided_json", "guided_regex", "guided_choice", "guided_grammar", "guided_decoding_backend"),
        _STRUCTURED,
    ),
}
