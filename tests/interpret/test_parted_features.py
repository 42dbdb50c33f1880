"""Head dimensions that a power of two and a rest hold in less than one power of two: kernels of chosen blocks take their features in two
products, and add up two gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from interpret.support import agree, agree_in_gradients, parse

from nsa_dsl.compiler import compile_backward, compile_source
from nsa_dsl.launch import LaunchShape
from nsa_dsl.pattern import Pattern
from nsa_dsl.schedule_chosen import parts

NATIVE = """
pattern native {
    overview = attend(compress(block = 8, stride = 8, by = mean), causal)
    selected = attend(tokens, causal & top(3, block = 16, by = overview, share = group))
    near     = attend(tokens, window(9))
    output gate(overview, selected, near)
}
"""
"""The branch of one list comes last and keeps its slopes."""

OPTIONS = "output attend(tokens, window(30) & top(3, block = 32, by = indices, share = group), bias = alibi, softcap = 4, sink = learned)"
ALONE = "output attend(tokens, causal & top(3, block = 16, by = indices, share = group))"
BY_HEAD = "output attend(tokens, causal & top(2, block = 16, by = indices, share = head))"
SIZES = {"d_qk": 48, "d_v": 24, "dtype": "fp16", "visible": False}


@pytest.mark.parametrize(
    ("text", "changes"),
    [
        (NATIVE, {"heads": 4, "kv_heads": 1, "rows": 32, "tokens": 25}),
        (OPTIONS, {"d_qk": 40, "layout": "far apart"}),
    ],
)
def test_results(text: str, changes: dict[str, Any]) -> None:
    agree(text, **{**SIZES, **changes})


@pytest.mark.parametrize(
    ("text", "changes"),
    [
        (NATIVE, {"heads": 4, "kv_heads": 1, "rows": 32, "tokens": 25}),
        (OPTIONS, {"d_qk": 40, "layout": "far apart"}),
        (BY_HEAD, {"heads": 2, "kv_heads": 1, "dtype": "fp32", "tokens": 21}),
        (NATIVE, {"heads": 2, "kv_heads": 1, "damage": "query", "damaged": 12, "tokens": 21}),
    ],
)
def test_gradients(text: str, changes: dict[str, Any]) -> None:
    agree_in_gradients(text, **{key: each for key, each in {**SIZES, **changes}.items() if key != "visible"})


@pytest.mark.parametrize("d_qk", [16, 100])
def test_modules_for_other_head_dimensions(d_qk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module made for 96 = 64 + 32 features is right for fewer than its first product takes, and for more than its last."""
    for made in (compile_source, compile_backward):

        def for_96(pattern: Pattern, shape: LaunchShape, made: Callable[[Pattern, LaunchShape], str] = made) -> str:
            source = made(pattern, replace(shape, dim_qk=96))
            assert "FIRST: tl.constexpr = 64" in source
            return source

        monkeypatch.setattr(f"nsa_dsl.op.{made.__name__}", for_96)
    agree(ALONE, d_qk=d_qk, heads=2, kv_heads=1, tokens=21, visible=False)
    agree_in_gradients(ALONE, d_qk=d_qk, heads=2, kv_heads=1, tokens=21)


@pytest.mark.parametrize(
    ("dim_qk", "expected"), [(16, 0), (24, 0), (40, 32), (48, 32), (56, 0), (64, 0), (96, 64), (192, 128), (193, 0), (256, 0)]
)
def test_what_is_parted(dim_qk: int, expected: int) -> None:
    """Only where it leaves fewer features than one power of two has, all of them in place."""
    first, last = parts(dim_qk)
    assert first == expected
    assert dim_qk <= first + last <= LaunchShape(dim_qk).padded[0]
    assert ("FIRST: tl.constexpr" in compile_source(parse(ALONE), LaunchShape(dim_qk))) == (expected > 0)
