"""The flat order in which a pattern's tensors cross the boundary of an operator: what goes in, what comes out, what backward reads.

Names are dotted: `q`, `k` or `k.<branch>`, `weights.<memory>.keys`, `slots.<memory>.values`, `lse.<branch>`, `chosen.<choice>`.
"""

from __future__ import annotations

from dataclasses import dataclass

import networkx

from nsa_dsl.graph import AttendNode, BlockGraph, CombineNode, CompressNode, InputNode, SelectNode
from nsa_dsl.lower import lower
from nsa_dsl.passes import run_passes
from nsa_dsl.pattern import Branch, Choice, Compress, Pattern

_ROLES = ("q", "k", "v", "gates", "weights", "slots", "scores", "indices", "choices", "cu_seqlens", "sinks")
_WITHOUT_GRADIENT = ("scores", "indices", "choices", "cu_seqlens")


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

    @property
    def saved(self) -> tuple[str, ...]:
        """Those of `outputs` that backward reads."""
        return self.outputs[1:] if self.kind in ("gate", "mix") else self.outputs

    @property
    def read_backward(self) -> frozenset[str]:
        """Those of `inputs` that backward reads: keys and values also for their sizes."""
        return self.differentiable | {name for name in self.inputs if name.partition(".")[0] in ("k", "v", "cu_seqlens")}


def sign(pattern: Pattern) -> Signature:
    """The signature of a pattern, from the graph that its kernels are made from. Raises what `run_passes` raises."""
    graph = run_passes(lower(pattern))
    combine = next(iter(graph.of_kind(CombineNode).values()))
    attends = graph.of_kind(AttendNode)
    computed = tuple(dict.fromkeys(combine.branches))
    selects = {node.choice.name: (name, node.choice) for name, node in graph.of_kind(SelectNode).items()}
    order = [each.name for branch in pattern.branches for each in branch.choices if each.name in selects]
    read = {producer for each in computed for producer, _, _ in graph.incoming(each)}
    pairs = _slot_pairs(graph)
    given = tuple(dict.fromkeys(pair for pair in pairs.values() if pair.memory.by == "mlp"))
    names = [*_inputs(graph), *(part for pair in given for part in pair.parts()), *(f"choices.{each}" for each in order)]
    return Signature(
        kind=combine.kind,
        inputs=tuple(sorted(names, key=lambda name: _ROLES.index(name.partition(".")[0]))),
        differentiable=_differentiable(graph, pairs),
        given_slots=given,
        workers=tuple((branch, attends[node].branch.name) for branch, node in zip(pattern.output.branches, combine.branches, strict=True)),
        computed=tuple(attends[each].branch for each in computed),
        made_slots=tuple(dict.fromkeys(pair for node, pair in pairs.items() if pair.memory.by != "mlp" and node in read)),
        choices=tuple(selects[each][1] for each in order),
        chosen=tuple(selects[each][1] for each in order if selects[each][0] in read),
    )


def _slot_pairs(graph: BlockGraph) -> dict[str, SlotPair]:
    """Compress node -> the pair of slots that it makes one of."""
    return {name: SlotPair(node.memory, node.branch) for name, node in graph.of_kind(CompressNode).items()}


def _inputs(graph: BlockGraph) -> list[str]:
    """The input nodes as names of tensors; modules are none."""
    return [each for node in graph.of_kind(InputNode).values() if node.role != "compressors" for each in _tensors(node)]


def _tensors(node: InputNode) -> tuple[str, ...]:
    name = node.role if node.owner is None else f"{node.role}.{node.owner}"
    return (f"{name}.keys", f"{name}.values") if node.role == "weights" else (name,)


def _differentiable(graph: BlockGraph, pairs: dict[str, SlotPair]) -> frozenset[str]:
    """The inputs with a path to the output that leads through no choice, and through no module: those are differentiated outside,
    from the slots that they make. Of a memory's weights, both."""
    outside = {name for name, pair in pairs.items() if pair.memory.by == "mlp"}
    smooth = graph.digraph.subgraph([name for name, node in graph.nodes.items() if not isinstance(node, SelectNode)])
    needed = networkx.ancestors(smooth, "output")
    slots = {part for name in outside if name in needed for part in pairs[name].parts()}
    inside = smooth.subgraph([name for name in smooth if name not in outside])
    reaching = networkx.ancestors(inside, "output")
    inputs = {name: node for name, node in graph.of_kind(InputNode).items() if name in reaching and node.role not in _WITHOUT_GRADIENT}
    return frozenset(slots.union(*(_tensors(node) for node in inputs.values())))
