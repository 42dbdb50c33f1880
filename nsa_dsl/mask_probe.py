"""The mask probe: inputs for which a kernel's results say exactly which keys it saw.

With q = 0 every visible key weighs 1/n, so the log-sum-exp is log n; with values of a fixed size and pseudo-random sign, n times
the output is an integer hash of the set of keys. One wrong key among thousands changes one or the other by a whole unit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nsa_dsl.compare import Mismatch
from nsa_dsl.pattern import Compress, Pattern
from nsa_dsl.reference import NotSupported, compress

OPEN = 1e4
"""A gate's logit that makes sigmoid and softmax exactly 1, and its negative exactly 0, in every dtype."""


class FirstToken(torch.nn.Module):
    """A compressor whose slots are their blocks' first tokens: slots keep the probe's values."""

    def forward(self, k_blocks: Tensor, v_blocks: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, kv_heads, slots, block, d) each -> the same without `block`."""
        return k_blocks[..., 0, :], v_blocks[..., 0, :]


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """Inputs of one probe. q, k, v and the keyword arguments are in the calling convention's shapes."""

    pattern: Pattern
    q: Tensor
    k: Tensor | dict[str, Tensor]
    v: Tensor | dict[str, Tensor]
    weights: dict[str, tuple[Tensor, Tensor]]
    compressors: dict[str, torch.nn.Module]
    sinks: dict[str, Tensor]

    def arguments(self, branch: str) -> dict[str, Any]:
        """The call's keyword arguments; gates, if the pattern has any, let nothing but this branch through."""
        optional = {"weights": self.weights, "compressors": self.compressors, "sinks": self.sinks}
        passed: dict[str, Any] = {name: each for name, each in optional.items() if each}
        if self.pattern.output.kind in ("gate", "mix"):
            signs = [1.0 if each == branch else -1.0 for each in self.pattern.output.branches]
            passed["gates"] = (OPEN * self.q.new_tensor(signs)).expand(*self.q.shape[:3], -1).contiguous()
        return passed

    def values(self, branch: str) -> Tensor:
        """(batch, kv_heads, tokens or slots, d_v) float64: what the branch's keys carry."""
        memory = self.pattern.branch(branch).memory
        k, v = (each if isinstance(each, Tensor) else each[branch] for each in (self.k, self.v))
        k, v = k.to(torch.float64), v.to(torch.float64)
        if not isinstance(memory, Compress):
            return v
        name = memory.name
        return compress(memory, k, v, weights=self.weights.get(name), compressor=self.compressors.get(name))[1]


def probe_inputs(
    pattern: Pattern,
    *,
    batch: int,
    heads: int,
    kv_heads: int,
    n: int,
    d_qk: int = 32,
    d_v: int = 64,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> Probe:
    """Inputs for the probe. Values differ in sign by batch, KV head, key and column; 32 columns or more leave no room for chance.

    Mean-compressed memories get values as large as their blocks, so that slots carry integers. Raises NotSupported for `bias`,
    under which q = 0 does not make scores equal.
    """
    if any(each.bias is not None for each in pattern.outputs):
        raise NotSupported("the mask probe needs equal scores, and `bias` makes them differ")
    memories = {each.memory.name: each.memory for each in pattern.branches if isinstance(each.memory, Compress)}.values()
    size = max((each.block for each in memories if each.by == "mean"), default=1)
    generator = torch.Generator().manual_seed(seed)

    def values() -> Tensor:
        signs = torch.randint(0, 2, (batch, kv_heads, n, d_v), generator=generator) * 2 - 1
        return (signs * size).to(device, dtype)

    def keys() -> Tensor:
        return torch.randn(batch, kv_heads, n, d_qk, generator=generator).to(device, dtype)

    names = [each.name for each in pattern.branches]
    only_first = {each.name: torch.eye(1, each.block, device=device, dtype=dtype).expand(kv_heads, -1) for each in memories}
    return Probe(
        pattern=pattern,
        q=torch.zeros(batch, heads, n, d_qk, device=device, dtype=dtype),
        k={name: keys() for name in names} if pattern.kv_per_branch else keys(),
        v={name: values() for name in names} if pattern.kv_per_branch else values(),
        weights={each.name: (only_first[each.name].contiguous(),) * 2 for each in memories if each.by == "weighted"},
        compressors={each.name: FirstToken() for each in memories if each.by == "mlp"},
        sinks={each.name: torch.full((heads,), -torch.inf, device=device) for each in pattern.branches if each.sink},
    )


def wrong_rows(out: Tensor, lse: Tensor | None, expected_mask: Tensor, values: Tensor) -> Tensor:
    """(batch, heads, rows) truth: rows whose results do not come from exactly the expected keys. Arguments as in `check_probe`."""
    mask, carried, unit = _aligned(out, expected_mask, values)
    count = mask.sum(-1)
    sums = mask.to(torch.float64) @ carried
    error = (out.to(torch.float64) * count[..., None] - sums).abs()
    # The kernel rounds its output once: that much is allowed on top of a quarter of the least possible change.
    wrong = (~(error <= 0.25 * unit + torch.finfo(out.dtype).eps * sums.abs())).any(-1)
    if lse is None:
        return wrong
    # One key more or less among n moves log n by about 1/n, which for long rows is less than the usual tolerance of 1e-4.
    found = lse.to(torch.float64)
    return wrong | ~((found.exp() - count).abs() <= 0.25 + 1e-6 * count) | ((found == -torch.inf) != (count == 0))


def check_probe(out: Tensor, lse: Tensor | None, expected_mask: Tensor, values: Tensor, *, limit: int = 8) -> list[Mismatch]:
    """Whether results of a probe come from exactly these keys.

    out: (batch, heads, rows, d_v); lse: (batch, heads, rows), or None when the call gives none; expected_mask: (batch or 1, heads,
    rows, keys) truth; values: `Probe.values(branch)`. For a merged output pass masks and values joined along the keys.
    error: the greatest difference from the expected sum over keys. The note names the key when a single one explains it.
    """
    mask, carried, unit = _aligned(out, expected_mask, values)
    found = []
    for place in map(tuple, wrong_rows(out, lse, expected_mask, values).nonzero()[:limit].tolist()):
        row, keys = out[place].to(torch.float64), carried[place[:2]]
        count = int(mask[place].sum())
        error = (row * count - mask[place].to(torch.float64) @ keys).abs().max()
        note = _explain(row, None if lse is None else lse[place], mask[place], keys, unit)
        found.append(Mismatch("probe", place, float(error), 0.25 * unit, f"{count} keys expected; {note}"))
    return found


def _aligned(out: Tensor, expected_mask: Tensor, values: Tensor) -> tuple[Tensor, Tensor, float]:
    """The mask (batch, heads, rows, keys) and values (batch, heads, keys, d_v) of every head, and the least value that is not 0."""
    batch, heads, rows, _ = out.shape
    mask = expected_mask.to(out.device).expand(batch, heads, rows, -1)
    carried = values.repeat_interleave(heads // values.shape[1], 1)
    sizes = carried[carried != 0].abs()
    return mask, carried, float(sizes.min()) if sizes.numel() else 1.0


def _explain(out: Tensor, lse: Tensor | None, mask: Tensor, carried: Tensor, unit: float) -> str:
    """Which single key, missing or too many, gives this row. out: (d_v,); mask: (keys,); carried: (keys, d_v)."""
    if lse is None or not bool(torch.isfinite(lse)) or not bool(torch.isfinite(out).all()):
        return "how many were seen cannot be told"
    seen = int(lse.to(torch.float64).exp().round())
    difference = out * seen - mask.to(torch.float64) @ carried
    step = seen - int(mask.sum())
    if abs(step) == 1:
        candidates = (mask if step < 0 else ~mask).nonzero()[:, 0]
        match = (carried[candidates] - step * difference).abs().amax(-1) < 0.5 * unit
        if int(match.sum()) == 1:
            return f"key {int(candidates[match][0])} is {'missing' if step < 0 else 'one too many'}"
    return f"{seen} keys seen"
