"""What PyTorch users do with an op: autograd in all its forms, checkpointing, autocast, copies. Kernels are dense stand-ins."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from op_cases import SMALL, TEXTS, dense_op, flat, inputs_of, loss_of, parse
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from nsa_dsl import custom_op, reference
from nsa_dsl.arguments import ArgumentError
from nsa_dsl.op import AttentionOp
from nsa_dsl.verify.checks import with_extra
from nsa_dsl.verify.inputs import Inputs


def call(op: AttentionOp, inputs: Inputs, **changes: Any) -> Any:
    return op(inputs.q, inputs.k, inputs.v, **{**inputs.options, "return_lse": True, **changes})


def gradients(loss: Tensor, leaves: dict[str, Tensor], **options: Any) -> dict[str, Tensor | None]:
    return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, **options), strict=True))


def assert_same(one: dict[str, Tensor | None], other: dict[str, Tensor | None]) -> None:
    assert one.keys() == other.keys()
    for name, each in one.items():
        torch.testing.assert_close(each, other[name], rtol=0, atol=0, msg=lambda text, name=name: f"{name}: {text}")


# -- operators ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["merge", "equal branches", "apart", "packed"])
def test_opcheck_of_other_outputs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    op, _ = dense_op(parse(TEXTS[name]), monkeypatch)
    tensors, places = flat(op, inputs_of(op.pattern, tokens=12)[0])
    torch.library.opcheck(custom_op.attend, (op._key, tensors, places, 0.3, True, True))
    if op.signature.choices:
        torch.library.opcheck(custom_op.choose, (op._key, tensors, places, 0.3))


@pytest.mark.parametrize("name", ["nsa", "merge", "apart"])
def test_opcheck_of_the_backward(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    op, _ = dense_op(parse(TEXTS[name]), monkeypatch)
    inputs, places = flat(op, inputs_of(op.pattern, tokens=12)[0])
    signature = op.signature
    with torch.no_grad():
        outputs = custom_op.attend(op._key, inputs, places, None, False, True)
    read = [n for n, place in enumerate(places) if signature.inputs[place] in signature.read_backward]
    wanted = [places[n] for n in read if signature.inputs[places[n]] in signature.differentiable]
    saved, grads = outputs[len(outputs) - len(signature.saved) :], outputs[: 1 + len(signature.lses)]
    arguments = (
        op._key,
        [inputs[n].detach() for n in read],
        [places[n] for n in read],
        saved,
        grads,
        list(range(len(grads))),
        wanted,
        None,
    )
    torch.library.opcheck(custom_op.attend_backward, arguments)


def test_an_unknown_key_is_refused() -> None:
    with pytest.raises(RuntimeError, match="no pattern is registered as 'nobody' in this process"):
        custom_op.attend("nobody", [torch.zeros(1)], [0], None, False, False)


# -- autograd -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TEXTS)
def test_gradients_of_every_input(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The op's way through flat lists, saved tensors and slots made outside, against autograd through the reference."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # float64 is accepted
    changes: dict[str, Any] = {"documents": 3} if name == "packed" else {"batch": 2}
    op, _ = dense_op(parse(TEXTS[name]), monkeypatch)
    inputs, leaves = inputs_of(op.pattern, dtype="fp64", layout="token major", **changes)
    with torch.no_grad():
        options = {key: each for key, each in inputs.options.items() if key != "gates"}
        chosen = with_extra(op.pattern, replace(SMALL, **changes), op.choose(inputs.q, inputs.k, inputs.v, **options))
    expected = gradients(
        loss_of(reference.attend(op.pattern, inputs.q, inputs.k, inputs.v, **{**inputs.options, "choices": chosen}, return_lse=True)),
        leaves,
    )
    found = gradients(loss_of(call(op, inputs)), leaves)
    assert [key for key, each in found.items() if each is None] == [key for key, each in expected.items() if each is None]
    for key, each in found.items():
        torch.testing.assert_close(each, expected[key], msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("wanted", [("q",), ("k", "gates"), ("v",), ("compressors.summary.k.contract.bias",), ("gates",)])
def test_only_what_is_asked_for_is_computed(wanted: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    op, asked = dense_op(parse(TEXTS["nsa"]), monkeypatch)
    inputs, leaves = inputs_of(op.pattern)
    every = gradients(loss_of(call(op, inputs)), leaves)
    for name, leaf in leaves.items():
        leaf.requires_grad_(name in wanted)
    asked.clear()
    some = gradients(loss_of(call(op, inputs)), {name: leaves[name] for name in wanted})
    assert_same(some, {name: every[name] for name in wanted})
    slots = ("slots.summary.keys", "slots.summary.values")
    # The module's blocks are views of k and v: their gradient passes through its slots.
    expected = {("k", "gates"): {"k", "gates", slots[0]}, ("v",): {"v", slots[1]}, ("compressors.summary.k.contract.bias",): {slots[0]}}
    assert [set(each) for each in asked] == [expected.get(wanted, set(wanted))]


def test_missing_cotangents_are_not_made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss of one log-sum-exp alone, and one of the output alone."""
    op, asked = dense_op(parse(TEXTS["nsa"]), monkeypatch)
    inputs, leaves = inputs_of(op.pattern)
    given: list[tuple[bool, list[str]]] = []
    module = op.module(inputs.q, 0, backward=True)
    inner = module.run_backward

    def spy(grad_out: Tensor, grad_lse: dict[str, Tensor], *rest: Any, **options: Any) -> Any:
        given.append((bool(grad_out.any()), list(grad_lse)))
        return inner(grad_out, grad_lse, *rest, **options)

    monkeypatch.setattr(module, "run_backward", spy)
    out, lse = call(op, inputs)
    lse["windowed"].sum().backward(retain_graph=True)
    out.sum().backward()
    assert given == [(False, ["windowed"]), (True, [])]
    assert len(asked) == 2
    assert leaves["q"].grad is not None


def test_equal_branches_add_their_cotangents(monkeypatch: pytest.MonkeyPatch) -> None:
    op, _ = dense_op(parse(TEXTS["equal branches"]), monkeypatch)
    inputs, leaves = inputs_of(op.pattern)
    _, lse = call(op, inputs)
    both = gradients(lse["a"].sum() + 2 * lse["b"].sum(), {"q": leaves["q"]}, retain_graph=True)
    assert_same(both, gradients(3 * lse["a"].sum(), {"q": leaves["q"]}))


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing(reentrant: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    op, _ = dense_op(parse(TEXTS["nsa"]), monkeypatch)
    inputs, leaves = inputs_of(op.pattern)

    def layer(q: Tensor, gates: Tensor) -> Any:
        out, lse = call(op, Inputs(q, inputs.k, inputs.v, {**inputs.options, "gates": gates}))
        return out, lse["windowed"]

    for each in (False, True):
        out, lse = (
            checkpoint(layer, inputs.q, inputs.options["gates"], use_reentrant=reentrant)
            if each
            else layer(inputs.q, inputs.options["gates"])
        )
        (out.square().sum() + lse.square().sum()).backward()
        if not each:
            plain = {name: leaf.grad for name, leaf in leaves.items()}
            for leaf in leaves.values():
                leaf.grad = None
    assert_same({name: leaf.grad for name, leaf in leaves.items()}, plain)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_autograd(mode: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    op, _ = dense_op(parse(TEXTS["nsa"]), monkeypatch)
    inputs, _ = inputs_of(op.pattern)
    recorded = call(op, inputs)[0]
    with mode():
        out, lse = call(op, inputs)
    assert recorded.requires_grad
    assert not out.requires_grad
    assert not any(each.requires_grad for each in lse.values())
    assert torch.equal(out, recorded)


def test_graphs_that_are_used_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same op twice in one graph, each time kept for a second backward; hooks on an input see the sum once."""
    op, _ = dense_op(parse(TEXTS["single"]), monkeypatch)
    inputs, leaves = inputs_of(op.pattern)
    seen: list[Tensor] = []
    inputs.q.register_hook(seen.append)
    first = op(inputs.q, inputs.k, inputs.v)
    second = op(torch.cat((first, first.detach()[..., :2]), -1), inputs.k, inputs.v)
    second.sum().backward(retain_graph=True)
    once = leaves["k"].grad.clone()
    second.sum().backward()
    torch.testing.assert_close(leaves["k"].grad, 2 * once)
    assert len(seen) == 2
    torch.testing.assert_close(sum(seen), leaves["q"].grad)


def test_second_derivatives_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    op, _ = dense_op(parse(TEXTS["nsa"]), monkeypatch)
    inputs, leaves = inputs_of(op.pattern)
    (first,) = torch.autograd.grad(call(op, inputs)[0].square().sum(), [leaves["q"]], create_graph=True)
    with pytest.raises(NotImplementedError, match=r"no second derivatives: leave out create_graph=True, or differentiate `.reference"):
        first.sum().backward()


def test_choices_carry_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    op, _ = dense_op(parse(TEXTS["packed"]), monkeypatch)
    inputs, _ = inputs_of(op.pattern)
    scores = {name: each.clone().requires_grad_() for name, each in inputs.options["scores"].items()}
    out = op(inputs.q.detach(), inputs.k.detach(), inputs.v.detach(), scores=scores)
    assert not out.requires_grad
    assert not any(each.requires_grad for each in op.choose(inputs.q, inputs.k, inputs.v, scores=scores).values())


def test_choosing_records_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    op, _ = dense_op(parse(TEXTS["nsa"]), monkeypatch)
    inputs, _ = inputs_of(op.pattern)
    recording: list[bool] = []

    def compressor(k_blocks: Tensor, v_blocks: Tensor) -> tuple[Tensor, Tensor]:
        recording.append(torch.is_grad_enabled())
        return k_blocks.mean(3), v_blocks.mean(3)

    op.choose(inputs.q, inputs.k, inputs.v, compressors={"summary": compressor})
    op(inputs.q, inputs.k, inputs.v, compressors={"summary": compressor}, gates=inputs.options["gates"])
    assert recording == [False, True]


@pytest.mark.parametrize("changes", [{"tokens": 0}, {"tokens": 1}, {"tokens": 3}, {"batch": 0}])
def test_empty_and_short_inputs(changes: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    op, _ = dense_op(parse(TEXTS["apart"]), monkeypatch)
    inputs, leaves = inputs_of(op.pattern, **changes)
    out, lse = call(op, inputs)
    assert out.shape == (*inputs.q.shape[:3], SMALL.d_v)
    assert all(each.shape == inputs.q.shape[:3] for each in lse.values())
    out.sum().backward()
    assert all(leaf.grad is None or torch.isfinite(leaf.grad).all() for leaf in leaves.values())
    assert leaves["weights.w.keys"].grad is not None
    if out.numel() == 0:
        assert not leaves["weights.w.keys"].grad.any()
        assert not leaves["sinks.d"].grad.any()


def test_no_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    op, _ = dense_op(parse(TEXTS["single"]), monkeypatch)
    q, k = torch.zeros(1, 0, 5, 8, requires_grad=True), torch.ones(1, 2, 5, 8, requires_grad=True)
    op(q, k, k).sum().backward()
    assert q.grad is not None
    assert q.grad.shape == q.shape
    assert k.grad is not None
    assert not k.grad.any()


# -- surroundings -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_casts_what_products_read(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    op, _ = dense_op(parse(TEXTS["nsa"]), monkeypatch)
    inputs, leaves = inputs_of(op.pattern)
    seen: dict[str, torch.dtype] = {}
    module = op.module(inputs.q, 0)
    inner = module.run

    def spy(q: Tensor, k: Tensor, v: Tensor, **rest: Any) -> Any:
        slots = rest["slots"]["summary"]
        named = {"q": q, "k": k, "v": v, "gates": rest["gates"], "slot keys": slots[0], "slot values": slots[1]}
        seen.update({name: each.dtype for name, each in named.items()})
        return inner(q, k, v, **rest)

    monkeypatch.setattr(module, "run", spy)
    with torch.autocast("cpu", dtype):
        out, lse = call(op, inputs)
    assert seen == {**dict.fromkeys(("q", "k", "v", "slot keys", "slot values"), dtype), "gates": torch.float32}
    assert out.dtype == dtype
    assert {each.dtype for each in lse.values()} == {torch.float32}
    out.sum().backward()
    assert {leaf.grad.dtype for leaf in leaves.values()} == {torch.float32}


def test_autocast_leaves_float64_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    op, _ = dense_op(parse(TEXTS["single"]), monkeypatch)
    inputs, _ = inputs_of(op.pattern, dtype="fp64")
    with torch.autocast("cpu", torch.bfloat16):
        assert op(inputs.q, inputs.k, inputs.v).dtype == torch.float64


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("deterministic")
def test_deterministic_algorithms(monkeypatch: pytest.MonkeyPatch) -> None:
    op, _ = dense_op(parse(TEXTS["nsa"]), monkeypatch)
    inputs, leaves = inputs_of(op.pattern)
    first, second = (gradients(loss_of(call(op, inputs)), leaves) for _ in range(2))
    assert_same(first, second)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, copy.copy, lambda op: pickle.loads(pickle.dumps(op))])
def test_ops_are_copied(duplicate: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    dense_op(parse(TEXTS["nsa"]), monkeypatch)
    op = AttentionOp(parse(TEXTS["nsa"]), rows=16, cols=32)
    inputs, _ = inputs_of(op.pattern)
    other = duplicate(op)
    assert (other.pattern, other.signature, other._key) == (op.pattern, op.signature, op._key)
    assert op._key != AttentionOp(op.pattern)._key
    assert torch.equal(call(other, inputs)[0], call(op, inputs)[0])


def test_validate_reads_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    op, _ = dense_op(parse(TEXTS["listed"]), monkeypatch)
    inputs, _ = inputs_of(op.pattern)
    wrong = {"a": torch.full_like(inputs.options["indices"]["a"], 99)}
    call(op, inputs, indices=wrong)
    with pytest.raises(ArgumentError, match="indices: block 99 of choice a is out of range: 29 tokens make 8"):
        call(op, inputs, indices=wrong, validate=True)
