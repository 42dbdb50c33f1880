"""Tokens' and weights' gradients from those of a memory's slots, against torch's autograd in float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import pytest
import torch
from interpret.small_backward import backward, close, framed, random, token_major
from torch import Tensor

from nsa_dsl.codegen import build_gradient
from nsa_dsl.graph import Part
from nsa_dsl.pattern import Compress
from nsa_dsl.reference.memory import compress

BATCH, HEADS = 2, 3


@dataclass
class Slots:
    """One call of a memory's backward kernels. levels: how many values tokens take (0: all differ)."""

    by: Literal["mean", "max", "weighted"]
    block: int
    stride: int
    dtype: str = "fp32"
    tokens: int = 41
    dim: int = 24
    levels: int = 0
    part: Part = "keys"

    def __post_init__(self) -> None:
        size = (BATCH, HEADS, self.tokens, self.dim)
        x = random(*size, dtype=self.dtype, seed=1)
        self.x = token_major((x * self.levels).round() / self.levels if self.levels else x, extra=2)
        self.memory = Compress("far", self.block, self.stride, self.by)
        self.weight = framed(random(HEADS, self.block, dtype=self.dtype, seed=2))
        self.acc = "fp64" if self.dtype == "fp64" else "fp32"
        self.leaf = self.x.double().requires_grad_()
        self.weight_leaf = self.weight.double().requires_grad_()
        self.slots, _ = compress(self.memory, self.leaf, self.leaf, weights=(self.weight_leaf, self.weight_leaf))
        self.grad = framed(random(*self.slots.shape, dtype=self.acc, seed=3))
        self.partial = framed(random(*size, dtype=self.acc, seed=4))

    def run(self, partial: str, out: str, macro: str = "compress") -> Tensor:
        # The other part's width is another, so that a mistaken one shows.
        dims = {"dim_qk": self.dim, "dim_v": self.dim + 1} if self.part == "keys" else {"dim_qk": self.dim + 1, "dim_v": self.dim}
        names = {"grad": "grad", "x": "x", "weight": "weight"}
        if macro == "weights":
            context: Any = build_gradient.weights_backward(self.memory)
            launch = build_gradient.weights_launch(context, self.part, grad="grad", x="x", partial=partial, out=out, dtype="weight.dtype")
        else:
            context = build_gradient.compress_backward(self.memory)
            launch = build_gradient.compress_launch(context, self.part, **names, slots="slots", partial=partial, out=out, dtype="x.dtype")
        made: Tensor = backward(
            [f"{macro}_backward.py.j2"], context, launch, macro, out, self.dtype, q=self.x, x=self.x, grad=self.grad.clone(),
            slots=framed(self.slots.detach(), self.x.dtype), weight=self.weight, partial=self.partial, batch=BATCH, kv_heads=HEADS,
            n_tokens=self.tokens, **dims,
        )  # fmt: skip
        return made

    def expected(self) -> tuple[Tensor, Tensor]:
        """Of the tokens, of the weights. Tokens that no slot covers get zero."""
        if self.slots.numel() == 0:
            return torch.zeros_like(self.leaf), torch.zeros_like(self.weight_leaf)
        x, weight = torch.autograd.grad(self.slots, (self.leaf, self.weight_leaf), self.grad.double(), allow_unused=True)
        return x, torch.zeros_like(self.weight_leaf) if weight is None else weight

    def check(self, *, in_place: bool) -> None:
        x, weight = self.expected()
        alone = self.run("", "made")
        assert alone.dtype == self.x.dtype
        close(alone, x)
        added = x + self.partial.double()
        made = self.run("partial", "partial" if in_place else "made")
        assert (made is self.partial) == in_place
        close(made, added)
        if self.by == "weighted":
            weights = self.run("", 'grads["weight"]', "weights")
            assert weights.dtype == self.weight.dtype
            close(weights, weight)


@pytest.mark.parametrize(
    ("block", "stride", "dtype"),
    [(4, 4, "fp32"), (8, 3, "fp32"), (3, 5, "fp32"), (32, 16, "fp32"), (8, 3, "fp16"), (3, 5, "fp64"), (8, 3, "fp64")],
)
@pytest.mark.parametrize("by", ["mean", "max", "weighted"])
def test_compression(by: Any, block: int, stride: int, dtype: str) -> None:
    """Slots that meet, overlap, leave gaps, and the usual ones. In float16 tokens take few values: many are the greatest of a slot."""
    Slots(by, block, stride, dtype, levels=2 if dtype == "fp16" else 0, part="values").check(in_place=True)


@pytest.mark.parametrize("by", ["mean", "max", "weighted"])
@pytest.mark.parametrize(("dim", "tokens"), [(5, 3), (5, 4), (80, 35), (16, 0)])
def test_compression_of_every_size(by: Any, dim: int, tokens: int) -> None:
    """Fewer tokens than a block: no slot."""
    Slots(by, 4, 2, tokens=tokens, dim=dim).check(in_place=False)


def test_equal_greatest_values_share_their_slot() -> None:
    slots = Slots("max", 8, 3, levels=1)
    assert bool((slots.x.unfold(2, 8, 3) == slots.slots[..., None]).sum(-1).gt(1).any())
    slots.check(in_place=False)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_bad_token_under_max_has_torchs_gradient(bad: float) -> None:
    slots = Slots("max", 8, 3)
    slots.x[1, 0, 13, 2] = bad
    slots.x[0, 0, 20:33, 1] = bad
    slots.leaf = slots.x.double().requires_grad_()
    slots.slots, _ = compress(slots.memory, slots.leaf, slots.leaf)
    slots.check(in_place=False)


@pytest.mark.parametrize("by", ["mean", "max", "weighted"])
def test_a_bad_slot_gradient_reaches_its_tokens_and_no_other(by: Any) -> None:
    slots = Slots(by, 4, 4)
    slots.grad[1, 1, 2, 3] = float("inf")
    x, _ = slots.expected()
    made = slots.run("", "made")
    assert torch.equal(made.isfinite(), x.isfinite())
    assert not bool(made[1, 1, 8:12, 3].isfinite().any())
    assert int((~made.isfinite()).sum()) == 4
