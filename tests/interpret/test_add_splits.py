"""Parts of the gradients of keys and values that several programs stored apart, added up in one launch."""

from __future__ import annotations

import pytest
import torch

from nsa_dsl.compiler import compile_backward
from nsa_dsl.execute import load_module
from nsa_dsl.launch import LaunchShape
from nsa_dsl.loader import load_spec


@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("splits", [2, 16])
def test_sums_of_parts(splits: int, add: bool) -> None:
    module = load_module(
        compile_backward(load_spec("pattern p { output attend(tokens, causal) }").pattern("p"), LaunchShape(16, 16, "fp32")), "p"
    )
    made = torch.Generator().manual_seed(splits)
    shapes = (2, 3, 37, 24), (2, 3, 37, 16)
    parts = tuple(torch.randn(splits, *shape, generator=made) for shape in shapes)
    partials = tuple(torch.randn(shape, generator=made) for shape in shapes)
    outs = torch.empty(shapes[0], dtype=torch.float16), torch.empty(shapes[1])
    module._add_splits(parts, partials if add else outs, outs, ADD=add)
    for out, each, partial in zip(outs, parts, partials, strict=True):
        expected = (each.double().sum(0) + (partial.double() if add else 0.0)).to(out.dtype)
        torch.testing.assert_close(out, expected)
