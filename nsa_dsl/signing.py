"""From a pattern's graph to its signature."""

from __future__ import annotations

import networkx

from nsa_dsl.graph import AttendNode, BlockGraph, CombineNode, CompressNode, InputNode, SelectNode
from nsa_dsl.lower import lower
from nsa_dsl.passes import run_passes
from nsa_dsl.pattern import Pattern
from nsa_dsl.signature import Signature, SlotPair

_ROLES = ("q", "k", "v", "gates", "weights", "slots", "scores", "indices", "choices", "cu_seqlens", "sinks")
_WITHOUT_GRADIENT = ("scores", "indices", "choices", "cu_seqlens")


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
