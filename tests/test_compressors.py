"""Learned compressors: shapes, names that checkpoints rely on, and the interface that op and reference share."""

from __future__ import annotations

import patterns
import pytest
import torch

from nsa_dsl import reference
from nsa_dsl.compressors import MLPCompressor, PositionWeights, make_modules, split_blocks
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


def test_an_mlp_adds_its_positions_to_the_blocks_that_it_maps() -> None:
    torch.manual_seed(0)
    mlp = MLPCompressor(5, 4).double().k
    tokens = torch.randn(2, 3, 17, 4, dtype=torch.float64, requires_grad=True)
    leaves = (tokens, *mlp.parameters())
    rows = (tokens.unfold(2, 5, 3).transpose(3, 4) + mlp.position).flatten(-2)
    expected = mlp.contract(torch.nn.functional.gelu(mlp.expand(rows)))
    found = mlp(split_blocks(tokens, 5, 3))
    torch.testing.assert_close(found, expected)
    firsts = (torch.autograd.grad(out.square().sum(), leaves, create_graph=True) for out in (found, expected))
    for each, wanted in zip(*firsts, strict=True):
        torch.testing.assert_close(each, wanted)
        seconds = (torch.autograd.grad(grad.square().sum(), leaves, retain_graph=True) for grad in (each, wanted))
        for second, wanted_second in zip(*seconds, strict=True):
            torch.testing.assert_close(second, wanted_second)


def test_an_mlp_keeps_no_copy_of_its_blocks_for_backward() -> None:
    mlp, kept = MLPCompressor(32, 8, hidden=4).k, list[int]()

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.untyped_storage().nbytes())
        return tensor

    tokens = torch.randn(1, 2, 400, 8, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        mlp(split_blocks(tokens, 32, 16))
    assert max(kept) == tokens.untyped_storage().nbytes()


@pytest.mark.parametrize(("block", "stride", "tokens"), [(32, 16, 160), (32, 32, 70), (32, 24, 101), (5, 3, 23), (3, 5, 19), (8, 4, 7)])
def test_blocks_and_their_gradient_are_those_of_unfold(block: int, stride: int, tokens: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, tokens, 4, dtype=torch.float64, requires_grad=True)
    slots = max(0, (tokens - block) // stride + 1)
    blocks, weights = split_blocks(x, block, stride), torch.randn(2, 3, slots, block, 4, dtype=torch.float64)
    assert blocks.shape == weights.shape
    grad = torch.autograd.grad(blocks, x, weights)[0]
    if slots:
        unfolded = x.unfold(2, block, stride).transpose(3, 4)
        assert torch.equal(blocks, unfolded)
        torch.testing.assert_close(grad, torch.autograd.grad(unfolded, x, weights)[0])
    else:
        assert not grad.any()


@pytest.mark.parametrize(("width", "first"), [(8, 0), (6, 0), (8, 1), (8, 4)])
def test_an_mlp_meets_the_same_rows_whether_or_not_they_are_copied_as_words(width: int, first: int) -> None:
    """Rows of 6 numbers, or that begin after one, are no whole words of 8 bytes."""
    torch.manual_seed(0)
    heads = torch.randn(1, 71, 3, first + width).to(torch.bfloat16)[..., first:].transpose(1, 2).requires_grad_()
    mlp = MLPCompressor(8, width, hidden=4).k.to(torch.bfloat16)
    plain = heads.unfold(2, 8, 4).transpose(3, 4).flatten(-2)
    rows = mlp.position.flatten() @ mlp.expand.weight.mT + mlp.expand.bias
    expected = mlp.contract(torch.nn.functional.gelu(torch.nn.functional.linear(plain, mlp.expand.weight, rows)))
    found, weights = mlp(split_blocks(heads, 8, 4)), torch.randn_like(expected)
    torch.testing.assert_close(found, expected)
    for one, other in zip(*(torch.autograd.grad(each, [heads, mlp.expand.weight], weights) for each in (found, expected)), strict=True):
        torch.testing.assert_close(one, other, rtol=0.02, atol=0.02)


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
