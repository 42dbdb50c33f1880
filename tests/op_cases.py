"""Ops on dense stand-ins for kernels: what PyTorch sees of an op is tested on these, fast and without Triton."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from dense_kernels import dense_module
from torch import Tensor

from nsa_dsl.arguments import Arguments
from nsa_dsl.loader import load_spec
from nsa_dsl.op import AttentionOp
from nsa_dsl.pattern import Pattern
from nsa_dsl.verify.cases import Case
from nsa_dsl.verify.inputs import Inputs, make_inputs
from nsa_dsl.verify.leaves import Leaves, watch
from nsa_dsl.verify.scaling import shrink_parameters

CPU = torch.device("cpu")

SMALL = Case(
    tokens=29, batch=1, heads=4, kv_heads=2, d_qk=8, d_v=6, dtype="fp32", layout="contiguous", values="ordinary", damage="none", damaged=0,
    documents=1, rows=None, cols=None, seed=0,
)  # fmt: skip

NSA = (
    "summary = compress(block = 4, stride = 2, by = mlp) compressed = attend(summary, causal) "
    "selected = attend(tokens, causal & top(2, block = 4, by = compressed, share = group, keep = window(1))) "
    "windowed = attend(tokens, window(5)) output gate(compressed, selected, windowed)"
)

TEXTS = {
    "single": "output attend(tokens, causal)",
    "nsa": NSA,
    "merge": "a = attend(tokens, causal - window(4)) b = attend(tokens, window(4), sink = learned) output merge(a, b)",
    "equal branches": "a = attend(tokens, window(4)) b = attend(tokens, window(4)) c = attend(tokens, causal) output mix(a, b, c)",
    "apart": (
        "kv per branch m = compress(block = 4, stride = 2, by = mlp) w = compress(block = 4, stride = 4, by = weighted) "
        "a = attend(m, causal) b = attend(tokens, causal & top(2, block = 4, by = a, share = head)) c = attend(w, causal) "
        "d = attend(tokens, causal, sink = learned) e = attend(m, around(9, 9)) output gate(b, c, d, e)"
    ),
    "packed": "a = attend(tokens, causal & document & top(2, block = 4, by = scores, share = group)) output a",
    "listed": "a = attend(tokens, causal & (top(2, block = 4, by = indices, share = all, every = 3) | window(3))) output a",
}

EXAMPLES = [
    (path.stem, name) for path in sorted((Path(__file__).parents[1] / "examples").glob("*.nsa")) for name in load_spec(path).patterns
]


def parse(text: str) -> Pattern:
    """The pattern with this body."""
    return load_spec(f"pattern tried {{ {text} }}").pattern("tried")


def example(stem: str, name: str) -> Pattern:
    """An example's pattern, with parameters so small that its structure shows in the small case."""
    spec = load_spec(Path(__file__).parents[1] / "examples" / f"{stem}.nsa")
    return shrink_parameters(spec, spec.pattern(name), SMALL.tokens)


def dense_op(pattern: Pattern, monkeypatch: pytest.MonkeyPatch) -> tuple[AttentionOp, list[tuple[str, ...]]]:
    """The pattern's op on a dense module, and the list of what each call of run_backward was asked for."""
    module = dense_module(pattern)
    monkeypatch.setattr(AttentionOp, "module", lambda *_, **_options: module)
    return AttentionOp(pattern), module.calls


def inputs_of(pattern: Pattern, **changes: Any) -> tuple[Inputs, Leaves]:
    """Inputs of a small call, and its leaves by name. changes: to the small case."""
    return watch(make_inputs(pattern, replace(SMALL, **changes), CPU))


def loss_of(made: Any) -> Tensor:
    """A number that depends on the output and every log-sum-exp, each entry weighted differently."""
    out, lse = made
    loss = (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum()
    for each in lse.values() if isinstance(lse, dict) else (lse,):
        finite = torch.where(torch.isfinite(each), each, 0.0)
        loss = loss + (finite * torch.linspace(1, 2, each.numel()).view_as(each)).sum()
    return loss


def flat(op: AttentionOp, inputs: Inputs) -> tuple[list[Tensor], list[int]]:
    """The arguments of an operator: tensors that share no memory, and their places."""
    given = {name: inputs.options.get(name) for name in Arguments.__dataclass_fields__}
    tensors, places = op._flat(inputs.q, inputs.k, inputs.v, Arguments(**given), gated=True)
    return [each.detach().clone().requires_grad_(each.requires_grad) for each in tensors], places
