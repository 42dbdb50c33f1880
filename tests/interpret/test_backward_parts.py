"""Long contexts take the backward pass a part at a time: some heads, some queries. Forced on small ones here, it gives the same."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from interpret.support import USUAL, compiled, inputs_of, parse, refuse

from nsa_dsl.op import AttentionOp
from nsa_dsl.verify.damage import check_damage
from nsa_dsl.verify.gradients import check_gradients

SELECTED = """
pattern parted {
    means    = compress(block = 8, stride = 8, by = mean)
    overview = attend(means, causal)
    selected = attend(tokens, causal & top(3, block = 16, by = overview, share = group))
    near     = attend(tokens, window(9))
    output gate(overview, selected, near)
}
"""
ALONE = "pattern parted { output attend(tokens, causal & top(2, block = 16, by = scores, share = group)) }"
PLAIN = """
pattern parted {
    sums = compress(block = 4, stride = 4, by = weighted)
    far  = attend(sums, causal, sink = learned)
    near = attend(tokens, window(5))
    output mix(far, near)
}
"""


def _op(text: str, changes: dict[str, Any], **limits: int) -> tuple[AttentionOp, Any, Any]:
    """An op whose generated backward module has other limits, its case and its inputs. Slopes in parts stay in parts."""
    if "SLOPE_BYTES" in limits:
        limits = {"ALL_SLOPE_BYTES": 0, "SLOPE_CHUNKS": 1 << 20, **limits}
    pattern, case = parse(text), replace(USUAL, **{"gradients": "out and lse", "tokens": 43, **changes})
    op, inputs = compiled(pattern, case), inputs_of(pattern, case)
    module = op.module(inputs.q, case.d_v, backward=True)
    for name, limit in limits.items():
        assert hasattr(module, name)
        setattr(module, name, limit)
    return op, case, inputs


@pytest.mark.parametrize(
    ("text", "changes", "limits"),
    [
        (SELECTED, {"batch": 2, "dtype": "fp16", "heads": 2}, {"SUM_BYTES": 1, "SLOPE_BYTES": 4_000}),
        (SELECTED, {}, {"SLOPE_BYTES": 30_000, "KEPT_ITEM_ROWS": 1}),
        # Two chunks, whose common blocks have more than one item.
        (SELECTED, {"batch": 2}, {"SLOPE_BYTES": 12_000, "KEPT_ITEM_ROWS": 1}),
        # Three, which are more than there is room for, of unequal lengths.
        (SELECTED, {"batch": 2}, {"SLOPE_BYTES": 1, "SLOPE_CHUNKS": 3}),
        (ALONE, {"dtype": "fp16", "heads": 2, "kv_heads": 1}, {"SLOPE_BYTES": 1_000}),
        (PLAIN, {}, {"SUM_BYTES": 1}),
    ],
)
def test_parts_give_the_same(text: str, changes: dict[str, Any], limits: dict[str, int]) -> None:
    op, case, inputs = _op(text, changes, **limits)
    refuse(check_gradients(op, case, inputs))


def test_slopes_of_short_contexts_are_kept_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    op, case, inputs = _op(SELECTED, {"batch": 2}, SLOPE_BYTES=1, ALL_SLOPE_BYTES=1_000_000)
    module = op.module(inputs.q, case.d_v, backward=True)
    launch, seen = module._launch, []

    def counted(kernel: Any, *arguments: Any, **options: Any) -> None:
        seen.append(kernel.__name__)
        launch(kernel, *arguments, **options)

    monkeypatch.setattr(module, "_launch", counted)
    refuse(check_gradients(op, case, inputs))
    assert seen.count("slopes_selected_queries") == seen.count("rows_backward") > 0


def test_no_more_parts_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    # A query has 3 x 2 x 16 slopes.
    for limits in ({}, {"SLOPE_CHUNKS": 5}, {"SLOPE_CHUNKS": 1}, {"SLOPE_CHUNKS": 1, "SLOPE_NUMBERS": 24 * 96}):
        op, case, inputs = _op(SELECTED, {"heads": 2, "kv_heads": 1}, SLOPE_BYTES=1, **limits)
        module = op.module(inputs.q, case.d_v, backward=True)
        launch, seen = module._launch, []

        def counted(kernel: Any, *arguments: Any, seen: Any = seen, launch: Any = launch, **options: Any) -> None:
            seen.append(kernel.__name__)
            launch(kernel, *arguments, **options)

        monkeypatch.setattr(module, "_launch", counted)
        leaf = inputs.q.detach().requires_grad_()
        key = inputs.k.detach().requires_grad_()
        op(leaf, key, inputs.v, **inputs.options).sum().backward()
        made.append(seen.count("slopes_selected_queries"))
    # Whole tiles of eight queries; nine are asked for by five parts of 43.
    assert made == [6, 3, 1, 2]


def test_slopes_make_the_gradient_that_is_made_without_them() -> None:
    """With only the queries' gradient wanted nothing is kept, and chosen blocks are walked again."""
    op, case, inputs = _op(SELECTED, {}, SLOPE_BYTES=10_000)
    q, k, v = (each.detach().clone().requires_grad_() for each in (inputs.q, inputs.k, inputs.v))
    sent = torch.randn(case.batch, case.heads, case.tokens, case.d_v, generator=torch.Generator().manual_seed(0))
    both = torch.autograd.grad(op(q, k, v, **inputs.options), [q, k, v], sent)[0]
    alone = torch.autograd.grad(op(q, k.detach(), v.detach(), **inputs.options), q, sent)[0]
    torch.testing.assert_close(both, alone, rtol=1e-5, atol=1e-6)


def test_a_kept_gradient_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The steps for queries leave it to the one for keys: the kernel for one query at a time runs, but touches nothing."""
    op, case, inputs = _op(SELECTED, {})
    module = op.module(inputs.q, case.d_v, backward=True)
    launch, seen = module._launch, []

    def watched(kernel: Any, programs: int, *arguments: Any, **options: Any) -> None:
        name = kernel.__name__
        out = dict(zip(kernel.arg_names, arguments, strict=False)).get("out_ptr")
        if name == "attend_selected_queries":
            out.fill_(7.0)
        launch(kernel, programs, *arguments, **options)
        if name == "attend_selected_queries":
            assert bool((out == 7.0).all())
        seen.append(name)

    monkeypatch.setattr(module, "_launch", watched)
    refuse(check_gradients(op, case, inputs))
    assert {"attend_selected_queries", "slopes_selected_queries"} <= set(seen)
    assert "attend_selected_union_queries" not in seen


@pytest.mark.parametrize("damage", ["key", "query"])
def test_what_is_not_finite_stays_where_it_belongs(damage: str) -> None:
    op, case, inputs = _op(SELECTED, {"damage": damage, "damaged": 20}, SUM_BYTES=1, SLOPE_BYTES=20_000)
    refuse(check_damage(op, case, inputs))


def test_wide_offsets_give_the_same() -> None:
    op, case, inputs = _op(SELECTED, {})
    module = op.module(inputs.q, case.d_v, backward=True)
    assert not module._is_wide(inputs.q)
    module._is_wide = lambda *_: True
    refuse(check_gradients(op, case, inputs))
