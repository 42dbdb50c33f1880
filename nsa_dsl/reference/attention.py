"""The whole layer: choices, branches, and what the output makes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from nsa_dsl.pattern import Branch, Choice, Pattern
from nsa_dsl.reference.call import Call, TensorOrByName, prepare
from nsa_dsl.reference.choosing import Chooser
from nsa_dsl.reference.memory import Compressor
from nsa_dsl.reference.softmax import logits, probabilities, spread, weighted_values
from nsa_dsl.reference.visible import visible


def attend(
    pattern: Pattern,
    q: Tensor,
    k: TensorOrByName,
    v: TensorOrByName,
    *,
    gates: Tensor | None = None,
    weights: Mapping[str, tuple[Tensor, Tensor]] | None = None,
    compressors: Mapping[str, Compressor] | None = None,
    scores: TensorOrByName | None = None,
    indices: TensorOrByName | None = None,
    cu_seqlens: Tensor | None = None,
    sinks: Mapping[str, Tensor] | None = None,
    scale: float | None = None,
    choices: Mapping[str, Tensor] | None = None,
    return_lse: bool = False,
    dtype: torch.dtype = torch.float64,
) -> Tensor | tuple[Tensor, Tensor | dict[str, Tensor]]:
    """What the pattern computes, densely.

    q: (batch, heads, n, d_qk); k: (batch, kv_heads, n, d_qk); v: (batch, kv_heads, n, d_v); with `kv per branch` dictionaries,
    branch name -> tensor. gates: logits (batch, heads, n, branches). weights: memory -> (for k, for v), each (kv_heads, block).
    compressors: memory -> module. scores: (batch, units, query units, blocks); indices: (batch, units, query units, n); several
    choices: dictionaries by choice. cu_seqlens: (documents + 1,), batch 1. sinks: branch -> (heads,) logits. scale: for branches
    that name none. choices: choice -> (batch, units, query units, width) integers that replace what would be chosen (negative
    entries are padding, duplicates count once). dtype: everything after the choice is computed in it, whatever the inputs' is;
    choices are always ranked by scores rounded to float32.

    Returns (batch, heads, n, d_v), with return_lse also the natural log-sum-exp (batch, heads, n), for gate and mix a dictionary
    by branch. Differentiable in q, k, v, gates, weights, sinks and the compressors' parameters; the choice carries no gradient.
    Raises ValueError for arguments that do not fit, NotSupported for parts of a pattern without a dense meaning.
    """

    def call_in(precision: torch.dtype) -> Call:
        return prepare(
            pattern, q, k, v, precision, gates=gates, weights=weights, compressors=compressors, scores=scores,
            indices=indices, cu_seqlens=cu_seqlens, sinks=sinks, scale=scale,
        )  # fmt: skip

    call = call_in(dtype)
    chooser = Chooser(call if dtype == torch.float64 else call_in(torch.float64), dict(choices or {}), torch.float32)
    joined = [pattern.outputs] if pattern.output.kind == "merge" else [(each,) for each in pattern.outputs]
    parts = [_softmax_over(call, group, chooser.required(group)) for group in joined]
    outs, lses = [out for out, _ in parts], [lse for _, lse in parts]
    if pattern.output.kind in ("single", "merge"):
        return (outs[0], lses[0]) if return_lse else outs[0]
    assert call.gates is not None
    amounts = call.gates.sigmoid() if pattern.output.kind == "gate" else call.gates.softmax(-1)
    out = torch.stack([amounts[..., place, None] * each for place, each in enumerate(outs)]).sum(0)
    return (out, dict(zip(pattern.output.branches, lses, strict=True))) if return_lse else out


def _softmax_over(call: Call, branches: Sequence[Branch], choices: Mapping[str, tuple[Choice, Tensor]]) -> tuple[Tensor, Tensor]:
    """One softmax over the keys of all these branches: (batch, heads, n, d_v) and (batch, heads, n)."""
    extent = call.extent
    memories = [call.memory(each) for each in branches]
    values = spread(torch.cat([value for _, value in memories], 2), extent.heads)
    sinks = [sink for each in branches if (sink := call.sink(each)) is not None]
    runs = []
    for rows in extent.runs(values.shape[2], extent.n):
        q = call.q[:, :, rows]
        score = torch.cat([logits(each, extent, q, rows, key, call.scale) for each, (key, _) in zip(branches, memories, strict=True)], -1)
        allowed = [visible(each, extent, rows, choices) for each in branches]
        mask = torch.cat([each.expand(extent.batch, -1, -1, -1) for each in allowed], -1)
        probability, lse = probabilities(score, mask, torch.stack(sinks, -1) if sinks else None)
        runs.append((weighted_values(probability, mask, values), lse))
    return torch.cat([out for out, _ in runs], 2), torch.cat([lse for _, lse in runs], 2)
