"""`torch.autograd.gradcheck` of whole ops in float64: gradients are those of the function that the forward kernels compute."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from interpret.support import CPU, USUAL, compiled, inputs_of, parse
from torch import Tensor

from nsa_dsl.verify.checks import named, random_choices
from nsa_dsl.verify.gradients import replace_options
from nsa_dsl.verify.inputs import Inputs
from nsa_dsl.verify.leaves import watch

TINY = replace(USUAL, tokens=13, heads=2, kv_heads=1, d_qk=5, d_v=3, dtype="fp64", seed=4)

SUMMARY = "s = compress(block = 4, stride = 2, by = {by}) a = attend(s, causal) "

PATTERNS = {
    "causal": "output attend(tokens, causal)",
    "full": "output attend(tokens, full)",
    "window": "output attend(tokens, window(5))",
    "rows that see nothing": "output attend(tokens, { i, j : i % 4 < 2 and j < i - 1 })",
    "keys that nobody sees": "output attend(tokens, { i, j : j % 3 == 1 })",
    "by head": "output attend(tokens, { i, j, h : (j + h) % 2 == 0 })",
    "neighbourhood": "output attend(tokens, neighborhood(3, 4, 3, 3))",
    "powers": "output attend(tokens, causal & (union p in 0..4 { i, j : i - j == 2 ** p }))",
    "documents": "output attend(tokens, causal & document)",
    "scale": "output attend(tokens, causal, scale = 0.7)",
    "soft cap": "output attend(tokens, causal, softcap = 1.5)",
    "alibi": "output attend(tokens, causal, bias = alibi)",
    "sink": "output attend(tokens, window(4), sink = learned)",
    "sink of rows that see nothing": "output attend(tokens, { i, j : j < i - 3 }, sink = learned)",
    "every option": "output attend(tokens, causal, scale = 0.4, softcap = 2.0, bias = alibi, sink = learned)",
    "gate": "a = attend(tokens, window(3)) b = attend(tokens, first(2)) output gate(a, b)",
    "mix": "a = attend(tokens, window(3))  b = attend(tokens, first(2), sink = learned)  c = attend(tokens, full)  output mix(a, b, c)",
    "one branch under two gates": "a = attend(tokens, window(3)) b = attend(tokens, window(3)) output gate(a, b)",
    "merge": "a = attend(tokens, first(3), scale = 0.3) b = attend(tokens, causal - first(3), sink = learned) output merge(a, b)",
    "merge of slots and tokens": SUMMARY.format(by="mean") + "b = attend(tokens, window(3)) output merge(a, b)",
    "keys of their own": "kv per branch  a = attend(tokens, window(3))  b = attend(tokens, full, softcap = 3.0)  output gate(a, b)",
    "slots of their own": "kv per branch " + SUMMARY.format(by="weighted") + "b = attend(tokens, window(3)) output mix(a, b)",
    "means": SUMMARY.format(by="mean") + "output a",
    "maxima": SUMMARY.format(by="max") + "output a",
    "weighted": SUMMARY.format(by="weighted") + "output a",
    "a module": SUMMARY.format(by="mlp") + "output a",
    "slots with gaps": "s = compress(block = 2, stride = 5, by = mean) output attend(s, full, bias = alibi)",
    "two memories": SUMMARY.format(by="max") + "t = compress(block = 3, stride = 3, by = weighted) b = attend(t, full) output gate(a, b)",
    "chosen by means": "output attend(tokens, causal & top(2, block = 3, by = mean, share = head, keep = window(1)))",
    "chosen by bounds": "output attend(tokens, top(2, block = 2, by = minmax, share = group, every = 4), softcap = 2.0)",
    "chosen by scores": "output attend(tokens, causal & top(2, block = 4, by = scores, share = all), sink = learned)",
    "chosen by the caller": "output attend(tokens, causal & (window(2) | top(2, block = 3, by = indices, share = head)))",
    "all but the chosen": "output attend(tokens, causal - top(1, block = 4, by = mean, share = group, every = 3))",
    "two choices": "output attend(tokens, causal & "
    "(top(1, block = 2, by = mean, share = head) | top(1, block = 4, by = max, share = group)))",
    "blocks besides": "output attend(tokens, causal & top(1, block = 4, by = mean, share = group, keep_extra = first(1) | window(1)))",
    "chosen by a branch": SUMMARY.format(by="mlp")
    + "b = attend(tokens, causal & top(2, block = 4, by = a, share = group)) w = attend(tokens, window(3)) output gate(a, b, w)",
    "chosen and merged": "a = attend(tokens, window(3)) "
    "b = attend(tokens, (causal - window(3)) & top(2, block = 3, by = mean, share = head)) output merge(a, b)",
}


def flatten(leaves: dict[str, Tensor]) -> Tensor:
    """All inputs in one vector, so that one pair of perturbed calls checks the gradients of all of them together."""
    return torch.cat([each.detach().flatten() for each in leaves.values()]).requires_grad_()


def call_module(module: torch.nn.Module, parameters: dict[str, Tensor], k_blocks: Tensor, v_blocks: Tensor) -> Any:
    """The module with other parameters."""
    return torch.func.functional_call(module, parameters, (k_blocks, v_blocks))


def rebuild(inputs: Inputs, leaves: dict[str, Tensor], vector: Tensor) -> Inputs:
    """The inputs with the vector's parts in the places of the leaves."""
    sizes = [each.numel() for each in leaves.values()]
    parts = {name: part.view(leaves[name].shape) for name, part in zip(leaves, vector.split(sizes), strict=True)}

    def under(name: str) -> Any:
        return (
            parts[name] if name in parts else {each.removeprefix(f"{name}."): parts[each] for each in parts if each.startswith(f"{name}.")}
        )

    options = {**inputs.options, **{name: under(name) for name in ("gates", "sinks") if name in inputs.options}}
    if "weights" in options:
        options["weights"] = {name: (parts[f"weights.{name}.keys"], parts[f"weights.{name}.values"]) for name in options["weights"]}
    if "compressors" in options:
        modules = options["compressors"].items()
        options["compressors"] = {name: partial(call_module, each, under(f"compressors.{name}")) for name, each in modules}
    return Inputs(parts["q"], under("k"), under("v"), options)


def prepared(name: str) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """A function of one vector to all results in one, and the vector."""
    text = PATTERNS[name]
    pattern, case = parse(text), replace(TINY, documents=3) if "document" in text else TINY
    op = compiled(pattern, case)
    inputs, leaves = watch(replace_options(inputs_of(pattern, case), choices=random_choices(pattern, case, CPU)))

    def results(vector: Tensor) -> Tensor:
        made = rebuild(inputs, leaves, vector)
        out, lse = op(made.q, made.k, made.v, **made.options, return_lse=True)
        # Of a row that sees nothing the log-sum-exp is minus infinity, whose difference quotient is none.
        sums = [torch.where(each == -torch.inf, 0.0, each) for each in named(lse).values()]
        return torch.cat([each.flatten() for each in (out, *sums)])

    return results, flatten(leaves)


def check(results: Callable[[Tensor], Tensor], vector: Tensor) -> bool:
    """Tighter than gradcheck's defaults: in float64 central differences are good to about 1e-9."""
    return torch.autograd.gradcheck(results, (vector,), fast_mode=True, rtol=1e-7, atol=1e-10, check_undefined_grad=False)


def test_there_are_enough_patterns() -> None:
    assert len(PATTERNS) >= 30


@pytest.mark.parametrize("name", PATTERNS)
def test_gradcheck(name: str) -> None:
    assert check(*prepared(name))


def test_a_wrong_gradient_is_seen() -> None:
    """The gradient of one key, a percent too large. Only that key is perturbed, and one number is made of all results: gradcheck computes
    all of a Jacobian that it refuses."""
    results, vector = prepared("gate")
    weights = torch.randn(results(vector).shape, dtype=vector.dtype, generator=torch.Generator().manual_seed(1))
    first = TINY.heads * TINY.tokens * TINY.d_qk
    key = vector.detach()[first : first + TINY.d_qk].clone().requires_grad_()

    def called(given: Tensor, excess: float) -> Tensor:
        given = given + excess * (given - given.detach())
        return results(torch.cat((vector.detach()[:first], given, vector.detach()[first + TINY.d_qk :]))) @ weights

    assert check(lambda given: called(given, 0.0), key)
    with pytest.raises(RuntimeError, match="Jacobian"):
        check(lambda given: called(given, 0.01), key)
