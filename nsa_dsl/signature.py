"""The flat order in which a pattern's tensors cross the boundary of an operator: what goes in, what comes out, what backward reads.

Names are dotted: `q`, `k` or `k.<branch>`, `weights.<memory>.keys`, `slots.<memory>.values`, `lse.<branch>`, `chosen.<choice>`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nsa_dsl.pattern import Branch, Choice, Compress, Pattern


@dataclass(frozen=True, slots=True)
class SlotPair:
    """The key and value slots of a memory. branch: whose keys and values they were made from under `kv per branch`, else None."""

    memory: Compress
    branch: str | None

    @property
    def name(self) -> str:
        """What generated modules call the pair: `memory` or `memory.branch`."""
        return self.memory.name if self.branch is None else f"{self.memory.name}.{self.branch}"

    def parts(self) -> tuple[str, str]:
        """The names of its two tensors."""
        return f"slots.{self.name}.keys", f"slots.{self.name}.values"


@dataclass(frozen=True, slots=True)
class Signature:
    """The tensors of one call of a pattern, after dead branches are dropped and equal ones shared.

    inputs: all a call may pass, in this order; those that it does not pass are left out. differentiable: the inputs that the
    output depends on other than through a choice or a module. given_slots: made by modules (`by = mlp`) before the operator, its inputs.
    workers: (branch of the output, the equal branch that computes it), in the order of the gates. computed: these branches once
    each. made_slots: slots that kernels make and backward reads. choices: all that a call makes; chosen: those backward reads.
    """

    kind: str
    inputs: tuple[str, ...]
    differentiable: frozenset[str]
    given_slots: tuple[SlotPair, ...]
    workers: tuple[tuple[str, str], ...]
    computed: tuple[Branch, ...]
    made_slots: tuple[SlotPair, ...]
    choices: tuple[Choice, ...]
    chosen: tuple[Choice, ...]

    @property
    def lses(self) -> tuple[str, ...]:
        """The log-sum-exps of an output: of each branch, or one named `merge`."""
        return ("merge",) if self.kind == "merge" else tuple(each.name for each in self.computed)

    @property
    def outputs(self) -> tuple[str, ...]:
        """What the operator returns: the output, log-sum-exps, branches' outputs where they are not the output, slots, choices."""
        branches = tuple(f"branch.{each.name}" for each in self.computed) if self.kind in ("gate", "mix") else ()
        slots = tuple(part for pair in self.made_slots for part in pair.parts())
        return ("out", *(f"lse.{each}" for each in self.lses), *branches, *slots, *(f"chosen.{each.name}" for each in self.chosen))

    def returned(self, keep: bool) -> tuple[str, ...]:
        """Those of `outputs` that a call returns. keep: whether backward is to read what it needs of them."""
        return tuple(name for name in self.outputs if keep or not name.startswith("branch."))

    @property
    def saved(self) -> tuple[str, ...]:
        """Those of `outputs` that backward reads."""
        return self.outputs[1:] if self.kind in ("gate", "mix") else self.outputs

    @property
    def read_backward(self) -> frozenset[str]:
        """Those of `inputs` that backward reads: keys and values also for their sizes."""
        return self.differentiable | {name for name in self.inputs if name.partition(".")[0] in ("k", "v", "cu_seqlens")}


def names_of(signature: Signature) -> dict[str, Any]:
    """A signature as JSON can hold it: what the pattern declares stands there by its name."""
    return {
        "kind": signature.kind,
        "inputs": signature.inputs,
        "differentiable": sorted(signature.differentiable),
        "given_slots": [(each.memory.name, each.branch) for each in signature.given_slots],
        "workers": signature.workers,
        "computed": [each.name for each in signature.computed],
        "made_slots": [(each.memory.name, each.branch) for each in signature.made_slots],
        "choices": [each.name for each in signature.choices],
        "chosen": [each.name for each in signature.chosen],
    }


def from_names(pattern: Pattern, names: Mapping[str, Any]) -> Signature:
    """The signature of the pattern that `names_of` wrote down."""
    memories = {each.name: each for each in pattern.memories}
    made = {each.name: each for branch in pattern.branches for each in branch.choices}
    return Signature(
        kind=names["kind"],
        inputs=tuple(names["inputs"]),
        differentiable=frozenset(names["differentiable"]),
        given_slots=tuple(SlotPair(memories[memory], branch) for memory, branch in names["given_slots"]),
        workers=tuple((branch, worker) for branch, worker in names["workers"]),
        computed=tuple(pattern.branch(each) for each in names["computed"]),
        made_slots=tuple(SlotPair(memories[memory], branch) for memory, branch in names["made_slots"]),
        choices=tuple(made[each] for each in names["choices"]),
        chosen=tuple(made[each] for each in names["chosen"]),
    )
