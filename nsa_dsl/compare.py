"""The rules by which a kernel's results are accepted.

Every check returns what it found, worst first; an empty list accepts. Nothing that is NaN passes, on either side.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Mismatch:
    """One place where a result is refused. place: index of the row (or element); error and allowed: both in the result's units."""

    what: str
    place: tuple[int, ...]
    error: float
    allowed: float
    note: str = ""

    def __str__(self) -> str:
        place = ", ".join(map(str, self.place))
        return f"{self.what}[{place}]: error {self.error:.4g}, allowed {self.allowed:.4g}{f' ({self.note})' if self.note else ''}"


def check_rows(
    actual: Tensor,
    expected: Tensor,
    baseline: Tensor,
    *,
    what: str = "out",
    factor: float = 2.0,
    absolute: float | None = None,
    limit: int = 8,
) -> list[Mismatch]:
    """Compare row by row (a row is the last dimension): the greatest error may be `factor` times the baseline's.

    actual: the kernel's; expected: float64, from the same quantised inputs; baseline: the same formula in the kernel's dtype
    through plain torch (`reference.attend(..., dtype=q.dtype)`). absolute: allowed on top; by default one rounding of the row's
    greatest value plus 1e-6 of the whole tensor's. Fits outputs and gradients alike.
    """
    if not actual.shape == expected.shape == baseline.shape:
        return [Mismatch(what, (), float("nan"), 0.0, f"shapes {tuple(actual.shape)}, {tuple(expected.shape)}, {tuple(baseline.shape)}")]
    if actual.numel() == 0:
        return []
    truth = expected.detach().to(torch.float64)
    error = (actual.detach().to(truth) - truth).abs().amax(-1)
    reference_error = (baseline.detach().to(truth) - truth).abs().amax(-1)
    if absolute is None:
        size = torch.where(torch.isfinite(truth), truth, 0.0).abs().amax(-1)
        spare = torch.finfo(actual.dtype).eps * size + 1e-6 * size.max()
    else:
        spare = torch.full_like(error, absolute)
    return _refused(what, error, factor * reference_error + spare, limit)


def check_lse(actual: Tensor, expected: Tensor, *, what: str = "lse", limit: int = 8) -> list[Mismatch]:
    """Log-sum-exps agree to 1e-4 + 2.4e-7 |lse|, and are -inf in exactly the same places. Any shape, float32 against float64."""
    if actual.shape != expected.shape:
        return [Mismatch(what, (), float("nan"), 0.0, f"shapes {tuple(actual.shape)}, {tuple(expected.shape)}")]
    truth = expected.detach().to(torch.float64)
    found = actual.detach().to(truth)
    both_empty = (truth == -torch.inf) & (found == -torch.inf)
    error = torch.where(both_empty, 0.0, (found - truth).abs())
    return _refused(what, error, 1e-4 + 2.4e-7 * torch.where(both_empty, 0.0, truth.abs()), limit)


def check_poisoned(actual: Tensor, expected: Tensor, *, what: str = "out", limit: int = 8) -> list[Mismatch]:
    """After NaN was planted: the same rows (last dimension) hold something that is not finite, and no others."""
    hit, planted = ((~torch.isfinite(each.detach())).any(-1) for each in (actual, expected))
    return _refused(what, (hit != planted).to(torch.float64), torch.zeros(hit.shape, dtype=torch.float64, device=hit.device), limit)


def check_choice(
    actual: Tensor, ranking: Tensor, count: int, *, margin: float = 1e-5, extra: Tensor | None = None, limit: int = 8
) -> list[Mismatch]:
    """Compare chosen blocks as sets, with a margin at the last place.

    actual: (..., width) integers, negative = padding, any order; ranking: (..., blocks) from `reference.ranking`: -inf cannot be
    chosen, +inf is kept. count: places. extra: (..., blocks) truth, blocks that `keep_extra` adds outside the count.
    margin: relative to the score in the last place; blocks whose scores lie within it may stand for each other. Where it comes to
    nothing (a last score of 0, or margin = 0) ties must go to the lower index.
    """
    blocks = ranking.shape[-1]
    actual = actual.to(ranking.device)
    times = _times_named(actual, blocks)
    member, added = times > 0, torch.zeros_like(times, dtype=torch.bool) if extra is None else extra
    order = ranking.sort(dim=-1, descending=True, stable=True)
    best = torch.zeros_like(added).scatter(-1, order.indices[..., :count], True) & (ranking > -torch.inf)
    expected = best | added
    last = order.values.gather(-1, (best.sum(-1, keepdim=True) - 1).clamp(min=0)) if blocks else ranking.new_zeros(*ranking.shape[:-1], 1)
    # The least and the greatest number stand for scores that were none: they tie exactly.
    band = torch.where(last.abs() < torch.finfo(ranking.dtype).max, margin * last.abs(), 0.0)
    free = torch.isfinite(ranking) & (band > 0) & ((ranking - last).abs() <= band)
    wrong = (member != expected) & ~free
    found = [
        Mismatch("choice", place, float(ranking[place]), float(last[(*place[:-1], 0)]), _verdict(place[-1], bool(expected[place])))
        for place in map(tuple, wrong.nonzero()[:limit].tolist())
    ]
    counts = {
        "choice: blocks too many or too few": (member.sum(-1) - expected.sum(-1)).abs(),
        "choice: blocks named twice": (times > 1).sum(-1),
        "choice: blocks out of range": (actual >= blocks).sum(-1),
    }
    for what, error in counts.items():
        found += _refused(what, error.to(torch.float64), torch.zeros(error.shape, dtype=torch.float64, device=error.device), limit)
    return found


def _times_named(indices: Tensor, blocks: int) -> Tensor:
    """(..., width) integers -> (..., blocks): how often each block is named; entries outside the blocks count nowhere."""
    inside = torch.where((indices >= 0) & (indices < blocks), indices, blocks).to(torch.int64)
    times = torch.zeros(*indices.shape[:-1], blocks + 1, dtype=torch.int64, device=indices.device)
    return times.scatter_add(-1, inside, torch.ones_like(inside))[..., :blocks]


def _verdict(block: int, expected: bool) -> str:
    return f"block {block} was {'not chosen' if expected else 'chosen'}; error: its score, allowed: the last place's"


def _refused(what: str, error: Tensor, allowed: Tensor, limit: int) -> list[Mismatch]:
    """The places where not (error <= allowed), the worst excess first, NaN before all; an infinite allowance allows nothing."""
    bad = ~(error <= allowed) | ~torch.isfinite(allowed)
    excess = (error - allowed)[bad].nan_to_num(nan=torch.inf, posinf=torch.inf)
    order = excess.argsort(descending=True)[:limit]
    places = bad.nonzero()[order].tolist()
    return [Mismatch(what, tuple(place), float(error[tuple(place)]), float(allowed[tuple(place)])) for place in places]
