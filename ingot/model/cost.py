"""What training costs a worker, by arithmetic: floating point operations, and memory by what holds it.

Nothing is built or run. A step's memory is highest when the backward pass begins, as all activations and the
loss's are there, or when it ends, as all gradients are, or in the first or the last of its blocks. What
autograd keeps of a block is written down term by term; the tests count what is really held.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Literal

from ingot.model.config import ModelConfig
from ingot.model.cpu_attention import BLOCKS, rows_fit_in_blocks
from ingot.model.losses import CPU_LOGITS, CPU_ROWS, LOGITS_KEPT
from ingot.model.parallel import Checkpointing, Precision

MASTER_BYTES = 4
"""Parameters, gradients and optimizer state are fp32 whatever the precision of the products."""

MAPPED_BYTES = 2**25
"""glibc takes tensors from this size on from the system and gives them back; smaller ones share a heap."""

HEAP_WASTE = 1 / 6
"""Of what lies in that heap, how much more it holds in holes between what lives longer. Measured with 50
million parameters and rows of 256 tokens in fp32: 15% without checkpointing, 18% with it."""

BUFFERS_BYTES = 60_000_000
"""Of the libraries' own for products, measured there."""


@dataclass(frozen=True)
class Execution:
    """How a worker runs a step, as far as it matters to what the step costs."""

    rows: int
    """Of a micro batch."""
    length: int
    """Tokens of a row."""
    microbatches: int = 1
    precision: Precision = "fp32"
    checkpointing: Checkpointing = "none"
    compile: bool = False
    workers: int = 1
    replicas: int = 1
    """Groups of workers that hold a whole model each."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    device: Literal["cpu", "cuda"] = "cpu"
    summed: bool = True
    """Whether the targets' losses are summed at once, as a language model's are, or weighed one by one."""

    @property
    def tokens(self) -> int:
        """Of a micro batch."""
        return self.rows * self.length

    @property
    def shards(self) -> int:
        """Into how many parts the model is cut."""
        return self.workers // self.replicas

    @property
    def element(self) -> int:
        """Bytes of an activation."""
        return {"fp32": 4, "bf16": 2}[self.precision]


@dataclass(frozen=True)
class Memory:
    """Bytes that one worker holds at the moment when a step needs most."""

    parameters: int
    gradients: int
    moments: int
    """The optimizer's: AdamW's two of a parameter, Muon's one of a block's matrix."""
    gathered: int
    """Whole parameters that are there besides the shards, and casts of parameters to bf16."""
    activations: int
    """What the blocks keep for the backward pass, or compute again in it."""
    loss: int
    """The logits, and what the loss makes of them."""
    unused: int = 0
    """On a CPU, what the C library holds without use, and buffers of the libraries that multiply."""

    @property
    def peak(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))


def microbatch_flops(config: ModelConfig, how: Execution) -> int:
    """Floating point operations of both passes over one micro batch, with what is computed a second time.

    `ModelConfig.flops_per_token` counts what training asks for and utilisation is measured by; a block that
    is computed again adds its forward pass without its last product, whose result nobody asks for, and logits
    in chunks, where losses are not summed at once, add one more output projection. Selective checkpointing
    keeps all products.
    """
    again = 0
    if how.checkpointing == "full":
        last_product = config.hidden * config.width
        attention = 4 * config.heads * config.head_width * how.length
        again += config.layers * (2 * (config.block_weights() - last_product) + attention)
    if not how.summed and is_chunked(config, how):
        again += 2 * config.vocabulary * config.width
    return how.tokens * (config.flops_per_token(how.length, causal=False) + again)


def step_memory(config: ModelConfig, how: Execution) -> Memory:
    """The peak of a step after the first, whose end makes the moments, on one worker.

    On CUDA it is what PyTorch's allocator hands out (`torch.cuda.max_memory_allocated`; not run so far); on a
    CPU, by how much the process grows while it builds the model and takes steps.
    """
    moments = (
        _when_backward_begins(config, how),
        _in_a_block(config, how, left=config.layers),
        _in_a_block(config, how, left=1),
        _at_the_embedding(config, how),
    )
    most = max(moments, key=lambda memory: memory.peak)
    return most if how.device == "cuda" else replace(most, unused=_unused(config, how, most))


def _unused(config: ModelConfig, how: Execution, memory: Memory) -> int:
    """What a process on a CPU holds besides its tensors (glibc; other allocators differ)."""
    embeddings = config.vocabulary * config.width * (1 if config.tied else 2)
    share = embeddings / config.parameters()
    states = memory.parameters + memory.gradients + memory.moments
    heap = 0.0
    for bytes_held, tensor in (
        (states * share, _sharded(config.vocabulary * config.width, how)),
        (states * (1 - share), _sharded(config.width * config.hidden, how)),
        (memory.gathered, how.element * config.width * config.hidden),
        (memory.activations, how.element * how.tokens * config.hidden),
        (memory.loss, MASTER_BYTES * _loss_rows(config, how) * config.vocabulary),
    ):
        heap += bytes_held if tensor < MAPPED_BYTES else 0
    return round(HEAP_WASTE * heap) + BUFFERS_BYTES


def is_chunked(config: ModelConfig, how: Execution) -> bool:
    """Whether the logits are too many to keep (see losses.cross_entropy)."""
    return how.tokens > LOGITS_KEPT // config.vocabulary


def optimizer_entries(config: ModelConfig, how: Execution) -> int:
    """Numbers that the optimizer keeps of the whole model."""
    fewer = config.layers * config.block_weights() if how.optimizer == "muon" else 0
    return 2 * config.parameters() - fewer


def _when_backward_begins(config: ModelConfig, how: Execution) -> Memory:
    kept = config.layers * _block_kept(config, how)
    casts = 0
    if how.checkpointing == "none":
        casts = config.layers * _casts(config.block_weights(), how)
    root = _gathered_root(config, how) if how.workers > 1 else 0
    # Gradients of earlier micro batches; those of the first are made as activations go.
    gradients = _sharded(config.parameters(), how) if how.microbatches > 1 else 0
    return Memory(
        parameters=_sharded(config.parameters(), how),
        gradients=gradients,
        moments=_sharded(optimizer_entries(config, how), how),
        gathered=casts + root,
        activations=kept + _norm_kept(config, how) + _angles(config, how),
        loss=_loss_bytes(config, how),
    )


def _in_a_block(config: ModelConfig, how: Execution, left: int) -> Memory:
    """While the gradients of the feed-forward network's products are computed, with so many blocks left, this
    one included."""
    weights = config.block_weights()
    kept = left * _block_kept(config, how)
    casts = left * _casts(weights, how)
    if how.checkpointing != "none":
        # What this one kept is used as it is computed again: it goes, or is among what it keeps now, as is
        # its input where a norm keeps just that.
        cast_input = how.element * how.tokens * config.width if how.precision == "bf16" else 0
        kept += _block_activations(config, how) - _block_kept(config, how) + cast_input
        casts = _casts(weights, how)
    # Gradients of the gate, of the upper projection and of the block's output.
    passing = how.element * how.tokens * (2 * config.hidden + config.width)
    gradients = config.parameters()
    if how.microbatches == 1:
        # Not yet there: those of the blocks left, but for this one's last product, and the embedding's.
        gradients -= left * weights - config.width * config.hidden
        gradients -= 0 if config.tied else config.vocabulary * config.width
    gathered = casts
    if how.workers > 1:
        # A block's whole gradient, and its fp32 form on the way to the shards; the root stays to the end.
        gathered = _gathered_root(config, how) + (how.element + MASTER_BYTES) * weights
    return Memory(
        parameters=_sharded(config.parameters(), how),
        gradients=_sharded(gradients, how) + _waiting(config, how),
        moments=_sharded(optimizer_entries(config, how), how),
        gathered=gathered,
        activations=kept + passing + _angles(config, how),
        loss=0,
    )


def _at_the_embedding(config: ModelConfig, how: Execution) -> Memory:
    """When the gradient of the last parameter is there: that of the embedding, a whole matrix."""
    whole = MASTER_BYTES * config.vocabulary * config.width
    # Where there is another already, the two are added up.
    new = whole if config.tied or how.microbatches > 1 or how.workers > 1 else 0
    return Memory(
        parameters=_sharded(config.parameters(), how),
        gradients=_sharded(config.parameters(), how) + _waiting(config, how) + new,
        moments=_sharded(optimizer_entries(config, how), how),
        gathered=_gathered_root(config, how) if how.workers > 1 else 0,
        activations=0,
        loss=0,
    )


def _waiting(config: ModelConfig, how: Execution) -> int:
    """A tied embedding's gradient as the output projection waits for its gradient as the input."""
    another = config.tied and (how.microbatches > 1 or how.workers > 1)
    return MASTER_BYTES * config.vocabulary * config.width if another else 0


def _sharded(entries: int, how: Execution) -> int:
    """Bytes of a worker's share of fp32 entries."""
    return MASTER_BYTES * -(-entries // how.shards)


def _casts(entries: int, how: Execution) -> int:
    """bf16 copies of fp32 weights. Shards are cast before they are gathered instead."""
    return 2 * entries if how.precision == "bf16" and how.workers == 1 else 0


def _gathered_root(config: ModelConfig, how: Execution) -> int:
    """What FSDP has whole during the backward pass: the embedding and the output projection all the time, and
    a block and the next one, which comes in a buffer and goes from there into its place."""
    embeddings = config.vocabulary * config.width * (1 if config.tied else 2)
    return how.element * (embeddings + config.width + 3 * config.block_weights())


def _angles(config: ModelConfig, how: Execution) -> int:
    """The rotation's cosines and sines."""
    return 4 * how.length * config.head_width


def _block_kept(config: ModelConfig, how: Execution) -> int:
    """Bytes of activations that a block keeps from its forward pass to its backward pass."""
    if how.checkpointing == "full":
        return how.element * how.tokens * config.width  # its input
    if how.checkpointing == "selective":
        # The input, the results of the seven products, and attention's unless it is made of products.
        queries = 1 if attends_in_blocks(config, how) else 2
        elements = 3 * config.width + 2 * config.hidden + _head_entries(config, queries, 2)
        return how.tokens * (how.element * elements + _log_sums(config, how))
    return _block_activations(config, how)


def _block_activations(config: ModelConfig, how: Execution) -> int:
    """Bytes that autograd keeps of a block, the fp32 numbers a row of a norm and of attention included."""
    attention = _head_entries(config, 2, 2)  # queries and output, keys and values
    if how.compile:
        # Gate, upper projection and their product; what is cheap to compute again is not kept. Of attention's
        # output projection the result is kept rather than its sum with the block's input.
        elements = 4 * config.width + attention + 3 * config.hidden
        elements += _head_entries(config, 1, 1) if config.qk_norm else 0
        norms = 0
    else:
        # Gate, its SiLU, upper projection and their product; the outputs of the two norms.
        elements = attention + 4 * config.hidden + 2 * config.width
        normed = 2 * config.width + (_head_entries(config, 1, 1) if config.qk_norm else 0)
        norms = normed * _norm_input(how)
    norm_rows = 2 + (config.heads + config.kv_heads if config.qk_norm else 0)
    row = how.element * elements + norms + MASTER_BYTES * norm_rows + _log_sums(config, how)
    return how.tokens * row + _scores(config, how)


def attends_in_blocks(config: ModelConfig, how: Execution) -> bool:
    """Whether attention is made of products that keep its scores (see cpu_attention.attention_in_blocks)."""
    on_cpu_in_fp32 = how.device == "cpu" and how.precision == "fp32"
    return on_cpu_in_fp32 and rows_fit_in_blocks(how.rows, config.heads, how.length)


def _scores(config: ModelConfig, how: Execution) -> int:
    """Bytes of attention's scores: each block of queries has them for all positions up to its own end."""
    if not attends_in_blocks(config, how):
        return 0
    ends = sum(how.length * (number + 1) // BLOCKS for number in range(BLOCKS))
    return MASTER_BYTES * how.rows * config.heads * how.length * ends // BLOCKS


def _log_sums(config: ModelConfig, how: Execution) -> int:
    """Bytes of a position that attention's kernel keeps to compute its scores again."""
    return 0 if attends_in_blocks(config, how) else MASTER_BYTES * config.heads


def _head_entries(config: ModelConfig, queries: int, keys: int) -> int:
    """Entries of a position in so many tensors of all query heads, and of all key-value heads."""
    return config.head_width * (queries * config.heads + keys * config.kv_heads)


def _norm_input(how: Execution) -> int:
    """Bytes that a norm which is not compiled keeps of an entry, besides its output: its input, and on a CPU,
    which has no kernel for all of it, both the input and the normalised input in fp32."""
    return 2 * MASTER_BYTES if how.device == "cpu" else how.element


def _norm_kept(config: ModelConfig, how: Execution) -> int:
    """The last norm, which is never compiled."""
    return how.tokens * (config.width * (_norm_input(how) + how.element) + MASTER_BYTES)


def _loss_rows(config: ModelConfig, how: Execution) -> int:
    """Positions whose logits are computed at a time."""
    if how.device == "cpu" and how.summed:
        most = min(CPU_ROWS, CPU_LOGITS // config.vocabulary)
    elif how.summed or is_chunked(config, how):
        most = LOGITS_KEPT // config.vocabulary
    else:
        most = CPU_ROWS if how.device == "cpu" else how.tokens
    return min(how.tokens, max(1, most))


def _loss_bytes(config: ModelConfig, how: Execution) -> int:
    """What the loss keeps, and what its backward pass needs at once."""
    vocabulary, head, rows = config.vocabulary, config.vocabulary * config.width, _loss_rows(config, how)
    if how.device == "cpu" and how.summed and how.precision == "fp32":
        # The states of the targets that count, scaled, and their gradients; those of all, or products.
        states = 3 * how.tokens + max(how.tokens, 2 * rows)
        return MASTER_BYTES * (rows * vocabulary + head + states * config.width)
    if how.summed or is_chunked(config, how):
        # Compiled: the logits and their gradient. Else: logits where they are there beside it, probabilities,
        # targets as ones and zeros (booleans, then numbers) and their difference.
        numbers = 4 if how.summed else 3
        at_once = rows * vocabulary * (2 * how.element if how.compile else numbers * MASTER_BYTES + 1)
        gradients = MASTER_BYTES * head + how.element * how.tokens * config.width
        # What a chunk adds to the gradient of the weights; in the forward pass the logits are gone by then.
        gradients += 0 if how.summed and not how.compile else how.element * head
        return at_once + gradients + _casts(head, how)
    kept = MASTER_BYTES * how.tokens * vocabulary  # log-probabilities
    casts = math.ceil(how.tokens / rows) * _casts(head, how)
    # The gradients of the log-probabilities and of the logits.
    return kept + casts + 2 * MASTER_BYTES * rows * vocabulary
