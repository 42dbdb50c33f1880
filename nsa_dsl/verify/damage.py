"""Where NaN may show in gradients, and where it must: no reference is asked, only the same call without the damage.

A row that sees the damage has no finite gradient, and neither has what it sees; everything else is as if there were no damage.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from nsa_dsl import reference
from nsa_dsl.compare import Mismatch
from nsa_dsl.op import AttentionOp
from nsa_dsl.pattern import Branch, Compress, Pattern
from nsa_dsl.verify.cases import Case
from nsa_dsl.verify.checks import random_choices, with_extra
from nsa_dsl.verify.gradients import Cotangents, draw_cotangents, op_gradients, replace_options
from nsa_dsl.verify.inputs import Inputs, make_inputs


@dataclass(slots=True)
class Reached:
    """Name of an input -> (its shape without features) truth: rows whose gradient may not be a number, and those of them that cannot be."""

    may: dict[str, Tensor] = field(default_factory=dict)
    must: dict[str, Tensor] = field(default_factory=dict)

    def add(self, name: str, may: Tensor, must: Tensor) -> None:
        """Join what one branch adds to an input that several may read."""
        self.may[name] = self.may[name] | may if name in self.may else may
        self.must[name] = self.must[name] | must if name in self.must else must


def check_damage(op: AttentionOp, case: Case, inputs: Inputs) -> list[Mismatch]:
    """Gradients of a call with NaN at one token, of the kind that the case says. inputs: as `make_inputs` makes them for the case."""
    chosen = random_choices(op.pattern, case, inputs.q.device)
    damaged = replace_options(inputs, choices=chosen)
    sound = replace_options(make_inputs(op.pattern, replace(case, damage="none"), inputs.q.device), choices=chosen)
    cotangents = draw_cotangents(op.pattern, case, sound, torch.Generator().manual_seed(case.seed + 3))
    actual = op_gradients(op, damaged, _damaged(cotangents, case))
    clean = op_gradients(op, sound, cotangents)
    visible = reference.mask(
        op.pattern, case.tokens, case.heads, case.kv_heads, with_extra(op.pattern, case, chosen),
        cu_seqlens=inputs.options.get("cu_seqlens"), device=inputs.q.device,
    )  # fmt: skip
    reached = reach(op.pattern, case, visible)
    found: list[Mismatch] = []
    for name, gradient in actual.items():
        if name in reached.may:
            found += _check_spread(name, gradient, clean[name], reached.may[name], reached.must[name])
    return found


def _damaged(cotangents: Cotangents, case: Case) -> Cotangents:
    if case.damage != "cotangent" or not case.tokens:
        return cotangents
    out = cotangents.out.clone()
    out[:, :, case.damaged_token] = torch.nan
    return replace(cotangents, out=out)


def reach(pattern: Pattern, case: Case, visible: Mapping[str, Tensor]) -> Reached:
    """What the damage reaches. visible: branch -> (batch or 1, heads, n, tokens or slots), as `reference.mask` gives it."""
    reached = Reached()
    masks = {name: each.expand(case.batch, -1, -1, -1) for name, each in visible.items()}
    rows = {name: _rows(pattern.branch(name), case, each) for name, each in masks.items()}
    together = torch.stack(list(rows.values()), -1)
    if pattern.output.kind == "merge":
        rows = dict.fromkeys(rows, together.any(-1))
    # Rounded to nothing, a damaged logit's weight may be dropped: only moderate ones must show.
    certain = torch.tensor(case.values in ("ordinary", "ties"), device=together.device)
    for name, hit in rows.items():
        reached.add("q", hit, hit & certain)
        _reach_memory(pattern, pattern.branch(name), case, masks[name], hit, certain, reached)
        if pattern.branch(name).sink:
            # A sink is there for rows without keys, too.
            heads = hit.any(2).any(0) | torch.tensor(case.damage == "cotangent", device=hit.device)
            reached.add(f"sinks.{name}", heads, torch.zeros_like(heads))
    if pattern.output.kind in ("gate", "mix"):
        must = together if pattern.output.kind == "gate" else together.any(-1, keepdim=True).expand(together.shape)
        # A gate's gradient is that of its branch's output times the output, which is there for rows without keys, too.
        may = must | _own(case, must.device)[:, None] if case.damage == "cotangent" else must
        reached.add("gates", may, must & certain)
    return reached


def _own(case: Case, device: torch.device) -> Tensor:
    """(n,) truth: the damaged token."""
    return torch.arange(case.tokens, device=device) == case.damaged_token


def _rows(branch: Branch, case: Case, mask: Tensor) -> Tensor:
    """(batch, heads, n) truth: rows of the branch whose probabilities or whose output's gradient are not numbers."""
    if case.damage in ("query", "cotangent"):
        return mask.any(-1) & _own(case, mask.device)
    return (mask & _covers(branch, case, mask)[:, case.damaged_token]).any(-1)


def _covers(branch: Branch, case: Case, mask: Tensor) -> Tensor:
    """(tokens or slots, n) truth: which tokens each key of the branch is made of."""
    token = torch.arange(case.tokens, device=mask.device)
    key = torch.arange(mask.shape[-1], device=mask.device)[:, None]
    if not isinstance(branch.memory, Compress):
        return key == token
    start = key * branch.memory.stride
    return (start <= token) & (token < start + branch.memory.block)


def _reach_memory(pattern: Pattern, branch: Branch, case: Case, mask: Tensor, hit: Tensor, certain: Tensor, reached: Reached) -> None:
    """Keys and values that the hit rows see."""
    owner = f".{branch.name}" if pattern.kv_per_branch else ""
    seen = (mask & hit[..., None]).any(2)
    seen = seen.reshape(case.batch, case.kv_heads, case.heads // case.kv_heads, mask.shape[-1]).any(2)
    covers = _covers(branch, case, mask)
    tokens = (seen[..., None] & covers).any(2)
    for name in "kv":
        # A value's gradient does not depend on values: the row's NaN need not show there, and may.
        may, must = tokens, tokens & certain if name == "k" or case.damage != "value" else torch.zeros_like(tokens)
        if isinstance(branch.memory, Compress):
            # Through a slot's maximum or a module, NaN goes to all that share a slot with it, whether anybody sees the slot or not.
            must = must & torch.tensor(branch.memory.by in ("mean", "weighted"), device=mask.device)
            own = case.damage == {"k": "key", "v": "value"}[name]
            if (branch.memory.by == "max" and own) or (branch.memory.by == "mlp" and case.damage in ("key", "value")):
                may = may | covers[covers[:, case.damaged_token]].any(0)
        reached.add(name + owner, may, must)


def _check_spread(name: str, actual: Tensor, clean: Tensor, may: Tensor, must: Tensor) -> list[Mismatch]:
    """Rows are tokens; of gates and sinks every entry stands for itself."""
    actual, clean = (each.double() if name[0] in "qkv" else each.double()[..., None] for each in (actual, clean))
    size = clean.abs().amax() if clean.numel() else clean.sum()
    allowed = 64 * torch.finfo(torch.float32).eps * float(size)
    error = (actual - clean).abs().amax(-1)
    wrong = {
        "as if there were no damage": ~may & ~(error <= allowed),
        "no number": must & torch.isfinite(actual).all(-1),
    }
    return [
        Mismatch(f"damaged gradient of {name}", tuple(place), float(error[tuple(place)]), allowed, f"expected {what}")
        for what, each in wrong.items()
        for place in each.nonzero()[:4].tolist()
    ]
