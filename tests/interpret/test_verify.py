"""The verification itself: what it draws, how it lays tensors out, what it reports."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import find, given, settings
from interpret import bfloat16

from nsa_dsl.compiler import compile_backward, compile_source
from nsa_dsl.launch import LaunchShape
from nsa_dsl.loader import load_spec
from nsa_dsl.op import AttentionOp
from nsa_dsl.pattern import Pattern
from nsa_dsl.verify import patterns_to_try, verify_pattern, verify_spec
from nsa_dsl.verify.cases import INTERPRETER, Case, Layout, cases, edges
from nsa_dsl.verify.example import check_case
from nsa_dsl.verify.inputs import make_inputs, place
from nsa_dsl.verify.scaling import visible_structure

CPU = torch.device("cpu")
CASE = Case(
    tokens=40, batch=1, heads=2, kv_heads=1, d_qk=16, d_v=16, dtype="fp32", layout="contiguous", values="ordinary", damage="none",
    damaged=0, documents=1, rows=16, cols=16, seed=0,
)  # fmt: skip
LAYOUTS: tuple[Layout, ...] = ("contiguous", "token major", "packed", "guarded", "far apart")


def pattern(text: str) -> Pattern:
    spec = load_spec(text)
    return spec.pattern(spec.patterns[0])


CAUSAL = pattern("pattern causal { output attend(tokens, causal) }")
PACKED = pattern("pattern packed { output attend(tokens, causal & document) }")
MERGED = pattern("pattern merged { a = attend(tokens, causal & first(5))\n b = attend(tokens, causal - first(5))\n output merge(a, b) }")
MIXED = pattern("""
pattern mixed {
    a = attend(tokens, window(7), sink = learned)
    b = attend(tokens, full, softcap = 5.0)
    output mix(a, b)
}
""")
BIASED = pattern("pattern biased { output attend(tokens, causal, bias = alibi) }")
KEPT = pattern(
    """
pattern kept {
    output attend(tokens, causal & top(2, block = 4, by = minmax, share = group, every = 4, keep_extra = first(1) | window(1)))
}
"""
)
LISTED = pattern("pattern listed { output attend(tokens, causal & (window(3) | top(3, block = 4, by = indices, share = all, every = 8))) }")
APART = pattern("""
pattern apart {
    kv per branch
    summary = compress(block = 6, stride = 3, by = weighted)
    a = attend(summary, causal)
    b = attend(tokens, causal & top(2, block = 6, by = a, share = head, every = 4))
    output gate(a, b)
}
""")


@given(case=cases(CAUSAL, INTERPRETER, ("fp32", "fp16")))
@settings(max_examples=200)
def test_cases_are_within_bounds(case: Case) -> None:
    assert 0 <= case.tokens <= INTERPRETER.lengths
    assert case.heads % case.kv_heads == 0
    assert case.dtype in ("fp32", "fp16")
    assert str(case.tokens) in str(case)


def test_cases_reach_past_every_edge() -> None:
    window = pattern("pattern window { output attend(tokens, window(20)) }")
    assert {19, 20, 21} <= set(edges(window, 160))
    for length in (0, 1, 33, 100):
        assert find(cases(window, INTERPRETER, ("fp32",)), lambda case, least=length: case.tokens >= least)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_hold_the_tensors(layout: Layout) -> None:
    tensors = [torch.randn(2, 3, 5, 7), torch.randn(2, 1, 5, 7), torch.randn(2, 1, 5, 4)]
    placed = place(tensors, layout, torch.float32, CPU)
    for original, view in zip(tensors, placed, strict=True):
        assert torch.equal(original, view)
        assert view.stride(3) == 1


def test_packed_tensors_share_their_rows() -> None:
    q, k, v = place([torch.zeros(1, 2, 3, 4), torch.zeros(1, 1, 3, 4), torch.zeros(1, 1, 3, 5)], "packed", torch.float32, CPU)
    assert q.stride(2) == k.stride(2) == v.stride(2) > 17
    assert q.untyped_storage().data_ptr() == v.untyped_storage().data_ptr()


def test_far_apart_rows_leave_32_bits() -> None:
    (far,) = place([torch.ones(1, 1, 9, 4)], "far apart", torch.float16, CPU)
    assert far.stride(2) < 2**31 < far.stride(2) * 8


def test_the_same_case_gives_the_same_tensors() -> None:
    first, second = (make_inputs(APART, replace(CASE, seed=3), CPU) for _ in range(2))
    assert torch.equal(first.q, second.q)
    assert isinstance(first.k, dict)
    assert isinstance(second.k, dict)
    assert all(torch.equal(first.k[name], second.k[name]) for name in first.k)
    assert not torch.equal(first.q, make_inputs(APART, replace(CASE, seed=4), CPU).q)


@pytest.mark.parametrize("made", [PACKED, MERGED, MIXED, BIASED, KEPT, LISTED, APART], ids=lambda each: each.name)
def test_every_kind_of_argument_is_made(made: Pattern) -> None:
    op = AttentionOp(made, rows=16, cols=16)
    documents = 3 if made is PACKED else 1
    for case in (replace(CASE, documents=documents), replace(CASE, damage="key", damaged=11), replace(CASE, tokens=0)):
        assert check_case(op, case, CPU) == []


@pytest.mark.parametrize("made", [PACKED, MERGED, MIXED, BIASED, KEPT, LISTED, APART], ids=lambda each: each.name)
def test_every_kind_of_argument_is_differentiated(made: Pattern) -> None:
    op, case = AttentionOp(made, rows=16, cols=16), replace(CASE, tokens=21, documents=3 if made is PACKED else 1)
    for seed, gradients in enumerate(("out and lse", "out", "structure", "structure")):
        assert check_case(op, replace(case, seed=seed, gradients=gradients), CPU) == []
    assert check_case(op, replace(case, tokens=0, gradients="out", damage="key"), CPU) == []


def test_a_query_missing_from_the_transposed_set_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The inverse index without the last query of every block: one query of one head, where heads do not choose together."""

    def faulty(pattern: Pattern, shape: LaunchShape) -> str:
        return compile_backward(pattern, shape).replace("tl.minimum(size - item", "tl.minimum(size - 1 - item")

    monkeypatch.setattr("nsa_dsl.op.compile_backward", faulty)
    chosen = pattern("pattern chosen { output attend(tokens, causal & top(1, block = 4, by = scores, share = head)) }")
    case = replace(CASE, heads=1, seed=1, gradients="structure")
    found = check_case(AttentionOp(chosen, rows=16, cols=16), case, CPU)
    assert found
    assert any(re.fullmatch(r"query \d+ of head 0 is missing", each.note) for each in found)


def test_bfloat16_agrees_once_the_interpreter_is_repaired(monkeypatch: pytest.MonkeyPatch) -> None:
    op, case = AttentionOp(CAUSAL, rows=16, cols=16), replace(CASE, dtype="bf16")
    assert check_case(op, case, CPU) != []
    bfloat16.repair(monkeypatch)
    assert check_case(op, case, CPU) == []


def test_bfloat16_rounds_to_nearest_even() -> None:
    values = torch.cat((torch.randn(1000) * 100, torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, torch.inf, -torch.inf, 0.0])))
    expected = values.to(torch.bfloat16)
    assert (bfloat16.narrow(values.numpy()) == expected.view(torch.uint16).numpy()).all()
    assert (bfloat16.widen(expected.view(torch.uint16).numpy()) == expected.float().numpy()).all()


def test_a_failure_is_shrunk_and_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    faulty = compile_source(pattern("pattern wrong { output attend(tokens, window(7)) }"))
    assert "rows[:, None] - 7 <" in faulty
    monkeypatch.setattr("nsa_dsl.op.compile_source", lambda pattern, shape: compile_source(pattern, shape).replace("- 7 <", "- 8 <"))
    monkeypatch.setattr("nsa_dsl.verify.search.SHRINK_SECONDS", 10.0)
    report = verify_pattern(pattern("pattern wrong { output attend(tokens, window(7)) }"), examples=30)
    assert not report.ok
    assert report.failure is not None
    assert report.failure.case.tokens < 12
    assert "smallest failing call: batch 1, heads 1:1" in str(report)
    assert "FAILED" in str(report)


def test_what_a_kernel_raises_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nsa_dsl.op.compile_source", lambda *_: "def run():\n    return 1\n")
    report = verify_pattern(CAUSAL, examples=3)
    assert report.failure is not None
    assert "raised TypeError" in str(report)


def test_the_seed_decides_and_progress_counts() -> None:
    seen: list[int] = []
    first = verify_pattern(CAUSAL, examples=3, seed=5, progress=seen.append)
    assert first.ok
    assert seen == [1, 2, 3]
    assert f"3 examples agree with the reference, {first.gradients} of them in gradients too" in str(first)


def test_a_spec_is_tried_with_parameters_that_show() -> None:
    text = """
    pattern wide(w = 512, b = 64) { output attend(tokens, causal & (window(w) | blocks(b))) }
    model all { layers 4 { repeat wide } }
    """
    (group,) = patterns_to_try(text, scaled=True)
    small, as_written = group
    assert dict(as_written.parameters) == {"w": 512, "b": 64}
    assert visible_structure(small, 80) > visible_structure(as_written, 80)
    assert patterns_to_try(text, scaled=False) == [(as_written,)]


def test_a_spec_s_examples_are_shared_between_its_variants() -> None:
    text = "pattern wide(w = 512) { output attend(tokens, window(w)) }\npattern plain { output attend(tokens, causal) }"
    seen: list[int] = []
    reports = verify_spec(text, examples=3, progress=seen.append)
    assert [each.examples for each in reports] == [2, 1, 3]
    assert seen == list(range(1, 7))


def test_the_interpreter_must_be_asked_for_in_time() -> None:
    script = "import triton\nfrom nsa_dsl.verify import use_device\nuse_device('cpu')"
    done = subprocess.run([sys.executable, "-c", script], env={}, capture_output=True, text=True, check=False)
    assert "set TRITON_INTERPRET=1" in done.stderr
