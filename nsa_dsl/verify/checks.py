"""The checks of one forward call: results row by row, exact visibility, choices as sets, and NaN where it may and may not show."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from nsa_dsl import reference
from nsa_dsl.arguments import PerBranch, Shape, choice_shape
from nsa_dsl.compare import Mismatch, check_choice, check_lse, check_poisoned, check_rows
from nsa_dsl.mask_probe import OPEN, Probe, check_probe, probe_inputs, wrong_rows
from nsa_dsl.op import AttentionOp
from nsa_dsl.pattern import Branch, BranchScore, Choice, Compress, Pattern
from nsa_dsl.relation import evaluate
from nsa_dsl.verify.cases import Case
from nsa_dsl.verify.inputs import Inputs, all_choices, document_borders, place, random_blocks
from nsa_dsl.verify.slots import give_slots

FLOAT32 = torch.finfo(torch.float32).eps


@torch.no_grad()
def check_results(op: AttentionOp, case: Case, inputs: Inputs) -> list[Mismatch]:
    """Choices, outputs and log-sum-exps on these inputs, which have the case's sizes, type and kind of values."""
    pattern, device = op.pattern, inputs.q.device
    found: list[Mismatch] = []
    fixed: dict[str, Tensor] = {}
    if all_choices(pattern):
        if case.damage == "none":
            arguments = {name: each for name, each in inputs.options.items() if name != "gates"}
            fixed = op.choose(inputs.q, inputs.k, inputs.v, **arguments)
            found = _check_choices(pattern, case, inputs, fixed)
        else:
            # A NaN among the scores would decide the choice; what it may not do is reach rows that do not see it.
            fixed = random_choices(pattern, case, device)
            inputs = Inputs(inputs.q, inputs.k, inputs.v, {**inputs.options, "choices": fixed})
    out, lse = _run(op, inputs.q, inputs.k, inputs.v, inputs.options)
    pattern, given, wrong = give_slots(op, inputs.k, inputs.v, inputs.options)
    options = {**given, "choices": with_extra(pattern, case, fixed)}
    expected = _reference(pattern, inputs, options, torch.float64)
    return [*found, *wrong, *_check_rows(pattern, inputs, options, out, expected), *_check_lse(lse, expected[1])]


def _run(op: AttentionOp, q: Tensor, k: PerBranch, v: PerBranch, options: dict[str, Any]) -> tuple[Tensor, Any]:
    """The output, and the log-sum-exp or a dict of them by branch."""
    out, lse = op(q, k, v, **options, return_lse=True)
    return out, lse


def _reference(pattern: Pattern, inputs: Inputs, options: dict[str, Any], dtype: torch.dtype) -> tuple[Tensor, Any]:
    out, lse = reference.attend(pattern, inputs.q, inputs.k, inputs.v, **options, dtype=dtype, return_lse=True)
    return out, lse


def _check_rows(pattern: Pattern, inputs: Inputs, options: dict[str, Any], out: Tensor, expected: tuple[Tensor, Any]) -> list[Mismatch]:
    """Rows, by the rule of `check_rows`. Rows that NaN reaches must be the same ones on both sides, and are compared no further.

    A row may be off by its rounding, too: of logits in base 2, of probabilities and of branches, each relative to what is added up, which
    may be more than what is left. That is the sum with all values made positive.
    """
    truth, lse = expected
    baseline, _ = _reference(pattern, inputs, options, out.dtype)
    positive = {name: each.abs() for name, each in inputs.v.items()} if isinstance(inputs.v, dict) else inputs.v.abs()
    slots = {name: each.positive() for name, each in options.get("compressors", {}).items()}
    added, _ = _reference(pattern, Inputs(inputs.q, inputs.k, positive, {}), {**options, "compressors": slots}, torch.float64)
    rounding = torch.finfo(out.dtype).eps + 8 * FLOAT32 * greatest(lse)
    fine = torch.isfinite(truth).all(-1, keepdim=True)
    rough = truth + baseline_error(baseline, truth) + 0.5 * rounding * added.abs().amax(-1, keepdim=True)
    return [*check_poisoned(out, truth), *check_rows(*(torch.where(fine, each, 0.0) for each in (out, truth, rough)))]


def _check_lse(actual: Any, expected: Any) -> list[Mismatch]:
    """Log-sum-exps, by the rule of `check_lse`."""
    given = named(actual)
    found: list[Mismatch] = []
    for name, each in named(expected).items():
        # A NaN key makes the log-sum-exp of the rows that see it NaN, and a NaN value leaves it alone: both sides alike.
        same = torch.isnan(each) & torch.isnan(given[name])
        found += check_lse(torch.where(same, 0.0, given[name]), torch.where(same, 0.0, each), what=f"lse of {name}" if name else "lse")
    return found


def baseline_error(baseline: Tensor, truth: Tensor) -> Tensor:
    """(..., 1) the greatest error of each row. Where plain torch leaves its type's range, which kernels do not, it excuses nothing."""
    error = (baseline.double() - truth).abs()
    return torch.where(torch.isfinite(error), error, 0.0).amax(-1, keepdim=True)


def named(lse: Any) -> dict[str, Tensor]:
    """Log-sum-exps by branch; the only one under ""."""
    return lse if isinstance(lse, dict) else {"": lse}


def greatest(lse: Any) -> float:
    """The greatest log-sum-exp, at least 1: about the greatest logit that counts."""
    finite = [each[torch.isfinite(each)].detach().abs() for each in named(lse).values()]
    return max((1.0, *(float(each.max()) for each in finite if each.numel())))


def _rounded_slots(branch: Branch, inputs: Inputs) -> float:
    """How far a compressed branch's logits may be off, since its slots are rounded to the inputs' type (and a module computes in it);
    0 for tokens, which are given."""
    if not isinstance(branch.memory, Compress):
        return 0.0
    return 8 * torch.finfo(inputs.q.dtype).eps * _greatest_logit(branch, inputs)


def _greatest_logit(branch: Branch, inputs: Inputs) -> float:
    """A bound on the branch's logits: the longest query times the longest key."""
    k, v = (each[branch.name] if isinstance(each, dict) else each for each in (inputs.k, inputs.v))
    if isinstance(branch.memory, Compress):
        name, options = branch.memory.name, inputs.options
        weights, compressor = options.get("weights", {}).get(name), options.get("compressors", {}).get(name)
        k, _ = reference.compress(branch.memory, k.double(), v.double(), weights=weights, compressor=compressor)
    scale = branch.scale if branch.scale is not None else inputs.options.get("scale", inputs.q.shape[-1] ** -0.5)
    lengths = [each.double().nan_to_num(0.0).norm(dim=-1) for each in (inputs.q, k)]
    return float(scale) * math.prod(float(each.max()) if each.numel() else 0.0 for each in lengths)


def _check_choices(pattern: Pattern, case: Case, inputs: Inputs, chosen: dict[str, Tensor]) -> list[Mismatch]:
    options = {name: each for name, each in inputs.options.items() if name != "gates"}
    # Choices that other choices depend on are given, so that one wrong block is reported once.
    rankings = reference.ranking(pattern, inputs.q, inputs.k, inputs.v, **options, choices=with_extra(pattern, case, chosen))
    found: list[Mismatch] = []
    for name, rank in rankings.items():
        choice = all_choices(pattern)[name]
        margin = _margin(pattern, choice, inputs)
        if margin:
            # Probabilities this small are zero on some hardware: which of them is the greatest is no one's promise.
            rank = torch.where(torch.isfinite(rank), rank.clamp(min=1e-30), rank)
        found += check_choice(chosen[name], rank, choice.count or 0, margin=margin)
    return found


def _margin(pattern: Pattern, choice: Choice, inputs: Inputs) -> float:
    """How far scores may be off, relatively. Pooled and given scores are exact, because the inputs are; probabilities are off by as much
    as their logits."""
    if not isinstance(choice.score, BranchScore):
        return 0.0
    source = pattern.branch(choice.score.branch)
    return 1e-4 + 8 * FLOAT32 * _greatest_logit(source, inputs) + 2 * _rounded_slots(source, inputs)


def random_choices(pattern: Pattern, case: Case, device: torch.device) -> dict[str, Tensor]:
    """A choice of every kind that no score made."""
    random = torch.Generator().manual_seed(case.seed + 1)
    return {name: random_blocks(each, _shape(case), random).to(device) for name, each in all_choices(pattern).items()}


def _shape(case: Case) -> Shape:
    return Shape(case.batch, case.heads, case.kv_heads, case.tokens, case.d_qk, case.d_v)


def with_extra(pattern: Pattern, case: Case, choices: dict[str, Tensor]) -> dict[str, Tensor]:
    """The choices as the reference takes them: with the blocks of `keep_extra`, which for the op are no part of the choice."""
    table = all_choices(pattern)
    return {name: _with_extra(table[name], case, each) for name, each in choices.items()}


def _with_extra(choice: Choice, case: Case, indices: Tensor) -> Tensor:
    if choice.keep_extra is None:
        return indices
    count = -(-case.tokens // choice.block)
    blocks = torch.arange(count, device=indices.device)
    leader = torch.arange(0, case.tokens, choice.every, device=indices.device)[:, None]
    heads = torch.arange(indices.shape[1], device=indices.device)[:, None, None]
    environment = {"i": leader // choice.block, "j": blocks, "h": heads, "N": count, "heads": case.heads, "kv_heads": case.kv_heads}
    kept = torch.as_tensor(evaluate(choice.keep_extra, environment), device=indices.device)
    kept = kept.expand(choice_shape(choice, _shape(case), count))
    return torch.cat((indices, torch.where(kept, blocks, -1).to(indices.dtype)), -1)


@torch.no_grad()
def check_visibility(op: AttentionOp, case: Case, device: torch.device) -> list[Mismatch]:
    """Exactly which keys each row sees: the mask probe, all branches in one call; only if that is wrong are they looked at one by one."""
    pattern = op.pattern
    try:
        made = probe_inputs(
            pattern, batch=case.batch, heads=case.heads, kv_heads=case.kv_heads, n=case.tokens, d_qk=min(16, case.d_qk), d_v=32,
            device=device, seed=case.seed,
        )  # fmt: skip
    except reference.NotSupported:
        return []
    probe = laid_out(made, case, device)
    fixed = random_choices(pattern, case, device)
    options: dict[str, Any] = {}
    if fixed:
        options["choices"] = fixed
    cu_seqlens = document_borders(case, device) if case.documents > 1 else None
    if cu_seqlens is not None:
        options["cu_seqlens"] = cu_seqlens
    choices = with_extra(pattern, case, fixed)
    masks = reference.mask(pattern, case.tokens, case.heads, case.kv_heads, choices, cu_seqlens=cu_seqlens, device=device)
    if pattern.output.kind in ("single", "merge"):
        out, lse = _run(op, probe.q, probe.k, probe.v, {**probe.arguments(pattern.output.branches[0]), **options})
        together = torch.cat([each.expand(case.batch, -1, -1, -1) for each in masks.values()], -1)
        return check_probe(out, lse, together, torch.cat([probe.values(name) for name in masks], 2))
    if not _open_rows_differ(op, probe, masks, options):
        return []
    return [each for name in masks for each in _check_branch(op, probe, name, masks, options)]


def laid_out(probe: Probe, case: Case, device: torch.device) -> Probe:
    """The same probe in the case's layout."""
    ks = list(probe.k.values()) if isinstance(probe.k, dict) else [probe.k]
    vs = list(probe.v.values()) if isinstance(probe.v, dict) else [probe.v]
    q, *rest = place([probe.q, *ks, *vs], case.layout, probe.q.dtype, device)
    ks, vs = rest[: len(ks)], rest[len(ks) :]
    names = list(probe.k) if isinstance(probe.k, dict) else []
    k, v = (dict(zip(names, each, strict=True)) if names else each[0] for each in (ks, vs))
    return Probe(probe.pattern, q, k, v, probe.weights, probe.compressors, probe.sinks)


def _check_branch(op: AttentionOp, probe: Probe, name: str, masks: dict[str, Tensor], options: dict[str, Any]) -> list[Mismatch]:
    out, lse = _run(op, probe.q, probe.k, probe.v, {**probe.arguments(name), **options})
    found = check_probe(out, lse[name], masks[name], probe.values(name))
    return [Mismatch(f"probe of {name}", each.place, each.error, each.allowed, each.note) for each in found]


def _open_rows_differ(op: AttentionOp, probe: Probe, masks: dict[str, Tensor], options: dict[str, Any]) -> bool:
    """Whether a call that lets every branch through shows a wrong row. Each branch adds its mean, and a wrong key moves one by a unit over
    its count: in float32 that is seen through the sum of a few. A key too many here for one too few there shows in the counts."""
    names = list(masks)
    arguments = probe.arguments(names[0])
    equal = OPEN if op.pattern.output.kind == "gate" else 0.0
    out, lse = _run(op, probe.q, probe.k, probe.v, {**arguments, **options, "gates": torch.full_like(arguments["gates"], equal)})
    share = 1.0 if op.pattern.output.kind == "gate" else 1 / len(names)
    total = torch.zeros(out.shape, dtype=torch.float64, device=out.device)
    allowed = torch.full(out.shape[:3], math.inf, dtype=torch.float64, device=out.device)
    for name in names:
        carried = probe.values(name).repeat_interleave(out.shape[1] // probe.values(name).shape[1], 1)
        mask = masks[name].expand(*out.shape[:3], -1)
        count = mask.sum(-1)
        mean = mask.to(torch.float64) @ carried / count.clamp(min=1)[..., None]
        if bool(wrong_rows(mean.to(torch.float32), lse[name], mask, probe.values(name)).any()):
            return True
        sizes = carried[carried != 0].abs()
        unit = float(sizes.min()) if sizes.numel() else 1.0
        total += share * mean
        allowed = torch.minimum(allowed, 0.25 * share * unit / count.clamp(min=1))
    error = (out.to(torch.float64) - total).abs().amax(-1)
    return bool((~(error <= allowed + 8 * FLOAT32 * total.abs().amax(-1))).any())
