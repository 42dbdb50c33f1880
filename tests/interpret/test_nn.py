"""The layer through its kernels: outputs and the gradients of every parameter are those of the dense definition, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import nsa_dsl
from nsa_dsl.nn import SparseAttention

NSA = """
    summary    = compress(block = 4, stride = 2, by = mlp)
    compressed = attend(summary, causal)
    selected   = attend(tokens, causal & top(2, block = 4, by = compressed, share = group))
    output gate(compressed, selected)
"""
PATTERNS: dict[str, tuple[str, dict[str, Any]]] = {
    "gate, mlp after rotation": (NSA, {}),
    "gate, mlp before rotation": (NSA, {"compress": "pre-rotary"}),
    "mix, keys per branch, mlp before rotation": (
        "kv per branch  far = attend(compress(block = 4, stride = 2, by = mlp), causal)  near = attend(tokens, window(5)) "
        "output mix(far, near)",
        {"compress": "pre-rotary"},
    ),
    "keys per branch, equal branches": (
        "kv per branch  a = attend(tokens, window(5))  b = attend(tokens, window(5))  output gate(a, b)",
        {"bias": True},
    ),
    "merge, weights and a sink": (
        "near = attend(tokens, window(5), sink = learned)  far = attend(compress(block = 4, stride = 4, by = weighted), "
        "{ i, j : j // 4 * 4 + 8 <= i })  output merge(near, far)",
        {},
    ),
    "single, no positions": ("output attend(tokens, window(7), sink = learned, softcap = 3.0)", {"rotary": False, "head_dim": 5}),
}


def layer_of(body: str, **options: Any) -> SparseAttention:
    torch.manual_seed(0)
    pattern = nsa_dsl.load(f"pattern tried {{ {body} }}").pattern("tried")
    layer = SparseAttention(pattern, 8, 2, 1, **{"head_dim": 6, "value_dim": 3} | options).double()
    with torch.no_grad():
        for name, each in layer.named_parameters():
            if name.startswith("sink"):
                each.normal_()
    return layer


def features(tokens: int) -> Tensor:
    return torch.randn(1, tokens, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)


def results(layer: SparseAttention, backend: str, tokens: int, **call: Any) -> dict[str, Tensor]:
    """Output, and gradients of the input and of every parameter."""
    x = features(tokens)
    layer.zero_grad()
    out = layer(x, backend=backend, **call)
    (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
    assert x.grad is not None
    gradients = {name: each.grad for name, each in layer.named_parameters()}
    return {"out": out.detach(), "x": x.grad, **{name: each for name, each in gradients.items() if each is not None}}


def agree(layer: SparseAttention, tokens: int = 21, **call: Any) -> None:
    kernels, reference = (results(layer, backend, tokens, **call) for backend in ("kernels", "reference"))
    assert kernels.keys() == reference.keys() == {"out", "x", *dict(layer.named_parameters())}
    for name, wanted in reference.items():
        torch.testing.assert_close(kernels[name], wanted, rtol=1e-9, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("name", PATTERNS)
def test_kernels_equal_the_definition(name: str) -> None:
    body, options = PATTERNS[name]
    agree(layer_of(body, **options))


def test_packed_documents() -> None:
    far = "far = attend(compress(block = 4, stride = 2, by = mlp), causal & document)"
    body = f"{far}  near = attend(tokens, window(5) & document)  output gate(far, near)"
    agree(layer_of(body, compress="pre-rotary"), cu_seqlens=torch.tensor([0, 7, 7, 21], dtype=torch.int32))


def test_autocast_runs_kernels_in_half_precision_and_returns_full_gradients() -> None:
    layer = layer_of(NSA, compress="pre-rotary").float()
    found = []
    for backend in ("kernels", "reference"):
        x = features(21).detach().float()
        layer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            out = layer(x, backend=backend)
        out.float().square().sum().backward()
        assert out.dtype == torch.float16
        found.append([out.detach(), *(each.grad for each in layer.parameters())])
    for kernels, reference in zip(*found, strict=True):
        assert kernels.dtype == reference.dtype
        torch.testing.assert_close(kernels, reference, rtol=0.02, atol=2e-3 * float(reference.abs().max()) + 1e-6)


def test_layer_compiles_into_one_graph_for_every_length() -> None:
    layer = layer_of("far = attend(compress(block = 4, stride = 2, by = mlp), causal)  output gate(far)", compress="pre-rotary")
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, _: list[Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(layer, backend=keep, fullgraph=True, dynamic=True)
    for tokens in (9, 14):
        torch.testing.assert_close(compiled(features(tokens)), layer(features(tokens)))
    assert len(graphs) == 1


def test_choices_made_by_one_layer_are_reused_by_another() -> None:
    first, second = layer_of(NSA), layer_of(NSA)
    second.reset_parameters()
    x = features(21).detach()
    _, chosen = first(x, return_choices=True)
    assert chosen.keys() == {"selected"}
    agree(second, choices=chosen)
    own = second(x, return_choices=True)[1]
    assert torch.equal(own["selected"], second(x, return_choices=True, backend="reference")[1]["selected"])
    assert not torch.equal(own["selected"], chosen["selected"])
