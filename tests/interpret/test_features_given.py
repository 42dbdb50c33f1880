"""Choices that the caller decides, by scores or as indices: alone, and joined by | & - with relations and each other."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from interpret.support import CPU, USUAL, agree, agree_on, call, compiled, inputs_of, parse, refuse

from nsa_dsl.arguments import ArgumentError
from nsa_dsl.compare import check_choice, check_rows
from nsa_dsl.verify.checks import check_visibility

GROUP = "top(3, block = 4, by = scores, share = group, every = 2)"
HEAD = "top(3, block = 3, by = scores, share = head, every = 2)"
ALL = "top(1, block = 7, by = scores, share = all, every = 4)"
RUNS = "top(2, block = 5, by = scores, share = group, every = 6)"

WHERES = {
    "alone, past the query": "top(3, block = 4, by = scores, share = group)",
    "with what is near": f"causal & (first(3) | window(5) | {GROUP})",
    "tokens, one softmax": "first(3) & causal | window(5) | top(5, block = 1, by = scores, share = head)",
    "less what is first": f"causal & {GROUP} - first(3)",
    "all but the chosen": f"causal - {GROUP}",
    "a window but the chosen": f"window(12) - {RUNS}",
    "one or the other": f"causal & ({GROUP} | {HEAD})",
    "one and the other": f"causal & {GROUP} & {HEAD}",
    "one but not the other": f"causal & ({RUNS} - {HEAD})",
    "one but not the other, or near": f"causal & ({RUNS} - {ALL} | window(2))",
    "three": f"causal & ({RUNS} | {ALL} & window(20) | {GROUP} | window(2))",
    "three, with differences": f"(around(20, 3) - {RUNS}) | {ALL} - {GROUP}",
    "both ways": f"around(4, 6) | {RUNS}",
    "all options": f"causal & ({RUNS} | first(2)), bias = alibi, softcap = 4, sink = learned, scale = 0.4",
}

RELATIONS = {
    "by head, or a group's choice": ("{ i, j, h : (j + h) % 3 == 0 }", "causal & (kept | {})"),
    "by head, and a group's choice": ("{ i, j, h : (j + h) % 3 == 0 }", "causal & kept & {}"),
    "of the length": ("{ i, j : j >= N - 5 }", "kept | causal & {}"),
}


@pytest.mark.parametrize("name", WHERES)
def test_one_softmax(name: str) -> None:
    agree(f"output attend(tokens, {WHERES[name]})", tokens=27, heads=2, kv_heads=1, dtype="fp16" if "window" in name else "fp32")


@pytest.mark.parametrize("name", RELATIONS)
def test_relations_beside_a_choice(name: str) -> None:
    relation, where = RELATIONS[name]
    agree(f"relation kept = {relation} pattern p {{ output attend(tokens, {where.format(RUNS)}) }}", tokens=31)


@pytest.mark.parametrize("where", [f"causal & document & {GROUP}", f"document & (around(9, 4) | causal & {RUNS} | {ALL})"])
@pytest.mark.parametrize("seed", [0, 1])
def test_documents(where: str, seed: int) -> None:
    agree(f"output attend(tokens, {where})", tokens=27, heads=2, kv_heads=1, documents=4, seed=seed)


def test_more_rows_than_one_program_holds() -> None:
    agree(f"output attend(tokens, causal & (window(3) | {RUNS.replace('every = 6', 'every = 12')}))", tokens=30, heads=14)


@pytest.mark.parametrize("output", ["merge(a, b)", "merge(b, a)"])
def test_merged_with_a_static_branch(output: str) -> None:
    agree(f"a = attend(tokens, causal & {RUNS} - window(6)) b = attend(tokens, window(6)) output {output}", tokens=27, heads=2, kv_heads=1)


def test_merged_with_slots() -> None:
    text = f"a = attend(tokens, causal & {RUNS}) b = attend(compress(block = 4, stride = 2, by = mean), causal) output merge(b, a)"
    agree(text, tokens=27, heads=2, kv_heads=1)


@pytest.mark.parametrize("block", [1, 3, 15, 16, 17, 20, 32, 33])
@pytest.mark.parametrize("by", ["scores", "indices"])
def test_blocks_against_tiles(block: int, by: str) -> None:
    agree(f"output attend(tokens, causal & top(2, block = {block}, by = {by}, share = group, every = 5))", tokens=49, heads=2, kv_heads=1)


@pytest.mark.parametrize("count", [1, 2, 7, 70])
def test_counts(count: int) -> None:
    agree(
        f"output attend(tokens, causal & top({count}, block = 2, by = scores, share = head, every = 4, keep_extra = window(1)))", tokens=33
    )


# -- which blocks -----------------------------------------------------------------------------------------------------------

TIES = "output attend(tokens, causal & top(3, block = 2, by = scores, share = all))"


@pytest.mark.parametrize(
    "scores",
    [
        [1.0] * 10,
        [0.0, -0.0, 0.0, -0.0, 1.0, -0.0, 0.0, 0.0, -1.0, 0.0],
        [-0.0, 0.0, -0.0, 0.0, -0.0, 0.0, -0.0, -1.0, -1.0, 1e-45],
        [float("nan"), -5.0, float("nan"), -9.0, 2.0, float("nan"), -1e38, 1.0, float("nan"), 0.0],
        [float("nan")] * 10,
        [-5.0, -4.0, -4.0, -3.0, -4.0, -3.5, -3.0, -2.0, -4.0, -4.0],
        [1e-40, 2e-40, -1e-40, 3e-39, 1e38, -1e38, 1e38, 3e38, 0.0, 1e-40],
        [float("inf"), 1.0, float("inf"), float("-inf"), float("inf"), 5.0, float("inf"), 1.0, 2.0, 3.0],
    ],
)
def test_ties_go_to_the_lower_block(scores: list[float]) -> None:
    pattern, case = parse(TIES), replace(USUAL, tokens=20, heads=1, kv_heads=1)
    inputs = inputs_of(pattern, case)
    row = torch.tensor(scores)
    chosen = compiled(pattern, case).choose(inputs.q, inputs.k, inputs.v, scores=row.expand(1, 1, 20, 10))["output"]
    order = torch.where(row.isnan(), -torch.inf, row).sort(descending=True, stable=True).indices.tolist()
    for i in range(20):
        best = [each for each in order if 2 * each <= i][:3]
        assert chosen[0, 0, i].tolist() == sorted(best) + [-1] * (3 - len(best))


def test_kept_blocks_are_taken_before_any_score() -> None:
    pattern = parse("output attend(tokens, causal & top(2, block = 2, by = scores, share = all, keep = first(1)))")
    case = replace(USUAL, tokens=12, heads=1, kv_heads=1)
    inputs = inputs_of(pattern, case)
    scores = torch.tensor([float("-inf"), 1.0, float("inf"), float("inf"), float("nan"), 2.0]).expand(1, 1, 12, 6)
    chosen = compiled(pattern, case).choose(inputs.q, inputs.k, inputs.v, scores=scores)["output"]
    assert chosen[0, 0, ::2].tolist() == [[0, -1], [0, 1], [0, 2], [0, 2], [0, 2], [0, 2]]


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize("argument", ["indices", "choices"])
def test_indices_in_any_order(dtype: torch.dtype, argument: str) -> None:
    """Repeated, negative, in the future and out of range: the last three are as if they were not there."""
    text = "output attend(tokens, causal & top(6, block = 40, by = indices, share = group, every = 3))"
    pattern, case = parse(text), replace(USUAL, tokens=130, heads=2, kv_heads=1)
    inputs = inputs_of(pattern, case)
    far = min(torch.iinfo(dtype).max, 2**32 + 1)
    listed = torch.tensor([2, -1, 0, far, 2, 3], dtype=dtype).expand(1, 1, 44, 6)
    options = {argument: {"output": listed}}
    chosen = compiled(pattern, case).choose(inputs.q, inputs.k, inputs.v, **options)["output"]
    expected = [[block for block in (0, 2, 3) if 40 * block <= 3 * unit] for unit in range(44)]
    assert chosen[0, 0].tolist() == [each + [-1] * (6 - len(each)) for each in expected]
    with pytest.raises(ArgumentError, match="out of range: 130 tokens make 4"):
        compiled(pattern, case)(inputs.q, inputs.k, inputs.v, **options, validate=True)


def test_validated_indices_pass() -> None:
    pattern, case = parse("output attend(tokens, causal & top(2, block = 4, by = indices, share = all))"), replace(USUAL, tokens=9)
    inputs = inputs_of(pattern, case)
    listed = torch.tensor([2, -1]).expand(1, 1, 9, 2)
    op = compiled(pattern, case)
    assert torch.equal(op(inputs.q, inputs.k, inputs.v, indices=listed), op(inputs.q, inputs.k, inputs.v, indices=listed, validate=True))


def test_fixed_choices_replace_what_would_be_chosen() -> None:
    """Two equal choices, of which one is fixed: the other still goes by its scores."""
    text = (
        "a = attend(tokens, causal & top(1, block = 4, by = mean, share = all, keep = window(1))) "
        "b = attend(tokens, causal & top(1, block = 4, by = mean, share = all, keep = window(1))) output gate(a, b)"
    )
    pattern, case = parse(text), replace(USUAL, tokens=12, heads=2, kv_heads=1)
    inputs = inputs_of(pattern, case)
    fixed = torch.zeros(1, 1, 12, 1, dtype=torch.int32)
    chosen = compiled(pattern, case).choose(inputs.q, inputs.k, inputs.v, choices={"b": fixed})
    assert torch.equal(chosen["b"], fixed)
    assert chosen["a"].flatten().tolist() == [i // 4 for i in range(12)]
    inputs.options["choices"] = {"b": fixed}
    (out, _), (expected, _), _ = call(text, inputs, tokens=12, heads=2, kv_heads=1)
    refuse(check_rows(out, expected, expected))


def test_scores_of_several_choices_and_any_strides() -> None:
    text = f"output attend(tokens, causal & ({GROUP} | {ALL}))"
    case = replace(USUAL, tokens=21)
    pattern = parse(text)
    inputs = inputs_of(pattern, case)
    inputs.options["scores"] = {
        name: torch.full((*each.shape[:3], 2 * each.shape[3]), torch.nan)[..., ::2].copy_(each).transpose(1, 2).contiguous().transpose(1, 2)
        for name, each in inputs.options["scores"].items()
    }
    agree_on(text, inputs, tokens=21)


def test_chosen_blocks_and_scores_are_told_apart() -> None:
    """A check of the checks: a choice one block off is refused."""
    ranking = torch.tensor([3.0, 2.0, 1.0, -torch.inf])
    assert not check_choice(torch.tensor([0, 1]), ranking, 2, margin=0.0)
    assert check_choice(torch.tensor([0, 2]), ranking, 2, margin=0.0)
    refuse(check_visibility(compiled(parse(TIES), USUAL), replace(USUAL, tokens=5), CPU))
