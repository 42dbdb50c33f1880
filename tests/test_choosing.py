"""The reference's choices against loops, and the rules of the language one by one."""

from __future__ import annotations

import math
from typing import Any

import nsa_literal
import patterns
import pytest
import torch
from torch import Tensor

from nsa_dsl import reference
from nsa_dsl.pattern import BranchScore, GivenIndices, GivenScores, IndexScore, Pattern, PooledScore
from nsa_dsl.relation import CAUSAL, Chosen, Compare, Const, SameDocument, Var, conjunction


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def one(name: str = "only", **changes: Any) -> Pattern:
    """A single causal branch over chosen blocks of 4, by given scores unless changed."""
    fields = {"score": GivenScores(), "block": 4, "count": 2, "share": "all"} | changes
    return patterns.pattern("one", patterns.branch(name, conjunction(CAUSAL, Chosen(name)), choices=(patterns.choice(name, **fields),)))


def tensors(heads: int = 2, kv_heads: int = 1, n: int = 16, batch: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(batch, heads, n, 4), torch.randn(batch, kv_heads, n, 4), torch.randn(batch, kv_heads, n, 3)


def given(row: list[float], queries: int = 16) -> Tensor:
    """The same scores for every query unit."""
    return torch.tensor(row).expand(1, 1, queries, -1).contiguous()


def chosen_at(pattern: Pattern, query: int, **call: Any) -> list[int]:
    """What the first unit of heads takes at a query unit, padding left out."""
    call.setdefault("inputs", tensors())
    indices = reference.choose(pattern, *call.pop("inputs"), **call)[pattern.branches[-1].name]
    return [each for each in indices[0, 0, query].tolist() if each >= 0]


@pytest.mark.parametrize(("l", "d", "b"), [(32, 16, 64), (16, 16, 64), (8, 4, 8), (64, 16, 64), (8, 2, 8), (16, 4, 8)])
def test_scores_are_the_papers_sum_over_overlapping_slots(l: int, d: int, b: int) -> None:  # noqa: E741
    n = 3 * b + l + 3
    q, k, v = tensors(2, 1, n)
    scores = reference.scores(patterns.nsa(l, d, b), q, k, v)["selected"]
    assert scores.dtype == torch.float32
    assert scores.shape == (1, 1, n, -(-n // b))
    for t in (l, 2 * b, n):
        slots = nsa_literal.compressed_tokens({s: k[0, 0, s - 1].double() for s in range(1, n + 1)}, t, l, d)
        for j in range(1, scores.shape[-1] + 1):
            expected = 0.0
            for h in range(2):
                p = nsa_literal.softmax([q[0, h, t - 1].double() @ each / 2 for each in slots])
                expected += nsa_literal.selection_scores({i: float(each) for i, each in enumerate(p, 1)}, j, l, d, b)
            assert float(scores[0, 0, t - 1, j - 1]) == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_interior_slots_of_the_papers_sizes_weigh_1_2_2_2_1() -> None:
    """All keys alike make all slots weigh the same, so block 1 gets 8 shares of the 15 that 256 tokens have, block 0 gets 7."""
    zeros = (torch.zeros(1, 1, 256, 4),) * 3
    scores = reference.scores(patterns.nsa(32, 16, 64), *zeros)["selected"][0, 0, 255]
    torch.testing.assert_close(scores * 15, torch.tensor([7.0, 8.0, 8.0, 7.0]))


def test_ties_go_to_the_lower_index() -> None:
    assert chosen_at(one(), 15, scores=given([1.0, 2.0, 1.0, 1.0])) == [0, 1]
    assert chosen_at(one(), 15, scores=given([0.0, 0.0, 0.0, 0.0])) == [0, 1]


def test_alike_keys_tie_exactly_after_pooling_and_after_the_softmax() -> None:
    q, _, v = tensors(2, 1, 64)
    same = torch.randn(1, 1, 1, 4).expand(1, 1, 64, 4)
    assert chosen_at(one(score=PooledScore("mean"), share="group"), 63, inputs=(q, same, v[:, :, :64])) == [0, 1]
    assert reference.choose(patterns.nsa(4, 4, 4, n=3, keep=None), q, same, v)["selected"][0, 0, 63].tolist() == [0, 1, 2]


def test_only_blocks_that_begin_by_the_query_are_chosen() -> None:
    scores = given([0.0, 1.0, 2.0, 3.0])
    assert chosen_at(one(), 3, scores=scores) == [0]
    assert chosen_at(one(), 4, scores=scores) == [0, 1]
    assert chosen_at(one(), 11, scores=scores) == [1, 2]
    assert chosen_at(one(), 12, scores=scores) == [2, 3]


def test_fewer_candidates_than_places_means_all_of_them() -> None:
    indices = reference.choose(one(count=9), *tensors(), scores=given([0.0] * 4))["only"]
    assert indices.dtype == torch.int32
    assert indices.shape == (1, 1, 16, 9)
    assert indices[0, 0, 5].tolist() == [0, 1, -1, -1, -1, -1, -1, -1, -1]


def test_nan_counts_as_the_least_score_and_infinity_does_not_displace_kept_blocks() -> None:
    assert chosen_at(one(), 15, scores=given([math.nan, -1.0, -math.inf, -2.0])) == [1, 3]
    assert chosen_at(one(), 15, scores=given([math.nan, -math.inf, math.nan, -1e30])) == [0, 3]
    assert chosen_at(one(count=1, keep=patterns.back(1)), 15, scores=given([math.inf, 0.0, 0.0, 0.0])) == [3]


def test_kept_blocks_count_inside_n_and_extra_ones_outside() -> None:
    scores = given([0.0, 3.0, 2.0, 1.0])
    assert chosen_at(one(keep=patterns.first(1)), 15, scores=scores) == [0, 1]
    assert chosen_at(one(keep_extra=patterns.first(1)), 15, scores=scores) == [0, 1, 2]
    # An extra block does not compete: block 1 takes no place of the two.
    extra = Compare("==", Var("j"), Const(1))
    assert chosen_at(one(keep_extra=extra), 15, scores=scores) == [1, 2, 3]
    assert reference.choose(one(keep_extra=extra), *tensors(), scores=scores)["only"].shape[-1] == 3
    # Kept blocks must begin by the query all the same, and too many of them yield from the back.
    assert chosen_at(one(keep=Compare(">=", Var("j"), Const(0))), 7, scores=scores) == [0, 1]
    assert chosen_at(one(keep=Compare(">=", Var("j"), Const(1))), 15, scores=scores) == [1, 2]


def test_a_run_follows_its_first_query() -> None:
    pattern = patterns.asa_global(b=4, n=2)
    pattern_each = patterns.pattern("each", *(patterns.asa_global(b=4, n=2).branches), output=pattern.output)
    q, k, v = tensors(4, 2, 30)
    by_run = reference.choose(pattern, q, k, v)["selected"]
    assert by_run.shape[2] == 8
    moved = q.clone()
    moved[:, :, [each for each in range(30) if each % 4]] = torch.randn(1, 4, 22, 4)
    assert torch.equal(reference.choose(pattern_each, moved, k, v)["selected"], by_run)
    mask = reference.mask(pattern, 30, 4, 2, {"selected": by_run})["selected"]
    for i in range(30):
        for h in range(4):
            blocks = by_run[0, h // 2, i // 4].tolist()
            assert mask[0, h, i].tolist() == [j <= i and j // 4 in blocks for j in range(30)]


def test_a_run_cannot_choose_what_begins_after_its_first_query() -> None:
    scores = torch.tensor([0.0, 1.0, 2.0, 3.0]).expand(1, 1, 2, -1)
    assert chosen_at(one(every=8), 1, scores=scores) == [1, 2]


def test_a_tile_chooses_by_its_mean_query_as_its_last_one_sees() -> None:
    pattern = one(queries=8, score=PooledScore("mean"), share="group", count=1)
    q, k, v = tensors(2, 1, 20)
    scores = reference.scores(pattern, q, k, v)["only"]
    assert scores.shape == (1, 1, 3, 5)
    for tile, (start, end) in enumerate([(0, 8), (8, 16), (16, 20)]):
        for block in range(5):
            expected = float((q[0, :, start:end].double().mean(1).sum(0)) @ k[0, 0, block * 4 : block * 4 + 4].double().mean(0))
            assert float(scores[0, 0, tile, block]) == (pytest.approx(expected, rel=1e-5) if block * 4 + 3 < end else -math.inf)


@pytest.mark.parametrize("by", ["mean", "max", "minmax"])
@pytest.mark.parametrize(("share", "reduce"), [("group", "sum"), ("head", "sum"), ("all", "mean"), ("group", "max")])
def test_pooled_scores_are_products_with_finished_blocks(by: Any, share: Any, reduce: Any) -> None:
    q, k, v = tensors(4, 2, 18)
    scores = reference.scores(one(score=PooledScore(by), share=share, reduce=reduce), q, k, v)["only"]
    members = {"group": [[0, 1], [2, 3]], "head": [[0], [1], [2], [3]], "all": [[0, 1, 2, 3]]}[share]
    for unit, heads in enumerate(members):
        for i in (2, 3, 10, 17):
            for block in range(5):
                keys = [k[0, h // 2, block * 4 : block * 4 + 4].double() for h in heads]
                queries = [q[0, h, i].double() for h in heads]
                match by:
                    case "mean":
                        single = [float(a @ b.mean(0)) for a, b in zip(queries, keys, strict=True)]
                    case "max":
                        single = [float(a @ b.amax(0)) for a, b in zip(queries, keys, strict=True)]
                    case _:
                        single = [float(torch.maximum(a * b.amax(0), a * b.amin(0)).sum()) for a, b in zip(queries, keys, strict=True)]
                expected = {"sum": sum(single), "mean": sum(single) / len(single), "max": max(single)}[reduce]
                finished = block * 4 + 3 <= i
                assert float(scores[0, unit, i, block]) == (pytest.approx(expected, rel=1e-5, abs=1e-6) if finished else -math.inf)


def test_an_unfinished_block_is_pooled_by_nobody_and_taken_through_keep_only() -> None:
    assert chosen_at(one(score=PooledScore("mean"), share="group", count=3), 6) == [0]
    assert chosen_at(one(score=PooledScore("mean"), share="group", count=3, keep=patterns.back(1)), 6) == [0, 1]


def test_moba_takes_its_own_block_and_the_best_finished_ones() -> None:
    q, k, v = tensors(2, 1, 40)
    chosen = reference.choose(patterns.moba(8, 3), q, k, v)["only"]
    for h in range(2):
        for i in range(40):
            finished = sorted(range(i // 8), key=lambda b: -float(q[0, h, i].double() @ k[0, 0, 8 * b : 8 * b + 8].double().mean(0)))
            expected = sorted([*finished[:2], i // 8])
            assert chosen[0, h, i].tolist() == expected + [-1] * (3 - len(expected))


def test_a_threshold_takes_what_exceeds_it() -> None:
    over = one(rule="over", count=None, threshold=1.0, keep=patterns.first(1))
    assert chosen_at(over, 15, scores=given([0.0, 1.0, 1.5, math.nan])) == [0, 2]
    assert chosen_at(over, 3, scores=given([0.0, 1.0, 1.5, 2.0])) == [0]


def test_mass_takes_the_fewest_best_blocks_and_keep_adds() -> None:
    scores = given([1.0, 4.0, 3.0, 2.0])
    assert chosen_at(one(rule="mass", count=None, threshold=0.7), 15, scores=scores) == [1, 2]
    assert chosen_at(one(rule="mass", count=None, threshold=0.75), 15, scores=scores) == [1, 2, 3]
    assert chosen_at(one(rule="mass", count=None, threshold=1.0), 7, scores=scores) == [0, 1]
    assert chosen_at(one(rule="mass", count=None, threshold=0.4, keep=patterns.back(1)), 15, scores=scores) == [1, 3]
    assert chosen_at(one(rule="mass", count=None, threshold=0.4), 15, scores=given([0.0] * 4)) == []


def test_among_bounds_the_candidates() -> None:
    coarse = patterns.choice("coarse", score=GivenScores(), block=8, count=1, share="all")
    fine = patterns.choice("fine", score=GivenScores(), block=4, count=2, share="head", among="coarse", keep=patterns.first(1))
    where = conjunction(CAUSAL, Chosen("fine"))
    pattern = patterns.pattern("two", patterns.branch("coarse", CAUSAL, choices=(coarse,)), patterns.branch("fine", where, choices=(fine,)))
    q, k, v = tensors(2, 1, 22)
    scores = {"coarse": torch.tensor([0.0, 2.0, 1.0]).expand(1, 1, 22, 3), "fine": torch.arange(6.0).expand(1, 2, 22, 6)}
    chosen = reference.choose(pattern, q, k, v, scores=scores)
    assert list(chosen) == ["coarse", "fine"]
    assert chosen["fine"][0, 1, 21].tolist() == [0, 3]
    assert chosen["fine"][0, 1, 7].tolist() == [0, 1]
    assert chosen["fine"][0, 0, 9].tolist() == [0, 2]


def test_given_indices_are_a_set() -> None:
    pattern = one(score=GivenIndices(), count=4)
    q, k, v = tensors()
    indices = torch.tensor([3, -1, 0, 3]).expand(1, 1, 16, 4)
    assert chosen_at(pattern, 15, indices=indices) == [0, 3]
    assert chosen_at(pattern, 11, indices=indices) == [0]
    wild = torch.tensor([3, -7, 0, 4]).expand(1, 1, 16, 4)
    assert torch.equal(
        torch.as_tensor(reference.attend(pattern, q, k, v, indices=wild)),
        torch.as_tensor(reference.attend(pattern, q, k, v, choices={"only": indices})),
    )


def test_two_choices_of_a_branch_are_one_softmax_over_the_union() -> None:
    choices = tuple(patterns.choice(name, score=GivenIndices(), block=block, share="all") for name, block in (("only", 4), ("only_2", 2)))
    where = conjunction(CAUSAL, patterns.disjunction(Chosen("only"), Chosen("only_2")))
    q, k, v = tensors()
    indices = {"only": torch.tensor([0, 1]).expand(1, 1, 16, 2), "only_2": torch.tensor([1, 5]).expand(1, 1, 16, 2)}
    out = reference.attend(patterns.pattern("union", patterns.branch("only", where, choices=choices)), q, k, v, indices=indices)
    seen = torch.tensor([[j <= i and (j // 4 in (0, 1) or j // 2 in (1, 5)) for j in range(16)] for i in range(16)])
    score = (q.double() @ k.double().mT / 2).masked_fill(~seen, -math.inf)
    assert isinstance(out, Tensor)
    torch.testing.assert_close(out, score.softmax(-1) @ v.double())


def test_the_choice_carries_no_gradient() -> None:
    """With one block to choose and all keys of it alike to the softmax, the scores are the only way to q."""
    q, k, v = tensors(2, 1, 8)
    q.requires_grad_()
    given_scores = (q.sum(-1).sum(1, keepdim=True)[..., None] * torch.ones(2)).requires_grad_()
    out = reference.attend(one(count=1), q, torch.zeros_like(k), v, scores=given_scores)
    assert isinstance(out, Tensor)
    (grad,) = torch.autograd.grad(out.sum(), q)
    assert not grad.any()


def test_a_dead_branch_may_give_scores() -> None:
    base = patterns.nsa()
    pattern = patterns.pattern("dead", *base.branches[:2])
    q, k, v = tensors(2, 1, 30)
    assert torch.equal(reference.choose(pattern, q, k, v)["selected"], reference.choose(base, q, k, v)["selected"])


def test_what_has_no_meaning_is_named() -> None:
    q, k, v = tensors()
    scores = {"scores": given([0.0] * 4)}
    index = patterns.choice("fine", score=GivenScores(), block=4, share="all", among="coarse")
    coarse = patterns.choice("coarse", score=GivenScores(), block=8, share="head")
    where = conjunction(CAUSAL, Chosen("fine"))
    refused: list[tuple[Pattern, dict[str, Any], str]] = [
        (one(score=IndexScore(2, 4)), {}, "index"),
        (one(rule="mass", threshold=0.5, score=PooledScore("max")), {}, "mass"),
        (one(every=2, queries=2), scores, "every"),
        (one(keep=SameDocument()), scores, "keep"),
        (one(keep=Compare("<", Var("j"), Var("h"))), scores, "keep"),
        (
            patterns.pattern("two", patterns.branch("coarse", CAUSAL, choices=(coarse,)), patterns.branch("fine", where, choices=(index,))),
            {"scores": {"fine": given([0.0] * 4), "coarse": torch.zeros(1, 2, 16, 2)}},
            "among",
        ),
    ]
    for pattern, call, text in refused:
        with pytest.raises(reference.NotSupported, match=text):
            reference.choose(pattern, q, k, v, **call)
    for call in ({}, {"scores": given([0.0] * 3)}):
        with pytest.raises(ValueError, match="only"):
            reference.choose(one(), q, k, v, **call)


def test_keep_may_differ_by_head_when_heads_choose_apart() -> None:
    pattern = one(share="head", count=1, keep=Compare("==", Var("j"), Var("h")))
    indices = reference.choose(pattern, *tensors(), scores=torch.zeros(1, 2, 16, 4))["only"]
    assert indices[0, :, 15, 0].tolist() == [0, 1]


def test_a_score_may_come_from_tokens() -> None:
    """Every token is a slot of its own: a block's score is the probability of its tokens."""
    selected = patterns.choice(block=4, count=1, score=BranchScore("all_tokens"))
    pattern = patterns.pattern(
        "tokens",
        patterns.branch("all_tokens", CAUSAL),
        patterns.branch("selected", conjunction(CAUSAL, Chosen("selected")), choices=(selected,)),
    )
    q, k, v = tensors()
    probability = (q[0, :, 15].double() @ k[0, 0].double().T / 2).softmax(-1).sum(0)
    torch.testing.assert_close(reference.scores(pattern, q, k, v)["selected"][0, 0, 15], probability.unflatten(0, (4, 4)).sum(-1).float())
