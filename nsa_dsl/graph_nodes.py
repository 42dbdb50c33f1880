"""The nodes and edges of the block-dependency graph: frozen values. An edge runs from producer to consumer.

The pass `differentiate` adds the second half, the transposed graph: from the cotangents that the caller gives to a gradient
of each input. There a producer's gradient is made by a node whose static edges carry the transpose of the forward relation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias, TypeVar

from nsa_dsl.pattern import Branch, Choice, Compress, Reduce, Score, Share
from nsa_dsl.relation import Condition

Role: TypeAlias = Literal["q", "k", "v", "gates", "weights", "compressors", "scores", "indices", "indexer", "sinks", "cu_seqlens"]
Part: TypeAlias = Literal["keys", "values"]
Axis: TypeAlias = Literal["pairs", "keys", "queries", "inverse"]
CombineKind: TypeAlias = Literal["gate", "mix", "merge", "single"]
GradientRole: TypeAlias = Literal["q", "k", "v", "gates", "weights", "slots", "sinks"]


@dataclass(frozen=True, slots=True)
class InputNode:
    """A tensor (or module) that the caller gives.

    owner: the branch (k and v of a pattern with `kv per branch`, sinks), memory (weights, compressors) or choice (scores,
    indices, indexer) it belongs to; None when the whole layer shares it.
    """

    role: Role
    owner: str | None


@dataclass(frozen=True, slots=True)
class CompressNode:
    """The slots of a compressed memory: (batch, kv_heads, slots, d), made from keys or from values.

    branch: whose keys and values, in a pattern with `kv per branch`; None when they are shared.
    """

    memory: Compress
    part: Part
    branch: str | None


@dataclass(frozen=True, slots=True)
class AttendNode:
    """One softmax: output (batch, heads, tokens, d_v) and log-sum-exp (batch, heads, tokens).

    static_where: token pairs visible whatever is chosen. may_where: token pairs that some choice makes visible. Both are
    `branch.where` itself when it names no choice.
    slot_where: for a compressed memory, may_where lifted to (query token i, slot j); None before `derive_slot_visibility`.
    """

    branch: Branch
    static_where: Condition
    may_where: Condition
    slot_where: Condition | None = None


@dataclass(frozen=True, slots=True)
class ImportanceNode:
    """The scores by which a choice is made: (batch, units, query units, key blocks); units: heads, kv_heads or 1 by `share`."""

    score: Score
    block: int
    share: Share
    reduce: Reduce
    every: int
    queries: int


@dataclass(frozen=True, slots=True)
class SelectNode:
    """The chosen blocks: (batch, units, query units, blocks). Carries no gradient."""

    choice: Choice


@dataclass(frozen=True, slots=True)
class CombineNode:
    """The layer's output from its branches. branches: names of Attend nodes in the order of the gates; two gates may weigh
    one node once equal branches are shared."""

    kind: CombineKind
    branches: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class OutputNode:
    """What the layer returns: (batch, heads, tokens, d_v)."""


@dataclass(frozen=True, slots=True)
class CotangentNode:
    """A derivative of the loss that the caller gives: by the output (batch, heads, tokens, d_v), or by a log-sum-exp
    (batch, heads, tokens).

    owner: None for the output; of a log-sum-exp the branch it belongs to, "merge" for that of a merge. Equal branches share
    one node, and then one cotangent: the sum of what is given under each of their names.
    """

    role: Literal["out", "lse"]
    owner: str | None


@dataclass(frozen=True, slots=True)
class CombineGradNode:
    """What all branches' gradients need of a query row, made once: with w the row's weight (a gate's sigmoid, a softmax's
    share, 1 under merge and single) and dot = sum(d_out * out_branch),

        delta = w * dot - d_lse    (batch, heads, tokens), a branch; under merge one, of the merged output, for all

    and from dot and delta the gradients of gates and sinks. kind, branches: as in the graph's CombineNode.
    """

    kind: CombineKind
    branches: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class QueryGradNode:
    """One branch's share of the gradient of q, (batch, heads, tokens, d_qk), by the forward's walk over keys.

    The fields are those of the branch's AttendNode.
    """

    branch: Branch
    static_where: Condition
    may_where: Condition
    slot_where: Condition | None


@dataclass(frozen=True, slots=True)
class KeyGradNode:
    """One branch's gradients of its keys and values: (batch, kv_heads, tokens or slots, d_qk and d_v), key by key.

    static_where, may_where, slot_where: those of the branch's AttendNode transposed: i is the key (in slot_where: the slot) and
    j the query. `branch` is the forward's: in branch.where i is still the query.
    """

    branch: Branch
    static_where: Condition
    may_where: Condition
    slot_where: Condition | None


@dataclass(frozen=True, slots=True)
class CompressGradNode:
    """The gradient of the tokens, (batch, kv_heads, tokens, d), and of the weights (`by = weighted`), that a compressed memory's
    slots were made from. A token gathers from the slots that cover it. The fields are those of its CompressNode.

    A memory `by = mlp` has none: its slots come from a module outside, which differentiates itself.
    """

    memory: Compress
    part: Part
    branch: str | None


@dataclass(frozen=True, slots=True)
class GradientNode:
    """The gradient of one input, in the input's shape: the sum of its producers.

    owner: as of the input's InputNode; of slots the memory, or "memory.branch" with `kv per branch`. part: which of a memory's
    slots or weights; None for other roles.
    """

    role: GradientRole
    owner: str | None
    part: Part | None


ForwardNode: TypeAlias = InputNode | CompressNode | AttendNode | ImportanceNode | SelectNode | CombineNode | OutputNode
BackwardNode: TypeAlias = CotangentNode | CombineGradNode | QueryGradNode | KeyGradNode | CompressGradNode | GradientNode
Node: TypeAlias = ForwardNode | BackwardNode
NodeType = TypeVar(
    "NodeType",
    InputNode,
    CompressNode,
    AttendNode,
    ImportanceNode,
    SelectNode,
    CombineNode,
    OutputNode,
    CotangentNode,
    CombineGradNode,
    QueryGradNode,
    KeyGradNode,
    CompressGradNode,
    GradientNode,
)


@dataclass(frozen=True, slots=True)
class StaticEdge:
    """Unit i of the consumer needs unit j of the producer when `relation` holds; N is the sequence length in tokens.

    consumer_unit, producer_unit: tokens from one i to the next, from one j to the next (the stride, for slots).
    along: what i and j count: a query against a key or slot (pairs), a key or slot against a query (inverse), keys against
    keys (keys), queries against queries.
    """

    relation: Condition
    consumer_unit: int
    producer_unit: int
    along: Axis


@dataclass(frozen=True, slots=True)
class ChoiceEdge:
    """Query i (a token) of the consumer needs the key blocks j (`block` tokens each) that the choice named `choice` took.

    may: its candidates, the most it can take. must: its kept blocks, which it always takes. N is in tokens.
    """

    choice: str
    may: Condition
    must: Condition
    block: int


@dataclass(frozen=True, slots=True)
class InverseChoiceEdge:
    """A ChoiceEdge the other way round: key block i (`block` tokens) of the consumer needs the queries j (tokens) that took it.

    may, must: those of the ChoiceEdge transposed. N is in tokens.
    """

    choice: str
    may: Condition
    must: Condition
    block: int


@dataclass(frozen=True, slots=True)
class PointwiseEdge:
    """A unit (query, key, slot) of the consumer needs the same unit of the producer, or (parameters) all of it."""


Edge: TypeAlias = StaticEdge | ChoiceEdge | InverseChoiceEdge | PointwiseEdge
Ends: TypeAlias = tuple[str, str]
Nodes: TypeAlias = Mapping[str, Node]
Edges: TypeAlias = Mapping[Ends, Edge]
Rule: TypeAlias = Callable[[Nodes, Edges], Iterator[str]]
