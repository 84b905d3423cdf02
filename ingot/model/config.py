"""The shape of a model: its numbers, checked once, and what follows from them by arithmetic."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer of the Llama family (RMSNorm, rotary positions, grouped queries, SwiGLU).

    Every shape that it takes is one of Hugging Face's `LlamaForCausalLM` or, with `qk_norm`, of its
    `Qwen3ForCausalLM` (huggingface.py).

    Raises ValueError when the numbers do not fit each other, naming the nearest value that does.
    """

    vocabulary: int
    """Number of different tokens."""
    width: int
    """Size of the residual stream."""
    layers: int
    heads: int
    """Query heads of a layer; `width / heads` is the width of one."""
    kv_heads: int
    """Key-value heads of a layer: each serves `heads / kv_heads` query heads (arXiv:2305.13245)."""
    hidden: int
    """Size inside the feed-forward network."""
    context: int
    """The longest row, in tokens, that the model is trained and served with."""
    rope_theta: float = 10000.0
    """Base of the rotary wavelengths (arXiv:2104.09864)."""
    norm_epsilon: float = 1e-5
    tied: bool = True
    """Whether the output projection is the embedding itself: at these sizes the parameters are worth more
    elsewhere (of 1.2 billion, 67 million would be a second vocabulary)."""
    qk_norm: bool = False
    """Whether each head's queries and keys are normalised before they are turned (RMSNorm with a weight that
    the heads of a layer share, as in Qwen3, arXiv:2505.09388): attention's logits cannot grow without bound,
    so higher learning rates stay stable (arXiv:2302.05442, section 2)."""

    def __post_init__(self) -> None:
        for field in ("vocabulary", "width", "layers", "heads", "kv_heads", "hidden", "context"):
            if getattr(self, field) < 1:
                raise ValueError(f"model.{field}: {getattr(self, field)} is less than 1; nearest: 1")
        for field in ("rope_theta", "norm_epsilon"):
            if getattr(self, field) <= 0:
                raise ValueError(f"model.{field}: {getattr(self, field)} is not above 0")
        if self.width % 2:
            raise ValueError(
                f"model.width: {self.width} is odd, but positions turn pairs; nearest: {self.width + 1}"
            )
        # The rotation pairs the two halves of a head, so a head's width must be even.
        valid_heads = [heads for heads in divisors(self.width) if self.width // heads % 2 == 0]
        if self.heads not in valid_heads:
            raise ValueError(
                f"model.heads: {self.heads} does not cut width ({self.width}) into heads of an even width; "
                f"nearest: {nearest(self.heads, valid_heads)}"
            )
        if self.heads % self.kv_heads:
            raise ValueError(
                f"model.kv_heads: {self.kv_heads} does not divide heads ({self.heads}); "
                f"nearest: {nearest(self.kv_heads, divisors(self.heads))}"
            )

    @classmethod
    def of_depth(cls, depth: int, vocabulary: int, context: int, **others: Any) -> ModelConfig:
        """The rung of the ladder of shapes that has `depth` layers; `others` are further fields.

        Heads are 128 wide, as attention kernels like them, and a pair of query heads shares one key-value
        head. Three layers bring two heads: at a ratio of width to layers of 85, near the middle of the wide
        optimum (arXiv:2001.08361, figure 5), every width is a multiple of 256. The feed-forward network is
        8/3 as wide, which makes its three matrices as large as the usual two of four times the width
        (arXiv:2002.05202), rounded up to a multiple of 256. Depth 24 is the preset `base-1b`.
        """
        if depth < 1:
            raise ValueError(f"model.depth: {depth} is less than 1; nearest: 1")
        pairs = max(1, round(depth / 3))
        width = 256 * pairs
        return cls(
            vocabulary=vocabulary,
            width=width,
            layers=depth,
            heads=2 * pairs,
            kv_heads=pairs,
            hidden=256 * -(-8 * width // (3 * 256)),
            context=context,
            **others,
        )

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    def block_weights(self) -> int:
        """Entries of one block's weight matrices: query, key, value, output, and the three of SwiGLU."""
        attention = 2 * self.width * self.head_width * (self.heads + self.kv_heads)
        return attention + 3 * self.width * self.hidden

    def parameters(self) -> int:
        """The exact number of parameters, tied ones counted once."""
        embeddings = self.vocabulary * self.width * (1 if self.tied else 2)
        norms = (2 * self.layers + 1) * self.width
        if self.qk_norm:
            norms += 2 * self.layers * self.head_width
        return embeddings + self.layers * self.block_weights() + norms

    def tensors(self) -> int:
        """The number of parameter tensors: a block's seven matrices and its norms, and those around them."""
        return (11 if self.qk_norm else 9) * self.layers + (2 if self.tied else 3)

    def flops_per_token(self, sequence: int, causal: bool) -> int:
        """Floating point operations that training spends on one token of a row of `sequence` tokens.

        Every weight that is multiplied (all of the blocks' matrices and the output projection; looking up
        an embedding is no product) costs one multiplication and one addition forwards and twice that
        backwards: 6 a weight. A query meets `sequence` keys and as many values in each of `heads` heads:
        12 * layers * heads * head_width * sequence. That is the convention of PaLM (arXiv:2204.02311,
        appendix B), which most published utilisation figures follow. With `causal`, attention counts half:
        a causal kernel skips the other half.
        """
        products = 6 * (self.layers * self.block_weights() + self.vocabulary * self.width)
        attention = 12 * self.layers * self.heads * self.head_width * sequence
        return products + (attention // 2 if causal else attention)


def divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


def nearest(value: int, candidates: Iterable[int]) -> int:
    """The candidate closest to `value`, the larger one of two equally close."""
    return min(candidates, key=lambda candidate: (abs(candidate - value), -candidate))


PRESETS: dict[str, ModelConfig] = {
    # Two CPU cores see about a million tokens of it in two minutes.
    "tiny": ModelConfig(vocabulary=4096, width=128, layers=6, heads=4, kv_heads=2, hidden=384, context=256),
    # 1.2 billion parameters: with fp32 master weights, gradients and AdamW's moments 18 GiB, so that one
    # GPU of 80 GB holds it without sharding. 24 layers of width 2048.
    "base-1b": ModelConfig.of_depth(24, vocabulary=32768, context=4096),
}
