"""Kernels of many measurements, compiled side by side before the first of them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import torch

from nsa_dsl.arguments import Shape
from nsa_dsl.bench.compilers import Compilers, Prepared, note
from nsa_dsl.bench.contender import Case
from nsa_dsl.bench.inputs import make_inputs, token_major
from nsa_dsl.bench.peers import prepare_own
from nsa_dsl.bench.rows import Settings
from nsa_dsl.bench.run import modules_of
from nsa_dsl.op import AttentionOp, card_of
from nsa_dsl.pattern import Pattern
from nsa_dsl.verify.inputs import TYPES

BRIEF = 2048
"""Tokens of the calls that are compiled for: what they need has the divisors of longer ones."""


class Warming:
    """Brief calls of many patterns. A pattern that fails here fails again where it is measured, which is where it is reported."""

    def __init__(self, compilers: Compilers, device: str = "cuda") -> None:
        self._compilers, self._device = compilers, device

    def compile(self, jobs: Sequence[tuple[AttentionOp, Settings]]) -> None:
        """Compile the kernels of these ops at these settings: of all forward passes, then of all gradients."""
        briefs = []
        for op, settings in jobs:
            with suppress(Exception):
                briefs.append((op, self._case(op.pattern, settings), settings.backward))
        self._pass(briefs, backward=False)
        self._pass([each for each in briefs if each[2]], backward=True)

    def _pass(self, briefs: Sequence[tuple[AttentionOp, Case, bool]], *, backward: bool) -> None:
        noted: list[Prepared] = []
        for op, case, _ in briefs:
            with suppress(Exception):
                module = modules_of(op, case.inputs, case.shape, backward)[-1]
                self._compilers.take_over(module, op.pattern.name)
                prepared = prepare_own(case, op)
                noted.append(note(module, "run_backward" if backward else "run", prepared.both if backward else prepared.forward))
        self._compilers.compile(noted, "the benchmark", card_of(torch.device(self._device)))

    def _case(self, pattern: Pattern, settings: Settings) -> Case:
        shape = Shape(1, settings.heads, settings.kv_heads, min(BRIEF, *settings.lengths), settings.dim_qk, settings.dim_v)
        dtype = TYPES[settings.dtype]
        generator = torch.Generator(device=self._device).manual_seed(1)
        cotangent = token_major((1, shape.heads, shape.tokens, shape.dim_v), dtype, generator)
        return Case(pattern, shape, make_inputs(pattern, dtype, shape, device=self._device), cotangent, True, None)
