"""Slots as given inputs: what the kernels attend to is rounded to the inputs' type, and both sides must see the same numbers.

The same as with choices: the slots are judged by themselves, and everything after them on the slots that the kernels made. A gradient
that reaches such a slot goes on to what the slot was made of, by the compressor's own definition.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from nsa_dsl import reference
from nsa_dsl.compare import Mismatch, check_poisoned, check_rows
from nsa_dsl.op import AttentionOp
from nsa_dsl.pattern import Branch, Compress, Pattern


@dataclass(frozen=True, slots=True, eq=False)
class GivenSlots:
    """Stands in for a compressor: returns slots made before, in the precision of the call.

    memory: how they are made; weights, module: with what, if with anything. Gradients flow through that to blocks and parameters.
    """

    keys: Tensor
    values: Tensor
    memory: Compress
    weights: tuple[Tensor, Tensor] | None = None
    module: Any = None

    def __call__(self, k_blocks: Tensor, v_blocks: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, kv_heads, slots, block, d) each -> the slots, whatever the blocks hold."""
        given = self.keys.to(k_blocks.dtype), self.values.to(v_blocks.dtype)
        if not torch.is_grad_enabled():
            return given
        # Blocks laid end to end are compressed one by one when the stride is the block.
        apart = replace(self.memory, stride=self.memory.block)
        laid = k_blocks.flatten(2, 3), v_blocks.flatten(2, 3)
        made = reference.compress(apart, *laid, weights=self.weights, compressor=self.module)
        return _value_of(given[0], made[0]), _value_of(given[1], made[1])

    def positive(self) -> GivenSlots:
        """The same with all values made positive."""
        return replace(self, values=self.values.abs())

    def made_with(self, options: Mapping[str, Any], name: str) -> GivenSlots:
        """The same, made with the weights or the module that these options have for the memory `name`."""
        weights, module = (options.get(each, {}).get(name) for each in ("weights", "compressors"))
        return replace(self, weights=weights, module=module)


def _value_of(given: Tensor, made: Tensor) -> Tensor:
    """The first one's value with the second one's gradient. The zero is no product, so that no NaN gets in."""
    if not made.requires_grad:
        return given
    carrier = made - made.detach()
    return given + torch.where(torch.isfinite(carrier), carrier, torch.zeros_like(carrier))


def give_slots(op: AttentionOp, k: Any, v: Any, options: Mapping[str, Any]) -> tuple[Pattern, dict[str, Any], list[Mismatch]]:
    """The op's pattern over the slots that its kernels make, the options that go with it, and what is wrong with the slots.

    k, v: tensors or dicts by branch; options: the call's keyword arguments. Every compressed branch gets a memory of its own.
    """
    pattern, found = op.pattern, list[Mismatch]()
    made: dict[str, GivenSlots] = {}
    branches: list[Branch] = []
    for branch in pattern.branches:
        if isinstance(branch.memory, Compress):
            keys, values = (each[branch.name] if isinstance(each, dict) else each for each in (k, v))
            slots, wrong = _make_slots(op, branch.memory, keys, values, options)
            memory = replace(branch.memory, name=f"{branch.memory.name}_{branch.name}", by="mlp")
            made[memory.name] = slots
            found += wrong
            branches.append(replace(branch, memory=memory))
        else:
            branches.append(branch)
    if not made:
        return pattern, dict(options), []
    memories = tuple(each.memory for each in branches if isinstance(each.memory, Compress))
    rest = {name: each for name, each in options.items() if name not in ("weights", "compressors")}
    return replace(pattern, memories=memories, branches=tuple(branches)), {**rest, "compressors": made}, found


def _make_slots(op: AttentionOp, memory: Compress, k: Tensor, v: Tensor, options: Mapping[str, Any]) -> tuple[GivenSlots, list[Mismatch]]:
    """The slots as the op makes them, held to the reference's. A module makes its own: there is no kernel to judge."""
    weights, module = (options.get(each, {}).get(memory.name) for each in ("weights", "compressors"))
    made = op.compress(memory.name, k, v, weights=weights, compressor=module)
    found: list[Mismatch] = []
    if memory.by != "mlp":
        exact = reference.compress(memory, k.double(), v.double(), weights=_widened(weights))
        rounded = reference.compress(memory, k, v, weights=weights)
        for slots, truth, baseline in zip(made, exact, rounded, strict=True):
            clean = truth.isfinite().all(-1, keepdim=True)
            kept = (each.where(clean, 0.0) for each in (slots, truth, baseline.double()))
            found += [*check_poisoned(slots, truth, what=f"slots of {memory.name}"), *check_rows(*kept, what=f"slots of {memory.name}")]
    return GivenSlots(*made, memory, weights, module), found


def _widened(weights: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor] | None:
    return None if weights is None else (weights[0].double(), weights[1].double())
