"""Ops under torch.compile: one graph without a break, one compilation for all lengths. Kernels are dense stand-ins."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from op_cases import TEXTS, dense_op, inputs_of, loss_of, parse
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from nsa_dsl.op import AttentionOp
from nsa_dsl.verify.inputs import Inputs

LENGTHS = (37, 12, 40, 33)
"""The first makes as many blocks as no other size of the call: torch.compile takes sizes that are equal once for the same."""


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def layer(op: AttentionOp, inputs: Inputs) -> Any:
    """An op between other operations, as a model has it."""
    out, lse = op(inputs.q * 2, inputs.k, inputs.v, **inputs.options, return_lse=True)
    return out + 1, lse


def compile_layer(op: AttentionOp, **options: Any) -> tuple[Any, CompileCounterWithBackend]:
    counter = CompileCounterWithBackend("aot_eager")

    def run(q: Tensor, k: Any, v: Any, options: dict[str, Any]) -> Any:
        return layer(op, Inputs(q, k, v, options))

    return torch.compile(run, backend=counter, fullgraph=True, **options), counter


@pytest.mark.parametrize("name", TEXTS)
def test_one_graph_serves_every_length(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    op, _ = dense_op(parse(TEXTS[name]), monkeypatch)
    compiled, counter = compile_layer(op, dynamic=True)
    modules = inputs_of(op.pattern)[0].options.get("compressors")
    for tokens in LENGTHS:
        inputs, leaves = inputs_of(op.pattern, tokens=tokens)
        if modules is not None:
            inputs.options["compressors"] = modules
        leaves = {key: leaf for key, leaf in leaves.items() if not key.startswith("compressors")}
        results = []
        for each in (layer(op, inputs), compiled(inputs.q, inputs.k, inputs.v, inputs.options)):
            found = torch.autograd.grad(loss_of(each), list(leaves.values()), allow_unused=True)
            results.append((each[0], *(torch.zeros(()) if grad is None else grad for grad in found)))
        for eager, made in zip(*results, strict=True):
            torch.testing.assert_close(made, eager)
    assert counter.frame_count == 1


def test_lengths_marked_dynamic(monkeypatch: pytest.MonkeyPatch) -> None:
    op, _ = dense_op(parse(TEXTS["equal branches"]), monkeypatch)
    compiled, counter = compile_layer(op)
    for tokens in LENGTHS:
        inputs, _ = inputs_of(op.pattern, tokens=tokens)
        for each in (inputs.q, inputs.k, inputs.v, inputs.options["gates"]):
            torch._dynamo.mark_dynamic(each, 2)
        assert compiled(inputs.q, inputs.k, inputs.v, inputs.options)[0].shape[2] == tokens
    assert counter.frame_count == 1


def test_packed_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    op, _ = dense_op(parse(TEXTS["packed"]), monkeypatch)
    compiled, counter = compile_layer(op, dynamic=True)
    for tokens, documents in ((37, 6), (40, 5), (33, 3)):
        inputs, _ = inputs_of(op.pattern, tokens=tokens, documents=documents)
        torch.testing.assert_close(compiled(inputs.q, inputs.k, inputs.v, inputs.options)[0], layer(op, inputs)[0])
    assert counter.frame_count == 1


def test_choices_made_in_one_layer_and_used_in_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    op, _ = dense_op(parse(TEXTS["packed"]), monkeypatch)
    counter = CompileCounterWithBackend("aot_eager")

    def run(q: Tensor, k: Tensor, v: Tensor, scores: dict[str, Tensor]) -> Tensor:
        return op(q, k, v, choices=op.choose(q, k, v, scores=scores))

    compiled = torch.compile(run, backend=counter, fullgraph=True, dynamic=True)
    for tokens in LENGTHS:
        inputs, _ = inputs_of(op.pattern, tokens=tokens)
        arguments = (inputs.q, inputs.k, inputs.v, inputs.options["scores"])
        torch.testing.assert_close(compiled(*arguments), run(*arguments))
    assert counter.frame_count == 1


def test_autocast_inside_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    op, _ = dense_op(parse(TEXTS["nsa"]), monkeypatch)
    compiled, _ = compile_layer(op, dynamic=True)
    inputs, _ = inputs_of(op.pattern)
    with torch.autocast("cpu", torch.bfloat16):
        out, lse = compiled(inputs.q, inputs.k, inputs.v, inputs.options)
    assert out.dtype == torch.bfloat16
    assert lse["windowed"].dtype == torch.float32


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"k": torch.zeros(1, 2, 30, 8)}, "ArgumentError.*k: .*expected .batch, kv_heads, tokens, d_qk"),
        ({"gates": None}, "ArgumentError.*gates: .*expected .batch, heads, tokens, branches.*got nothing"),
    ],
)
def test_errors_stay_readable(argument: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    op, _ = dense_op(parse(TEXTS["equal branches"]), monkeypatch)
    compiled, _ = compile_layer(op, dynamic=True)
    inputs, _ = inputs_of(op.pattern)
    changed = {"k": inputs.k, **inputs.options, **argument}
    with pytest.raises(Exception, match=message):
        compiled(inputs.q, changed.pop("k"), inputs.v, changed)
