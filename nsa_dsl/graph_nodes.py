"""The nodes and edges of the block-dependency graph: frozen values. An edge runs from producer to consumer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, TypeVar

from nsa_dsl.pattern import Branch, Choice, Compress, Reduce, Score, Share
from nsa_dsl.relation import Condition

Role: TypeAlias = Literal["q", "k", "v", "gates", "weights", "compressors", "scores", "indices", "indexer", "sinks", "cu_seqlens"]
Part: TypeAlias = Literal["keys", "values"]
Axis: TypeAlias = Literal["pairs", "keys", "queries"]


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

    kind: Literal["gate", "mix", "merge", "single"]
    branches: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class OutputNode:
    """What the layer returns: (batch, heads, tokens, d_v)."""


Node: TypeAlias = InputNode | CompressNode | AttendNode | ImportanceNode | SelectNode | CombineNode | OutputNode
NodeType = TypeVar("NodeType", InputNode, CompressNode, AttendNode, ImportanceNode, SelectNode, CombineNode, OutputNode)


@dataclass(frozen=True, slots=True)
class StaticEdge:
    """Unit i of the consumer needs unit j of the producer when `relation` holds; N is the sequence length in tokens.

    consumer_unit, producer_unit: tokens from one i to the next, from one j to the next (the stride, for slots).
    along: what i and j count: a query against a key or slot (pairs), keys against keys (keys), queries against queries.
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
class PointwiseEdge:
    """A query of the consumer needs the same query of the producer, or (parameters) all of it."""


Edge: TypeAlias = StaticEdge | ChoiceEdge | PointwiseEdge
Ends: TypeAlias = tuple[str, str]
