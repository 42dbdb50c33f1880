"""What one attention layer computes, with every name resolved, every parameter bound and every unit fixed.

This is the meaning of a spec: the dense reference and the block-dependency graph are both made from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from nsa_dsl.relation import Condition


class NotSupported(NotImplementedError):  # noqa: N818 - reads as a statement where it is raised
    """A pattern asks for something that is not computed (yet). str() names the construct and what to write instead."""


Compressor: TypeAlias = Literal["mean", "max", "weighted", "mlp"]
Share: TypeAlias = Literal["group", "head", "all"]
Reduce: TypeAlias = Literal["sum", "mean", "max"]


@dataclass(frozen=True, slots=True)
class Tokens:
    """The keys and values that the caller gives."""


@dataclass(frozen=True, slots=True)
class Compress:
    """Slot t summarises tokens [t * stride, t * stride + block); there are (N - block) // stride + 1 (0 if N < block)."""

    name: str
    block: int
    stride: int
    by: Compressor


Memory: TypeAlias = Tokens | Compress


@dataclass(frozen=True, slots=True)
class BranchScore:
    """Softmax probabilities of a compressed branch, mapped to key blocks by overlap length / stride (NSA, Eq. 9)."""

    branch: str


@dataclass(frozen=True, slots=True)
class PooledScore:
    """Unscaled product of the query with the block's pooled keys. minmax: sum over features d of
    max(q[d] * greatest k[d], q[d] * least k[d]), an upper bound (Quest). Only blocks that end at or before the query have a
    score: a block pooled over later keys would leak them. An unfinished block is seen through `keep`."""

    by: Literal["mean", "max", "minmax"]


@dataclass(frozen=True, slots=True)
class IndexScore:
    """A learned indexer: sum over its heads of weight * relu(q . k) (DSA)."""

    heads: int
    dim: int


@dataclass(frozen=True, slots=True)
class GivenScores:
    """The caller passes scores: (batch, units, query units, key blocks)."""


@dataclass(frozen=True, slots=True)
class GivenIndices:
    """The caller passes the choice: (batch, units, query units, n) integers; negative entries are padding."""


Score: TypeAlias = BranchScore | PooledScore | IndexScore | GivenScores | GivenIndices


@dataclass(frozen=True, slots=True)
class Choice:
    """Which key blocks a query unit takes, decided by data.

    name: the branch's name, or branch_2, branch_3 ... for further choices of one branch.
    rule: top takes `count` blocks; over takes every block whose score exceeds `threshold`; mass takes the fewest best blocks
    whose share of the row's total reaches `threshold`.
    every: queries choose in runs of this many, the first of a run for all. queries: a tile of this many chooses together.
    keep / keep_extra: block-unit relations (i: query block, j: key block, N: ceil(tokens / block)); keep counts inside `count`.
    among: another choice of the same pattern that bounds the candidates.
    Only blocks that begin at or before the choosing query are candidates; ties go to the lower index.
    """

    name: str
    rule: Literal["top", "over", "mass"]
    count: int | None
    threshold: float | None
    block: int
    score: Score
    share: Share
    reduce: Reduce
    every: int
    queries: int
    keep: Condition | None
    keep_extra: Condition | None
    among: str | None


@dataclass(frozen=True, slots=True)
class Branch:
    """One softmax over what `where` allows.

    where: over token positions, also when memory is Compress: a slot is visible to i when every token it covers is. Atoms
    `Chosen(name)` refer to `choices`, in order of first occurrence. scale: None is d_qk ** -0.5.
    softcap: cap * tanh(score / cap) on scaled scores. bias alibi: minus slope(h) * (i - j), slope(h) = 2 ** (-8 (h + 1) / heads).
    sink: one learned logit a query head that joins the softmax's denominator. skip: BLASST's lambda.
    """

    name: str
    memory: Memory
    where: Condition
    choices: tuple[Choice, ...]
    scale: float | None
    softcap: float | None
    bias: Literal["alibi"] | None
    sink: bool
    skip: float | None


@dataclass(frozen=True, slots=True)
class Output:
    """gate: sum of sigmoid(logit) * branch; mix: softmax over logits; merge: one softmax over both; single: the branch itself."""

    kind: Literal["gate", "mix", "merge", "single"]
    branches: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Within:
    """Assertion: every visible pair lies in the relation. text: as the user wrote it."""

    relation: Condition
    text: str


@dataclass(frozen=True, slots=True)
class Reach:
    """Assertion: information flows from every key the relation allows to its query within this many layers."""

    relation: Condition
    layers: int
    text: str


@dataclass(frozen=True, slots=True)
class Bound:
    """Assertion: density (visible pairs / N * N, averaged over heads) or KV bytes at a length stays within a bound."""

    quantity: Literal["density", "kv"]
    bound: float
    length: int
    text: str


Claim: TypeAlias = Within | Reach | Bound


@dataclass(frozen=True, slots=True)
class Pattern:
    """One attention layer. parameters: as bound, in the order of the declaration. memories: in the order they were bound;
    branches likewise, dead ones included. text: the declaration as the printer prints it, for quoting."""

    name: str
    parameters: tuple[tuple[str, int | float | str], ...]
    memories: tuple[Compress, ...]
    branches: tuple[Branch, ...]
    output: Output
    kv_per_branch: bool
    allow_lookahead: bool
    claims: tuple[Claim, ...]
    text: str

    def branch(self, name: str) -> Branch:
        """The branch of this name. Raises KeyError."""
        for each in self.branches:
            if each.name == name:
                return each
        raise KeyError(name)

    @property
    def outputs(self) -> tuple[Branch, ...]:
        """The branches that the output combines, in the order written: the order of the gates."""
        return tuple(self.branch(each) for each in self.output.branches)


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of a model. reuse: choice name -> the earlier layer that made it (the last one that did)."""

    pattern: Pattern
    reuse: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Model:
    """Which pattern each layer runs."""

    name: str
    parameters: tuple[tuple[str, int | float | str], ...]
    layers: tuple[Layer, ...]
    claims: tuple[Claim, ...]
    text: str
