"""Printed expressions, run the way Python divides and the way compiled Triton does, against `evaluate`."""

from __future__ import annotations

import ast
import importlib.util
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import I, J, N, minus, plus, relations, terms, window

from nsa_dsl import codegen
from nsa_dsl.codegen.expressions import print_condition, print_elementwise, print_term
from nsa_dsl.relation import (
    CAUSAL,
    FULL,
    All,
    Chosen,
    Compare,
    Const,
    Either,
    Extreme,
    FloorDiv,
    Modulo,
    Not,
    SameDocument,
    Scale,
    evaluate,
)

NAMES = {"i": "rows[:, None]", "j": "cols[None, :]", "N": "n_tokens", "h": "head", "heads": "n_heads", "same_document": "same_document"}
TL = SimpleNamespace(
    minimum=np.minimum, maximum=np.maximum, abs=np.abs, int64=np.int64, cast=lambda value, kind: np.asarray(value).astype(kind)
)


class _CDivision(ast.NodeTransformer):
    """`//` and `%` as C has them: towards zero."""

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.op, ast.FloorDiv | ast.Mod):
            name = "quotient" if isinstance(node.op, ast.FloorDiv) else "remainder"
            return ast.Call(ast.Name(name, ast.Load()), [node.left, node.right], [])
        return node


def quotient(left, right):
    return np.sign(left) * (np.abs(left) // right)


def run(source: str, environment: dict[str, object], truncate: bool):
    tree = ast.parse(source, mode="eval")
    if truncate:
        tree = ast.fix_missing_locations(_CDivision().visit(tree))
    names = {"tl": TL, "quotient": quotient, "remainder": lambda a, b: a - quotient(a, b) * b, "smaller": min, "greater": max, "abs": abs}
    return eval(compile(tree, "printed", "eval"), {"__builtins__": {}, **names}, environment)


def environment(n: int, kind: type = np.int32) -> dict[str, object]:
    rows, cols = np.arange(n, dtype=kind), np.arange(n, dtype=kind)
    return {"rows": rows, "cols": cols, "n_tokens": kind(n), "head": kind(1), "n_heads": kind(2), "same_document": np.ones((n, n), bool)}


def meaning(node, n: int):
    i, j = np.arange(n)[:, None], np.arange(n)[None, :]
    return evaluate(node, {"i": i, "j": j, "N": n, "h": 1, "heads": 2, "kv_heads": 1, "same_document": np.ones((n, n), bool)})


@pytest.mark.parametrize("truncate", [False, True])
@settings(max_examples=150)
@given(relation=relations(), n=st.integers(1, 20))
def test_a_printed_condition_means_what_evaluate_says(truncate, relation, n):
    found = run(print_condition(relation, NAMES), environment(n), truncate)
    np.testing.assert_array_equal(np.broadcast_to(found, (n, n)), np.broadcast_to(meaning(relation, n), (n, n)))


@pytest.mark.parametrize("truncate", [False, True])
@settings(max_examples=150)
@given(term=terms(3), n=st.integers(1, 20))
def test_a_printed_term_means_what_evaluate_says(truncate, term, n):
    found = run(print_term(term, NAMES), environment(n), truncate)
    np.testing.assert_array_equal(np.broadcast_to(found, (n, n)), np.broadcast_to(meaning(term, n), (n, n)))


@settings(max_examples=100)
@given(relation=relations(), i=st.integers(0, 20), j=st.integers(0, 20))
def test_elementwise_expressions_mean_what_evaluate_says(relation, i, j):
    names = {name: name for name in ("i", "j", "N", "h", "heads", "kv_heads", "same_document")}
    here = {"i": i, "j": j, "N": 21, "h": 1, "heads": 2, "kv_heads": 1, "same_document": True}
    assert bool(run(print_elementwise(relation, names), here, False)) == bool(evaluate(relation, here))


def test_the_harness_sees_a_negative_operand():
    assert run("(a - 3) % 2", {"a": np.int32(0)}, False) != run("(a - 3) % 2", {"a": np.int32(0)}, True)


@pytest.mark.parametrize(
    ("condition", "text"),
    [
        (window(512), "(rows[:, None] - 512 < cols[None, :]) & (cols[None, :] <= rows[:, None])"),
        (All((CAUSAL, Either((window(8), Compare("<", J, Const(4)))))),
         "(cols[None, :] <= rows[:, None]) & ((rows[:, None] - 8 < cols[None, :]) | (cols[None, :] < 4))"),
        (Compare("==", FloorDiv(I, 64), FloorDiv(J, 64)), "rows[:, None] // 64 == cols[None, :] // 64"),
        (Compare("==", Modulo(minus(I, J), 3), Const(0)), "(rows[:, None] - cols[None, :] + 67108866) % 3 == 0"),
        (Compare("<=", Extreme("max", (minus(I, 3), Const(0))), J), "tl.maximum(rows[:, None] - 3, 0) <= cols[None, :]"),
        (Not(All((CAUSAL, SameDocument()))), "(cols[None, :] > rows[:, None]) | (same_document == 0)"),
        (Not(Chosen("picked")), "((hits + 1) == 0)"),
        (All((FULL, Compare("<", N, plus(J, 4)))), "n_tokens < cols[None, :] + 4"),
        (FULL, "True"),
    ],
)  # fmt: skip
def test_reads_as_a_person_would_write_it(condition, text):
    assert print_condition(condition, {**NAMES, "chosen:picked": "hits + 1"}) == text


def test_what_32_bits_cannot_hold_is_computed_in_64():
    term, ranges = Scale(64, I), {"i": (0, 2**26)}
    assert print_term(term, {"i": "x"}, ranges) == "64 * tl.cast(x, tl.int64)"
    assert print_term(term, {"i": "x"}, {"i": (0, 2**20)}) == "64 * x"
    assert run(print_term(term, {"i": "x"}, ranges), {"x": np.int32(2**26)}, True) == 2**32
    with pytest.raises(OverflowError):
        print_term(Scale(2**50, I), {"i": "x"}, ranges)


def test_the_package_is_not_imported_under_another_name():
    spec = importlib.util.spec_from_file_location("codegen", codegen.__file__)
    assert spec is not None
    assert spec.loader is not None
    with pytest.raises(ImportError, match=r"nsa_dsl\.codegen"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
