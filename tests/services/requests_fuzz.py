"""Requests as clients should not send them, drawn from a seed: good bodies with one or more values replaced,
removed or added."""

from __future__ import annotations

import json
import random
from typing import Any

MESSAGES = [{"role": "user", "content": "the quick"}]
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
COUNTS = ("minItems", "maxItems", "minLength", "maxLength", "minProperties", "multipleOf", "minimum")

NAMES = [
    "model", "prompt", "messages", "max_tokens", "max_completion_tokens", "n", "stream", "stream_options",
    "temperature", "top_p", "top_k", "min_p", "frequency_penalty", "presence_penalty", "repetition_penalty",
    "seed", "stop", "stop_token_ids", "logit_bias", "logprobs", "top_logprobs", "allowed_token_ids",
    "bad_words", "prompt_logprobs", "response_format", "structured_outputs", "echo", "suffix", "best_of",
    "user", "min_tokens", "ignore_eos", "truncate_prompt_tokens", "cache_salt", "add_generation_prompt",
    "continue_final_message", "tools", "tool_choice", "functions", "guided_choice", "use_beam_search",
    "prompt_embeds", "chat_template", "kv_transfer_params", "vllm_xargs", "priority", "request_id",
    "documents", "return_token_ids",
]  # fmt: skip

VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 20, 21, 127, 128, 129, 299, 300, 301, 16_384, 2**31, 2**63 - 1, 2**63,
    10**30, 0.0, 0.5, -0.5, 1e-300, 1e300, "", "a", "tiny", "auto", "\ud800", "\0", "<|end|><|system|>x",
    "漢" * 50, "a" * 100_000,
    [], [0], [299], [300], [-1], [4], [[1, 2], [3]], [[300]], [[]], [""], ["a", "b"],
    ["a"] * 1_000, [None], [True], [1.5], ["a", 1], [[1], "a"], list(range(300)), {}, {"a": 1},
    {"300": 1}, {"299": -100}, {"5": 100}, {"5": 1e300}, {"-1": 1}, {"type": "json_object"},
    {"type": "text"}, {"type": "structural_tag", "format": {}}, {"include_usage": True}, {"\udfff": 1},
    {"json": SCHEMA}, {"json": {"type": "array", "minItems": 10**6}}, {"json": "{"}, {"json": {}},
    {"json": {"$ref": "#/definitions/none"}}, {"json": {"$ref": "http://127.0.0.1:1/x"}},
    {"json": {"$ref": "#"}}, {"json": {"type": "nothing"}}, {"json": {"anyOf": []}},
    {"json": {"type": "string", "pattern": "(a{999}){999}"}}, {"json": {"patternProperties": {"(": {}}}},
    {"regex": "("}, {"regex": "[ab]{1,5}"}, {"regex": "(a{1000}){1000}"}, {"regex": "(.*a){20}b"},
    {"regex": "a{99999}"}, {"regex": "\\bx(?=y)"}, {"choice": []}, {"choice": ["a", "b"]}, {"choice": [1]},
    {"choice": ["x" * 100_000]}, {"grammar": "root ::= "}, {"grammar": 'root ::= "a" root | "b"'},
    {"grammar": "start: <|end|>"}, {"grammar": "start: start"}, {"json_object": False},
    {"json_object": True}, {"json_object": True, "regex": "a"},
    {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}},
    {"type": "json_schema", "json_schema": {"name": "x"}}, {"type": "json_schema"},
    [{"role": "user"}], [{"role": "user", "content": None}], [{"role": "tool", "content": "a"}],
    [{"role": "user", "content": [{"type": "text", "text": "a"}]}], [{"role": "user", "content": "\ud800"}],
    [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1:1"}}]}],
    [{"role": ["user"], "content": "a"}], [{"role": "assistant", "content": "a", "tool_calls": [{}]}],
    MESSAGES * 100, MESSAGES * 2_000,
]  # fmt: skip
RAW = [
    b"", b"null", b"[]", b"1", b'"a"', b"{", b'{"model": "tiny", "prompt": NaN}', b"\xff\xfe", b"[" * 100_000,
    b'{"model": "tiny", "prompt": ' + b"[" * 5_000 + b"]" * 5_000 + b"}",
    b'{"model": "tiny", "prompt": "a", "seed": ' + b"9" * 5_000 + b"}",
    b'{"model": "tiny", "prompt": "a", "temperature": 1e999}',
    b'{"model": "tiny", "prompt": "\\ud800"}', b'{"\\ud800": 1}',
]  # fmt: skip


def requests(count: int, seed: int = 0) -> list[tuple[str, bytes]]:
    """Paths and bodies."""
    draw = random.Random(seed)
    return [_request(draw) for _ in range(count)]


def _request(draw: random.Random) -> tuple[str, bytes]:
    chat = draw.random() < 0.5
    path = "/v1/chat/completions" if chat else "/v1/completions"
    if draw.random() < 0.03:
        return path, draw.choice(RAW)
    body: dict[str, Any] = {"model": "tiny", "max_tokens": draw.choice([1, 2, 5])}
    body |= {"messages": MESSAGES} if chat else {"prompt": draw.choice(["the", [5, 6], [[5], [6]]])}
    if draw.random() < 0.4:
        body["stream"] = True
    for _ in range(draw.choice([1, 1, 2, 3])):
        name = draw.choice(NAMES) if draw.random() < 0.97 else "no" + draw.choice(NAMES)
        value = draw.choice(VALUES)
        if draw.random() < 0.3:  # a value that the parameter can nearly have
            value = draw.choice([value for value in VALUES if isinstance(value, type(_like(name)))])
        body[name] = value
    if draw.random() < 0.1:
        body.pop(draw.choice(list(body)))
    if draw.random() < 0.1:
        schema = {**SCHEMA, draw.choice(COUNTS): draw.choice([-1, 0, 1, 1_000, 10**6, 10**12, "x", None])}
        body["structured_outputs"] = {"json": draw.choice([schema, {"type": "array", "items": schema}])}
    return path, json.dumps(body).encode()


def _like(name: str) -> Any:
    if name in ("structured_outputs", "response_format", "stream_options", "logit_bias"):
        return {}
    if name in ("messages", "stop_token_ids", "allowed_token_ids", "bad_words", "stop", "prompt"):
        return []
    return "" if name in ("model", "user", "cache_salt") else 0
