"""Faults planted into generated backward kernels: each is one that somebody's kernels had or nearly had, and each must be caught."""

from __future__ import annotations

from dataclasses import replace

import pytest
from interpret.support import CPU, compiled, parse
from interpret.test_faults import Fault, Text

from nsa_dsl.compiler import compile_backward
from nsa_dsl.launch import LaunchShape
from nsa_dsl.pattern import Pattern
from nsa_dsl.verify import verify_pattern
from nsa_dsl.verify.cases import INTERPRETER
from nsa_dsl.verify.example import check_case

CAUSAL = "pattern causal { output attend(tokens, causal) }"
AROUND = "pattern around { output attend(tokens, around(9, 9), softcap = 2.0) }"
SLOTS = "pattern slots { s = compress(block = 6, stride = 3, by = mean) output attend(s, causal) }"
SCORED = "pattern scored { output attend(tokens, causal & top(2, block = 4, by = scores, share = group, every = 4)) }"
GATED = """
pattern gated {
    far  = attend(tokens, causal & first(4))
    near = attend(tokens, window(8))
    output gate(far, near)
}
"""
EXAMPLES = 20

FAULTS: dict[str, tuple[str, Fault]] = {
    "transposed relation off by one tile": (CAUSAL, Text(r"query_tile = low \+", "query_tile = low + 1 +")),
    "transposed relation's first tile left out": (AROUND, Text(r"query_tile = low \+ (.*)", r"query_tile = tl.maximum(low + \1, 1)")),
    "inverse index missing the last query": (SCORED, Text(r"tl\.minimum\(size - item", "tl.minimum(size - 1 - item")),
    "delta of the wrong branch": (GATED, Text(r"folded_delta_near, sum", "folded_delta_far, sum")),
    "row weight forgotten": (GATED, Text(r"folded_lse -= tl\.log2\(weight\)", "folded_lse -= 0.0")),
    "scale twice in dk": (CAUSAL, Text(r"total = key_grad \* scale", "total = key_grad * scale * scale")),
    "scale forgotten in dq": (CAUSAL, Text(r"total = acc \* scale", "total = acc")),
    "group sum over the wrong heads": (CAUSAL, Text(r"first_head = kv_head \* \(heads // kv_heads\)", "first_head = kv_head")),
    "gate gradient without its branch": (GATED, Text(r"(change_\w+ = .*) \* dot_far", r"\1 * dot_near")),
    "lse gradient dropped": (CAUSAL, Text(r"folded_delta -= tl\.load\(grad_lse.*", "folded_delta -= 0.0")),
    "edge mask missing in dk and dv": (AROUND, Text(r"(?m)^ {8}row_ok = rows < n_tokens", "        row_ok = rows >= 0")),
    "slope of the soft cap forgotten": (AROUND, Text(r"slope \*= 1.*", "slope *= 1.0")),
    "slots' gradient to one token too few": (SLOTS, Text(r"\(place < 6\)", "(place < 5)")),
    "NaN of a masked row spreads": (CAUSAL, Text(r"finite\((q|grad|key)\)", r"\1")),
}


@pytest.fixture(autouse=True)
def quick_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tested here is that a fault is found, not how small it gets; short calls are enough to see all of these."""
    monkeypatch.setattr("nsa_dsl.verify.search.SHRINK_SECONDS", 1.0)
    short = replace(INTERPRETER, lengths=56, steps=60, heads=((1, 1), (2, 1), (3, 1), (4, 2)))
    monkeypatch.setattr("nsa_dsl.verify.search.INTERPRETER", short)


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text, fault = FAULTS[name]
    pattern, planted = parse(text), list[str]()

    def compile_faulty(pattern: Pattern, shape: LaunchShape) -> str:
        planted.append(fault(pattern, compile_backward(pattern, shape)))
        return planted[-1]

    with monkeypatch.context() as patched:
        patched.setattr("nsa_dsl.op.compile_backward", compile_faulty)
        report = verify_pattern(pattern, examples=EXAMPLES)
    assert planted
    assert not report.ok, f"{name} went unnoticed"
    assert report.failure is not None
    case = report.failure.case
    assert case.gradients != "none"
    assert not any("raised" in each.note for each in report.failure.mismatches), str(report)
    assert check_case(compiled(pattern, case), case, CPU) == [], "the sound kernels fail, too"
