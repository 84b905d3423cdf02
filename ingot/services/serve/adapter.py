"""vLLM behind a few names: every import from it is in this file, for none of them is a stable interface.

`tests/services/test_serve_adapter.py` compares each with what is used here, so another version of vLLM fails
there and not in front of a client. Importing this module takes many seconds: only replicas do."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from vllm.config.structured_outputs import StructuredOutputsConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion
from vllm.entrypoints.openai.models.protocol import BaseModelPath
from vllm.entrypoints.openai.models.serving import OpenAIServingModels
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.utils.fingerprint import set_default_fingerprint_mode
from vllm.exceptions import GracefulHTTPError, VLLMClientError
from vllm.model_executor.models.llama import LlamaForCausalLM
from vllm.model_executor.models.qwen3 import Qwen3ForCausalLM
from vllm.model_executor.models.registry import ModelRegistry
from vllm.renderers.online_renderer import OnlineRenderer
from vllm.usage.usage_lib import UsageContext
from vllm.v1.engine import utils as engine_utils
from vllm.v1.engine.async_llm import AsyncLLM

from ingot.pipelines.lifetime import BoundContext
from ingot.services.serve.grammars import GrammarChecker
from ingot.services.serve.limits import LOGPROBS, Bounds, Refused, check_chat, check_completion
from ingot.services.serve.prompts import PromptEncoder
from ingot.services.serve.settings import ServedModel

__all__ = ["REFUSALS", "Answer", "Engine", "refusal"]

Answer = BaseModel | AsyncGenerator[str, None]  # a whole answer, or the lines of a stream of events

BLOCK = 128  # tokens in a block of the key-value cache on CPU
FAILED = 'data: {"error"'  # how an event begins that tells of a failure
CACHE_BYTES = 4 << 30  # at most, on CPU


class Engine:
    """A running vLLM engine and its OpenAI-compatible handlers."""

    def __init__(self, folder: Path, served: ServedModel) -> None:
        """Starts the engine; must be called where an event loop runs."""
        if served.options.gpus:
            _bind_engine()
        else:
            _start_quickly()
        config = engine_arguments(folder, served).create_engine_config(UsageContext.OPENAI_API_SERVER)
        self.model = AsyncLLM.from_vllm_config(
            config,
            usage_context=UsageContext.OPENAI_API_SERVER,
            enable_log_requests=False,
            disable_log_stats=True,
        )
        self.context: int = config.model_config.max_model_len
        self.dtype = str(config.model_config.dtype).removeprefix("torch.")
        set_default_fingerprint_mode("custom", f"ingot-{served.weights[:16]}")
        models = OpenAIServingModels(
            self.model, [BaseModelPath(name, str(folder)) for name in served.names], lora_modules=None
        )
        self._encoder = PromptEncoder((folder / "tokenizer.json").read_text())
        self._grammars = GrammarChecker(folder / "tokenizer.json")
        self.bounds = Bounds(
            vocabulary=min(self._encoder.vocabulary, config.model_config.get_vocab_size()),
            context=self.context,
            token_bytes=int(self._encoder.token_bytes.max()),
        )
        renderer = _TrainedIds(
            self.model.model_config,
            self.model.renderer,
            request_logger=None,
            chat_template=None,
            chat_template_content_format="auto",
        )
        renderer.encoder = self._encoder
        self._completion = OpenAIServingCompletion(
            self.model, models, online_renderer=renderer, request_logger=None
        )
        self._chat = OpenAIServingChat(
            self.model,
            models,
            "assistant",
            online_renderer=renderer,
            request_logger=None,
            chat_template=None,
            chat_template_content_format="auto",
        )

    async def complete(self, body: dict[str, Any]) -> Answer:
        """Answers a completion, its body as `parse_body` gives it. What it raises of REFUSALS is the client's
        fault."""
        checked = check_completion(body, self.bounds)
        await self._check_grammar(checked)
        checked["prompt"] = await asyncio.to_thread(self._prompt_ids, checked["prompt"])
        return await _answer(
            await self._completion.create_completion(CompletionRequest.model_validate(checked), None)
        )

    async def chat(self, body: dict[str, Any]) -> Answer:
        """Answers a chat completion, its body as `parse_body` gives it. What it raises of REFUSALS is the
        client's fault."""
        checked = check_chat(body, self.bounds)
        await self._check_grammar(checked)
        request = ChatCompletionRequest.model_validate(checked)
        return await _answer(await self._chat.create_chat_completion(request, None))

    async def _check_grammar(self, checked: dict[str, Any]) -> None:
        if "structured_outputs" in checked:
            await self._grammars.check(checked["structured_outputs"])

    def _prompt_ids(self, prompts: list[str | list[int]]) -> list[list[int]]:
        encoded = iter(self._encoder.encode_batch([each for each in prompts if isinstance(each, str)]))
        return [next(encoded) if isinstance(each, str) else each for each in prompts]

    async def check_health(self) -> None:
        """Raises where the engine is dead."""
        await self.model.check_health()

    @property
    def dead(self) -> bool:
        """Whether the engine's process has ended or failed; it does not recover."""
        return bool(self.model.errored)

    async def died(self) -> None:
        """Returns once the engine is dead."""
        while not self.dead:
            await asyncio.sleep(0.05)

    def shutdown(self) -> None:
        self._grammars.close()
        self.model.shutdown()


class _TrainedIds(OnlineRenderer):
    """Gives the engine a conversation in the ids of training, where vLLM would render a text and read the
    special tokens that a user typed as control tokens."""

    encoder: PromptEncoder

    async def render_chat(
        self, request: ChatCompletionRequest, *, skip_mm_cache: bool = False
    ) -> tuple[list[Any], list[Any]]:
        ids = await asyncio.to_thread(
            self.encoder.chat,
            request.messages,
            answer=request.add_generation_prompt,
            open_end=request.continue_final_message,
        )
        inputs = await self.preprocess_completion(request, prompt_input=ids, prompt_embeds=None)
        return list(request.messages), inputs


def _bind_engine() -> None:
    """On GPU the engine's process is spawned; it ends with this one."""
    choose = engine_utils.get_mp_context

    def bound() -> BoundContext:
        choose()  # has effects on the environment that the engine's own children read
        return BoundContext()

    engine_utils.get_mp_context = bound


def _start_quickly() -> None:
    """Two more imports of vLLM saved, each 15 s of a core."""
    # On a machine's first start another process would import all of it to look at the architecture.
    ModelRegistry.register_model("LlamaForCausalLM", LlamaForCausalLM)
    ModelRegistry.register_model("Qwen3ForCausalLM", Qwen3ForCausalLM)
    # The engine's process would import it after this one has; the fork server that the replica started does
    # so at the same time.
    engine_utils.get_mp_context = lambda: multiprocessing.get_context("forkserver")


def engine_arguments(folder: Path, served: ServedModel) -> AsyncEngineArgs:
    """What vLLM is started with: float32 and no compiler on CPU, the checkpoint's own type on GPU."""
    options = served.options
    common: dict[str, Any] = {
        "model": str(folder),
        "served_model_name": list(served.names),
        "load_format": "safetensors",
        "max_model_len": options.context,
        "max_num_seqs": options.sequences,
        "enable_log_requests": False,
        "disable_log_stats": True,
        "seed": 0,
        "max_logprobs": LOGPROBS,
        # One for all requests: with "auto" the first structured request decides, and later ones that need
        # another fail. This one takes schemas, regular expressions and grammars, and compiles lazily.
        "structured_outputs_config": StructuredOutputsConfig(backend="guidance"),
    }
    if options.gpus:
        return AsyncEngineArgs(
            **common,
            dtype="auto",
            tensor_parallel_size=options.gpus,
            distributed_executor_backend="mp" if options.gpus > 1 else "uni",
        )
    return AsyncEngineArgs(
        **common,
        dtype="float32",
        enforce_eager=True,
        distributed_executor_backend="uni",
        kv_cache_memory_bytes=cache_bytes(
            json.loads((folder / "config.json").read_text()), options.context, options.sequences
        ),
    )


def cache_bytes(config: dict[str, Any], context: int | None, sequences: int) -> int:
    """The key-value cache for that many float32 sequences of full length, at most CACHE_BYTES but for one."""
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    token = 2 * 4 * config["num_hidden_layers"] * config["num_key_value_heads"] * head
    blocks = -(-(context or config["max_position_embeddings"]) // BLOCK)
    one = token * BLOCK * (blocks + 1)  # vLLM keeps a block for itself
    return max(one, min(CACHE_BYTES, one * sequences))


def refusal(error: Exception) -> Refused | None:
    """One of REFUSALS, raised by the engine or while a request was parsed, in words that are meant for the
    client; None where vLLM has no such words."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, GracefulHTTPError):
        return Refused(int(error.http_status), error.message)
    if isinstance(error, VLLMClientError):
        message, parameter = str(error.args[0]), getattr(error, "parameter", None)
        if parameter in ("input_text", "input_tokens"):  # vLLM's own words for a prompt that is too long
            return Refused(400, message, code="context_length_exceeded")
        return Refused(400, message, parameter)
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        field = str(first["loc"][0]) if first["loc"] else None
        message = first["msg"].removeprefix("Value error, ")
        return Refused(400, f"{field}: {message}" if field else message, field)
    return None


REFUSALS = (Refused, GracefulHTTPError, VLLMClientError, ValueError)


async def _answer(answer: Answer | ErrorResponse) -> Answer:
    """The answer, of a stream only when its first event is there: a request that fails before has a status
    of its own."""
    if isinstance(answer, ErrorResponse):
        raise _failure(answer.model_dump()["error"])
    if isinstance(answer, BaseModel):
        return answer
    first = await anext(answer)
    if first.startswith(FAILED):
        await answer.aclose()
        raise _failure(json.loads(first.removeprefix("data: "))["error"])
    return _with_first(first, answer)


async def _with_first(first: str, rest: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
    try:
        yield first
        async for event in rest:
            yield event
    finally:
        await rest.aclose()


def _failure(error: dict[str, Any]) -> Exception:
    if error["code"] >= 500:
        return RuntimeError(error["message"])
    code = "model_not_found" if error["code"] == 404 else None
    return Refused(int(error["code"]), error["message"], error["param"], code)
