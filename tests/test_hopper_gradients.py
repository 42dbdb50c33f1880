"""The Gluon kernels of attention's gradient over a static relation, on the CPU, against autograd through the dense reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from nsa_dsl import reference
from nsa_dsl.compiler import compile_backward
from nsa_dsl.execute import load_module
from nsa_dsl.launch import LaunchShape
from nsa_dsl.loader import load_spec
from nsa_dsl.pattern import Pattern
from tests.gluon_on_cpu import launch_hopper, tensors

LOG2E = 1.4426950408889634

CASES = [
    ("causal", 2, 1, 2, 1),
    ("causal", 1, 215, 4, 2),
    ("window(100)", 1, 260, 2, 1),
    ("window(100)", 2, 260, 1, 1),
    ("{ i, j : i - 70 < j < i + 90 }", 1, 215, 1, 1),
    ("causal & (first(4) | window(60))", 1, 260, 2, 1),
    ("{ i, j : j + 150 <= i }", 1, 215, 2, 1),
    ("full", 1, 70, 2, 1),
    ("causal | prefix(70)", 1, 130, 1, 1),
]
"""Relation, batch, tokens, query and KV heads: pairs of heads and single ones, ends of tiles and none, rows without keys."""


def stand_in(wild: int) -> Callable[..., None]:
    """For `_launch`: of the plain kernels it does what rows_backward would for one plain branch, and lets find_wild find `wild`; the
    others are not run."""

    def launch(kernel: Any, programs: int, *arguments: Any, **constants: Any) -> None:
        if kernel.is_gluon():
            launch_hopper(kernel, programs, *arguments, warps=constants["warps"])
            return
        given = dict(zip(kernel.arg_names, arguments, strict=False))
        if kernel.__name__ == "rows_backward":
            delta = (given["grad_out_ptr"].float() * given["out_output_ptr"].float()).sum(-1)
            lse = given["lse_output_ptr"]
            given["folded_delta_output_ptr"].copy_(delta)
            given["folded_lse_output_ptr"].copy_(torch.where(lse == -torch.inf, torch.inf, lse * LOG2E))
        if "wild_ptr" in given and wild:
            given["wild_ptr"].fill_(1)

    return launch


def gradients(
    pattern: Pattern, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, slots: Any = None, *, wild: int = 0
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of the Gluon kernels, and of the reference, for one random gradient of the output."""
    wanted = ("q", "k", "v") if slots is None else ("q", "slots.s.keys", "slots.s.values")
    leaves = [each.double().requires_grad_() for each in ((q, k, v) if slots is None else (q, *slots["s"]))]
    compressors: Any = {} if slots is None else {"s": lambda *_: tuple(leaves[1:])}
    tokens = tuple(leaves) if slots is None else (leaves[0], k.double(), v.double())
    made: Any = reference.attend(pattern, *tokens, compressors=compressors, return_lse=True)
    out, lse = made
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(3)).to(q.dtype)
    expected = dict(zip(wanted, torch.autograd.grad(out, leaves, grad.double()), strict=True))
    module = vars(load_module(compile_backward(pattern, LaunchShape(q.shape[3], v.shape[3], "fp16", "sm_90")), "hopper"))
    module.update(_launch=stand_in(wild), _launch_hopper=launch_hopper, _on_hopper=lambda *_: True, hold_tile=lambda tile: tile)
    outs, lses = {"output": out.detach().to(q.dtype)}, {"output": lse.detach().float()}
    return module["run_backward"](grad, {}, q, k, v, outs, lses, slots=slots, wanted=wanted), expected


def check(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for name, each in expected.items():
        torch.testing.assert_close(found[name].float(), each.float(), atol=6e-3, rtol=6e-3, msg=f"the gradient of {name}")


@pytest.mark.parametrize(("relation", "batch", "tokens", "heads", "kv_heads"), CASES)
def test_static_relation(relation: str, batch: int, tokens: int, heads: int, kv_heads: int) -> None:
    pattern = load_spec(f"pattern p {{ output attend(tokens, {relation}) }}").pattern("p")
    q, k, v = tensors((batch, heads, tokens, 64), *[(batch, kv_heads, tokens, 64)] * 2)
    check(*gradients(pattern, q, k, v))


@pytest.mark.parametrize("tokens", [5, 400])
def test_slots(tokens: int) -> None:
    """Too few tokens for a slot leave no keys at all."""
    pattern = load_spec("pattern p { s = compress(block = 8, stride = 4, by = mlp)\n output attend(s, causal) }").pattern("p")
    n_slots = max(0, (tokens - 8) // 4 + 1)
    q, k, v, slot_k, slot_v = tensors((1, 2, tokens, 64), *[(1, 1, tokens, 64)] * 2, *[(1, 1, n_slots, 64)] * 2)
    check(*gradients(pattern, q, k, v, slots={"s": (slot_k, slot_v)}))


def test_wild_stores_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a number is not finite, the plain kernels store the gradients."""
    monkeypatch.setattr(torch, "empty", lambda *size, **options: torch.full(size[0] if isinstance(size[0], tuple) else size, 7, **options))
    pattern = load_spec("pattern p { output attend(tokens, window(100)) }").pattern("p")
    q, k, v = tensors(*[(1, 1, 130, 64)] * 3)
    found, _ = gradients(pattern, q, k, v, wild=1)
    assert all((each == 7).all() for each in found.values())
