"""The GPU suites' own mathematics, without a GPU: long NSA against the dense reference, what the rules refuse."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import cases, cases_backward, literal_nsa
from benchmarks.cases import Sizes, make_inputs, ungated
from benchmarks.cases_backward import Captured, Repeats, check_gradients, make_cotangents, reference_gradients
from benchmarks.suite import example
from nsa_dsl import reference
from nsa_dsl.pattern import Pattern
from nsa_dsl.verify.slots import GivenSlots

SIZES = Sizes(heads=4, kv_heads=2, dim_qk=8, dim_v=12)


def test_long_nsa_is_the_dense_reference() -> None:
    pattern = example("nsa", "nsa", l=8, d=4, b=16, n=3, w=20)
    inputs = make_inputs(pattern, torch.float32, 70, SIZES, device="cpu")
    chosen = reference.choose(pattern, inputs.q, inputs.k, inputs.v, **ungated(inputs))
    memory, module = pattern.memories[0], inputs.options["compressors"]["summary"]
    slots = reference.compress(memory, inputs.k, inputs.v, compressor=module)
    cotangents = make_cotangents(pattern, inputs)[1]
    dense = reference_gradients(pattern, inputs, {"summary": GivenSlots(*slots, memory)}, chosen, torch.float64, [cotangents])[0][0]
    given = literal_nsa.make_given(pattern, inputs, slots, chosen["selected"], torch.float64)
    runs = torch.arange(70).split(32)
    found, sums = literal_nsa.check_runs(given, inputs, cotangents, dense, runs)
    assert found == []
    assert literal_nsa.check_sums(given, sums, dense, module, torch.float32) == []
    literal = literal_nsa._through_compressor(given, sums["exact"], module, torch.float64)
    assert set(literal) == set(dense) - {"q", "gates"}
    for name, each in literal.items():
        torch.testing.assert_close(each, dense[name], rtol=0, atol=1e-11)
    wrong = {**dense, "q": dense["q"] * 1.01}
    assert any("d(q)" in str(each) for each in literal_nsa.check_runs(given, inputs, cotangents, wrong, runs)[0])
    # The last run alone has all that reaches its own tokens.
    late = literal_nsa.check_runs(given, inputs, cotangents, dense, runs[2:])[1]
    assert literal_nsa.check_sums(given, late, dense, module, torch.float32, first=64) == []
    assert literal_nsa.check_sums(given, late, dense, module, torch.float32, first=32) != []


class Dense:
    """Attention in float32 in an op's place. fault: what is wrong with its gradients."""

    def __init__(self, pattern: Pattern, fault: str) -> None:
        self.pattern, self.fault = pattern, fault

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, return_lse: bool) -> Any:
        if self.fault == "scale twice in dk" and k.requires_grad:
            k.register_hook(lambda gradient: gradient * q.shape[-1] ** -0.5)
        if self.fault == "last key without a gradient" and v.requires_grad:
            v.register_hook(lambda gradient: gradient * (torch.arange(v.shape[2]) < v.shape[2] - 1)[:, None])
        if self.fault == "never the same":
            q.register_hook(lambda gradient: gradient * (1 + 1e-6 * torch.rand(())))
        out, lse = reference.attend(self.pattern, q, k, v, dtype=torch.float32, return_lse=return_lse)
        return out.to(q.dtype), lse


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("fault", ["none", "scale twice in dk", "last key without a gradient"])
def test_wrong_gradients_are_refused(fault: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cases_backward, "AttentionOp", lambda pattern: Dense(pattern, fault))
    assert bool(check_gradients(example("streaming", "streaming", w=9), dtype, 40, SIZES, "cpu")) == (fault != "none")


def test_runs_that_differ_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for fault in ("none", "never the same"):
        monkeypatch.setattr(cases_backward, "AttentionOp", lambda pattern, fault=fault: Dense(pattern, fault))
        assert bool(Repeats(3)(example("causal", "causal"), "fp32", 20, SIZES, "cpu")) == (fault != "none")


@pytest.mark.parametrize(
    ("fault", "found"), [("none", []), ("not replayed", ["out", "q", "k", "v"]), ("an input of its own", ["out", "q", "k", "v"])]
)
def test_graphs_that_do_not_replay_the_call_are_refused(fault: str, found: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    class Graph:
        def __init__(self, call: Callable[[], Any], kept: Any) -> None:
            self.call, self.kept = call, kept

        def replay(self) -> None:
            if fault != "not replayed":
                for name, each in self.call().items():
                    self.kept[name].copy_(each)

    def capture(call: Callable[[], Any]) -> tuple[Graph, Any]:
        made = call()
        return Graph((lambda: {name: each.clone() for name, each in made.items()}) if fault == "an input of its own" else call, made), made

    monkeypatch.setattr(cases_backward, "AttentionOp", lambda pattern: Dense(pattern, "none"))
    monkeypatch.setattr(cases_backward, "warm", lambda call: call())
    monkeypatch.setattr(cases_backward, "capture", capture)
    refused = Captured()(example("causal", "causal"), "fp32", 20, SIZES, "cpu")
    assert refused == [f"captured: d({name}) differs" for name in found]


@pytest.mark.parametrize("fault", ["none", "a list too short", "log-sum-exp", "never the same"])
def test_wrong_rows_of_lists_are_refused(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def attend(pattern: Pattern, q: Tensor, k: Tensor, v: Tensor, *, indices: dict[str, Tensor], return_lse: bool = False) -> Any:
        lists = {
            name: torch.cat([each[..., :-1], each[..., :1]], -1) if fault == "a list too short" else each for name, each in indices.items()
        }
        out, lse = reference.attend(pattern, q, k, v, dtype=torch.float32, indices=lists, return_lse=True)
        if fault == "never the same":
            out = out * (1 + 1e-6 * torch.rand(()))
        return (out.to(q.dtype), lse + (fault == "log-sum-exp")) if return_lse else out.to(q.dtype)

    monkeypatch.setattr(cases, "AttentionOp", lambda pattern: partial(attend, pattern))
    for sharing in ("random", "clustered"):
        found = cases.check_lists(example("choices", "selected", n=4, b=16), "fp32", 150, SIZES, sharing=sharing, samples=9, device="cpu")
        assert bool(found) == (fault != "none")
