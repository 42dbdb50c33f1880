"""Tests of the tests: each rule accepts what it should, and catches a fault planted for it."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import patterns
import pytest
import torch
from torch import Tensor

from nsa_dsl import reference
from nsa_dsl.compare import check_choice, check_lse, check_poisoned, check_rows
from nsa_dsl.pattern import Pattern


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def results(pattern: Pattern, dtype: torch.dtype, n: int = 96, **options: Any) -> tuple[Tensor, Tensor]:
    """A pattern's output in a dtype through plain torch, and in float64, from the same inputs in bfloat16."""
    torch.manual_seed(1)
    q, k, v = (torch.randn(1, heads, n, 32).to(torch.bfloat16) for heads in (4, 2, 2))
    if pattern.output.kind == "gate":
        options = {"gates": torch.randn(1, 4, n, len(pattern.output.branches)).to(torch.bfloat16)} | options
        options["choices"] = reference.choose(pattern, q, k, v)
    low, exact = (reference.attend(pattern, q, k, v, dtype=each, **options) for each in (dtype, torch.float64))
    assert isinstance(low, Tensor)
    assert isinstance(exact, Tensor)
    return low, exact


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("pattern", [patterns.causal(), patterns.windowed(7), patterns.nsa(w=16)], ids=lambda each: each.name)
def test_another_order_of_the_same_sums_is_accepted(pattern: Pattern, dtype: torch.dtype) -> None:
    baseline, expected = results(pattern, dtype)
    rounded_once = expected.to(dtype)
    assert check_rows(rounded_once, expected, baseline) == []
    assert check_rows(baseline, expected, baseline) == []
    assert check_rows((expected + 0.4 * (baseline - expected)).to(dtype), expected, baseline) == []


def test_a_window_one_too_wide_is_refused() -> None:
    baseline, expected = results(patterns.windowed(7), torch.bfloat16)
    wrong, _ = results(patterns.windowed(8), torch.bfloat16)
    found = check_rows(wrong, expected, baseline, limit=1000)
    assert len(found) > 300
    assert all(each.place[2] >= 7 for each in found)
    assert found[0].error - found[0].allowed == max(each.error - each.allowed for each in found)


def test_a_gate_applied_twice_is_refused() -> None:
    pattern = patterns.nsa(w=16)
    baseline, expected = results(pattern, torch.bfloat16)
    torch.manual_seed(1)
    for heads in (4, 2, 2):
        torch.randn(1, heads, 96, 32)
    gates = torch.randn(1, 4, 96, 3).to(torch.bfloat16).double()
    twice = torch.logit(gates.sigmoid() ** 2)
    wrong, _ = results(pattern, torch.bfloat16, gates=twice)
    assert len(check_rows(wrong, expected, baseline, limit=1000)) > 300


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("side", [0, 1, 2])
def test_what_is_not_a_number_never_passes(side: int, value: float) -> None:
    baseline, expected = results(patterns.causal(), torch.float32)
    tensors = [expected.float(), expected.clone(), baseline.clone()]
    assert check_rows(tensors[0], tensors[1], tensors[2]) == []
    tensors[side][0, 1, 5, 3] = value
    (found,) = check_rows(tensors[0], tensors[1], tensors[2])
    assert found.place == (0, 1, 5)
    both = [each.clone() for each in tensors]
    for each in both:
        each[0, 1, 5, 3] = value
    assert len(check_rows(both[0], both[1], both[2])) == 1


def test_empty_rows_must_be_exactly_zero() -> None:
    zero = torch.zeros(1, 1, 4, 8)
    assert check_rows(zero, zero.double(), zero) == []
    wrong = zero.clone()
    wrong[0, 0, 2, 1] = 1e-30
    assert [each.place for each in check_rows(wrong, zero.double(), zero)] == [(0, 0, 2)]


def test_shapes_must_agree_and_nothing_compares_with_nothing() -> None:
    some = torch.zeros(1, 1, 4, 8)
    assert check_rows(some[:, :, :3], some, some)
    assert check_lse(some[..., 0], some[..., :2, 0])
    assert check_rows(some[:, :, :0], some[:, :, :0], some[:, :, :0]) == []
    assert check_lse(some[:, :, :0, 0], some[:, :, :0, 0]) == []


def test_the_log_sum_exp_rule() -> None:
    expected = torch.tensor([0.0, -math.inf, 50.0, -7e4], dtype=torch.float64)
    assert check_lse(expected.float(), expected) == []
    assert check_lse(expected.float() + torch.tensor([9e-5, 0, 1e-4, 1e-2]), expected) == []
    missed = [(0, 1.1e-4), (0, -math.inf), (0, math.nan), (1, -1e30), (1, 0.0), (1, math.nan)]
    for place, value in [*missed, (2, 50.001), (3, -7e4 + 0.05), (3, math.inf)]:
        wrong = expected.float()
        wrong[place] = value
        (found,) = check_lse(wrong, expected)
        assert found.place == (place,)
        assert "lse" in str(found)
    nan = torch.full((1,), math.nan)
    assert check_lse(nan, nan.double())


def test_planted_nan_must_show_in_the_same_rows() -> None:
    expected = torch.zeros(1, 2, 3, 4, dtype=torch.float64)
    expected[0, 1, 2] = math.nan
    actual = expected.float()
    assert check_poisoned(actual, expected) == []
    actual[0, 1, 2] = 0.0
    actual[0, 0, 1, 3] = math.inf
    assert {each.place for each in check_poisoned(actual, expected)} == {(0, 1, 2), (0, 0, 1)}


def ranked(pattern: Pattern, n: int = 90) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
    torch.manual_seed(2)
    tensors = torch.randn(1, 4, n, 8), torch.randn(1, 2, n, 8), torch.randn(1, 2, n, 8)
    return reference.choose(pattern, *tensors)["selected"], reference.ranking(pattern, *tensors)["selected"], tensors


def test_the_references_own_choice_is_accepted_in_any_order() -> None:
    indices, ranking, _ = ranked(patterns.nsa())
    assert check_choice(indices, ranking, 4) == []
    assert check_choice(indices.flip(-1), ranking, 4, margin=0.0) == []


def test_forced_blocks_outside_n_are_refused() -> None:
    pattern = patterns.nsa()
    _, ranking, tensors = ranked(pattern)
    branch = pattern.branch("selected")
    outside = dataclasses.replace(branch.choices[0], keep=None, keep_extra=branch.choices[0].keep)
    faulty = dataclasses.replace(
        pattern, branches=(pattern.branches[0], dataclasses.replace(branch, choices=(outside,)), pattern.branches[2])
    )
    wrong = reference.choose(faulty, *tensors)["selected"]
    found = check_choice(wrong, ranking, 4)
    assert any("too many" in each.what for each in found)
    extra = (ranking == math.inf) & torch.ones_like(ranking, dtype=torch.bool)
    competing = reference.ranking(faulty, *tensors)["selected"]
    assert check_choice(wrong, competing, 4, extra=extra) == []


def test_a_tie_that_goes_to_the_higher_index_is_refused() -> None:
    ranking = torch.tensor([[0.5, 0.0, 0.0, 0.0, -math.inf]])
    assert check_choice(torch.tensor([[0, 1]]), ranking, 2) == []
    found = check_choice(torch.tensor([[0, 2]]), ranking, 2)
    assert [(each.what, each.place) for each in found] == [("choice", (0, 1)), ("choice", (0, 2))]
    positive = torch.tensor([[0.5, 0.25, 0.25]])
    assert check_choice(torch.tensor([[0, 2]]), positive, 2, margin=0.0)
    # Scores summed in another order may part a tie above zero: with a margin, either will do.
    assert check_choice(torch.tensor([[0, 2]]), positive, 2) == []


def test_the_margin_frees_the_last_place_only() -> None:
    ranking = torch.tensor([[math.inf, 1.0, 0.500001, 0.5, 0.49, -math.inf]])
    assert check_choice(torch.tensor([[0, 1, 3]]), ranking, 3) == []
    assert check_choice(torch.tensor([[0, 1, 3]]), ranking, 3, margin=1e-7)
    for wrong in ([0, 1, 4], [0, 2, 3], [1, 2, 3], [0, 1, -1], [0, 1, 5]):
        assert check_choice(torch.tensor([wrong]), ranking, 3)
    assert check_choice(torch.tensor([[0, 1, 2, 3]]), ranking, 3)
    assert "twice" in str(check_choice(torch.tensor([[0, 1, 2, 1]]), ranking, 3)[0])
    assert "out of range" in str(check_choice(torch.tensor([[0, 1, 2, 6]]), ranking, 3)[0])


def test_a_choice_among_fewer_than_n_is_all_of_them() -> None:
    ranking = torch.tensor([[0.5, 0.25, -math.inf], [-math.inf] * 3])
    assert check_choice(torch.tensor([[0, 1, -1], [-1, -1, -1]]), ranking, 3) == []
    assert check_choice(torch.tensor([[0, -1, -1], [-1, -1, -1]]), ranking, 3)
    assert check_choice(torch.tensor([[0, 1, -1], [0, -1, -1]]), ranking, 3)
    assert check_choice(torch.zeros(1, 1, 0, 4, dtype=torch.int32), torch.zeros(1, 1, 0, 0), 4) == []
