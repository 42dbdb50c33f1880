"""Gradients, feature by feature: each agrees with float64 autograd through the reference on a call that shows it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from interpret.support import USUAL, agree_in_gradients, compiled, inputs_of, parse
from torch import Tensor

from nsa_dsl.launch import Dtype
from nsa_dsl.verify.checks import named
from nsa_dsl.verify.gradients import check_gradients, draw_cotangents, op_gradients
from nsa_dsl.verify.leaves import watch

NSA = """
pattern small {
    summary    = compress(block = 4, stride = 2, by = mlp)
    compressed = attend(summary, causal)
    selected   = attend(tokens, causal & top(3, block = 8, by = compressed, share = group, keep = first(1) | window(1)))
    near       = attend(tokens, window(6))
    output gate(compressed, selected, near)
}
"""

FEATURES: dict[str, tuple[str, dict[str, Any]]] = {
    "nsa": (NSA, {"seed": 2}),
    "nsa in half precision, random blocks": (NSA, {"dtype": "fp16", "seed": 1, "heads": 3, "kv_heads": 1}),
    "far apart": ("output attend(tokens, window(20))", {"layout": "far apart", "tokens": 40, "dtype": "fp16", "seed": 4}),
    "one number as the gradient": ("output attend(tokens, causal)", {"layout": "guarded", "seed": 5}),
    "features of the gradient apart": ("output attend(tokens, causal)", {"layout": "token major", "seed": 1}),
    "large logits": ("output attend(tokens, causal)", {"values": "large", "seed": 4}),
    "far below zero": ("output attend(tokens, causal & document)", {"values": "far below zero", "documents": 3, "seed": 4}),
    "ties of maxima": ("s = compress(block = 4, stride = 3, by = max) output attend(s, full)", {"values": "ties", "seed": 4}),
    "seven heads a group": ("output attend(tokens, { i, j, h : (j + h) % 3 > 0 })", {"heads": 14, "kv_heads": 2, "tokens": 33, "seed": 4}),
    "no token": (NSA, {"tokens": 0}),
    "one token": (NSA, {"tokens": 1}),
    "fewer tokens than a slot": (NSA, {"tokens": 3}),
    "NaN in a key": (NSA.replace("mlp", "mean"), {"damage": "key", "damaged": 20}),
    "NaN in a value": ("output attend(tokens, window(5))", {"damage": "value", "damaged": 17}),
    "NaN in a query": ("a = attend(tokens, window(5)) b = attend(tokens, full - window(5)) output merge(a, b)", {"damage": "query"}),
    "NaN in the gradient": ("a = attend(tokens, stride(3)) b = attend(tokens, first(4)) output mix(a, b)", {"damage": "cotangent"}),
}


@pytest.mark.parametrize("name", FEATURES)
def test_gradients_agree(name: str) -> None:
    text, changes = FEATURES[name]
    agree_in_gradients(text, **changes)


@pytest.mark.parametrize("wanted", ["q", "k.b", "v.a", "gates", "sinks.b", "weights.s.values"])
def test_one_gradient_alone_is_the_same(wanted: str) -> None:
    """Only some inputs require a gradient: what is skipped changes nothing."""
    text = """
    kv per branch
    s = compress(block = 4, stride = 2, by = weighted)
    a = attend(s, causal)
    b = attend(tokens, window(5), sink = learned)
    output gate(a, b)
    """
    pattern, case = parse(text), replace(USUAL, gradients="out and lse", tokens=17)
    op, inputs = compiled(pattern, case), inputs_of(pattern, case)
    cotangents = draw_cotangents(pattern, case, inputs, torch.Generator().manual_seed(0))
    every, alone = op_gradients(op, inputs, cotangents), op_gradients(op, inputs, cotangents, [wanted])
    assert list(alone) == [wanted]
    assert torch.equal(alone[wanted], every[wanted])


def test_rows_and_keys_without_partners_have_no_gradient() -> None:
    pattern, case = parse("output attend(tokens, { i, j : i % 4 == 0 and j % 3 == 1 and j <= i })"), replace(USUAL, gradients="out and lse")
    inputs = inputs_of(pattern, case)
    found = op_gradients(compiled(pattern, case), inputs, draw_cotangents(pattern, case, inputs, torch.Generator().manual_seed(0)))
    token = torch.arange(case.tokens)
    assert bool((found["q"][:, :, (token % 4 != 0) | (token < 1)] == 0).all())
    for name in "kv":
        assert bool((found[name][:, :, token % 3 != 1] == 0).all())
        assert bool((found[name][:, :, token % 3 == 1].abs().amax(-1) > 0).all())


def test_the_choice_carries_no_gradient() -> None:
    """Scores that require a gradient get none, and the rest is as with the choice given."""
    pattern = parse("output attend(tokens, causal & top(2, block = 4, by = scores, share = group))")
    inputs, leaves = watch(inputs_of(pattern, USUAL))
    op = compiled(pattern, USUAL)
    scores = next(iter(inputs.options["scores"].values())).requires_grad_()
    result: Any = op(inputs.q, inputs.k, inputs.v, scores=scores)
    found = torch.autograd.grad(result.sum(), [*leaves.values(), scores], allow_unused=True)
    assert found[-1] is None or not bool(found[-1].any())
    assert all(bool(each.any()) for each in found[:-1] if each is not None)


@pytest.mark.parametrize("factor", [1 + 1 / 64, 0.0])
@pytest.mark.parametrize("name", ["q", "k", "v", "gates", "sinks.b", "weights.s.keys", "weights.s.values"])
def test_an_error_of_a_64th_in_one_tile_is_seen(name: str, factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check itself, on gradients that are wrong in one tile or entry by so much."""
    text = """
    s = compress(block = 4, stride = 2, by = weighted)
    a = attend(s, causal)
    b = attend(tokens, window(9), sink = learned)
    output gate(a, b)
    """
    # Gradients of weights and sinks are sums over all tokens, of which half precision leaves less.
    dtype: Dtype = "fp32" if "." in name else "fp16"
    pattern, case = parse(text), replace(USUAL, gradients="out and lse", seed=2, tokens=29, dtype=dtype)
    inputs = inputs_of(pattern, case)

    def wrong(*arguments: Any) -> dict[str, Tensor]:
        found = op_gradients(*arguments)
        rows = (0, 0, slice(16)) if name in "qkv" else (0, 0, slice(16), 1) if name == "gates" else (1,)
        found[name] = found[name].clone()
        found[name][rows] *= factor
        return found

    monkeypatch.setattr("nsa_dsl.verify.gradients.op_gradients", wrong)
    found = check_gradients(compiled(pattern, case), case, inputs)
    assert {each.what for each in found} == {f"gradient of {name}"}


def test_log_sum_exps_alone_can_be_differentiated() -> None:
    """The output need not take part in the loss."""
    pattern = parse("output attend(tokens, window(4))")
    inputs, leaves = watch(inputs_of(pattern, USUAL))
    result: Any = compiled(pattern, USUAL)(inputs.q, inputs.k, inputs.v, return_lse=True)
    (lse,) = named(result[1]).values()
    found = dict(zip(leaves, torch.autograd.grad(lse.sum(), leaves.values(), allow_unused=True), strict=True))
    assert found["v"] is None or not bool(found["v"].any())
    assert bool(found["q"].any())
