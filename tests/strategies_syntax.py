"""Hypothesis strategies for syntax trees: every node kind, with names and comments that try the grammar's corners."""

from __future__ import annotations

import keyword

from hypothesis import strategies as st

from nsa_dsl import syntax as s

RESERVED = frozenset(("and", "or", "not", "union", "use", "relation", "pattern", "model", "output", "assert", "reuse"))
"""Words that are no names; the grammar file says why."""

SOFT = ("layers", "repeat", "rest", "within", "at", "in", "kv", "per", "branch", "allow", "lookahead", "density", "reach")

_PLAIN = ("i", "j", "h", "N", "k", "b", "w", "tokens", "causal", "e5", "x_", "W" * 63, *SOFT)
_PYTHON = tuple(each for each in keyword.kwlist if each not in RESERVED)

words = st.one_of(
    st.sampled_from(_PLAIN + _PYTHON),
    st.from_regex(r"[A-Za-z][A-Za-z0-9_]{0,6}", fullmatch=True).filter(lambda each: each not in RESERVED),
)
names = st.builds(s.Name, words)
integers = st.builds(
    s.Integer,
    st.one_of(st.integers(0, 70), st.sampled_from((1023, 1024, 65_536, (10**19 - 1) * 1024)), st.integers(0, 10**19 - 1)),
)
reals = st.builds(s.Real, st.from_regex(r"[0-9]{1,6}\.[0-9]{1,6}([eE][+-]?[0-9]{1,3})?|[0-9]{1,6}[eE][+-]?[0-9]{1,3}", fullmatch=True))


def _calls(values: st.SearchStrategy[s.Expression]) -> st.SearchStrategy[s.Call]:
    arguments = st.builds(s.Argument, st.none() | words, values)
    return st.builds(s.Call, words, st.lists(arguments, max_size=4).map(tuple))


def _compound(inner: st.SearchStrategy[s.Expression]) -> st.SearchStrategy[s.Expression]:
    comparators = st.sampled_from(("<", "<=", ">", ">=", "==", "!="))
    comparisons = st.integers(1, 3).flatmap(lambda n: st.builds(s.Comparison, st.tuples(*[comparators] * n), st.tuples(*[inner] * (n + 1))))
    return st.one_of(
        _calls(inner),
        st.builds(s.Negative, inner),
        st.builds(s.Negation, inner),
        st.builds(s.Binary, st.sampled_from(("+", "-", "|", "&", "*", "//", "%", "**")), inner, inner),
        comparisons,
        st.builds(s.Logical, st.sampled_from(("and", "or")), st.lists(inner, min_size=2, max_size=4).map(tuple)),
        st.builds(s.SetBuilder, st.lists(names, min_size=2, max_size=3).map(tuple), inner),
        st.builds(s.UnionOver, names, inner, inner, inner),
    )


atoms: st.SearchStrategy[s.Expression] = st.one_of(names, integers, reals)
expressions: st.SearchStrategy[s.Expression] = st.recursive(atoms, _compound, max_leaves=12)

comment_texts = st.text(st.sampled_from("ab #{}()=:,\"'é→0\t"), max_size=12).map(str.strip)
comment_blocks = st.one_of(st.just(()), st.lists(comment_texts, max_size=2).map(tuple))
comments = st.one_of(st.just(s.NO_COMMENTS), st.builds(s.Comments, comment_blocks, st.none() | comment_texts))

parameters = st.lists(st.builds(s.Parameter, names, st.none() | expressions), max_size=3).map(tuple)


assertions: st.SearchStrategy[s.Assertion] = st.one_of(
    st.builds(s.AssertRelation, expressions, comments=comments),
    st.builds(s.AssertReach, expressions, expressions, comments=comments),
    st.builds(s.AssertBound, st.sampled_from(("density", "kv")), expressions, expressions, comments=comments),
)
pattern_statements: st.SearchStrategy[s.PatternStatement] = st.one_of(
    st.builds(s.Binding, names, expressions, comments=comments),
    st.builds(s.OutputStatement, expressions, comments=comments),
    st.builds(s.KvPerBranch, comments=comments),
    st.builds(s.AllowLookahead, comments=comments),
    assertions,
)
layer_items = st.builds(s.LayerItem, names | _calls(expressions), st.none() | expressions, st.lists(names, max_size=2).map(tuple))
_layer_rules = st.one_of(
    st.builds(s.LayerRule, expressions, expressions, layer_items, comments=comments),
    st.builds(s.LayerRule, expressions, st.none(), layer_items, comments=comments),
    st.builds(s.LayerRule, st.none(), st.none(), layer_items, comments=comments),
)
schedules = st.one_of(st.builds(s.Repeat, st.lists(layer_items, min_size=1, max_size=3).map(tuple), comments=comments), _layer_rules)
layers = st.builds(s.LayersStatement, expressions, st.lists(schedules, max_size=3).map(tuple), comments=comments, closing=comment_blocks)
paths = st.text(st.characters(min_codepoint=32, max_codepoint=126, exclude_characters='"'), max_size=12)

declarations: st.SearchStrategy[s.Declaration] = st.one_of(
    st.builds(s.Use, paths, comments=comments),
    st.builds(s.RelationDeclaration, names, parameters, expressions, comments=comments),
    st.builds(
        s.PatternDeclaration,
        names,
        parameters,
        st.lists(pattern_statements, max_size=4).map(tuple),
        comments=comments,
        closing=comment_blocks,
    ),
    st.builds(
        s.ModelDeclaration,
        names,
        parameters,
        st.lists(layers | assertions, max_size=3).map(tuple),
        comments=comments,
        closing=comment_blocks,
    ),
)
spec_files = st.builds(s.SpecFile, st.lists(declarations, min_size=1, max_size=3).map(tuple), closing=comment_blocks)
