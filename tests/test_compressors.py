"""Learned compressors: shapes, names that checkpoints rely on, and the interface that op and reference share."""

from __future__ import annotations

import patterns
import pytest
import torch

from nsa_dsl import reference
from nsa_dsl.compressors import MLPCompressor, PositionWeights, make_modules
from nsa_dsl.pattern import Compress


def test_the_state_of_an_mlp_compressor_keeps_its_names_and_shapes() -> None:
    shapes = {name: tuple(each.shape) for name, each in MLPCompressor(4, 6, 5, hidden=7).state_dict().items()}
    assert shapes == {
        "k.position": (4, 6), "k.expand.weight": (7, 24), "k.expand.bias": (7,), "k.contract.weight": (6, 7), "k.contract.bias": (6,),
        "v.position": (4, 5), "v.expand.weight": (7, 20), "v.expand.bias": (7,), "v.contract.weight": (5, 7), "v.contract.bias": (5,),
    }  # fmt: skip


def test_a_saved_state_gives_the_same_slots() -> None:
    torch.manual_seed(0)
    saved, loaded = MLPCompressor(4, 6), MLPCompressor(4, 6)
    loaded.load_state_dict(saved.state_dict())
    blocks = torch.randn(2, 3, 5, 4, 6)
    for a, b in zip(saved(blocks, blocks), loaded(blocks, blocks), strict=True):
        assert a.shape == (2, 3, 5, 6)
        assert torch.equal(a, b)


def test_an_mlp_sees_the_order_inside_a_block() -> None:
    torch.manual_seed(0)
    module, blocks = MLPCompressor(4, 6), torch.randn(1, 1, 1, 4, 6)
    assert not torch.allclose(module(blocks, blocks)[0], module(blocks.flip(-2), blocks)[0])


def test_the_reference_applies_a_module_slot_by_slot() -> None:
    torch.manual_seed(0)
    module, memory = MLPCompressor(4, 6, 5), Compress("summary", 4, 2, "mlp")
    k, v = torch.randn(2, 3, 11, 6), torch.randn(2, 3, 11, 5)
    k_slots, v_slots = reference.compress(memory, k, v, compressor=module)
    assert k_slots.shape == (2, 3, 4, 6)
    assert v_slots.shape == (2, 3, 4, 5)
    for t in range(4):
        one_k, one_v = module(k[:, :, None, 2 * t : 2 * t + 4], v[:, :, None, 2 * t : 2 * t + 4])
        torch.testing.assert_close(k_slots[:, :, t], one_k[:, :, 0])
        torch.testing.assert_close(v_slots[:, :, t], one_v[:, :, 0])


def test_float64_inputs_use_a_float32_module_and_reach_its_parameters() -> None:
    torch.manual_seed(0)
    pattern = patterns.nsa(by="mlp")
    module = MLPCompressor(8, 4)
    q, k, gates = torch.randn(1, 2, 20, 4), torch.randn(1, 1, 20, 4), torch.randn(1, 2, 20, 3)
    out = reference.attend(pattern, q, k, k, gates=gates, compressors={"summary": module})
    assert isinstance(out, torch.Tensor)
    assert out.dtype == torch.float64
    out.square().sum().backward()
    assert all(each.grad is not None and each.grad.dtype == torch.float32 and bool(each.grad.any()) for each in module.parameters())


def test_position_weights_start_as_the_mean() -> None:
    weights, k = PositionWeights(4, 3), torch.randn(1, 3, 12, 6)
    mean = reference.compress(Compress("summary", 4, 2, "mean"), k, k)
    weighted = reference.compress(Compress("summary", 4, 2, "weighted"), k, k, weights=weights())
    torch.testing.assert_close(weighted, mean)


def test_modules_are_made_for_memories_that_have_parameters() -> None:
    assert make_modules(patterns.nsa(by="mean"), kv_heads=2, d_qk=4) == {}
    assert isinstance(make_modules(patterns.nsa(by="mlp"), kv_heads=2, d_qk=4)["summary"], MLPCompressor)
    weights = make_modules(patterns.nsa(by="weighted"), kv_heads=2, d_qk=4)["summary"]
    assert isinstance(weights, PositionWeights)
    assert weights.k.shape == (2, 8)


@pytest.mark.parametrize("by", ["weighted", "mlp"])
def test_a_missing_parameter_is_named(by: str) -> None:
    with pytest.raises(ValueError, match="summary"):
        reference.compress(Compress("summary", 4, 2, by), torch.zeros(1, 1, 8, 2), torch.zeros(1, 1, 8, 2))  # type: ignore[arg-type]
