"""A small decoder-only language model over bytes. Each layer's attention is one layer of a model spec."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from nsa_dsl.nn import SparseAttention, rotate
from nsa_dsl.nn.attention import Backend, CompressedKeys
from nsa_dsl.program import AttentionPattern

Attention: TypeAlias = Literal["kernels", "reference", "dense"]
"""What computes attention: the spec's kernels, its dense definition, or plain causal attention whatever the spec says."""

VOCABULARY = 256


@dataclass(frozen=True, slots=True)
class Config:
    """Sizes of the model. dim: features of a token; heads, kv_heads, head_dim: of attention; hidden: of the feed-forward part."""

    dim: int = 512
    heads: int = 8
    kv_heads: int = 2
    head_dim: int = 64
    hidden: int = 1408
    compress: CompressedKeys = "post-rotary"


class DenseAttention(nn.Module):
    """Causal attention over everything, by PyTorch's own kernels: what sparse attention is compared with."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        width, kv_width = config.heads * config.head_dim, config.kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.dim, width, bias=False)
        self.k_proj = nn.Linear(config.dim, kv_width, bias=False)
        self.v_proj = nn.Linear(config.dim, kv_width, bias=False)
        self.o_proj = nn.Linear(width, config.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: (batch, tokens, dim), and so is the result."""
        batch, tokens, _ = x.shape
        positions = torch.arange(tokens, device=x.device)
        q, k, v = (
            each(x).view(batch, tokens, -1, self.config.head_dim).transpose(1, 2) for each in (self.q_proj, self.k_proj, self.v_proj)
        )
        out = functional.scaled_dot_product_attention(rotate(q, positions), rotate(k, positions), v, is_causal=True, enable_gqa=True)
        projected: Tensor = self.o_proj(out.transpose(1, 2).flatten(2))
        return projected


class FeedForward(nn.Module):
    """SwiGLU (arXiv 2002.05202)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.up = nn.Linear(config.dim, 2 * config.hidden, bias=False)
        self.down = nn.Linear(config.hidden, config.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.up(x).chunk(2, -1)
        down: Tensor = self.down(functional.silu(gate) * value)
        return down


class Block(nn.Module):
    """One layer: attention, then the feed-forward part, each on a normalised copy of what it adds to."""

    def __init__(self, attention: nn.Module, config: Config) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.dim)
        self.attention = attention
        self.feed_forward_norm = nn.RMSNorm(config.dim)
        self.feed_forward = FeedForward(config)


class LanguageModel(nn.Module):
    """Bytes to the logits of the next byte."""

    def __init__(self, layers: Sequence[AttentionPattern], config: Config, attention: Attention = "kernels") -> None:
        """layers: a model of a spec, `nsa_dsl.load(path).model(name)`, or some of its layers from the first on."""
        super().__init__()
        self.attention = attention
        self.embedding = nn.Embedding(VOCABULARY, config.dim)
        self.blocks = nn.ModuleList(
            Block(DenseAttention(config) if attention == "dense" else _sparse(layer, config), config) for layer in layers
        )
        self.norm = nn.RMSNorm(config.dim)
        # A later layer may reuse the blocks that an earlier one chose.
        self._reuse = [dict(layer.reuse or {}) for layer in layers]
        self._shared = {source for reused in self._reuse for source in reused.values()}
        nn.init.normal_(self.embedding.weight, std=0.02)
        for name, weight in self.named_parameters():
            if name.endswith(("o_proj.weight", "down.weight")):
                # What every layer adds keeps the sum's variance, however many there are (GPT-2).
                nn.init.normal_(weight, std=0.02 / math.sqrt(2 * len(self.blocks)))

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: integers (batch, tokens); returns logits (batch, tokens, 256)."""
        x: Tensor = self.embedding(tokens)
        made: dict[int, dict[str, Tensor]] = {}
        for index, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            attended = self._attend(index, block.attention, block.attention_norm(x), made)
            x = x + attended
            x = x + block.feed_forward(block.feed_forward_norm(x))
        return functional.linear(self.norm(x), self.embedding.weight)

    def _attend(self, index: int, layer: nn.Module, x: Tensor, made: dict[int, dict[str, Tensor]]) -> Tensor:
        """The layer's attention. made: the choices of earlier layers that later ones reuse; this layer's are added."""
        if not isinstance(layer, SparseAttention):
            attended: Tensor = layer(x)
            return attended
        choices = {name: made[source][name] for name, source in self._reuse[index].items()} or None
        backend: Backend = "reference" if self.attention == "reference" else "kernels"
        shared = index in self._shared
        if backend == "kernels":
            result = layer(x, choices=choices, return_choices=shared)
        else:
            # The dense definition keeps several (heads x tokens x tokens) matrices for its gradient: made again, one layer at a time.
            result = checkpoint(layer, x, choices=choices, return_choices=shared, backend=backend, use_reentrant=False)
        if shared:
            result, made[index] = result
        assert isinstance(result, Tensor)
        return result


def _sparse(layer: AttentionPattern, config: Config) -> SparseAttention:
    return SparseAttention(layer, config.dim, config.heads, config.kv_heads, head_dim=config.head_dim, compress=config.compress)
