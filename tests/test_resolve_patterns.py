"""Patterns: memories, branches, choices, outputs and claims."""

from __future__ import annotations

import pytest

from nsa_dsl.diagnostics import SpecError
from nsa_dsl.loader import load_spec
from nsa_dsl.pattern import (
    Bound,
    Branch,
    BranchScore,
    Choice,
    Compress,
    GivenIndices,
    GivenScores,
    IndexScore,
    Output,
    Pattern,
    PooledScore,
    Reach,
    Score,
    Tokens,
    Within,
)
from nsa_dsl.relation import CAUSAL, FULL, All, Chosen, Compare, Const, Either, Not, SameDocument, Var

_FIRST = Compare("<", Var("j"), Const(4))


def _pattern(body: str, parameters: str = "") -> Pattern:
    return load_spec(f"pattern p({parameters}) {{\n{body}\n}}\n").pattern("p")


def _choice(text: str, before: str = "", flags: str = "") -> Choice:
    overview = "overview = attend(compress(block = 32, stride = 16, by = mean), causal)\n"
    return (
        _pattern(f"{flags}\n{overview}{before}\nselected = attend(tokens, causal & {text})\noutput gate(overview, selected)")
        .branch("selected")
        .choices[-1]
    )


def test_the_defaults_of_a_choice() -> None:
    assert _choice("top(16, block = 64, by = overview, share = group)") == Choice(
        "selected", "top", 16, None, 64, BranchScore("overview"), "group", "sum", 1, 1, None, None, None
    )


def test_every_argument_of_a_choice() -> None:
    made = _choice(
        "mass(0.9, block = 16, by = scores, share = all, reduce = max, queries = 8, keep = first(4), keep_extra = causal, among = coarse)",
        before="coarse = attend(tokens, causal & top(2, block = 64, by = mean, share = all))",
        flags="allow lookahead",
    )
    assert made == Choice("selected", "mass", None, 0.9, 16, GivenScores(), "all", "max", 1, 8, _FIRST, CAUSAL, "coarse")


@pytest.mark.parametrize(
    ("by", "score"),
    [
        ("mean", PooledScore("mean")),
        ("max", PooledScore("max")),
        ("minmax", PooledScore("minmax")),
        ("scores", GivenScores()),
        ("indices", GivenIndices()),
        ("index(64, dim = 128)", IndexScore(64, 128)),
        ("overview", BranchScore("overview")),
    ],
)
def test_scores(by: str, score: Score) -> None:
    assert _choice(f"top(4, block = 16, by = {by}, share = head)").score == score


def test_over_takes_a_threshold_of_either_sign() -> None:
    assert _choice("over(-0.5, block = 16, by = mean, share = head)").threshold == -0.5
    assert _choice("over(threshold = 2, block = 16, by = mean, share = head)").threshold == 2.0


def test_options_may_come_from_parameters() -> None:
    made = _pattern(
        "output attend(tokens, causal & top(2, block = 4, by = by, share = share, reduce = how), softcap = cap)",
        "by = minmax, share = all, how = mean, cap = 2.5",
    )
    choice = made.branch("output").choices[0]
    assert (choice.score, choice.share, choice.reduce) == (PooledScore("minmax"), "all", "mean")
    assert made.branch("output").softcap == 2.5


def test_equal_choices_written_twice_are_two() -> None:
    text = "top(2, block = 4, by = scores, share = head)"
    branch = _pattern(f"a_2 = attend(tokens, causal)\na = attend(tokens, {text} | {text} | {text})\noutput gate(a, a_2)").branch("a")
    assert [each.name for each in branch.choices] == ["a", "a_3", "a_4"]
    assert branch.where == Either((Chosen("a"), Chosen("a_3"), Chosen("a_4")))


def test_a_choice_stands_wherever_a_relation_may() -> None:
    text = "top(2, block = 4, by = scores, share = head)"
    branch = _pattern(f"a = attend(tokens, (causal - {text} | first(4)) & document)\noutput a").branch("a")
    assert branch.where == All((Either((All((CAUSAL, Not(Chosen("a")))), _FIRST)), SameDocument()))


def test_a_choice_that_folds_away_is_not_listed() -> None:
    branch = _pattern("a = attend(tokens, full | top(2, block = 4, by = scores, share = head))\noutput a").branch("a")
    assert (branch.where, branch.choices) == (FULL, ())


def test_a_chain_of_choices_among_each_other() -> None:
    made = _pattern(
        """coarse = attend(tokens, causal & top(8, block = 128, by = mean, share = all))
        fine = attend(tokens, causal & top(64, block = 1, by = index(4, 32), share = all, among = coarse))
        output fine"""
    )
    assert made.branch("fine").choices[0].among == "coarse"
    assert [each.name for each in made.outputs] == ["fine"]
    assert [each.name for each in made.branches] == ["coarse", "fine"]


def test_every_argument_of_a_branch() -> None:
    made = _pattern("a = attend(tokens, causal, scale = 0.5, softcap = 30, bias = alibi, sink = learned, skip = 0.01)\noutput a")
    assert made.branch("a") == Branch("a", Tokens(), CAUSAL, (), 0.5, 30.0, "alibi", True, 0.01)


def test_a_memory_inside_a_branch_takes_its_name() -> None:
    made = _pattern("a = attend(compress(block = 4, stride = 8, by = weighted), where = causal)\noutput a")
    assert made.memories == (Compress("a", 4, 8, "weighted"),)
    assert made.branch("a").memory == made.memories[0]
    assert made.branch("a").where == CAUSAL


@pytest.mark.parametrize(
    ("output", "wanted"),
    [
        ("gate(b, a)", Output("gate", ("b", "a"))),
        ("mix(a, b)", Output("mix", ("a", "b"))),
        ("merge(a, b)", Output("merge", ("a", "b"))),
        ("b", Output("single", ("b",))),
        ("attend(tokens, full)", Output("single", ("output",))),
    ],
)
def test_outputs(output: str, wanted: Output) -> None:
    assert _pattern(f"a = attend(tokens, causal)\nb = attend(tokens, first(4))\noutput {output}").output == wanted


def test_flags_and_claims() -> None:
    made = _pattern(
        """kv per branch
        allow lookahead
        output attend(tokens, causal)
        assert causal | first(w)
        assert reach causal within w // 2
        assert density <= 0.5 at 64k
        assert kv <= 1_000 at w""",
        "w = 4",
    )
    assert (made.kv_per_branch, made.allow_lookahead) == (True, True)
    assert made.claims == (
        Within(Either((CAUSAL, _FIRST)), "assert causal | first(w)"),
        Reach(CAUSAL, 2, "assert reach causal within w // 2"),
        Bound("density", 0.5, 65_536, "assert density <= 0.5 at 64k"),
        Bound("kv", 1000.0, 4, "assert kv <= 1000 at w"),
    )


def test_a_pattern_may_have_the_name_of_a_relation() -> None:
    made = load_spec("pattern causal { output attend(tokens, causal) }\n").pattern("causal")
    assert made.branch("output").where == CAUSAL


def test_the_text_is_the_declaration_formatted() -> None:
    made = load_spec("# about\npattern   p{ output attend( tokens,causal ) }").pattern("p")
    assert made.text.endswith("pattern p { output attend(tokens, causal) }")


def test_a_failed_binding_is_reported_where_it_fails_only() -> None:
    text = """pattern p {
    summary = compress(block = 0, stride = 16, by = mean)
    overview = attend(summary, causal)
    selected = attend(tokens, causal & top(4, block = 16, by = overview, share = head))
    fine = attend(tokens, causal & top(4, block = 16, by = mean, share = head, among = selected))
    output gate(overview, selected, fine)
}
"""
    with pytest.raises(SpecError) as caught:
        load_spec(text)
    assert [each.code for each in caught.value.diagnostics] == ["too-small"]


@pytest.mark.parametrize("block", range(1, 60))
def test_selected_blocks_are_whole_strides_and_the_help_is_right(block: int) -> None:
    def text(size: int) -> str:
        return f"""pattern p {{
    overview = attend(compress(block = 8, stride = 12, by = mean), causal)
    selected = attend(tokens, causal & top(4, block = {size}, by = overview, share = head))
    output gate(overview, selected)
}}
"""

    if block % 12 == 0:
        load_spec(text(block))
        return
    with pytest.raises(SpecError) as caught:
        load_spec(text(block))
    (diagnostic,) = caught.value.diagnostics
    legal = -(-block // 12) * 12
    assert diagnostic.help == (f"use block = {legal}, the next multiple of 12",)
    load_spec(text(legal))


def test_keep_is_in_blocks_and_counts_inside_n() -> None:
    text = "top({n}, block = 16, by = overview, share = group, keep = first(1) | window(2))"
    assert _choice(text.format(n=3)).count == 3
    with pytest.raises(SpecError, match="keep-exceeds-count"):
        _choice(text.format(n=2))
    assert _choice("top(1, block = 16, by = overview, share = group, keep_extra = window(4))").keep_extra is not None


def test_keep_may_differ_by_head_when_heads_choose_alone() -> None:
    assert _choice("top(1, block = 16, by = overview, share = head, keep = { i, j, h : j == h })").keep is not None
