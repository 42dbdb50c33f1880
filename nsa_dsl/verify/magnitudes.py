"""How much is added up in every gradient: the sums of the backward pass with every term made positive.

A gradient may be far smaller than its terms; what rounding may do to it follows from these. Where such a sum is zero there are no terms,
and the gradient must be zero exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, assert_never

import torch
from torch import Tensor

from nsa_dsl import reference
from nsa_dsl.pattern import Branch, Compress, Pattern
from nsa_dsl.reference.call import Call, prepare
from nsa_dsl.reference.choosing import Chooser
from nsa_dsl.reference.softmax import logits, probabilities, spread
from nsa_dsl.reference.visible import visible
from nsa_dsl.verify.inputs import Inputs
from nsa_dsl.verify.leaves import Leaves, gradients, watch_parameters
from nsa_dsl.verify.slots import GivenSlots

FLOAT32 = torch.finfo(torch.float32).eps
SIGNS = 4
"""Random signs to try with a module, whose terms cannot be told apart."""


@dataclass(frozen=True, slots=True, eq=False)
class _Joint:
    """One softmax and what is known of it once its rows have been seen. Everything is positive, and of shape (batch, heads, n, ...).

    weight: what the output multiplies it by; seen: |grad . v|, and dot: |grad| . |output|, each with the rounding that it comes with.
    """

    branches: tuple[Branch, ...]
    probability: Tensor
    mask: Tensor
    sinks: tuple[Tensor, ...]
    weight: Tensor
    seen: Tensor
    dot: Tensor
    grad_lse: Tensor

    @property
    def delta(self) -> Tensor:
        return self.weight * self.dot + self.grad_lse

    def score(self, tiny: float) -> Tensor:
        """(batch, heads, n, keys) of the logits' gradients. tiny: added for every visible key, so that none counts for nothing."""
        added = self.probability * (self.weight[..., None] * self.seen + self.delta[..., None])
        return torch.where(self.mask, added + tiny, 0.0)


@torch.no_grad()
def magnitudes(
    pattern: Pattern, inputs: Inputs, options: Mapping[str, Any], grad_out: Tensor, grad_lse: Mapping[str, Tensor], dtype: torch.dtype
) -> Leaves:
    """Name of an input -> the sums, of its shape, in float64.

    pattern, options: over given slots, as `give_slots` returns them, choices included; inputs: as the caller has them. grad_lse: by branch,
    or under "" when there is one. dtype: what the kernels compute in; its least number is the least that a term counts for.
    """
    arguments = {name: each for name, each in options.items() if name != "choices"}
    call = prepare(pattern, inputs.q, inputs.k, inputs.v, torch.float64, **arguments)
    grad, tiny = grad_out.double().abs(), torch.finfo(dtype).tiny
    joints = _joints(call, Chooser(call, dict(options.get("choices", {})), torch.float32), grad_out.double(), grad_lse, dtype)
    found = {"q": torch.zeros_like(call.q)}
    found |= _gates(call, joints)
    slots: dict[str, list[Tensor]] = {}
    for joint in joints:
        _add_joint(call, joint, grad, tiny, found, slots)
    _add_slots(inputs, options["compressors"] if slots else {}, slots, found)
    return found


def _joints(call: Call, chooser: Chooser, signed: Tensor, grad_lse: Mapping[str, Tensor], dtype: torch.dtype) -> list[_Joint]:
    pattern, extent, grad = call.pattern, call.extent, signed.abs()
    groups = [pattern.outputs] if pattern.output.kind == "merge" else [(each,) for each in pattern.outputs]
    rows = torch.arange(extent.n, device=extent.device)
    joints = []
    for place, group in enumerate(groups):
        memories = [call.memory(each) for each in group]
        values = spread(torch.cat([value for _, value in memories], 2), extent.heads)
        score = torch.cat([logits(each, extent, call.q, rows, key, call.scale) for each, (key, _) in zip(group, memories, strict=True)], -1)
        choices = chooser.required(group)
        mask = torch.cat([visible(each, extent, rows, choices).expand(extent.batch, -1, -1, -1) for each in group], -1)
        sinks = [sink for each in group if (sink := call.sink(each)) is not None]
        probability, lse = probabilities(score, mask, torch.stack(sinks, -1) if sinks else None)
        out = (probability @ values).abs()
        # Probabilities are rounded one by one before they weigh values; products of inputs are exact and added in float32.
        scatter = 2 * (grad.square() * (probability.square() @ values.square())).sum(-1).sqrt()
        seen = (signed @ values.mT).abs() + FLOAT32 / torch.finfo(dtype).eps * (grad @ values.abs().mT)
        given = grad_lse.get(group[0].name if "" not in grad_lse else "")
        joints.append(
            _Joint(
                group,
                probability,
                mask,
                tuple(torch.exp(each[None, :, None] - torch.where(lse == -torch.inf, torch.inf, lse)) for each in sinks),
                _weights(call)[..., place],
                seen,
                (grad * out).sum(-1) + scatter,
                torch.zeros_like(lse) if given is None else given.double().abs(),
            )
        )
    return joints


def _weights(call: Call) -> Tensor:
    """(batch, heads, n, branches): what the output multiplies each branch by."""
    if call.gates is None:
        return call.q.new_ones(()).expand(*call.q.shape[:3], 1)
    return call.gates.sigmoid() if call.pattern.output.kind == "gate" else call.gates.softmax(-1)


def _gates(call: Call, joints: list[_Joint]) -> Leaves:
    if call.gates is None:
        return {}
    weight, dot = _weights(call), torch.stack([each.dot for each in joints], -1)
    if call.pattern.output.kind == "gate":
        return {"gates": weight * (1 - weight) * dot}
    return {"gates": weight * (dot + (weight * dot).sum(-1, keepdim=True))}


def _add_joint(call: Call, joint: _Joint, grad: Tensor, tiny: float, found: Leaves, slots: dict[str, list[Tensor]]) -> None:
    """Add one softmax's terms to `found`; what goes to slots, to `slots`: memory -> (for keys, for values)."""
    score, q = joint.score(tiny), call.q.abs()
    value_weight = torch.where(joint.mask, joint.probability * joint.weight[..., None] + tiny, 0.0)
    start = 0
    for branch in joint.branches:
        keys, _ = call.memory(branch)
        part = slice(start, start + keys.shape[2])
        start = part.stop
        factor = branch.scale if branch.scale is not None else call.scale
        factor = q.shape[-1] ** -0.5 if factor is None else factor
        found["q"] += factor * score[..., part] @ spread(keys.abs(), call.extent.heads)
        for_keys, for_values = factor * score[..., part].mT @ q, value_weight[..., part].mT @ grad
        sums = [_by_kv_head(each, keys.shape[1]) for each in (for_keys, for_values)]
        if isinstance(branch.memory, Compress):
            slots[branch.memory.name] = sums
            continue
        owner = f".{branch.name}" if call.pattern.kv_per_branch else ""
        for name, each in zip("kv", sums, strict=True):
            found[name + owner] = found.get(name + owner, 0.0) + each
    for branch, share in zip([each for each in joint.branches if each.sink], joint.sinks, strict=True):
        found[f"sinks.{branch.name}"] = (share * joint.delta).sum((0, 2))


def _by_kv_head(by_head: Tensor, kv_heads: int) -> Tensor:
    """(batch, heads, keys, d) -> (batch, kv_heads, keys, d)."""
    batch, heads, *rest = by_head.shape
    return by_head.reshape(batch, kv_heads, heads // kv_heads, *rest).sum(2)


def _add_slots(inputs: Inputs, given: Mapping[str, GivenSlots], slots: Mapping[str, list[Tensor]], found: Leaves) -> None:
    """Carry the slots' sums on to tokens, weights and modules."""
    for name, sums in slots.items():
        branch = name.removeprefix(f"{given[name].memory.name}_")
        own = isinstance(inputs.k, dict)
        k, v = (each[branch] if isinstance(each, dict) else each for each in (inputs.k, inputs.v))
        for leaf, each in _through(given[name], k, v, sums).items():
            full = f"{leaf}.{branch}" if own and leaf in "kv" else leaf
            found[full] = found.get(full, 0.0) + each


@torch.enable_grad()
def _through(slots: GivenSlots, k: Tensor, v: Tensor, sums: list[Tensor]) -> Leaves:
    """The sums in tokens (k and v) and in the compressor's parameters, from those in its slots."""
    memory = slots.memory
    options = {"weights": {memory.name: slots.weights}} if slots.weights else {}
    options |= {"compressors": {memory.name: slots.module}} if slots.module else {}
    made, parameters = watch_parameters(options, torch.float64)
    weights, module = (made.get(each, {}).get(memory.name) for each in ("weights", "compressors"))
    tokens = {"k": k.double().detach().requires_grad_(), "v": v.double().detach().requires_grad_()}
    match memory.by:
        case "mean" | "max":
            return gradients(reference.compress(memory, *tokens.values()), sums, tokens)
        case "weighted":
            # Once for the tokens, with positive weights, and once for the weights, with positive tokens.
            absolute = (weights[0].detach().abs(), weights[1].detach().abs())
            found = gradients(reference.compress(memory, *tokens.values(), weights=absolute), sums, tokens)
            positive = [each.detach().abs() for each in tokens.values()]
            return found | gradients(reference.compress(memory, *positive, weights=weights), sums, parameters)
        case "mlp":
            return _by_random_signs(reference.compress(memory, *tokens.values(), compressor=module), sums, tokens | parameters)
        case _:
            assert_never(memory.by)


def _by_random_signs(outputs: tuple[Tensor, Tensor], sums: list[Tensor], leaves: Leaves) -> Leaves:
    """What independent errors of these sizes come to on the far side of a module: the greatest seen, in each tensor as a whole."""
    random = torch.Generator().manual_seed(0)
    found = {name: torch.zeros_like(each) for name, each in leaves.items()}
    for _ in range(SIGNS):
        drawn = [each * (torch.randint(0, 2, each.shape, generator=random) * 2 - 1).to(each) for each in sums]
        for name, each in gradients(outputs, drawn, leaves, keep=True).items():
            greatest = each.abs().amax() if each.numel() else each.new_zeros(())
            # An entry that no slot reaches stays zero.
            found[name] = torch.maximum(found[name], torch.where(each == 0, 0.0, greatest))
    return {name: SIGNS * each for name, each in found.items()}
