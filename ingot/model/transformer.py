"""The model, top to bottom: a decoder-only transformer of the Llama family.

What is notable:
- the weights map one to one on Hugging Face's `LlamaForCausalLM` or `Qwen3ForCausalLM` (see
  huggingface.py), so what is trained here is served by any engine that knows Llama and Qwen3
- norms before each sub-layer, without means or biases (RMSNorm, arXiv:1910.07467); no bias anywhere
- positions by rotation of queries and keys (arXiv:2104.09864), computed in fp32 whatever the precision
- grouped queries: several query heads share one key-value head (arXiv:2305.13245)
- as an option each head's queries and keys are normalised before they are turned (QK-norm)
- SwiGLU in the feed-forward network (arXiv:2002.05202)
- the loss is computed inside `forward`, so that FSDP's hooks gather the output projection before it is
  used, and without ever holding all logits (losses.py)
- a row needs no padding mask: attention looks back only, so what is padded on the right changes nothing
  to its left
- a row may be packed from several documents: then attention ends at their boundaries and positions begin
  anew there, so that each gives what it would give in a row of its own

Shapes stand in suffixes: B rows, T positions of a row, D width, H query heads, K key-value heads, E width
of a head, F width inside the feed-forward network, V vocabulary.
"""

from __future__ import annotations

import zlib

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from ingot.model.attention import Packing, causal_attention, document_positions
from ingot.model.config import ModelConfig
from ingot.model.losses import cross_entropy, summed_cross_entropy

Rotation = tuple[Tensor, Tensor]
"""Cosines and sines, each of shape (T, 1, E / 2), or (B, T, 1, E / 2) where rows differ in positions."""


class Linear(nn.Linear):
    """A matrix product in the precision of what comes in. The weights may be kept in a higher one."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


class RMSNorm(nn.Module):
    """Scales a vector to a root mean square of 1, then by a learned weight; computed in fp32."""

    def __init__(self, width: int, epsilon: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.epsilon)


def rotation(positions: Tensor, head_width: int, theta: float) -> Rotation:
    """The angles by which the pairs of a head turn at each position (T or BT), as cosines and sines in
    fp32."""
    exponents = torch.arange(0, head_width, 2, device=positions.device, dtype=torch.float32) / head_width
    angles = positions.float()[..., None, None] * theta**-exponents
    return angles.cos(), angles.sin()


def rotate(x_BTHE: Tensor, by: Rotation) -> Tensor:
    """Turns each pair of a head: the pairs are (i, i + E / 2), as in Hugging Face's Llama."""
    cos, sin = by
    first, second = x_BTHE.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x_BTHE.dtype)


class KeyValueCache:
    """The keys and values of one layer's earlier positions, kept while a text is generated."""

    def __init__(self, rows: int, context: int, config: ModelConfig, like: Tensor):
        shape = (rows, context, config.kv_heads, config.head_width)
        self.keys, self.values = like.new_empty(shape), like.new_empty(shape)
        self.length = 0

    def append(self, k_BTKE: Tensor, v_BTKE: Tensor) -> tuple[Tensor, Tensor]:
        """Keeps the keys and values of T new positions; returns those of all positions so far."""
        start, self.length = self.length, self.length + k_BTKE.shape[1]
        self.keys[:, start : self.length] = k_BTKE
        self.values[:, start : self.length] = v_BTKE
        return self.keys[:, : self.length], self.values[:, : self.length]


class Attention(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.head_width = config.head_width
        self.query = Linear(config.width, config.heads * config.head_width)
        self.key = Linear(config.width, config.kv_heads * config.head_width)
        self.value = Linear(config.width, config.kv_heads * config.head_width)
        self.output = Linear(config.heads * config.head_width, config.width)
        self.qk_norm = config.qk_norm
        if config.qk_norm:
            self.query_norm = RMSNorm(config.head_width, config.norm_epsilon)
            self.key_norm = RMSNorm(config.head_width, config.norm_epsilon)

    def forward(
        self, x_BTD: Tensor, by: Rotation, cache: KeyValueCache | None, packing: Packing | None
    ) -> Tensor:
        heads = (*x_BTD.shape[:2], -1, self.head_width)
        q_BTHE, k_BTKE, v_BTKE = (
            project(x_BTD).view(heads) for project in (self.query, self.key, self.value)
        )
        if self.qk_norm:
            q_BTHE, k_BTKE = self.query_norm(q_BTHE), self.key_norm(k_BTKE)
        q_BTHE, k_BTKE = rotate(q_BTHE, by), rotate(k_BTKE, by)
        if cache is not None:
            k_BTKE, v_BTKE = cache.append(k_BTKE, v_BTKE)
        return self.output(causal_attention(q_BTHE, k_BTKE, v_BTKE, packing).flatten(2))


class FeedForward(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.gate = Linear(config.width, config.hidden)
        self.up = Linear(config.width, config.hidden)
        self.down = Linear(config.hidden, config.width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x_BTD)) * self.up(x_BTD))


class Block(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.attention_norm = RMSNorm(config.width, config.norm_epsilon)
        self.attention = Attention(config)
        self.feed_forward_norm = RMSNorm(config.width, config.norm_epsilon)
        self.feed_forward = FeedForward(config)

    def forward(
        self,
        x_BTD: Tensor,
        by: Rotation,
        cache: KeyValueCache | None = None,
        packing: Packing | None = None,
    ) -> Tensor:
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), by, cache, packing)
        return x_BTD + self.feed_forward(self.feed_forward_norm(x_BTD))


class Transformer(nn.Module):
    """Tokens in; logits out or, with targets, each token's negative log-likelihood.

    Built with PyTorch's default initialisation: call `init_weights`, or load a state dict. `compute_dtype`
    and `compile_loss` are set by `parallel.parallelize`.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.compute_dtype = torch.float32
        self.compile_loss = False
        self.embedding = nn.Embedding(config.vocabulary, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.width, config.norm_epsilon)
        if not config.tied:
            self.head = Linear(config.width, config.vocabulary)

    def forward(
        self,
        tokens_BT: Tensor,
        targets_BT: Tensor | None = None,
        caches: list[KeyValueCache] | None = None,
        documents_BT: Tensor | None = None,
        summed: bool = False,
        z_loss: float = 0.0,
    ) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        """Runs the model over rows of tokens.

        Without `targets_BT`: the logits of each next token, BTV in fp32. With it (the token that should
        come next at each position, or -100 where none counts): each target's negative log-likelihood in
        nats, BT in fp32, 0 where none counts; `summed`, what is minimised in all, which costs less to compute
        (see `losses.summed_cross_entropy`, also for `z_loss`). `caches`, one a block, hold earlier positions
        of the rows; the tokens given come after them. `documents_BT` numbers the documents that rows are
        packed from (see `step.Batch`): each token sees its own document alone, as if that stood in a row of
        its own.
        """
        if documents_BT is None:
            start = caches[0].length if caches else 0
            positions = torch.arange(start, start + tokens_BT.shape[1], device=tokens_BT.device)
            packing = None
        else:
            assert not caches, "rows that are generated hold one document each"
            positions, packing = document_positions(documents_BT), Packing.of(documents_BT)
        by = rotation(positions, self.config.head_width, self.config.rope_theta)
        x_BTD = self.embedding(tokens_BT).to(self.compute_dtype)
        for index, block in enumerate(self.blocks):
            x_BTD = block(x_BTD, by, caches[index] if caches else None, packing)
        x_BTD = self.norm(x_BTD)
        weight_VD = self.embedding.weight if self.config.tied else self.head.weight
        if targets_BT is None:
            return F.linear(x_BTD, weight_VD.to(x_BTD.dtype)).float()
        compiled = self.compile_loss
        if summed:
            return summed_cross_entropy(x_BTD, weight_VD, targets_BT, z_loss=z_loss, compiled=compiled)
        return cross_entropy(x_BTD, weight_VD, targets_BT, compiled=compiled)

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Draws every parameter anew: the same values for a seed on any device and any number of ranks.

        Matrices keep the scale of what passes through them (standard deviation 1 / sqrt(inputs)); the two
        that write into the residual stream are divided by sqrt(2 * layers), so that the stream does not
        grow with depth (GPT-2). The output projection is small enough for the first loss to be
        ln(vocabulary) + 0.05: the logits' standard deviation is 0.3.
        """
        for name, parameter in self.named_parameters():
            # Each parameter has a generator of its own, so that its values depend on nothing but its name.
            generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{name}".encode()))
            if parameter.dim() == 1:
                full = torch.ones(parameter.shape)
            else:
                deviation = parameter.shape[1] ** -0.5
                if name.endswith(("attention.output.weight", "feed_forward.down.weight")):
                    deviation /= (2 * self.config.layers) ** 0.5
                elif name in ("embedding.weight", "head.weight"):
                    deviation *= 0.3
                full = torch.randn(parameter.shape, generator=generator) * deviation
            if isinstance(parameter, DTensor):  # every rank draws the whole and keeps its shard
                mesh, placements = parameter.device_mesh, parameter.placements
                full = distribute_tensor(full, mesh, placements, src_data_rank=None)
            parameter.copy_(full)
