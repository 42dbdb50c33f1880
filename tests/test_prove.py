"""Proofs and counterexamples against brute force, and the claims of patterns and models."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from patterns import branch, choice, pattern, single
from strategies import I, J, minus, plus, relations, window

from nsa_dsl.integer_set import TooComplex
from nsa_dsl.pattern import Bound, BranchScore, Compress, GivenIndices, Layer, Model, Output, Reach, Within
from nsa_dsl.prove import Pair, check_claims, counterexample, disjoint, leaks
from nsa_dsl.relation import CAUSAL, FULL, All, Chosen, Compare, Const, Either, Modulo, SameDocument, Scale, Var, conjunction, negate

SMALL = 7
SUMMARY = Compress("summary", 8, 4, "mean")
CAUSALLY = Within(CAUSAL, "assert causal")


def first_pair(relation):
    """The smallest allowed pair of two heads by trying all; None if none is shorter than SMALL."""
    for n in range(1, SMALL):
        for i in range(n):
            for j in range(n):
                for same in (True, False) if i != j else (True,):
                    for h in range(2):
                        if Pair(n, i, j, h, 2, 1, same).allowed_by(relation):
                            return n
    return None


@settings(max_examples=60)
@given(relations(), relations())
def test_a_counterexample_holds_and_a_proof_leaves_none(inner, outer):
    try:
        found = counterexample(inner, outer)
    except TooComplex:
        return
    outside = conjunction(inner, negate(outer))
    if found is not None:
        assert found.allowed_by(outside)
    shortest = first_pair(outside)
    assert shortest is None or (found is not None and found.n <= shortest)


def test_a_window_is_causal_and_the_other_way_round_is_refuted():
    assert counterexample(window(4), CAUSAL) is None
    assert counterexample(CAUSAL, window(4)) == Pair(5, 4, 0, 0)
    assert counterexample(window(5), window(4)) == Pair(5, 4, 0, 0)


def test_a_slot_seen_from_its_start_leaks():
    starts = Compare("<=", Scale(16, J), I)
    ends = Compare("<=", plus(Scale(16, J), 31), I)
    assert str(counterexample(starts, ends)) == "N = 1: query 0 sees key 0"


def test_disjointness_finds_the_pair_that_both_allow():
    assert disjoint(window(4), All((CAUSAL, Compare(">=", minus(I, J), Const(4))))) is None
    assert disjoint(window(4), All((CAUSAL, Compare(">=", minus(I, J), Const(3))))) == Pair(4, 3, 0, 0)


def test_documents_are_considered_whole_and_apart():
    packed = All((CAUSAL, SameDocument()))
    assert counterexample(packed, SameDocument()) is None
    found = counterexample(CAUSAL, SameDocument())
    assert found == Pair(2, 1, 0, 0, same_document=False)
    assert str(found) == "N = 2: query 1 sees key 0, of another document"


def test_a_head_is_named_where_it_matters():
    odd = Compare("==", Modulo(Var("h"), 2), Const(1))
    assert str(counterexample(Either((CAUSAL, odd)), CAUSAL)) == "N = 2: query 0 of head 1 sees key 1"


def nsa(**changes):
    """A small sparse pattern with compressed, chosen and windowed branches."""
    picked = choice(**changes)
    return pattern(
        "nsa", branch("compressed", CAUSAL, SUMMARY), branch("selected", All((CAUSAL, Chosen("selected"))), choices=(picked,)),
        branch("windowed", window(16)), output=Output("gate", ("compressed", "selected", "windowed")),
    )  # fmt: skip


def verdicts(subject, *claims):
    return [each.status for each in check_claims(replace(subject, claims=claims))]


def test_a_sparse_pattern_is_proved_causal_for_every_length():
    assert leaks(nsa()) == []
    assert verdicts(nsa(), CAUSALLY) == ["proved"]


def test_a_leak_is_shown_by_its_smallest_pair():
    (verdict,) = check_claims(replace(single(FULL), claims=(CAUSALLY,)))
    assert (verdict.status, verdict.text) == ("refuted", "assert causal")
    assert verdict.detail.startswith("N = 2: query 0 sees key 1")


def test_a_chosen_block_without_causal_may_leak():
    open_choice = pattern("open", branch("only", Chosen("selected"), choices=(choice(score=GivenIndices()),)))
    (verdict,) = check_claims(replace(open_choice, claims=(CAUSALLY,)))
    assert verdict.status == "refuted"
    assert verdict.detail.startswith("N = 2: query 0 may see key 1")


def test_a_scoring_branch_that_is_not_combined_still_leaks():
    dead = pattern(
        "dead", branch("compressed", FULL, SUMMARY),
        branch("selected", All((CAUSAL, Chosen("selected"))), choices=(choice(score=BranchScore("compressed")),)),
    )  # fmt: skip
    (verdict,) = check_claims(replace(dead, claims=(CAUSALLY,)))
    assert verdict.status == "refuted"
    assert verdict.detail == "N = 8: query 0 sees key 1 (branch compressed)"


def test_queries_that_choose_together_look_ahead_unless_allowed():
    assert leaks(nsa(queries=4)) == ["N = 2: query 1 helps to choose for query 0 (selected)"]
    assert leaks(replace(nsa(queries=4), allow_lookahead=True)) == []


def test_densities_are_counted():
    n = 1024
    exact = sum(min(i + 1, 16) for i in range(n)) / n / n
    claims = [Bound("density", exact * factor, n, "assert density") for factor in (1.0001, 0.9999)]
    assert verdicts(single(window(16)), *claims) == ["proved", "refuted"]
    assert verdicts(nsa(), Bound("density", 0.9, n, ""), Bound("density", 0.01, n, "")) == ["proved", "refuted"]


def test_what_data_decides_stays_open():
    chosen = pattern("chosen", branch("only", All((CAUSAL, Chosen("selected"))), choices=(choice(),)))
    assert verdicts(chosen, Bound("density", 0.001, 1024, "")) == ["undecided"]
    assert verdicts(chosen, Reach(CAUSAL, 1, "")) == ["undecided"]
    assert verdicts(chosen, Bound("kv", 1e6, 1024, "")) == ["undecided"]


def model(*patterns):
    return Model("stack", (), tuple(Layer(each, ()) for each in patterns), (), "")


def test_reach_composes_layers():
    strided = single(All((CAUSAL, Compare("==", Modulo(minus(I, J), 4), Const(0)))))
    local = single(window(4))
    assert verdicts(model(local, strided), Reach(FULL, 2, "")) == ["proved"]
    assert verdicts(model(local, strided), Reach(FULL, 1, "")) == ["refuted"]
    (verdict,) = check_claims(replace(model(local, local), claims=(Reach(CAUSAL, 2, ""),)))
    assert verdict.detail == "N = 8: key 0 does not reach query 7"


def test_reach_through_slots_and_a_window():
    summary = Compress("summary", 4, 4, "mean")
    compressed = pattern("global", branch("only", CAUSAL, summary))
    assert verdicts(model(single(window(4)), compressed), Reach(FULL, 2, "")) == ["proved"]
    assert verdicts(model(single(window(2)), compressed), Reach(FULL, 2, "")) == ["refuted"]


def test_a_question_too_hard_is_left_open(monkeypatch):
    monkeypatch.setattr("nsa_dsl.pairs._OPERATIONS", 5)
    assert verdicts(single(window(4)), CAUSALLY) == ["undecided"]
