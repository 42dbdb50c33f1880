"""The layer around a pattern, without kernels: its parameters, its positions and its refusals; results by the dense reference."""

from __future__ import annotations

import copy
import math
import pickle
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

import nsa_dsl
from nsa_dsl.nn import SparseAttention, document_positions, rotate

NSA = """pattern nsa {
    summary    = compress(block = 4, stride = 2, by = mlp)
    compressed = attend(summary, causal)
    selected   = attend(tokens, causal & top(2, block = 4, by = compressed, share = group))
    output gate(compressed, selected)
}"""
SLOTS = "pattern slots { output attend(compress(block = 4, stride = 2, by = mlp), causal) }"
PACKED = """pattern packed {
    summary = compress(block = 4, stride = 2, by = mlp)
    far     = attend(summary, causal & document)
    near    = attend(tokens, window(5) & document)
    output gate(far, near)
}"""


def layer_of(text: str, dim: int = 12, heads: int = 4, kv_heads: int = 2, **options: Any) -> SparseAttention:
    program = nsa_dsl.load(text)
    torch.manual_seed(0)
    return SparseAttention(program.pattern(program.patterns[0]), dim, heads, kv_heads, **{"head_dim": 6, "value_dim": 5} | options)


def features(tokens: int, dim: int = 12) -> Tensor:
    return torch.randn(1, tokens, dim, generator=torch.Generator().manual_seed(1))


def turned(x: Tensor, positions: Tensor, base: float = 10_000.0) -> Tensor:
    """Rotary positions by complex numbers. x: (..., tokens, dim); positions: (tokens,)."""
    half = x.shape[-1] // 2
    speed = base ** (-torch.arange(half, dtype=torch.float64) / half)
    turn = torch.polar(torch.ones((), dtype=torch.float64), positions[:, None] * speed)
    result = torch.complex(x[..., :half].double(), x[..., half:].double()) * turn
    return torch.cat((result.real, result.imag), -1)


def test_rotation_equals_complex_multiplication() -> None:
    x, positions = torch.randn(2, 3, 7, 10), torch.tensor([0, 1, 5, 5, 900, 8191, 2])
    torch.testing.assert_close(rotate(x.double(), positions), turned(x, positions))
    torch.testing.assert_close(rotate(x, positions, 500.0), turned(x, positions, 500.0).float(), rtol=0, atol=3e-3)
    for batched in (rotate(x, torch.stack((positions, positions + 1)))[1], rotate(x[1:], positions + 1)[0]):
        torch.testing.assert_close(batched, rotate(x, positions + 1)[1])


def test_rotation_in_bfloat16_keeps_neighbours_apart() -> None:
    x = torch.ones(1, 1, 2, 4, dtype=torch.bfloat16)
    made = rotate(x, torch.tensor([8190, 8191]))
    assert made.dtype == torch.bfloat16
    torch.testing.assert_close(made.double(), turned(x, torch.tensor([8190, 8191])), rtol=0, atol=0.02)


def test_scores_depend_on_distance_alone() -> None:
    q, k = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64)
    near = rotate(q, torch.tensor([9])) * rotate(k, torch.tensor([4]))
    far = rotate(q, torch.tensor([109])) * rotate(k, torch.tensor([104]))
    torch.testing.assert_close(near.sum(), far.sum())


def test_positions_restart_at_each_document() -> None:
    found = document_positions(torch.tensor([0, 3, 3, 4, 8], dtype=torch.int32), 8)
    assert found.tolist() == [0, 1, 2, 0, 0, 1, 2, 3]


def test_state_dict_names_and_shapes() -> None:
    shapes = {name: tuple(each.shape) for name, each in layer_of(NSA, bias=True).state_dict().items() if not name.startswith("compressor")}
    assert shapes == {
        "q_proj.weight": (24, 12), "q_proj.bias": (24,), "k_proj.weight": (12, 12), "k_proj.bias": (12,),
        "v_proj.weight": (10, 12), "v_proj.bias": (10,), "o_proj.weight": (12, 20), "o_proj.bias": (12,),
        "gate_proj.weight": (8, 12), "gate_proj.bias": (8,),
    }  # fmt: skip
    apart = layer_of("""pattern p {
        kv per branch
        compressed = attend(compress(block = 4, stride = 2, by = weighted), causal)
        near       = attend(tokens, window(3), sink = learned)
        output mix(compressed, near)
    }""").state_dict()
    assert list(apart) == [
        "sink_near", "q_proj.weight", "k_proj_compressed.weight", "v_proj_compressed.weight", "k_proj_near.weight",
        "v_proj_near.weight", "o_proj.weight", "gate_proj.weight", "compressor_compressed.k", "compressor_compressed.v",
    ]  # fmt: skip
    assert list(layer_of("pattern p { output attend(tokens, causal) }").state_dict()) == [
        "q_proj.weight", "k_proj.weight", "v_proj.weight", "o_proj.weight",
    ]  # fmt: skip


def test_state_dict_names_any_branch() -> None:
    # Names that a module has a method or an attribute of.
    layer = layer_of("""pattern p {
        kv per branch
        type   = attend(tokens, window(3), sink = learned)
        values = attend(compress(block = 4, stride = 2, by = mlp), causal)
        output gate(type, values)
    }""")
    assert {"k_proj_values.weight", "v_proj_type.weight", "sink_type"} <= set(layer.state_dict())


def test_copies_and_pickles_compute_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = layer_of(NSA), features(13)
    expected = layer(x, backend="reference")
    # No copy generates kernels anew: equal patterns share an op.
    monkeypatch.setattr("nsa_dsl.op.AttentionOp.__init__", None)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x, backend="reference"), expected)
        assert other.op is layer.op
    fresh = layer_of(NSA)
    fresh.reset_parameters()
    assert not torch.equal(fresh(x, backend="reference"), expected)
    fresh.load_state_dict(layer.state_dict())
    assert torch.equal(fresh(x, backend="reference"), expected)


def test_reset_draws_every_parameter_anew() -> None:
    layer = layer_of("""pattern p {
        far  = attend(compress(block = 4, stride = 2, by = mlp), causal)
        even = attend(compress(block = 4, stride = 2, by = weighted), causal)
        near = attend(tokens, window(3), sink = learned)
        output gate(far, even, near)
    }""")
    with torch.no_grad():
        for each in layer.parameters():
            each.fill_(7.0)
    layer.reset_parameters()
    assert [name for name, each in layer.named_parameters() if bool((each == 7.0).any())] == []
    assert layer.get_parameter("sink_near").tolist() == [0.0] * 4


def test_repr_names_pattern_and_sizes() -> None:
    shown = repr(layer_of(NSA, compress="pre-rotary"))
    assert "nsa, dim=12, heads=4, kv_heads=2, head_dim=6, value_dim=5, rotary=True, compress='pre-rotary'" in shown


def slots_literally(layer: SparseAttention, x: Tensor, positions: Tensor, *, first: bool) -> Tensor:
    """What SLOTS computes with keys that are compressed before (first) or after their rotation, query by query."""
    weights = {name: each.double() for name, each in layer.state_dict().items()}
    q = (x[0].double() @ weights["q_proj.weight"].T).view(-1, 4, 6).transpose(0, 1)
    k, v = ((x[0].double() @ weights[f"{part}_proj.weight"].T).view(len(positions), 2, -1).transpose(0, 1) for part in "kv")
    q, k = turned(q, positions), k if first else turned(k, positions)
    compressor = layer.get_submodule("compressor_output").double()
    starts = range(0, len(positions) - 3, 2)
    made = [compressor(k[None, :, None, at : at + 4], v[None, :, None, at : at + 4]) for at in starts]
    k_slots, v_slots = (torch.cat(each, 2)[0] for each in zip(*made, strict=True))
    if first:
        k_slots = turned(k_slots, positions[list(starts)])
    out = torch.zeros(len(positions), 4, 5, dtype=torch.float64)
    for head in range(4):
        for i in range(len(positions)):
            seen = [slot for slot, at in enumerate(starts) if at + 3 <= i]
            if seen:
                weight = (k_slots[head // 2, seen] @ q[head, i] / math.sqrt(6)).softmax(0)
                out[i, head] = weight @ v_slots[head // 2, seen]
    return out.flatten(1) @ weights["o_proj.weight"].T


@pytest.mark.parametrize("compress", ["pre-rotary", "post-rotary"])
@pytest.mark.parametrize("moved", [False, True])
def test_compression_before_or_after_rotation_by_definition(compress: str, moved: bool) -> None:
    x = features(13)
    positions = torch.arange(13) * 3 + 40 if moved else torch.arange(13)
    layer = layer_of(SLOTS, compress=compress).double()
    found = layer(x.double(), positions=positions if moved else None, backend="reference")
    torch.testing.assert_close(found[0], slots_literally(layer, x, positions, first=compress == "pre-rotary"))


def test_keys_per_branch_are_compressed_the_same_way() -> None:
    shared = layer_of(SLOTS, compress="pre-rotary").double()
    apart = layer_of(SLOTS.replace("{ output", "{ kv per branch output"), compress="pre-rotary").double()
    branch = apart.pattern.definition.branches[0].name
    renamed = {
        name.replace("k_proj", f"k_proj_{branch}").replace("v_proj", f"v_proj_{branch}"): each for name, each in shared.state_dict().items()
    }
    apart.load_state_dict(renamed)
    x = features(13).double()
    torch.testing.assert_close(apart(x, backend="reference"), shared(x, backend="reference"))


@pytest.mark.parametrize("compress", ["pre-rotary", "post-rotary"])
def test_packed_documents_equal_documents_apart(compress: str) -> None:
    layer = layer_of(PACKED, compress=compress).double()
    x, borders = features(22).double(), [0, 8, 8, 18, 22]
    packed = layer(x, cu_seqlens=torch.tensor(borders, dtype=torch.int32), backend="reference")
    for start, end in pairwise(borders):
        torch.testing.assert_close(packed[:, start:end], layer(x[:, start:end], backend="reference"))


def test_choices_fixed_beforehand_are_used_and_returned() -> None:
    layer, x = layer_of(NSA), features(13)
    out, chosen = layer(x, return_choices=True, backend="reference")
    assert chosen["selected"].shape == (1, 2, 13, 2)
    assert torch.equal(layer(x, backend="reference"), out)
    other = torch.zeros_like(chosen["selected"])
    changed, given = layer(x, choices={"selected": other}, return_choices=True, backend="reference")
    assert torch.equal(given["selected"], other)
    assert not torch.equal(changed, out)


def test_reused_choices_must_be_passed() -> None:
    program = nsa_dsl.load("""
        pattern far { far = attend(tokens, causal & top(2, block = 4, by = mean, share = group, keep = window(1))) output far }
        model m { layers 2 { 0: far rest: far reuse(far) } }
    """)
    first, second = (SparseAttention(layer, 12, 2) for layer in program.model("m"))
    x = features(13)
    _, chosen = first(x, return_choices=True, backend="reference")
    assert second(x, choices=chosen, backend="reference").shape == x.shape
    with pytest.raises(ValueError, match="choices: this layer reuses 'far'"):
        second(x, backend="reference")


def test_autocast_leaves_the_reference_exact() -> None:
    layer, x = layer_of(NSA), features(13)
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(x, backend="reference")
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), layer(x, backend="reference"), rtol=0.05, atol=0.02)


def test_gradients_reach_every_parameter() -> None:
    for text in (NSA, PACKED):
        layer = layer_of(text, compress="pre-rotary", bias=True)
        layer(features(13), backend="reference").square().sum().backward()
        assert [name for name, each in layer.named_parameters() if each.grad is None or not bool(each.grad.any())] == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kv_heads": 3}, "kv_heads: 4 query heads"),
        ({"heads": 0}, "heads: expected at least 1"),
        ({"head_dim": 5}, "head_dim: .* 5 is odd"),
        ({"compress": "before"}, "compress: expected 'post-rotary' or 'pre-rotary', got 'before'"),
        ({"compress": "pre-rotary", "rotary": False}, "compress: 'pre-rotary' .* rotary=False has none"),
    ],
)
def test_wrong_sizes_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        layer_of(NSA, **options)


def test_wrong_calls_are_refused() -> None:
    layer = layer_of(NSA)
    with pytest.raises(ValueError, match=r"x: expected \(batch, tokens, 12\), got \(1, 13, 4\)"):
        layer(features(13, 4))
    with pytest.raises(ValueError, match=r"positions: expected \(13,\) or \(1, 13\), got \(12,\)"):
        layer(features(13), positions=torch.arange(12))
    with pytest.raises(ValueError, match="by = mean"):
        layer_of("pattern p { output attend(compress(block = 4, stride = 2, by = mean), causal) }", compress="pre-rotary")
    with pytest.raises(nsa_dsl.NotSupported):
        layer_of("pattern p { output attend(tokens, causal, skip = 0.5) }")(features(13))
