"""Native Sparse Attention once more, by hand: the paper's Eq. 5 and 7 to 12 as loops with its own 1-based indices.

Written from the paper and sharing nothing with `nsa_dsl`; mean stands for the learned compressor. For small sizes only.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def softmax(scores: list[Tensor]) -> list[Tensor]:
    """Softmax of a list of scalars."""
    top = max(float(each) for each in scores)
    weights = [torch.exp(each - top) for each in scores]
    total = torch.stack(weights).sum()
    return [each / total for each in weights]


def attention(query: Tensor, keys: list[Tensor], values: list[Tensor], width: int) -> Tensor:
    """Attn(q, K, V) for one query; nothing to see gives 0."""
    if not keys:
        return torch.zeros(width, dtype=query.dtype)
    weights = softmax([query @ key / math.sqrt(len(query)) for key in keys])
    return torch.stack([weight * value for weight, value in zip(weights, values, strict=True)]).sum(0)


def compressed_tokens(tokens: dict[int, Tensor], t: int, l: int, d: int) -> list[Tensor]:  # noqa: E741
    """Eq. 7: phi(k_{id+1 : id+l}) for 0 <= i <= floor((t - l) / d)."""
    blocks = []
    for i in range((t - l) // d + 1 if t >= l else 0):
        blocks.append(torch.stack([tokens[s] for s in range(i * d + 1, i * d + l + 1)]).mean(0))
    return blocks


def selection_scores(p: dict[int, float], j: int, l: int, d: int, l_prime: int) -> float:  # noqa: E741
    """Eq. 9: p_slc[j] = sum over m < l'/d and n < l/d of p_cmp[l'/d j - m - n]; both indices count from 1."""
    return sum(p.get(l_prime // d * j - m - n, 0.0) for m in range(l_prime // d) for n in range(l // d))


def nsa(
    q: Tensor,
    k: dict[str, Tensor],
    v: dict[str, Tensor],
    gates: Tensor,
    *,
    l: int,  # noqa: E741 - the paper's name
    d: int,
    l_prime: int,
    n: int,
    w: int,
) -> Tensor:
    """Eq. 5 for one sequence. q: (heads, tokens, d_qk); k, v: branch -> (kv_heads, tokens, ...); gates: logits (heads, tokens, 3)."""
    heads, tokens, _ = q.shape
    kv_heads, _, width = v["compressed"].shape
    group_size = heads // kv_heads
    out = torch.zeros(heads, tokens, width, dtype=q.dtype)
    for group in range(kv_heads):
        key = {c: {t: k[c][group, t - 1] for t in range(1, tokens + 1)} for c in k}
        value = {c: {t: v[c][group, t - 1] for t in range(1, tokens + 1)} for c in v}
        for t in range(1, tokens + 1):
            members = range(group * group_size, (group + 1) * group_size)
            k_cmp, v_cmp = compressed_tokens(key["compressed"], t, l, d), compressed_tokens(value["compressed"], t, l, d)
            blocks = range(1, (t - 1) // l_prime + 2)
            importance = dict.fromkeys(blocks, 0.0)
            for h in members:
                # Eq. 8, then Eq. 9, then Eq. 10: the sum over the heads of the group.
                p = softmax([q[h, t - 1] @ each / math.sqrt(q.shape[-1]) for each in k_cmp]) if k_cmp else []
                p_cmp = {i: float(each) for i, each in enumerate(p, start=1)}
                for j in blocks:
                    importance[j] += selection_scores(p_cmp, j, l, d, l_prime)
            # Eq. 11, with one initial and two local blocks inside n.
            last = blocks[-1]
            forced = {1, last, max(1, last - 1)}
            ranked = sorted(blocks, key=lambda j: (j not in forced, -importance[j], j))
            chosen = sorted(ranked[:n])
            # Eq. 12: the keys of the chosen blocks, none of them later than t.
            picked = [s for j in chosen for s in range((j - 1) * l_prime + 1, j * l_prime + 1) if s <= t]
            near = range(max(1, t - w + 1), t + 1)
            for h in members:
                parts = (
                    attention(q[h, t - 1], k_cmp, v_cmp, width),
                    attention(q[h, t - 1], [key["selected"][s] for s in picked], [value["selected"][s] for s in picked], width),
                    attention(q[h, t - 1], [key["windowed"][s] for s in near], [value["windowed"][s] for s in near], width),
                )
                for c, part in enumerate(parts):
                    out[h, t - 1] += part / (1 + math.exp(-float(gates[h, t - 1, c])))
    return out
