"""Which block-dependency graphs are legal: an executable specification.

Every rule yields one sentence a violation, names the node or edge, and looks at nothing it has not been given. The rules
under a pass's name hold from that pass on. A gradient graph holds its forward graph whole, its one output included: the rules
here hold for that part as they stand, and `gradient_rules` says what must stand beside it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import assert_never

import networkx

from nsa_dsl.gradient_rules import gradients_complete, gradients_read_what_they_need
from nsa_dsl.graph_nodes import (
    AttendNode,
    BackwardNode,
    ChoiceEdge,
    CombineGradNode,
    CombineNode,
    CompressGradNode,
    CompressNode,
    CotangentNode,
    Edge,
    Edges,
    ForwardNode,
    GradientNode,
    ImportanceNode,
    InputNode,
    InverseChoiceEdge,
    KeyGradNode,
    Node,
    Nodes,
    OutputNode,
    PointwiseEdge,
    QueryGradNode,
    Rule,
    SelectNode,
    StaticEdge,
)
from nsa_dsl.pattern import BranchScore, Compress, GivenIndices, GivenScores, IndexScore, PooledScore
from nsa_dsl.relation import Condition, SameDocument, choices, symbols, walk

_STATIC, _CHOICE, _POINTWISE = (StaticEdge,), (ChoiceEdge,), (PointwiseEdge,)
_EDGE_TYPES: Mapping[tuple[str, str], tuple[type, ...]] = {
    ("k", "compress keys"): _STATIC,
    ("v", "compress values"): _STATIC,
    ("weights", "compress keys"): _POINTWISE,
    ("weights", "compress values"): _POINTWISE,
    ("compressors", "compress keys"): _POINTWISE,
    ("compressors", "compress values"): _POINTWISE,
    ("q", "attend"): _POINTWISE,
    ("k", "attend"): _STATIC,
    ("v", "attend"): _STATIC,
    ("compress keys", "attend"): _STATIC,
    ("compress values", "attend"): _STATIC,
    ("sinks", "attend"): _POINTWISE,
    ("cu_seqlens", "attend"): _POINTWISE,
    ("select", "attend"): _CHOICE,
    ("attend", "importance"): _STATIC,
    ("q", "importance"): (StaticEdge, PointwiseEdge),
    ("k", "importance"): _STATIC,
    ("indexer", "importance"): _POINTWISE,
    ("importance", "select"): _POINTWISE,
    ("scores", "select"): _POINTWISE,
    ("indices", "select"): _POINTWISE,
    ("select", "select"): _CHOICE,
    ("attend", "combine"): _POINTWISE,
    ("gates", "combine"): _POINTWISE,
    ("combine", "output"): _POINTWISE,
}


def violations(nodes: Nodes, edges: Edges, passes: tuple[str, ...]) -> tuple[str, ...]:
    """Everything that is wrong, one sentence each; empty for a legal graph."""
    rules = (*_ALWAYS, *(rule for name in passes for rule in _AFTER.get(name, ())))
    return tuple(sentence for rule in rules for sentence in rule(nodes, edges))


def kind_of(node: Node) -> str:
    """A node's kind as the rules name it: an input's is its role."""
    match node:
        case InputNode(role):
            return role
        case CompressNode(_, part):
            return f"compress {part}"
        case AttendNode():
            return "attend"
        case ImportanceNode():
            return "importance"
        case SelectNode():
            return "select"
        case CombineNode():
            return "combine"
        case OutputNode():
            return "output"
        case CotangentNode():
            return "cotangent"
        case CombineGradNode() | QueryGradNode() | KeyGradNode() | CompressGradNode() | GradientNode():
            return "gradient"
        case _:
            assert_never(node)


def _needs(node: ForwardNode) -> Counter[str]:
    """How many producers of each kind the node must have."""
    match node:
        case InputNode():
            return Counter()
        case CompressNode(memory, part):
            parameters = {"weighted": ["weights"], "mlp": ["compressors"]}.get(memory.by, [])
            return Counter(["k" if part == "keys" else "v", *parameters])
        case AttendNode(branch):
            compressed = isinstance(branch.memory, Compress)
            packed = any(isinstance(each, SameDocument) for each in walk(branch.where))
            needs = Counter(["q", *(("compress keys", "compress values") if compressed else ("k", "v"))])
            needs.update({"sinks": int(branch.sink), "cu_seqlens": int(packed), "select": len(branch.choices)})
            return +needs
        case ImportanceNode(score):
            match score:
                case BranchScore():
                    return Counter(["attend"])
                case PooledScore():
                    return Counter(["q", "k"])
                case _:
                    return Counter(["indexer"])
        case SelectNode(choice):
            match choice.score:
                case GivenScores():
                    source = "scores"
                case GivenIndices():
                    source = "indices"
                case BranchScore() | PooledScore() | IndexScore():
                    source = "importance"
                case _:
                    assert_never(choice.score)
            return Counter([source, *(["select"] if choice.among is not None else [])])
        case CombineNode(kind, branches):
            gates = ["gates"] if kind in ("gate", "mix") else []
            return Counter([*gates, *("attend" for _ in set(branches))])
        case OutputNode():
            return Counter(["combine"])
        case _:
            assert_never(node)


def _producers(edges: Edges, consumer: str) -> Iterator[tuple[str, Edge]]:
    return ((ends[0], edge) for ends, edge in edges.items() if ends[1] == consumer)


def _acyclic(_: Nodes, edges: Edges) -> Iterator[str]:
    digraph = networkx.DiGraph(list(edges))
    if not networkx.is_directed_acyclic_graph(digraph):
        around = networkx.find_cycle(digraph)
        yield f"cycle: {' -> '.join(str(step[0]) for step in around)} -> {around[0][0]}"


def _edge_types(nodes: Nodes, edges: Edges) -> Iterator[str]:
    for (producer, consumer), edge in edges.items():
        if isinstance(nodes[consumer], BackwardNode):
            continue  # gradient_rules says exactly what it reads
        kinds = kind_of(nodes[producer]), kind_of(nodes[consumer])
        allowed = _EDGE_TYPES.get(kinds)
        if allowed is None:
            yield f"{producer} -> {consumer}: no {kinds[1]} takes anything from {kinds[0]}"
        elif not isinstance(edge, allowed):
            wanted = " or ".join(each.__name__ for each in allowed)
            yield f"{producer} -> {consumer}: must be {wanted}, is {type(edge).__name__}"


def _inputs_complete(nodes: Nodes, edges: Edges) -> Iterator[str]:
    for name, node in nodes.items():
        if isinstance(node, BackwardNode):
            continue
        needed = _needs(node)
        given = Counter(kind_of(nodes[producer]) for producer, _ in _producers(edges, name))
        for kind in sorted(needed.keys() | given.keys()):
            if needed[kind] != given[kind]:
                yield f"{name}: needs {needed[kind]} {kind}, has {given[kind]}"


def _one_output(nodes: Nodes, _: Edges) -> Iterator[str]:
    count = sum(isinstance(node, OutputNode) for node in nodes.values())
    if count != 1:
        yield f"must have one output, has {count}"


def _combined_branches(nodes: Nodes, edges: Edges) -> Iterator[str]:
    for name, node in nodes.items():
        if isinstance(node, CombineNode):
            given = {producer for producer, _ in _producers(edges, name)}
            yield from (f"{name}: combines {each}, which it is not connected to" for each in node.branches if each not in given)
            if not node.branches or (node.kind == "single" and len(node.branches) > 1):
                yield f"{name}: {node.kind} cannot combine {len(node.branches)} branches"


def _choices_named(nodes: Nodes, edges: Edges) -> Iterator[str]:
    for (producer, consumer), edge in edges.items():
        source, target = nodes[producer], nodes[consumer]
        if isinstance(edge, ChoiceEdge):
            if not isinstance(source, SelectNode):
                yield f"{producer} -> {consumer}: a choice must come from a select node"
            elif (edge.choice, edge.block) != (source.choice.name, source.choice.block):
                yield f"{producer} -> {consumer}: carries {edge.choice} of {edge.block}-blocks, {producer} makes another choice"
            if isinstance(target, SelectNode) and edge.choice != target.choice.among:
                yield f"{consumer}: chooses among {target.choice.among}, is given {edge.choice}"
            if isinstance(target, AttendNode) and edge.choice not in choices(target.branch.where):
                yield f"{consumer}: is given {edge.choice}, which its where does not name"
    for name, node in nodes.items():
        if isinstance(node, AttendNode):
            made = tuple(each.name for each in node.branch.choices)
            missing = (each for each in choices(node.branch.where) if each not in made)
            yield from (f"{name}: its where names {each}, which it does not have" for each in missing)


def _relations_static(nodes: Nodes, edges: Edges) -> Iterator[str]:
    held: list[tuple[str, Condition]] = []
    for (producer, consumer), edge in edges.items():
        place = f"{producer} -> {consumer}"
        match edge:
            case StaticEdge(relation, consumer_unit, producer_unit):
                held.append((place, relation))
                if min(consumer_unit, producer_unit) < 1:
                    yield f"{place}: units must be at least 1 token"
            case ChoiceEdge(_, may, must, block) | InverseChoiceEdge(_, may, must, block):
                held.extend(((place, may), (place, must)))
                if block < 1:
                    yield f"{place}: a block must be at least 1 token"
            case PointwiseEdge():
                pass
            case _:
                assert_never(edge)
    for name, node in nodes.items():
        if isinstance(node, AttendNode):
            held.extend((name, each) for each in (node.static_where, node.may_where, node.slot_where) if each is not None)
    for place, relation in held:
        if choices(relation):
            yield f"{place}: a static relation names the choice {choices(relation)[0]}"
        if "tile" in symbols(relation):
            yield f"{place}: a static relation names a query tile"


def _slots_derived(nodes: Nodes, edges: Edges) -> Iterator[str]:
    for name, node in nodes.items():
        if not isinstance(node, AttendNode):
            continue
        memory = node.branch.memory
        if not isinstance(memory, Compress):
            if node.slot_where is not None:
                yield f"{name}: slot visibility of a branch over tokens"
        elif node.slot_where is None:
            yield f"{name}: slot visibility is missing"
        else:
            wanted = StaticEdge(node.slot_where, 1, memory.stride, "pairs")
            for producer, edge in _producers(edges, name):
                if isinstance(nodes[producer], CompressNode) and edge != wanted:
                    yield f"{producer} -> {name}: does not carry the slot visibility of {name}"


def _all_alive(nodes: Nodes, edges: Edges) -> Iterator[str]:
    used = {producer for producer, _ in edges}
    unused = (name for name, node in nodes.items() if name not in used and not isinstance(node, OutputNode | GradientNode))
    yield from (f"{name}: nothing needs it" for name in unused)


_ALWAYS: tuple[Rule, ...] = (
    _acyclic,
    _one_output,
    _edge_types,
    _inputs_complete,
    _combined_branches,
    _choices_named,
    _relations_static,
    gradients_read_what_they_need,
)
_AFTER: Mapping[str, tuple[Rule, ...]] = {
    "derive_slot_visibility": (_slots_derived,),
    "drop_dead_branches": (_all_alive,),
    "differentiate": (gradients_complete,),
}
