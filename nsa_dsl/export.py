"""The block-dependency graph for other programs: JSON, Graphviz and plain networkx. Relations are text in the language's notation.

JSON, schema 1: {"schema": 1, "pattern", "passes": [...], "nodes": [{"name", "kind", ...}], "edges": [{"from", "to", "kind",
...}]}; producers come before consumers, edges stand in the order of their consumers, fields that do not apply are left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any, TypeAlias, assert_never

import islpy as isl
import networkx

from nsa_dsl.graph import (
    AttendNode,
    BlockGraph,
    ChoiceEdge,
    CombineGradNode,
    CombineNode,
    CompressGradNode,
    CompressNode,
    CotangentNode,
    Edge,
    GradientNode,
    ImportanceNode,
    InputNode,
    InverseChoiceEdge,
    KeyGradNode,
    Node,
    OutputNode,
    PointwiseEdge,
    QueryGradNode,
    SelectNode,
    StaticEdge,
)
from nsa_dsl.integer_set import to_set
from nsa_dsl.notation import format_condition
from nsa_dsl.pattern import Memory, Score
from nsa_dsl.relation import All, Chosen, Compare, Const, Either, Not, SameDocument, Scale, Truth, Var, conjunction

SCHEMA = 1

Json: TypeAlias = str | int | float | bool | list["Json"] | dict[str, "Json"] | None

_CONDITIONS = (Truth, Compare, Not, All, Either, SameDocument, Chosen)
_SHAPES = {
    "input": "ellipse",
    "compress": "box",
    "attend": "box",
    "importance": "box",
    "select": "diamond",
    "combine": "box",
    "output": "ellipse",
    "cotangent": "ellipse",
    "combine_gradient": "box",
    "query_gradient": "box",
    "key_gradient": "box",
    "compress_gradient": "box",
    "gradient": "ellipse",
}


def to_json(graph: BlockGraph) -> str:
    """The graph as JSON text, the same for equal graphs, ending in a newline."""
    document = {
        "schema": SCHEMA,
        "pattern": graph.pattern,
        "passes": list(graph.passes),
        "nodes": [{"name": name, **describe_node(node)} for name, node in _ordered_nodes(graph)],
        "edges": [{"from": producer, "to": consumer, **describe_edge(edge)} for producer, consumer, edge in _ordered_edges(graph)],
    }
    return json.dumps(document, indent=2) + "\n"


def to_networkx(graph: BlockGraph) -> networkx.DiGraph[str]:
    """The graph with the fields of the JSON form as plain attributes. A fresh graph: the caller may change it."""
    plain: networkx.DiGraph[str] = networkx.DiGraph(schema=SCHEMA, pattern=graph.pattern, passes=list(graph.passes))
    for name, node in _ordered_nodes(graph):
        plain.add_node(name, **describe_node(node))
    for producer, consumer, edge in _ordered_edges(graph):
        plain.add_edge(producer, consumer, **describe_edge(edge))
    return plain


def to_dot(graph: BlockGraph) -> str:
    """The graph as Graphviz text, ending in a newline. A dashed edge is a choice."""
    lines = [
        f"digraph {_quote(graph.pattern)} {{",
        "    rankdir = LR",
        "    node [fontname = monospace]",
        "    edge [fontname = monospace]",
    ]
    for name, node in _ordered_nodes(graph):
        shape = _SHAPES[str(describe_node(node)["kind"])]
        lines.append(f"    {_quote(name)} [shape = {shape}, label = {_quote(_node_label(name, node))}]")
    for producer, consumer, edge in _ordered_edges(graph):
        style = ", style = dashed" if isinstance(edge, ChoiceEdge | InverseChoiceEdge) else ""
        lines.append(f"    {_quote(producer)} -> {_quote(consumer)} [label = {_quote(_edge_label(edge))}{style}]")
    return "\n".join([*lines, "}", ""])


def integer_set(edge: StaticEdge | ChoiceEdge | InverseChoiceEdge, context: isl.Context) -> isl.Set:
    """{ [i, j] }: the units i of the consumer that need (of a choice: may need) unit j of the producer, as far as both begin inside
    the sequence; symbolic in N, h, heads and kv_heads. Raises isl.Error beyond the context's limit.
    """
    match edge:
        case StaticEdge(relation, consumer_unit, producer_unit):
            pass
        case ChoiceEdge(_, relation, _, producer_unit):
            consumer_unit = 1
        case InverseChoiceEdge(_, relation, _, consumer_unit):
            producer_unit = 1
        case _:
            assert_never(edge)
    starts = Scale(consumer_unit, Var("i")), Scale(producer_unit, Var("j"))
    inside = (bound for start in starts for bound in (Compare("<=", Const(0), start), Compare("<", start, Var("N"))))
    return to_set(conjunction(relation, *inside), context)


def describe_node(node: Node) -> dict[str, Json]:
    """The node's fields as JSON values, `kind` first."""
    match node:
        case InputNode(role, owner):
            return _present(kind="input", role=role, owner=owner)
        case CompressNode(memory, part, branch):
            return _present(kind="compress", memory=_plain(memory), part=part, branch=branch)
        case AttendNode():
            return _describe_attention("attend", node)
        case ImportanceNode(score, block, share, reduce, every, queries):
            return _present(
                kind="importance", score=_plain(score), block=block, share=share, reduce=reduce, every=every, queries=queries
            )  # fmt: skip
        case SelectNode(choice):
            return _present(kind="select", choice=_plain(choice))
        case CombineNode(kind, branches):
            return _present(kind="combine", by=kind, branches=list(branches))
        case OutputNode():
            return _present(kind="output")
        case CotangentNode(role, owner):
            return _present(kind="cotangent", role=role, owner=owner)
        case CombineGradNode(kind, branches):
            return _present(kind="combine_gradient", by=kind, branches=list(branches))
        case QueryGradNode():
            return _describe_attention("query_gradient", node)
        case KeyGradNode():
            return _describe_attention("key_gradient", node)
        case CompressGradNode(memory, part, branch):
            return _present(kind="compress_gradient", memory=_plain(memory), part=part, branch=branch)
        case GradientNode(role, owner, part):
            return _present(kind="gradient", role=role, owner=owner, part=part)
        case _:
            assert_never(node)


def _describe_attention(kind: str, node: AttendNode | QueryGradNode | KeyGradNode) -> dict[str, Json]:
    return _present(
        kind=kind,
        branch=_plain(node.branch),
        static_where=format_condition(node.static_where),
        may_where=format_condition(node.may_where),
        slot_where=None if node.slot_where is None else format_condition(node.slot_where),
    )


def describe_edge(edge: Edge) -> dict[str, Json]:
    """The edge's fields as JSON values, `kind` first."""
    kinds = {StaticEdge: "static", ChoiceEdge: "choice", InverseChoiceEdge: "inverse_choice", PointwiseEdge: "pointwise"}
    return {"kind": kinds[type(edge)], **{each.name: _plain(getattr(edge, each.name)) for each in fields(edge)}}


def _ordered_nodes(graph: BlockGraph) -> Iterator[tuple[str, Node]]:
    return ((name, graph.node(name)) for name in graph.order())


def _ordered_edges(graph: BlockGraph) -> Iterator[tuple[str, str, Edge]]:
    order = graph.order()
    for consumer in order:
        for producer, _, edge in sorted(graph.incoming(consumer), key=lambda each: order.index(each[0])):
            yield producer, consumer, edge


def _present(**values: Json) -> dict[str, Json]:
    return {name: value for name, value in values.items() if value is not None}


def _plain(value: Any) -> Json:
    """A field of a pattern: conditions as text, other values as objects that name their kind where kinds differ."""
    if isinstance(value, _CONDITIONS):
        return format_condition(value)
    if is_dataclass(value):
        held = {each.name: _plain(getattr(value, each.name)) for each in fields(value)}
        kind = {"kind": type(value).__name__} if isinstance(value, Memory | Score) else {}
        return _present(**kind, **held)
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    result: Json = value
    return result


def _node_label(name: str, node: Node) -> str:
    match node:
        case InputNode() | OutputNode() | CotangentNode() | GradientNode():
            return name
        case CompressNode(memory) | CompressGradNode(memory):
            return f"{name}\nblock {memory.block}, stride {memory.stride}, by {memory.by}"
        case AttendNode(branch, _, _, slot_where):
            slots = () if slot_where is None else (f"slots: {format_condition(slot_where)}",)
            return "\n".join((name, format_condition(branch.where), *slots))
        case QueryGradNode(_, _, relation, slot_where) | KeyGradNode(_, _, relation, slot_where):
            return "\n".join((name, format_condition(relation if slot_where is None else slot_where)))
        case ImportanceNode(_, block, share):
            return f"{name}\nblock {block}, share {share}"
        case SelectNode(choice):
            amount = choice.count if choice.threshold is None else f"{choice.threshold:g}"
            return f"{name}\n{choice.rule} {amount}, block {choice.block}, share {choice.share}"
        case CombineNode(kind, branches):
            return f"{kind}\n{', '.join(branches)}"
        case CombineGradNode(kind, branches):
            return f"{name}\n{kind}\n{', '.join(branches)}"
        case _:
            assert_never(node)


def _edge_label(edge: Edge) -> str:
    match edge:
        case StaticEdge(relation, consumer_unit, producer_unit):
            units = "" if consumer_unit == producer_unit == 1 else f"\ni: {consumer_unit}, j: {producer_unit} tokens"
            return f"{format_condition(relation)}{units}"
        case ChoiceEdge(choice, may, must, block) | InverseChoiceEdge(choice, may, must, block):
            return f"{choice}, {block}-blocks\nmay: {format_condition(may)}\nmust: {format_condition(must)}"
        case PointwiseEdge():
            return ""
        case _:
            assert_never(edge)


def _quote(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
