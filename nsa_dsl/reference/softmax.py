"""One softmax over what a mask allows, safe for rows that see nothing and for masked keys that are not numbers."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nsa_dsl.pattern import Branch, Compress, NotSupported
from nsa_dsl.reference.call import Extent


def logits(branch: Branch, extent: Extent, q: Tensor, rows: Tensor, keys: Tensor, scale: float | None) -> Tensor:
    """(batch, heads, rows, keys) scores before the softmax.

    q: (batch, heads, rows, d_qk), asked at positions rows; keys: (batch, kv_heads, keys, d_qk). scale: the call's, used when the
    branch has none. Soft-cap first, bias after.
    """
    if branch.skip is not None:
        raise NotSupported(f"branch {branch.name!r}: `skip` drops tiles in an order that only a schedule fixes")
    factor = branch.scale if branch.scale is not None else scale
    score = _products(q, spread(keys, extent.heads)) * (q.shape[-1] ** -0.5 if factor is None else factor)
    if branch.softcap is not None:
        score = branch.softcap * torch.tanh(score / branch.softcap)
    if branch.bias is None:
        return score
    head = torch.arange(extent.heads, device=q.device, dtype=torch.float64)
    slope = torch.exp2(-8 * (head + 1) / extent.heads)[:, None, None]
    distance = rows[:, None] - _places(branch, keys.shape[2], q.device)[None, :]
    return score - (slope * distance).to(score.dtype)


def _places(branch: Branch, count: int, device: torch.device) -> Tensor:
    """(keys,) the position each key stands at; a slot stands at the last token that it covers."""
    slot = torch.arange(count, device=device)
    memory = branch.memory
    return slot * memory.stride + memory.block - 1 if isinstance(memory, Compress) else slot


def spread(per_kv_head: Tensor, heads: int) -> Tensor:
    """(batch, kv_heads, ...) -> (batch, heads, ...): every query head of a group gets its KV head."""
    return per_kv_head.repeat_interleave(heads // per_kv_head.shape[1], 1)


def _products(q: Tensor, k: Tensor) -> Tensor:
    """q @ k^T whose gradients at finite entries no other entry's NaN or infinity can reach (0 * NaN would, in a product)."""
    fine_q, fine_k = torch.isfinite(q), torch.isfinite(k)
    if bool(fine_q.all()) and bool(fine_k.all()):
        return q @ k.mT
    with torch.no_grad():
        raw = q @ k.mT
    clean = torch.where(fine_q, q, 0.0) @ torch.where(fine_k, k, 0.0).mT
    return torch.where(fine_q.all(-1)[..., :, None] & fine_k.all(-1)[..., None, :], clean, raw)


def probabilities(score: Tensor, mask: Tensor, sinks: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Softmax along the last dimension over what the mask allows, and its log-sum-exp.

    score: (batch, heads, rows, keys); mask: broadcasts to it; sinks: (heads, count) logits that join the denominator.
    Returns (batch, heads, rows, keys) and (batch, heads, rows): the log of the denominator, sinks included. A row that sees no key
    has probabilities 0 and, without sinks, log-sum-exp -inf and no gradient.
    """
    mask = mask.broadcast_to(score.shape)
    # A column of -inf stands for "no sink": it weighs nothing, and gives the maximum something to look at when there are no keys.
    extra = score.new_full((*score.shape[:3], 1), -math.inf)
    if sinks is not None:
        extra = torch.cat((extra, sinks[None, :, None, :].expand(*score.shape[:3], -1)), -1)
    peak = torch.cat((torch.where(mask, score, -math.inf), extra), -1).amax(-1, keepdim=True).detach()
    peak = torch.where(peak == -math.inf, 0.0, peak)
    weight = torch.where(mask, torch.exp(torch.where(mask, score, peak) - peak), 0.0)
    total = weight.sum(-1, keepdim=True) + torch.exp(extra - peak).sum(-1, keepdim=True)
    empty = total == 0
    total = torch.where(empty, 1.0, total)
    lse = torch.where(empty, -math.inf, peak + total.log())
    # Once more through the mask: in a row whose total is NaN, 0 / NaN must not reach the values that the row does not see.
    return torch.where(mask, weight / total, 0.0), lse.squeeze(-1)


def weighted_values(probability: Tensor, mask: Tensor, values: Tensor) -> Tensor:
    """(batch, heads, rows, d_v). values: (batch, heads, keys, d_v). A value that is not finite reaches the rows that see it only."""
    fine = torch.isfinite(values)
    if bool(fine.all()):
        return probability @ values
    result = probability @ torch.where(fine, values, 0.0)
    with torch.no_grad():
        seen = mask.broadcast_to(probability.shape).to(probability.dtype)
        above = seen @ (values == math.inf).to(seen.dtype) > 0
        below = seen @ (values == -math.inf).to(seen.dtype) > 0
        undefined = (seen @ torch.isnan(values).to(seen.dtype) > 0) | (above & below)
        poison = torch.zeros_like(result)
        poison = torch.where(above, math.inf, poison)
        poison = torch.where(below, -math.inf, poison)
        poison = torch.where(undefined, math.nan, poison)
    return torch.where(poison == 0, result, poison)
