"""The mask probe catches every single wrong key, in every dtype, and accepts what is right."""

from __future__ import annotations

import math
from typing import Any

import patterns
import pytest
import torch
from torch import Tensor

from nsa_dsl import reference
from nsa_dsl.mask_probe import Probe, check_probe, probe_inputs, wrong_rows
from nsa_dsl.pattern import Compress, Output, Pattern
from nsa_dsl.relation import CAUSAL, conjunction, negate

KEYS = 2048


def uniform(mask: Tensor, values: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """What a right kernel gives for a probe that sees this mask: (rows, keys) truth, (keys, d_v) values."""
    count = mask.sum(-1)
    out = (mask.double() @ values / count[:, None]).to(dtype)
    return out[None, None], count.double().log().float()[None, None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("with_lse", [True, False])
def test_every_key_of_2048_that_is_dropped_is_caught(dtype: torch.dtype, with_lse: bool) -> None:
    probe = probe_inputs(patterns.causal(), batch=1, heads=1, kv_heads=1, n=KEYS, dtype=dtype)
    values, right = probe.values("only"), torch.ones(KEYS, KEYS, dtype=torch.bool)
    out, lse = uniform(right, values[0, 0], dtype)
    assert check_probe(out, lse if with_lse else None, right[None, None], values) == []
    out, lse = uniform(right ^ torch.eye(KEYS, dtype=torch.bool), values[0, 0], dtype)
    assert bool(wrong_rows(out, lse if with_lse else None, right[None, None], values).all())
    found = check_probe(out, lse if with_lse else None, right[None, None], values, limit=3)
    assert [each.place for each in found] == [(0, 0, 0), (0, 0, 1), (0, 0, 2)]
    if with_lse:
        assert all(each.note == f"{KEYS} keys expected; key {each.place[2]} is missing" for each in found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_key_that_is_added_or_taken_for_another_is_caught(dtype: torch.dtype) -> None:
    probe = probe_inputs(patterns.causal(), batch=1, heads=1, kv_heads=1, n=KEYS, dtype=dtype)
    values = probe.values("only")
    half = torch.arange(KEYS) < KEYS // 2
    right = half.expand(KEYS // 2, KEYS)
    other = torch.eye(KEYS, dtype=torch.bool)[KEYS // 2 :]
    own = torch.eye(KEYS, dtype=torch.bool)[: KEYS // 2]
    for wrong in (right | other, (right | other) ^ own):
        out, lse = uniform(wrong, values[0, 0], dtype)
        assert bool(wrong_rows(out, lse, right[None, None], values).all())
        assert bool(wrong_rows(out, None, right[None, None], values).all())


def run(pattern: Pattern, probe: Probe, branch: str, **options: Any) -> tuple[Tensor, Tensor]:
    out, lse = reference.attend(pattern, probe.q, probe.k, probe.v, return_lse=True, **probe.arguments(branch), **options)
    return out, lse[branch] if isinstance(lse, dict) else lse


@pytest.mark.parametrize("by", ["mean", "weighted", "mlp"])
@pytest.mark.parametrize("apart", [True, False])
def test_each_branch_of_a_gated_pattern_is_probed_alone(by: str, apart: bool) -> None:
    pattern = patterns.nsa(by=by, kv_per_branch=apart)
    probe = probe_inputs(pattern, batch=2, heads=4, kv_heads=2, n=70)
    choices = {"selected": torch.randint(-1, 9, (2, 2, 70, 4))}
    masks = reference.mask(pattern, 70, 4, 2, choices)
    off_by_one = reference.mask(patterns.nsa(by=by, kv_per_branch=apart, w=9), 70, 4, 2, {"selected": choices["selected"] + 1})
    assert not torch.equal(masks["selected"], off_by_one["selected"])
    for branch in pattern.output.branches:
        out, lse = run(pattern, probe, branch, choices=choices)
        assert check_probe(out, lse, masks[branch], probe.values(branch)) == []
        if branch != "compressed":
            assert check_probe(out, None, off_by_one[branch], probe.values(branch))
        else:
            late = masks[branch].roll(1, 2)
            assert check_probe(out, lse, late, probe.values(branch))


def test_the_neighbouring_kv_head_or_batch_is_noticed() -> None:
    probe = probe_inputs(patterns.windowed(5), batch=2, heads=4, kv_heads=2, n=33)
    mask = reference.mask(patterns.windowed(5), 33, 4, 2)["only"]
    out, lse = run(patterns.windowed(5), probe, "only")
    assert check_probe(out, lse, mask, probe.values("only")) == []
    assert check_probe(out.roll(1, 1), lse, mask, probe.values("only"))
    assert check_probe(out.roll(1, 0), lse, mask, probe.values("only"))


def test_empty_rows_and_sinks() -> None:
    pattern = patterns.single(conjunction(patterns.window(4), negate(patterns.window(1))), sink=True)
    probe = probe_inputs(pattern, batch=1, heads=2, kv_heads=1, n=9)
    out, lse = run(pattern, probe, "only")
    mask = reference.mask(pattern, 9, 2, 1)["only"]
    assert check_probe(out, lse, mask, probe.values("only")) == []
    wrong = lse.clone()
    wrong[0, 1, 0] = 0.0
    assert check_probe(out, wrong, mask, probe.values("only"))
    nan = out.clone()
    nan[0, 1, 0, 3] = math.nan
    assert check_probe(nan, lse, mask, probe.values("only"))


def test_a_merged_output_takes_masks_and_values_joined() -> None:
    far = patterns.branch("far", CAUSAL, memory=Compress("summary", 4, 4, "mean"))
    pattern = patterns.pattern("merged", far, patterns.branch("near", patterns.window(4)), output=Output("merge", ("far", "near")))
    probe = probe_inputs(pattern, batch=1, heads=2, kv_heads=1, n=21)
    out, lse = run(pattern, probe, "near")
    masks = reference.mask(pattern, 21, 2, 1)
    mask, values = torch.cat(list(masks.values()), -1), torch.cat([probe.values(name) for name in masks], 2)
    assert check_probe(out, lse, mask, values) == []
    for key in range(mask.shape[-1]):
        wrong = mask.clone()
        wrong[..., 20, key] ^= True
        (found,) = check_probe(out[:, :1], lse[:, :1], wrong[:, :1], values)
        assert found.place == (0, 0, 20)
        assert f"key {key} is" in found.note


def test_nothing_to_compare_is_accepted_and_a_bias_is_refused() -> None:
    probe = probe_inputs(patterns.causal(), batch=1, heads=2, kv_heads=1, n=0)
    out, lse = run(patterns.causal(), probe, "only")
    assert check_probe(out, lse, reference.mask(patterns.causal(), 0, 2, 1)["only"], probe.values("only")) == []
    with pytest.raises(reference.NotSupported, match="bias"):
        probe_inputs(patterns.single(CAUSAL, bias="alibi"), batch=1, heads=1, kv_heads=1, n=4)
