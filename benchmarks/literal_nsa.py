"""NSA's gradients at a length where nothing dense fits: the paper's equations on runs of query rows, and torch's autograd.

Choices and compressed slots are the kernels'. Gradients of keys, values and slots add up over the runs in the precision of the leaves,
float32 at least; what a run computes in between has a precision of its own, so that the same code gives the exact side and the baseline.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.cases import LONG_NSA, TORCH, Sizes, make_inputs, ungated
from benchmarks.cases_backward import FLOAT32, Cotangents, make_cotangents, op_gradients, repeatable
from nsa_dsl import reference
from nsa_dsl.compare import Mismatch, check_rows
from nsa_dsl.op import AttentionOp
from nsa_dsl.pattern import Compress, Pattern
from nsa_dsl.reference.softmax import probabilities
from nsa_dsl.verify.inputs import Inputs
from nsa_dsl.verify.leaves import Leaves, gradients

BRANCHES = ("compressed", "selected", "windowed")
STEEPNESS = 12.0
"""About the greatest log-sum-exp of normal inputs at 65,536 tokens."""


@dataclass(frozen=True, slots=True, eq=False)
class Given:
    """What every run of rows reads. k, v: (kv_heads, tokens, dim) and slots: (kv_heads, slots, dim), leaves in float32 or float64;
    chosen: (kv_heads, tokens, n) blocks, negative = padding."""

    memory: Compress
    block: int
    window: int
    k: Tensor
    v: Tensor
    key_slots: Tensor
    value_slots: Tensor
    chosen: Tensor

    @property
    def summed(self) -> tuple[Tensor, ...]:
        """The leaves whose gradients add up over rows."""
        return self.k, self.v, self.key_slots, self.value_slots


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """A run of query rows. out: (kv_heads, group, rows, d_v); outs: (kv_heads, group, rows, branches, d_v), lse: (kv_heads, group, rows,
    branches), in the order of `BRANCHES`."""

    out: Tensor
    outs: Tensor
    lse: Tensor


def attend_rows(given: Given, q: Tensor, gates: Tensor, at: Tensor, dtype: torch.dtype) -> Rows:
    """The paper's Eq. 5 and 7 to 12 for a run of queries. q: (kv_heads, group, rows, d_qk); gates: (kv_heads, group, rows, 3), logits."""
    first, last = int(at[0]), int(at[-1])
    memory, tokens = given.memory, given.k.shape[1]
    slots = max(0, (last + 1 - memory.block) // memory.stride + 1)
    ends = torch.arange(slots, device=at.device) * memory.stride + memory.block - 1
    near = slice(max(0, first - given.window + 1), last + 1)
    place = torch.arange(tokens, device=at.device)[near]
    blocks = given.chosen[:, at]
    taken = (blocks[..., None].clamp(min=0) * given.block + torch.arange(given.block, device=at.device)).flatten(2)
    allowed = (blocks >= 0).repeat_interleave(given.block, -1) & (taken <= at[:, None])
    rows = torch.where(allowed, taken, 0) + torch.arange(len(blocks), device=at.device)[:, None, None] * tokens
    seen = {
        "compressed": (given.key_slots[:, :slots], given.value_slots[:, :slots], (ends <= at[:, None])[None]),
        "selected": (*(each.flatten(0, 1).index_select(0, rows.flatten()).view(*rows.shape, -1) for each in (given.k, given.v)), allowed),
        "windowed": (
            given.k[:, None, near],
            given.v[:, None, near],
            ((place <= at[:, None]) & (place > at[:, None] - given.window))[None],
        ),
    }
    asked, shares = q.to(dtype), gates.to(dtype).sigmoid()
    outs, lses = [], []
    for name in BRANCHES:
        keys, values, mask = seen[name]
        # Selected keys differ from row to row, (kv_heads, rows, keys, dim); the others do not, (kv_heads, keys, dim).
        places = "hrn" if keys.dim() == 4 else "hn"
        scores = torch.einsum(f"hgrd,{places}d->hgrn", asked, keys.to(dtype)) * q.shape[-1] ** -0.5
        weights, lse = probabilities(scores, mask[:, None])
        outs.append(torch.einsum(f"hgrn,{places}d->hgrd", weights, values.to(dtype)))
        lses.append(lse)
    stacked = torch.stack(outs, -2)
    return Rows((shares[..., None] * stacked).sum(-2), stacked, torch.stack(lses, -1))


def check_long_gradients(
    pattern: Pattern,
    dtype: str,
    tokens: int,
    sizes: Sizes = LONG_NSA,
    device: str = "cuda",
    run: int = 256,
    exact: torch.dtype = torch.float32,
) -> list[str]:
    """Every gradient of NSA, by default in its paper's shape, for a loss of output and log-sum-exps, held to the equations in float32.

    run: query rows at a time.
    """
    op, inputs = AttentionOp(pattern), make_inputs(pattern, TORCH[dtype], tokens, sizes, device=device)
    with torch.no_grad():
        chosen = op.choose(inputs.q, inputs.k, inputs.v, **ungated(inputs))["selected"]
        memory = pattern.memories[0]
        module = inputs.options.get("compressors", {}).get(memory.name)
        slots = op.compress(memory.name, inputs.k, inputs.v, compressor=module)
    cotangents = make_cotangents(pattern, inputs)[1]
    with repeatable():
        made = op_gradients(op, inputs, cotangents)
    given = make_given(pattern, inputs, slots, chosen, exact)
    found, sums = check_runs(given, inputs, cotangents, made, torch.arange(tokens, device=inputs.q.device).split(run))
    found += check_sums(given, sums, made, module, inputs.q.dtype)
    return [str(each) for each in found]


def check_sums(
    given: Given, sums: Mapping[str, Sequence[Tensor]], made: Leaves, module: Any, dtype: torch.dtype, first: int = 0
) -> list[Mismatch]:
    """What is wrong with the gradients that add up over rows: of keys and values from token `first` on and, if that is the first of all, of
    the compressor's parameters. sums: as `check_runs` returns them, of all rows from `first` on at least: no other row reaches those."""
    exact = given.k.dtype
    sides = {side: _through_compressor(given, sums[side], module, dtype if side == "rounded" else exact) for side in sums}
    found = []
    for name in sides["exact"] if first == 0 else ("k", "v"):
        every = (made[name], *(sides[side][name] for side in ("exact", "rounded", "noise")))
        found += _check(name, *(each[:, :, first:] for each in every) if first else every)
    return found


def make_given(pattern: Pattern, inputs: Inputs, slots: tuple[Tensor, Tensor], chosen: Tensor, exact: torch.dtype) -> Given:
    """What rows read, from a call of batch 1. slots: of keys and of values; chosen: (1, kv_heads, tokens, n)."""
    leaves = [each[0].detach().to(exact).contiguous().requires_grad_() for each in (inputs.k, inputs.v, *slots)]
    window = dict(pattern.parameters)["w"]
    assert isinstance(window, int)
    memory, block = pattern.memories[0], pattern.branch("selected").choices[0].block
    return Given(memory, block, window, *leaves, chosen[0].to(torch.int64))


def check_runs(
    given: Given, inputs: Inputs, cotangents: Cotangents, made: Leaves, runs: Sequence[Tensor]
) -> tuple[list[Mismatch], dict[str, list[Tensor]]]:
    """What is wrong with the gradients of queries and gates, and the sums over rows of those of keys, values and slots: exact, rounded,
    and what the rounding of the outputs does to them. runs: rows that follow each other, a run at a time."""
    found: list[Mismatch] = []
    sums = {side: [torch.zeros_like(each) for each in given.summed] for side in ("exact", "rounded", "noise")}
    grouped = {name: _grouped(each[0], given) for name, each in (("q", inputs.q), ("gates", inputs.options["gates"]))}
    sent_out = _grouped(cotangents.out[0], given)
    sent_lse = _grouped(torch.stack([cotangents.lse[name][0] for name in BRANCHES], -1), given)
    size = torch.finfo(inputs.q.dtype).eps
    random = torch.Generator(device=given.k.device).manual_seed(2)
    for at in runs:
        q, gates = (each[:, :, at].detach().to(given.k.dtype).requires_grad_() for each in grouped.values())
        leaves = dict(zip(("q", "gates", "k", "v", "key slots", "value slots"), (q, gates, *given.summed), strict=True))
        out, lse = sent_out[:, :, at], sent_lse[:, :, at]
        rows = attend_rows(given, q, gates, at, given.k.dtype)
        share = gates.detach().sigmoid()
        # Row sums of d(out) * out are made of rounded outputs: their error acts as a gradient of the row's log-sum-exp.
        error = (size + 8 * FLOAT32 * STEEPNESS) * (out[..., None, :].to(share.dtype) * rows.outs.detach()).norm(dim=-1)
        signs = torch.randint(0, 2, error.shape, generator=random, device=error.device) * 2 - 1
        sides = {
            "noise": gradients([rows.lse], [share * error * signs], leaves, keep=True),
            "exact": gradients([rows.out, rows.lse], [out, lse], leaves),
        }
        rows = attend_rows(given, q, gates, at, inputs.q.dtype)
        sides["rounded"] = gradients([rows.out, rows.lse], [out, lse], leaves)
        sides["noise"]["gates"] = share * (1 - share) * error
        for side, all_leaves in sides.items():
            for total, name in zip(sums[side], ("k", "v", "key slots", "value slots"), strict=True):
                total += all_leaves[name]
        for name in ("q", "gates"):
            actual = _grouped(made[name][0], given)[:, :, at]
            found += _check(name, actual, *(sides[side][name] for side in ("exact", "rounded", "noise")), f", rows from {int(at[0])}")
    return found, sums


def _grouped(tensor: Tensor, given: Given) -> Tensor:
    """(heads, tokens, ...) -> (kv_heads, group, tokens, ...)."""
    return tensor.unflatten(0, (len(given.k), -1))


def _through_compressor(given: Given, sums: Sequence[Tensor], module: Any, dtype: torch.dtype) -> Leaves:
    """The gradients of k and v, (1, kv_heads, tokens, dim), and of the compressor's parameters, once those of the slots are known."""
    made = None if module is None else copy.deepcopy(module).to(dtype).requires_grad_()
    parameters: Mapping[str, Tensor] = {} if made is None else dict(made.named_parameters())
    tokens = [each.detach()[None].to(dtype).requires_grad_() for each in (given.k, given.v)]
    slots = reference.compress(given.memory, *tokens, compressor=made)
    leaves = {"k": tokens[0], "v": tokens[1], **{f"compressors.{given.memory.name}.{name}": each for name, each in parameters.items()}}
    pulled = gradients(slots, [each[None] for each in sums[2:]], leaves)
    return pulled | {name: pulled[name] + each[None].to(dtype) for name, each in zip(("k", "v"), sums[:2], strict=True)}


def _check(name: str, actual: Tensor, truth: Tensor, rounded: Tensor, noise: Tensor, where: str = "") -> list[Mismatch]:
    spread = (rounded.to(truth.dtype) - truth).abs() + noise.abs() + 4 * FLOAT32 * STEEPNESS * truth.abs()
    return check_rows(actual, truth, truth + spread.amax(-1, keepdim=True), what=f"d({name}){where}", limit=2)
