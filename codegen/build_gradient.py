"""Contexts and launches of the small backward kernels: rows of the output, compression, the weights of compression."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from nsa_dsl.codegen import contexts as ctx
from nsa_dsl.codegen.contexts_gradient import CompressBackward, RowsBackward, RowsEntry, RowsKind, WeightsBackward
from nsa_dsl.graph import Part
from nsa_dsl.pattern import Branch, Compress

_TILE = 32
"""Rows a program: a row of 128 features and its gradient take 64 registers a thread of four warps, in float32."""

_MERGED = "merge"
"""What the one softmax of a merge is called. No branch can be: the language keeps the word."""


def vouching(kind: Literal["gate", "mix", "merge", "single"], branches: Sequence[Branch]) -> tuple[str, ...]:
    """The nodes whose log-sum-exp is finite only where the row's query is. branches: the Attend nodes', as combined.

    A query that is not finite has no finite score, but a sink needs no score, and a soft cap makes infinite scores finite. The one
    log-sum-exp of a merge is finite if any of its branches' is.
    """
    sound = [each.name for each in branches if not each.sink and each.softcap is None]
    if kind == "merge":
        return (_MERGED,) if len(sound) == len(branches) else ()
    return tuple(dict.fromkeys(sound))


def rows_backward(
    kind: Literal["gate", "mix", "merge", "single"], nodes: Sequence[str], wild: bool = False, vouching: Sequence[str] = ()
) -> RowsBackward:
    """The context of what the gradients of all branches share of a query row.

    nodes: the Attend node's name of each combined branch, in the order of the gates; equal branches have one node. A merge's
    rows are those of its one softmax, whatever its branches: its entry is called `merge`. wild: say whether the output's gradient is
    finite, and if there are nodes `vouching` for rows of q, whether q is.
    """
    rows_kind: RowsKind = "plain" if kind == "merge" or kind == "single" else kind
    names = (_MERGED,) if kind == "merge" else tuple(nodes)
    doc = {
        "gate": "Rows' log-sum-exps and deltas, and the gates' gradient of sigmoid-gated branches.",
        "mix": "Rows' log-sum-exps and deltas, and the gates' gradient of branches weighted by a softmax.",
        "merge": "Deltas of the one softmax over all branches.",
        "single": "Deltas of the branch.",
    }[kind]
    entries = tuple(RowsEntry(n, f"{n}_{each}", each) for n, each in enumerate(names))
    return RowsBackward("rows_backward", doc, rows_kind, entries, _TILE, wild, tuple(vouching) if wild else ())


def rows_launch(context: RowsBackward, branches: Sequence[str], nodes: Sequence[str]) -> ctx.Launch:
    """How the host runs it. branches, nodes: the branches' own names and their Attend nodes' names, in the order of the gates.

    It reads `grad_out`, `grad_lse`, `outs`, `lse`, `gates` and `wanted`, and `q` if a node vouches for it. It writes, for each Attend
    node, `folded_lse_<node>` and `folded_delta_<node>`: (batch, heads, tokens), ACC_TORCH; and `grads["gates"]` if wanted.
    """
    merged = context.entries[0].node == _MERGED
    owners = (_MERGED,) if merged else tuple(branches)
    first = {each.node: owner for each, owner in zip(reversed(context.entries), reversed(owners), strict=True)}
    values: tuple[tuple[str, ctx.LaunchValue], ...] = (
        ("kernel", context.name),
        ("tile", context.tile),
        ("weighted", context.kind != "plain"),
        ("wild", context.wild),
        ("looks", bool(context.vouching)),
        ("nodes", tuple((node, first[node]) for node in context.nodes)),
        ("entries", tuple((each.label, owner) for each, owner in zip(context.entries, owners, strict=True))),
        ("aliases", tuple((node, _MERGED) for node in dict.fromkeys(nodes)) if merged else ()),
    )
    return ctx.Launch("rows_backward", context.doc, "grads", values)


def compress_backward(memory: Compress) -> CompressBackward:
    """The context of a memory's compression, backward. by: mean, max or weighted; a module's (mlp) gradient is torch's."""
    name = f"{memory.by}_of_{memory.name}_backward"
    doc = f"Slots of {memory.name} to tokens: {memory.by} of {memory.block} every {memory.stride}."
    return CompressBackward(name, f"shares_of_{memory.name}_backward", doc, memory.by, memory.block, memory.stride, _TILE)


def compress_launch(
    context: CompressBackward, part: Part, *, grad: str, x: str, slots: str, weight: str, partial: str, out: str, dtype: str
) -> ctx.Launch:
    """How the host runs it for the keys or the values of a memory. All but `part` are the host function's expressions.

    grad: the slots' gradient (batch, kv_heads, slots, d), ACC_TORCH, contiguous; by max it is overwritten. x: the tokens that were
    compressed. slots: the forward's slots, in x's dtype (used by max). weight: (kv_heads, block) (used by weighted).
    partial: the tokens' gradient so far, (batch, kv_heads, tokens, d), ACC_TORCH, or "" for none. out: what is assigned; the same
    text as partial adds in place. dtype: what a new `out` is made in.
    """
    values: tuple[tuple[str, ctx.LaunchValue], ...] = (
        ("kernel", context.name),
        ("shares", context.shares),
        ("by", context.by),
        ("tile", context.tile),
        ("dim", _dim(part)),
        ("grad", grad),
        ("x", x),
        ("slots", slots),
        ("weight", weight),
        ("partial", partial),
        ("dtype", dtype),
    )
    return ctx.Launch("compress_backward", f"Tokens' gradient: {part}. {context.doc}", out, values)


def weights_backward(memory: Compress) -> WeightsBackward:
    """The context of the gradient of a weighted memory's weights."""
    doc = f"Weights of {memory.name}: the sum over slots and features of the slot's gradient times the token."
    return WeightsBackward(f"weights_of_{memory.name}_backward", doc, memory.block, memory.stride, _TILE)


def weights_launch(context: WeightsBackward, part: Part, *, grad: str, x: str, partial: str, out: str, dtype: str) -> ctx.Launch:
    """How the host runs it for the keys or the values. grad, x: as compress_launch takes them; partial: the weights' gradient so far,
    or "" for none; out: what is assigned; dtype: what it is made in."""
    values: tuple[tuple[str, ctx.LaunchValue], ...] = (
        ("kernel", context.name),
        ("block", context.block),
        ("tile", context.tile),
        ("dim", _dim(part)),
        ("grad", grad),
        ("x", x),
        ("partial", partial),
        ("dtype", dtype),
    )
    return ctx.Launch("weights_backward", f"Weights' gradient: {part}.", out, values)


def _dim(part: Part) -> str:
    return "dim_qk" if part == "keys" else "dim_v"
