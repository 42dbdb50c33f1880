"""Row weights, deltas, and the gates' gradient, against torch's autograd in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import pytest
import torch
from interpret.small_backward import DTYPES, backward, close, framed, random, token_major
from torch import Tensor

from nsa_dsl.codegen import build_gradient

BATCH, HEADS, TOKENS = 2, 3, 37

Kind = Literal["gate", "mix", "merge", "single"]


@dataclass
class Rows:
    """One call of the rows kernel. owners: the branches' own names; nodes: the Attend node of each; given: whose log-sum-exp has a
    gradient; vouching: the nodes whose log-sum-exps tell whether q is finite. wild: what the last run found."""

    kind: Kind
    nodes: tuple[str, ...]
    dtype: str = "fp32"
    dim: int = 24
    tokens: int = TOKENS
    given: tuple[str, ...] = ()
    wanted: tuple[str, ...] = ("gates",)
    vouching: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        rows = (BATCH, HEADS, self.tokens)
        self.owners = tuple("abcdef"[: len(self.nodes)])
        made = {node: random(*rows, self.dim, dtype=self.dtype, seed=5 + n) for n, node in enumerate(dict.fromkeys(self.nodes))}
        self.outs = dict(zip(self.owners, (framed(made[node]) for node in self.nodes), strict=True))
        if self.kind == "merge":
            self.outs = {"merge": self.outs["a"]}
        self.grad_out = token_major(random(*rows, self.dim, dtype=self.dtype, seed=1), extra=3)
        self.q = token_major(random(*rows, 20, dtype=self.dtype, seed=3), extra=5)
        self.gates = token_major(3 * random(*rows, 2 * len(self.nodes), dtype=self.dtype, seed=2))[..., ::2]
        acc = "fp64" if self.dtype == "fp64" else "fp32"
        own = {node: random(*rows, dtype=acc, seed=40 + n) for n, node in enumerate(made)}
        self.lse = {owner: own[node] for owner, node in zip(self.outs, self.nodes, strict=False)}
        # One number for all rows has no strides of its own, as the gradient of a sum comes.
        self.grad_lse = {name: random(1, HEADS, 1, dtype=acc, seed=20 + n).expand(rows) for n, name in enumerate(self.given)}

    def run(self) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor | None]:
        """Weights and deltas by node, unfolded, and the gates' gradient."""
        context = build_gradient.rows_backward(self.kind, self.nodes, True, self.vouching)
        self.wild = torch.zeros(1, dtype=torch.int32)
        nodes = tuple(dict.fromkeys(self.nodes))
        lse, delta = (f"{{{', '.join(f'{node!r}: folded_{prefix}_{node}' for node in nodes)}}}" for prefix in ("lse", "delta"))
        folded_lse, folded_delta, gates = backward(
            ["rows_backward.py.j2"], context, build_gradient.rows_launch(context, self.owners, self.nodes), "rows",
            f"{lse}, {delta}, grads", self.dtype, grad_out=self.grad_out, grad_lse=self.grad_lse, outs=self.outs, lse=self.lse,
            gates=self.gates, q=self.q, wild=self.wild, wanted=self.wanted, batch=BATCH, heads=HEADS, n_tokens=self.tokens,
            dim_v=self.dim, dim_qk=self.q.shape[3],
        )  # fmt: skip
        own = {node: self.lse[owner] for node, owner in zip(self.nodes, self.outs, strict=False)}
        given = {node: own[self.nodes[0] if self.kind == "merge" else node] for node in nodes}
        acc = DTYPES["fp64" if self.dtype == "fp64" else "fp32"]
        assert all(each.dtype == acc for each in (*folded_lse.values(), *folded_delta.values()))
        weights = {node: torch.exp2(given[node].double() * math.log2(math.e) - each.double()) for node, each in folded_lse.items()}
        return weights, {node: weights[node] * each.double() for node, each in folded_delta.items()}, gates.get("gates")

    def check(self) -> None:
        weights, deltas, grad_gates = self.run()
        acc = DTYPES["fp64" if self.dtype == "fp64" else "fp32"]
        grad_out, gates = self.grad_out.double(), self.gates.double().requires_grad_()
        leaves = {node: self.outs[owner].double().requires_grad_() for node, owner in zip(self.nodes, self.outs, strict=False)}
        outs = torch.stack([leaves[node if self.kind != "merge" else self.nodes[0]] for node in self.nodes], -1)
        match self.kind:
            case "gate":
                out = (outs * gates.sigmoid()[..., None, :]).sum(-1)
            case "mix":
                out = (outs * gates.softmax(-1)[..., None, :]).sum(-1)
            case "merge" | "single":
                out = outs[..., 0]
        out.backward(grad_out)
        for node in deltas:
            leaf = leaves[self.nodes[0] if self.kind == "merge" else node]
            assert leaf.grad is not None
            owned = [owner for owner, own in zip(self.owners, self.nodes, strict=True) if own == node or self.kind == "merge"]
            lse = sum((self.grad_lse[each].double() for each in ("merge", *owned) if each in self.grad_lse), torch.zeros(()))
            close(deltas[node].to(acc), (leaf.grad * leaf).sum(-1).detach() - lse)
            if self.kind in ("gate", "mix"):
                close((weights[node][..., None] * grad_out).to(acc), leaf.grad)
        if "gates" in self.wanted and gates.grad is not None:
            assert grad_gates is not None
            assert grad_gates.dtype == self.gates.dtype
            close(grad_gates, gates.grad)
        else:
            assert grad_gates is None


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("kind", "nodes", "given"),
    [
        ("gate", ("far", "near", "some"), ("a", "c")),
        ("gate", ("far", "near", "far"), ("a", "b", "c")),
        ("mix", ("far", "near", "some"), ("b",)),
        ("mix", ("far", "near", "near", "far"), ("b", "c")),
        ("merge", ("far", "near"), ("merge",)),
        ("single", ("far",), ("a",)),
    ],
)
def test_rows(kind: Kind, nodes: tuple[str, ...], given: tuple[str, ...], dtype: str) -> None:
    Rows(kind, nodes, dtype, given=given).check()


@pytest.mark.parametrize("kind", ["gate", "mix", "single"])
@pytest.mark.parametrize(("dim", "tokens"), [(5, 1), (80, 33), (16, 64), (24, 0)])
def test_rows_of_every_size(kind: Kind, dim: int, tokens: int) -> None:
    Rows(kind, ("far",) if kind == "single" else ("far", "near"), dim=dim, tokens=tokens).check()


@pytest.mark.parametrize("kind", ["gate", "mix"])
def test_gates_that_nobody_wants_get_no_gradient(kind: Kind) -> None:
    Rows(kind, ("far", "near"), wanted=("q",)).check()


@pytest.mark.parametrize("kind", ["gate", "mix"])
def test_saturated_gates(kind: Kind) -> None:
    """The slope of a sigmoid at 20 is 2e-9: 1 minus a float32 sigmoid is 0 there."""
    rows = Rows(kind, ("far", "near"))
    rows.gates[..., 0] = 20.0
    rows.gates[:, :, 5:9] = -200.0
    rows.check()
    _, _, grad = rows.run()
    assert grad is not None
    if kind == "gate":
        dot = (rows.grad_out.double() * rows.outs["a"].double()).sum(-1)[:, :, 0]
        assert torch.allclose(grad[:, :, 0, 0].double(), dot * torch.sigmoid(torch.tensor(-20.0, dtype=torch.float64)), rtol=1e-4)


def test_a_mix_whose_gates_are_all_closed_weighs_nothing() -> None:
    rows = Rows("mix", ("far", "near"))
    rows.gates[:, :, 4] = float("-inf")
    weights, deltas, grad = rows.run()
    assert grad is not None
    for each in (*weights.values(), *deltas.values(), grad[..., 0]):
        assert bool((each[:, :, 4].abs() < 1e-15).all())
        assert bool((each[:, :, :4].abs() > 1e-9).all())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", ["gate", "mix", "single"])
def test_a_bad_gradient_makes_its_row_bad_and_no_other(kind: Kind, bad: float) -> None:
    rows = Rows(kind, ("far",) if kind == "single" else ("far", "near"))
    rows.grad_out[1, 2, 7, 3] = bad
    # A row without keys: its output is zero.
    rows.outs["a"][1, 2, 7] = 0.0
    _, deltas, _ = rows.run()
    assert rows.wild.item() == 1
    expected = torch.ones(BATCH, HEADS, TOKENS, dtype=torch.bool)
    expected[1, 2, 7] = False
    for each in deltas.values():
        assert torch.equal(each.isfinite(), expected)


@pytest.mark.parametrize(
    ("kind", "vouching", "decides"),
    [
        ("gate", ("far", "near"), "ab"),
        ("gate", ("near",), "b"),
        ("mix", ("far",), "a"),
        ("merge", ("merge",), ("merge",)),
    ],
)
@pytest.mark.parametrize(("bad", "unknown"), [(math.inf, -math.inf), (math.nan, math.nan)])
def test_queries_are_looked_at_where_no_log_sum_exp_is_finite(
    kind: Kind, vouching: tuple[str, ...], decides: Sequence[str], bad: float, unknown: float
) -> None:
    """decides: the owners of the log-sum-exps that must all be unknown before the row of q is read."""
    rows, row = Rows(kind, ("far", "near"), vouching=vouching), (1, 2, TOKENS - 1)
    rows.q[row][7] = bad
    for each in decides:
        rows.run()
        assert rows.wild.item() == 0
        rows.lse[each][row] = unknown
    rows.run()
    assert rows.wild.item() == 1
    rows.q[row][7] = 0.0
    rows.run()
    assert rows.wild.item() == 0, "this row without keys has a finite query"
