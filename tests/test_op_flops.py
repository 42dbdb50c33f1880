"""FlopCounterMode counts visible pairs, and nothing else."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from op_cases import EXAMPLES, SMALL, TEXTS, dense_op, example, inputs_of, loss_of, parse
from torch.utils.flop_counter import FlopCounterMode

from nsa_dsl import reference
from nsa_dsl.arguments import Shape, choice_shape
from nsa_dsl.flops import backward_flops, visible_pairs
from nsa_dsl.op import AttentionOp
from nsa_dsl.verify.checks import with_extra

D_QK, D_V = SMALL.d_qk, SMALL.d_v


def brute_force(op: AttentionOp, inputs: Any, case: Any) -> int:
    """Visible pairs of the branches that are computed, over batch and heads, from the reference's masks."""
    options = {name: each for name, each in inputs.options.items() if name != "gates"}
    chosen = with_extra(op.pattern, case, op.choose(inputs.q, inputs.k, inputs.v, **options))
    masks = reference.mask(op.pattern, case.tokens, case.heads, case.kv_heads, chosen, cu_seqlens=inputs.options.get("cu_seqlens"))
    return sum(int(masks[each.name].expand(case.batch, -1, -1, -1).sum()) for each in op.signature.computed)


def counted(op: AttentionOp, inputs: Any) -> tuple[int, int]:
    """Operations forward and backward."""
    with FlopCounterMode(display=False) as counter:
        loss = loss_of(op(inputs.q, inputs.k, inputs.v, **inputs.options, return_lse=True))
        loss.backward()
    counts = counter.get_flop_counts()["Global"]
    return counts[torch.ops.nsa_dsl.attend], counts[torch.ops.nsa_dsl.attend_backward]


PATTERNS = {
    **{name: parse(text) for name, text in TEXTS.items()},
    "keep_extra": parse("output attend(tokens, causal & (top(2, block = 3, by = mean, share = head, keep_extra = window(1)) | first(2)))"),
    "difference": parse("output attend(tokens, window(12) - top(2, block = 5, by = scores, share = group, every = 6))"),
    "two choices": parse(
        "output attend(tokens, causal & (top(2, block = 5, by = scores, share = group, every = 6) "
        "| top(2, block = 3, by = scores, share = all, every = 2) & window(20)))"
    ),
    "by head": parse("output attend(tokens, { i, j, h : (j + h) % 3 == 0 and j <= i })"),
    "packed slots": parse("output attend(compress(block = 4, stride = 3, by = mean), around(8, 8) & document)"),
    **{f"{stem}.{name}": example(stem, name) for stem, name in EXAMPLES},
}


@pytest.mark.parametrize("name", PATTERNS)
def test_visible_pairs_are_counted(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    op, _ = dense_op(PATTERNS[name], monkeypatch)
    packed = "cu_seqlens" in op.signature.inputs
    changes = {"documents": 3} if packed else {"batch": 2, "tokens": 22, "heads": 6}
    inputs, _ = inputs_of(op.pattern, **changes)
    pairs = brute_force(op, inputs, replace(SMALL, **changes))
    assert pairs > 0
    assert counted(op, inputs) == (2 * (D_QK + D_V) * pairs, 2 * (3 * D_QK + 2 * D_V) * pairs)


@pytest.mark.parametrize("name", ["nsa", "packed", "listed", "difference", "merge"])
def test_without_contents_the_count_is_a_bound(name: str) -> None:
    op = AttentionOp(PATTERNS[name])
    shape = Shape(1, 4, 2, 29, D_QK, D_V)
    blocks = {each.name: torch.randint(0, 7, choice_shape(each, shape, each.count or 0)) for each in op.signature.choices}
    masks = reference.mask(op.pattern, 29, 4, 2, blocks)
    for branch in op.signature.computed:
        exact = int(masks[branch.name].sum())
        unread = visible_pairs(branch, shape, {name: each.to("meta") for name, each in blocks.items()}, None)
        assert exact <= unread < shape.heads * 29 * 29


def test_products_that_nobody_wants_are_not_counted() -> None:
    signature, shape = AttentionOp(PATTERNS["nsa"]).signature, Shape(1, 4, 2, 29, D_QK, D_V)
    chosen = {"selected": torch.zeros(1, 2, 29, 2, dtype=torch.int32)}
    pairs = {each.name: visible_pairs(each, shape, chosen, None) for each in signature.computed}
    every = sum(pairs.values())
    tokens = pairs["selected"] + pairs["windowed"]

    def asked(*wanted: str) -> int:
        return backward_flops(signature, shape, chosen, None, wanted)

    assert asked("gates") == 0
    assert asked("q") == 2 * (2 * D_QK + D_V) * every
    assert asked("v") == 2 * (D_QK + D_V) * tokens
    assert asked("k") == 2 * (2 * D_QK + D_V) * tokens
    assert asked("slots.summary.values") == 2 * (D_QK + D_V) * pairs["compressed"]
    assert asked("q", "k", "v", "slots.summary.keys", "slots.summary.values", "gates") == 2 * (3 * D_QK + 2 * D_V) * every


@pytest.mark.parametrize("changes", [{"tokens": 0}, {"batch": 0}])
@pytest.mark.parametrize("name", ["nsa", "packed"])
def test_empty_calls_cost_nothing(name: str, changes: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    op, _ = dense_op(PATTERNS[name], monkeypatch)
    inputs, _ = inputs_of(op.pattern, **changes)
    assert counted(op, inputs) == (0, 0)


def test_importing_the_op_leaves_triton_alone() -> None:
    """Triton decides when it is first imported whether it interprets; `nsa verify` says so after it has imported the op."""
    done = subprocess.run(
        [sys.executable, "-c", "import nsa_dsl.op, sys; print('triton' in sys.modules)"], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"
