"""Sizes and layouts: head ratios, head dimensions, strides, nothing at all, lengths around tiles, batches of several."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from interpret.support import USUAL, agree, agree_on, compiled, inputs_of, parse

CAUSAL = "output attend(tokens, causal)"
CHOSEN = "output attend(tokens, causal & (window(2) | top(2, block = 4, by = mean, share = group, every = 3)))"
SMALL_NSA = (
    "summary = compress(block = 4, stride = 2, by = mean) compressed = attend(summary, causal) "
    "selected = attend(tokens, causal & top(2, block = 4, by = compressed, share = group, every = 3, keep = window(1))) "
    "windowed = attend(tokens, window(5)) output gate(compressed, selected, windowed)"
)


@pytest.mark.parametrize("text", [CAUSAL, CHOSEN, SMALL_NSA], ids=["causal", "chosen", "nsa"])
@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (3, 3), (7, 1), (16, 1), (6, 2)])
def test_head_ratios(text: str, heads: int, kv_heads: int) -> None:
    agree(text, heads=heads, kv_heads=kv_heads, tokens=18, d_qk=16, d_v=8, visible=text is CHOSEN)


@pytest.mark.parametrize("text", [CAUSAL, CHOSEN], ids=["causal", "chosen"])
def test_thirty_three_heads_on_eleven(text: str) -> None:
    agree(text, heads=33, kv_heads=11, tokens=9, visible=False, d_v=8)


@pytest.mark.parametrize("text", [CAUSAL, SMALL_NSA], ids=["causal", "nsa"])
@pytest.mark.parametrize(("d_qk", "d_v"), [(16, 16), (40, 80), (80, 40), (96, 17), (192, 128), (17, 1), (1, 192), (1, 1), (256, 3)])
def test_head_dimensions(text: str, d_qk: int, d_v: int) -> None:
    agree(text, d_qk=d_qk, d_v=d_v, tokens=17, heads=2, kv_heads=1, visible=False, dtype="fp16" if d_qk == 96 else "fp32")


@pytest.mark.parametrize("text", [CAUSAL, CHOSEN, SMALL_NSA], ids=["causal", "chosen", "nsa"])
@pytest.mark.parametrize("layout", ["contiguous", "token major", "packed", "guarded", "far apart"])
def test_layouts(text: str, layout: str) -> None:
    agree(text, layout=layout, batch=2, heads=2, kv_heads=1, tokens=19, visible=False)


@pytest.mark.parametrize("text", [CAUSAL, CHOSEN], ids=["causal", "chosen"])
def test_layout_by_transposing(text: str) -> None:
    """Keys and values as one batch-last buffer would have them: no stride but the last in the usual order."""
    case = replace(USUAL, batch=2, heads=2, kv_heads=2, tokens=19)
    inputs = inputs_of(parse(text), case)
    odd = [each.permute(2, 0, 1, 3).contiguous().permute(1, 2, 0, 3) for each in (inputs.q, inputs.k, inputs.v)]
    agree_on(text, replace(inputs, q=odd[0], k=odd[1], v=odd[2]), batch=2, heads=2, kv_heads=2, tokens=19)


@pytest.mark.parametrize("text", [CAUSAL, CHOSEN], ids=["causal", "chosen"])
def test_one_key_for_all_heads_by_expanding(text: str) -> None:
    case = replace(USUAL, heads=2, kv_heads=2, tokens=19)
    inputs = inputs_of(parse(text), case)
    alike = {name: getattr(inputs, name)[:, :1].expand(-1, 2, -1, -1) for name in "kv"}
    agree_on(text, replace(inputs, **alike), heads=2, kv_heads=2, tokens=19)


def test_parameters_of_any_strides() -> None:
    text = (
        "a = attend(tokens, window(5), sink = learned) b = attend(compress(block = 4, stride = 2, by = weighted), causal) output gate(a, b)"
    )
    case = replace(USUAL, tokens=19)
    inputs = inputs_of(parse(text), case)

    def apart(tensor: torch.Tensor) -> torch.Tensor:
        return torch.stack((tensor, torch.full_like(tensor, torch.nan)), -1)[..., 0]

    options: dict[str, Any] = {
        "sinks": {name: apart(each) for name, each in inputs.options["sinks"].items()},
        "weights": {name: tuple(map(apart, each)) for name, each in inputs.options["weights"].items()},
        "gates": apart(inputs.options["gates"].transpose(1, 3).contiguous()).transpose(1, 3),
    }
    agree_on(text, replace(inputs, options=options), tokens=19)


@pytest.mark.parametrize("text", [CAUSAL, SMALL_NSA], ids=["causal", "nsa"])
@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 5, 16, 17, 32])
def test_lengths(text: str, tokens: int) -> None:
    agree(text, tokens=tokens, heads=2, kv_heads=1)


@pytest.mark.parametrize("text", [CAUSAL, CHOSEN, SMALL_NSA], ids=["causal", "chosen", "nsa"])
@pytest.mark.parametrize("sizes", [{"batch": 0}, {"tokens": 0}, {"heads": 0, "kv_heads": 1}], ids=str)
def test_nothing_at_all(text: str, sizes: dict[str, int]) -> None:
    pattern, case = parse(text), replace(USUAL, **sizes)
    inputs = inputs_of(pattern, case)
    op = compiled(pattern, case)
    out, lse = op(inputs.q, inputs.k, inputs.v, **inputs.options, return_lse=True)
    rows = (case.batch, case.heads, case.tokens)
    assert out.shape == (*rows, case.d_v)
    for each in lse.values() if isinstance(lse, dict) else (lse,):
        assert each.shape == rows
        assert each.dtype == torch.float32
    for each in op.choose(inputs.q, inputs.k, inputs.v).values():
        assert not bool((each >= 0).any())


def test_slots_by_name() -> None:
    """Memories that differ in name alone have equal slots, under either name."""
    text = (
        "s = compress(block = 4, stride = 2, by = mean) t = compress(block = 4, stride = 2, by = mean) "
        "a = attend(s, causal) b = attend(t, full) output gate(a, b)"
    )
    pattern, case = parse(text), replace(USUAL, tokens=9)
    inputs, op = inputs_of(pattern, case), compiled(pattern, case)
    assert isinstance(inputs.k, torch.Tensor)
    assert isinstance(inputs.v, torch.Tensor)
    first, second = (op.compress(name, inputs.k, inputs.v) for name in "st")
    for one, other, tokens in zip(first, second, (inputs.k, inputs.v), strict=True):
        assert torch.equal(one, other)
        assert torch.allclose(one, tokens.unfold(2, 4, 2).mean(-1), atol=1e-6)
    with pytest.raises(KeyError):
        op.compress("u", inputs.k, inputs.v)


def test_forms_of_the_log_sum_exp() -> None:
    case = replace(USUAL, tokens=9)
    for text, branches in ((CAUSAL, None), (SMALL_NSA, ["compressed", "selected", "windowed"])):
        pattern = parse(text)
        inputs = inputs_of(pattern, case)
        out, lse = compiled(pattern, case)(inputs.q, inputs.k, inputs.v, **inputs.options, return_lse=True)
        assert isinstance(out, torch.Tensor)
        assert (list(lse) if isinstance(lse, dict) else None) == branches
        alone = compiled(pattern, case)(inputs.q, inputs.k, inputs.v, **inputs.options)
        assert isinstance(alone, torch.Tensor)
        assert torch.equal(alone, out), "forward is repeatable, bit for bit"
