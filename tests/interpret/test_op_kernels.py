"""The op on generated kernels: gradients of every input against the dense reference in float64, and what PyTorch asks of operators."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from op_cases import EXAMPLES, SMALL, TEXTS, example, flat, loss_of, parse
from torch import Tensor

from nsa_dsl import custom_op, reference
from nsa_dsl.op import AttentionOp
from nsa_dsl.verify.checks import with_extra
from nsa_dsl.verify.inputs import make_inputs
from nsa_dsl.verify.leaves import watch

CASE = replace(SMALL, tokens=19, heads=2, kv_heads=1, rows=16, cols=16, layout="packed", dtype="fp64")


def gradients(loss: Tensor, leaves: dict[str, Tensor]) -> dict[str, Tensor | None]:
    return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values()), allow_unused=True), strict=True))


@pytest.mark.parametrize("name", TEXTS)
def test_gradients_of_every_input(name: str) -> None:
    op = AttentionOp(parse(TEXTS[name]), rows=16, cols=16)
    case = replace(CASE, documents=3 if name == "packed" else 1)
    inputs, leaves = watch(make_inputs(op.pattern, case, torch.device("cpu")))
    options = {key: each for key, each in inputs.options.items() if key != "gates"}
    chosen = with_extra(op.pattern, case, op.choose(inputs.q, inputs.k, inputs.v, **options))
    dense = reference.attend(op.pattern, inputs.q, inputs.k, inputs.v, **{**inputs.options, "choices": chosen}, return_lse=True)
    expected = gradients(loss_of(dense), leaves)
    found = gradients(loss_of(op(inputs.q, inputs.k, inputs.v, **inputs.options, return_lse=True)), leaves)
    assert [key for key, each in found.items() if each is None] == [key for key, each in expected.items() if each is None]
    for key, each in found.items():
        torch.testing.assert_close(each, expected[key], msg=lambda text, key=key: f"{key}: {text}")


PATTERNS = {
    **{f"{stem}.{name}": example(stem, name) for stem, name in EXAMPLES},
    "merge": parse(TEXTS["merge"]),
    "apart": parse(TEXTS["apart"]),
}


@pytest.mark.parametrize("name", PATTERNS)
def test_opcheck(name: str) -> None:
    """What kernels return aliases nothing, and has the shapes, types and strides that tracing promises; log-sum-exps are asked for
    or not by the caller of the operator, which always returns them."""
    op = AttentionOp(PATTERNS[name], rows=16, cols=16)
    inputs, _ = watch(make_inputs(op.pattern, replace(CASE, tokens=12, layout="contiguous"), torch.device("cpu")))
    tensors, places = flat(op, inputs)
    torch.library.opcheck(custom_op.attend, (op._key, tensors, places, None, False, True))


def test_work_that_nobody_wants_is_skipped() -> None:
    """The kernels' module is asked for the wanted names only, and answers with these."""
    op = AttentionOp(parse(TEXTS["nsa"]), rows=16, cols=16)
    inputs, leaves = watch(make_inputs(op.pattern, CASE, torch.device("cpu")), wanted=("v", "gates"))
    asked: list[tuple[str, ...]] = []
    module = op.module(inputs.q, CASE.d_v, backward=True)
    inner = module.run_backward

    def spy(*given: Any, wanted: tuple[str, ...], **rest: Any) -> Any:
        made = inner(*given, wanted=wanted, **rest)
        asked.extend((wanted, tuple(made)))
        return made

    vars(module)["run_backward"] = spy
    op(inputs.q, inputs.k, inputs.v, **inputs.options).sum().backward()
    assert asked == [("v", "gates", "slots.summary.values")] * 2
    assert all(leaf.grad is not None for leaf in leaves.values())


def test_half_precision_under_autocast() -> None:
    """Float32 inputs run as float16 kernels; gradients come back in float32, close to those of float32 kernels."""
    op = AttentionOp(parse(TEXTS["single"]), rows=16, cols=16)
    inputs, leaves = watch(make_inputs(op.pattern, replace(CASE, dtype="fp32"), torch.device("cpu")))
    exact = gradients(op(inputs.q, inputs.k, inputs.v).square().sum(), leaves)
    with torch.autocast("cpu", torch.float16):
        out = op(inputs.q, inputs.k, inputs.v)
    assert out.dtype == torch.float16
    for key, each in gradients(out.float().square().sum(), leaves).items():
        torch.testing.assert_close(each, exact[key], rtol=0.02, atol=0.02, msg=lambda text, key=key: f"{key}: {text}")


@pytest.fixture
def _deterministic() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("_deterministic")
@pytest.mark.parametrize("name", ["nsa", "merge", "packed"])
def test_deterministic_algorithms(name: str) -> None:
    """The mode refuses nothing, and changes no bit: it fills fresh memory with NaN, which nobody may read."""
    op = AttentionOp(parse(TEXTS[name]), rows=16, cols=16)
    inputs, leaves = watch(make_inputs(op.pattern, replace(CASE, dtype="fp32"), torch.device("cpu")))
    results = []
    for mode in (False, True):
        torch.use_deterministic_algorithms(mode)
        results.append(gradients(loss_of(op(inputs.q, inputs.k, inputs.v, **inputs.options, return_lse=True)), leaves))
    for key, each in results[0].items():
        torch.testing.assert_close(results[1][key], each, rtol=0, atol=0, msg=lambda text, key=key: f"{key}: {text}")
