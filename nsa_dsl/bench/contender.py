"""What every contender of a benchmark is given, and what it must give back to be measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from nsa_dsl.arguments import Shape
from nsa_dsl.bench.rows import Products
from nsa_dsl.pattern import Pattern
from nsa_dsl.verify.inputs import Inputs


class Refused(Exception):  # noqa: N818 - reads as a statement where it is raised
    """A contender that cannot take part; str() says why, in the words of the table."""


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """One problem. inputs, cotangent: the same tensors for all; (batch, heads, tokens, dim) in token-major memory. causal: whether no query
    of the pattern sees a later key; products: of the pattern's visible pairs, None where the
    kernels that choose them failed."""

    pattern: Pattern
    shape: Shape
    inputs: Inputs
    cotangent: Tensor
    causal: bool
    products: Products | None

    def leaves(self) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v as fresh leaves that share the inputs' memory; under `kv per branch` the first branch's."""
        k, v = (each if isinstance(each, Tensor) else next(iter(each.values())) for each in (self.inputs.k, self.inputs.v))
        q, k, v = (each.detach().requires_grad_() for each in (self.inputs.q, k, v))
        return q, k, v


@dataclass(frozen=True, slots=True)
class MaskCost:
    """Making a mask as data. first_ms: with everything that happens once, compilation included; ms: again; gib: memory held and needed
    on the way."""

    first_ms: float
    ms: float
    gib: float


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A contender ready to run. forward: the output, of the cotangent's shape, differentiable in `leaves`; products: what counts as its
    work, None where that would mislead; once: whether a graph can be gone through backward only once."""

    forward: Callable[[], Tensor]
    leaves: tuple[Tensor, ...]
    cotangent: Tensor
    products: Products | None
    mask: MaskCost | None = None
    note: str = ""
    once: bool = False

    def both(self) -> tuple[Tensor, ...]:
        """Forward and backward: the gradients of the leaves."""
        return torch.autograd.grad(self.forward(), self.leaves, self.cotangent)
