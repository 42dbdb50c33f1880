"""Choices whose scores the layer computes: by a compressed branch in every proportion, by pooled keys; sharing, runs, kept blocks."""

from __future__ import annotations

from typing import Any

import pytest
from interpret.support import agree, parse

from nsa_dsl.codegen.emit import SCORE_BYTES
from nsa_dsl.compiler import compile_source
from nsa_dsl.launch import LaunchShape
from nsa_dsl.pattern import Pattern

# (slot length, stride, chosen block): NSA's own proportion first, then each relation between the three that there is.
PROPORTIONS = [(4, 2, 8), (4, 4, 4), (3, 2, 6), (8, 2, 4), (3, 5, 10), (5, 3, 6), (3, 1, 4), (30, 4, 4)]

ONE_BLOCK_A_TILE = (17, 1, 16)

# Those in which strides divide blocks into a power of two and no slot reaches past the next block: each slot is then scored once.
ONCE = [(4, 2, 8), (4, 4, 4), (3, 5, 10), (5, 3, 6), (3, 1, 4), ONE_BLOCK_A_TILE]

OPTIONS = {
    "n beyond the blocks": "n = 40",
    "mean over heads": "reduce = mean",
    "max over heads": "reduce = max",
    "runs of three": "every = 3, keep = first(1) | window(1)",
    "runs longer than blocks": "every = 12, keep = window(1)",
    "one run": "every = 64",
    "kept outside n": "keep = first(1), keep_extra = window(2)",
    "kept outside n, in runs": "n = 1, keep_extra = window(2) | first(1), every = 3",
    "the last of the blocks": "keep = { i, j : j == min(i, N // 2) }",
}

BY_HEAD = {
    "keep": "relation kept = { i, j, h : j == i or (j + h) % 3 == 0 and j < 3 }",
    "keep_extra": "relation kept = { i, j, h : (j + h) % 3 == 0 }",
}

BRANCHES = {
    "logits of the scored branch": (
        "c = attend(compress(block = 4, stride = 2, by = mean), causal, softcap = 3, bias = alibi, sink = learned, scale = 0.6) "
        "s = attend(tokens, causal & top(3, block = 4, by = c, share = group)) output gate(c, s)"
    ),
    "a scored branch that sees the future": (
        "c = attend(compress(block = 4, stride = 2, by = mean), around(9, 6)) "
        "s = attend(tokens, causal & top(3, block = 4, by = c, share = group)) output gate(c, s)"
    ),
    "a scored branch that is no output": (
        "c = attend(compress(block = 4, stride = 2, by = max), causal) "
        "s = attend(tokens, causal & top(2, block = 4, by = c, share = group, keep = window(1))) output s"
    ),
    "kv per branch": (
        "kv per branch c = attend(compress(block = 4, stride = 2, by = weighted), causal) "
        "s = attend(tokens, causal & top(3, block = 4, by = c, share = group, keep = window(1))) "
        "w = attend(tokens, window(6)) output mix(c, s, w)"
    ),
    "kv per branch, pooled": (
        "kv per branch s = attend(tokens, causal & top(2, block = 4, by = minmax, share = group, keep = window(1))) "
        "w = attend(tokens, window(6)) output gate(s, w)"
    ),
    "by an mlp": (
        "c = attend(compress(block = 4, stride = 2, by = mlp), causal) "
        "s = attend(tokens, causal & top(2, block = 4, by = c, share = group, every = 2)) output mix(s, c)"
    ),
    "two choices by one branch": (
        "c = attend(compress(block = 4, stride = 2, by = mean), causal) "
        "s = attend(tokens, causal & (top(2, block = 4, by = c, share = group) | top(1, block = 6, by = c, share = all, every = 4))) "
        "output gate(c, s)"
    ),
    "equal choices": (
        "c = attend(compress(block = 4, stride = 2, by = mean), causal) "
        "s = attend(tokens, causal & top(2, block = 4, by = c, share = group)) "
        "t = attend(tokens, causal & top(2, block = 4, by = c, share = group)) output gate(s, t)"
    ),
    "a dead choice": "a = attend(tokens, causal & top(2, block = 4, by = mean, share = all)) b = attend(tokens, window(3)) output b",
}


def compressed(length: int, stride: int, block: int, options: str = "", *, where: str = "causal") -> str:
    """A compressed branch, and one that reads the blocks it points to."""
    return (
        f"c = attend(compress(block = {length}, stride = {stride}, by = mean), {where}) "
        f"s = attend(tokens, {where} & top({'' if 'n =' in options else 'n = 3, '}block = {block}, by = c{options})) output gate(c, s)"
    )


@pytest.mark.parametrize(("length", "stride", "block"), PROPORTIONS)
def test_proportions(length: int, stride: int, block: int) -> None:
    agree(compressed(length, stride, block, ", share = group, every = 3"), visible=False)


def test_blocks_whose_shares_all_come_from_other_tiles() -> None:
    """And a head dimension in two parts, 32 and 8."""
    agree(compressed(*ONE_BLOCK_A_TILE, ", n = 1, share = group, every = 5"), visible=False, tokens=70, heads=2, kv_heads=1, d_qk=40)


@pytest.mark.parametrize(("length", "stride", "block"), [*PROPORTIONS, ONE_BLOCK_A_TILE])
def test_which_slots_are_scored_once(length: int, stride: int, block: int) -> None:
    once = "slots scored once" in compile_source(parse(compressed(length, stride, block, ", share = group")), LaunchShape())
    assert once == ((length, stride, block) in ONCE)


@pytest.mark.parametrize("options", [", share = all", ", share = group, reduce = max"])
def test_heads_that_do_not_add_up_are_scored_apart(options: str) -> None:
    assert "slots scored once" not in compile_source(parse(compressed(4, 2, 8, options)), LaunchShape())


def test_every_query_chooses_for_itself() -> None:
    agree(compressed(4, 2, 8, ", share = group, keep = first(1) | window(2)"), tokens=37)


@pytest.mark.parametrize("share", ["group", "head", "all"])
@pytest.mark.parametrize("reduce", ["sum", "mean", "max"])
def test_sharing(share: str, reduce: str) -> None:
    agree(compressed(4, 2, 4, f", share = {share}, reduce = {reduce}, every = 3"), visible=False, tokens=30)


@pytest.mark.parametrize("name", OPTIONS)
def test_options(name: str) -> None:
    agree(compressed(4, 2, 4, f", share = group, {OPTIONS[name]}"), tokens=24, heads=2, kv_heads=1, batch=2 if "runs" in name else 1)


@pytest.mark.parametrize("by", ["mean", "max", "minmax"])
@pytest.mark.parametrize("share", ["group", "head", "all"])
def test_pooled_keys(by: str, share: str) -> None:
    text = f"output attend(tokens, causal & top(2, block = 5, by = {by}, share = {share}, keep = window(1), every = 3))"
    agree(text, visible=False, dtype="fp16" if share == "head" else "fp32")


@pytest.mark.parametrize("by", ["mean", "max", "minmax"])
def test_pooled_keys_of_unfinished_blocks_are_left_out(by: str) -> None:
    agree(f"output attend(tokens, causal & top(2, block = 4, by = {by}, share = group, reduce = max, every = 6, keep_extra = first(1)))")


@pytest.mark.parametrize("argument", BY_HEAD)
def test_kept_blocks_by_head(argument: str) -> None:
    text = f"output attend(tokens, causal & top(3, block = 4, by = mean, share = head, every = 2, {argument} = kept))"
    agree(f"{BY_HEAD[argument]} pattern p {{ {text} }}", tokens=30)


@pytest.mark.parametrize("name", BRANCHES)
def test_branches(name: str) -> None:
    agree(BRANCHES[name], visible="equal" in name, tokens=22, dtype="fp16" if "kv" in name else "fp32")


@pytest.mark.parametrize("by", ["compressed", "mean"])
def test_scores_of_a_few_queries_at_a_time(by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As at lengths where the scores of all queries would not fit: here some 12 at a time."""

    def with_little_room(pattern: Pattern, shape: LaunchShape) -> str:
        source = compile_source(pattern, shape)
        assert f"SCORE_BYTES = {SCORE_BYTES}\n" in source
        return source.replace(f"SCORE_BYTES = {SCORE_BYTES}\n", "SCORE_BYTES = 400\n")

    monkeypatch.setattr("nsa_dsl.op.compile_source", with_little_room)
    pooled = "output attend(tokens, causal & top(2, block = 4, by = mean, share = group))"
    agree(compressed(4, 2, 4, ", share = group") if by == "compressed" else pooled, visible=False, tokens=30, heads=2, kv_heads=1)


@pytest.mark.parametrize("call", [{"documents": 4}, {"documents": 3, "seed": 3}], ids=str)
def test_documents(call: dict[str, Any]) -> None:
    agree(compressed(4, 2, 4, ", share = group, every = 2", where="causal & document"), tokens=40, heads=2, kv_heads=1, **call)
