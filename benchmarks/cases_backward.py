"""One gradient case on a GPU: what the op's autograd gives, held to float64 autograd through the dense reference.

The choice is fixed, and so are the compressed slots' values: both sides attend to the slots that the kernels made, and the reference
sends their gradient to the tokens, weights and modules through the compressor in its own precision.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

# What cuBLAS asks for before its products (a compressor's) count as repeatable; read when it is first used.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import torch
from torch import Tensor

from benchmarks.cases import TORCH, USUAL, Sizes, make_inputs, packed, ungated
from nsa_dsl import reference
from nsa_dsl.bench.graphs import capture, warm
from nsa_dsl.op import AttentionOp
from nsa_dsl.pattern import Pattern
from nsa_dsl.verify.checks import FLOAT32, greatest
from nsa_dsl.verify.gradients import check_gradient
from nsa_dsl.verify.inputs import Inputs
from nsa_dsl.verify.leaves import Leaves, gradients, watch
from nsa_dsl.verify.magnitudes import magnitudes
from nsa_dsl.verify.slots import GivenSlots, give_slots


@dataclass(frozen=True, slots=True, eq=False)
class Cotangents:
    """What a loss sends back. out: like the output; lse: like the log-sum-exps that the op returns, by branch or "" for the only one."""

    out: Tensor
    lse: dict[str, Tensor]


@contextmanager
def repeatable() -> Iterator[None]:
    """Only repeatable kernels, and NaN (in integers the greatest number) in all memory that torch hands out without a value."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def check_gradients(pattern: Pattern, dtype: str, tokens: int, sizes: Sizes = USUAL, device: str = "cuda") -> list[str]:
    """All gradients of one pattern at one length, for a loss of the output and, where that is cheap, one of the log-sum-exps too; what
    was refused, as text."""
    op, inputs = AttentionOp(pattern), make_inputs(pattern, TORCH[dtype], tokens, sizes, device=device)
    with torch.no_grad():
        choices = op.choose(inputs.q, inputs.k, inputs.v, **ungated(inputs)) if any(each.choices for each in pattern.branches) else None
        given, options, wrong = give_slots(op, inputs.k, inputs.v, inputs.options)
    found = [f"slots: {each}" for each in wrong]
    out_only, both = make_cotangents(pattern, inputs)
    losses = {"out": out_only, **({"out and lse": both} if tokens <= 1000 else {})}
    made = {}
    with repeatable():
        for label, cotangents in losses.items():
            made[label] = op_gradients(op, inputs, cotangents)
            found += _differences(f"a second run ({label})", made[label], op_gradients(op, inputs, cotangents))
        # What is skipped may change the kernels that run: the queries' gradient alone is not made from kept slopes.
        alone = {wanted: op_gradients(op, inputs, out_only, wanted) for wanted in (("q",), ("k", "v")) if tokens <= 1000}
    slots = options.get("compressors", {}) if given is not pattern else {}
    exact, lse = reference_gradients(given, inputs, slots, choices, torch.float64, list(losses.values()))
    rounded, _ = reference_gradients(given, inputs, slots, choices, inputs.q.dtype, list(losses.values()))
    rounding = torch.finfo(inputs.q.dtype).eps + 8 * FLOAT32 * greatest(lse)
    fixed = {**options, **({"choices": choices} if choices else {})}
    for place, (label, sent) in enumerate(losses.items()):
        added = magnitudes(given, inputs, fixed, sent.out, sent.lse, inputs.q.dtype)
        for name, truth in exact[place].items():
            amount = added.get(name, torch.zeros_like(truth))
            found += [
                f"{each} ({what})"
                for what, leaves in ((label, made[label]), *(alone.items() if label == "out" else ()))
                if name in leaves
                for each in check_gradient(name, leaves[name], truth, rounded[place][name], amount, rounding)
            ]
    return found


def make_cotangents(pattern: Pattern, inputs: Inputs, seed: int = 1) -> tuple[Cotangents, Cotangents]:
    """Random ones: of the output alone, and with log-sum-exps. The output's is a view of a packed tensor whose gaps hold NaN."""
    generator = torch.Generator(device=inputs.q.device).manual_seed(seed)
    any_v = next(iter(inputs.v.values())) if isinstance(inputs.v, Mapping) else inputs.v
    batch, heads, tokens, _ = inputs.q.shape
    out = packed((batch, heads, tokens, any_v.shape[-1]), inputs.q.dtype, generator)
    names = tuple(dict.fromkeys(pattern.output.branches)) if pattern.output.kind in ("gate", "mix") else ("",)
    lse = {name: torch.randn(batch, heads, tokens, generator=generator, device=inputs.q.device) for name in names}
    return Cotangents(out, {}), Cotangents(out, lse)


def op_gradients(op: AttentionOp, inputs: Inputs, cotangents: Cotangents, wanted: tuple[str, ...] | None = None) -> Leaves:
    """What the op's autograd gives. wanted: names of the inputs that want gradients; None is all of them."""
    call, asked = watch(inputs, wanted=wanted)
    out, lse = op(call.q, call.k, call.v, return_lse=True, **call.options)
    return _pull(asked, out, lse, cotangents)


def reference_gradients(
    given: Pattern,
    inputs: Inputs,
    slots: Mapping[str, GivenSlots],
    choices: Mapping[str, Tensor] | None,
    dtype: torch.dtype,
    losses: list[Cotangents],
) -> tuple[list[Leaves], Any]:
    """Autograd through the dense reference in a precision, once for each loss, and its log-sum-exps. given, slots: the pattern and its
    compressors as `give_slots` returns them."""
    call, asked = watch(inputs, dtype)
    options = {name: each for name, each in call.options.items() if name not in ("weights", "compressors")}
    options["compressors"] = {name: each.made_with(call.options, each.memory.name) for name, each in slots.items()}
    out, lse = reference.attend(given, call.q, call.k, call.v, choices=choices, return_lse=True, dtype=dtype, **options)
    return [_pull(asked, out, lse, each, keep=each is not losses[-1]) for each in losses], lse


def _pull(asked: Leaves, out: Tensor, lse: Any, cotangents: Cotangents, keep: bool = False) -> Leaves:
    lses = lse if isinstance(lse, Mapping) else {"": lse}
    outputs = [out, *(lses[name] for name in cotangents.lse)]
    return gradients(outputs, [cotangents.out, *cotangents.lse.values()], asked, keep=keep)


def _differences(what: str, first: Leaves, second: Leaves) -> list[str]:
    """Leaves that two calls both made and that are not the same bits."""
    return [f"{what}: d({name}) differs" for name, each in second.items() if not torch.equal(first[name], each)]


@dataclass(frozen=True, slots=True)
class Repeats:
    """A check that so many runs of forward and backward give the same bits."""

    runs: int

    def __call__(self, pattern: Pattern, dtype: str, tokens: int, sizes: Sizes = USUAL, device: str = "cuda") -> list[str]:
        op, inputs = AttentionOp(pattern), make_inputs(pattern, TORCH[dtype], tokens, sizes, device=device)
        cotangents = make_cotangents(pattern, inputs)[1]
        with repeatable():
            first = op_gradients(op, inputs, cotangents)
            return [
                f"run {run}: {each}"
                for run in range(1, self.runs)
                for each in _differences("repeated", first, op_gradients(op, inputs, cotangents))
            ]


@dataclass(frozen=True, slots=True)
class Captured:
    """A check that a CUDA graph of forward and backward, replayed on other queries, keys and values, gives an ordinary call's bits."""

    def __call__(self, pattern: Pattern, dtype: str, tokens: int, sizes: Sizes = USUAL, device: str = "cuda") -> list[str]:
        op = AttentionOp(pattern)
        inputs, others = (make_inputs(pattern, TORCH[dtype], tokens, sizes, seed=seed, device=device) for seed in (0, 1))
        cotangents = make_cotangents(pattern, inputs)[1]
        call, asked = watch(inputs)

        def both() -> Leaves:
            out, lse = op(call.q, call.k, call.v, return_lse=True, **call.options)
            return {"out": out.detach(), **_pull(asked, out, lse, cotangents)}

        with repeatable():
            warm(both)
            graph, made = capture(both)
            with torch.no_grad():
                for name in ("q", "k", "v"):
                    _put(getattr(inputs, name), getattr(others, name))
            graph.replay()
            return _differences("captured", made, both())


def _put(into: Any, values: Any) -> None:
    """Other numbers in the same memory; a tensor, or one a branch."""
    if isinstance(into, Tensor):
        into.copy_(values)
    else:
        for name, each in into.items():
            each.copy_(values[name])
