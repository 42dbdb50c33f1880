"""Calls to try a pattern with: one frozen value each, drawn by hypothesis, which also shrinks the ones that fail."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from hypothesis import strategies as st

from nsa_dsl.launch import Dtype
from nsa_dsl.pattern import Branch, Compress, Pattern
from nsa_dsl.relation import Const, SameDocument, walk

Layout: TypeAlias = Literal["contiguous", "token major", "packed", "guarded", "far apart"]
"""Where rows lie. token major: (batch, tokens, heads, dim); packed: q, k and v in one row a token; guarded: unused rows and columns
between those in use; far apart: a token stride whose multiples leave 32 bits. Whatever else lies around rows in use is NaN."""

Values: TypeAlias = Literal["ordinary", "ties", "large", "far below zero"]
"""What q and k hold. ties: small integers, so that scores are equal often; large: logits of hundreds; far below zero: all near -55,000."""

Damage: TypeAlias = Literal["none", "key", "value", "query", "cotangent"]
"""What is NaN at one token. cotangent: the output's gradient."""

Gradients: TypeAlias = Literal["none", "out", "out and lse", "structure"]
"""What is checked of the backward pass. out: gradients for a random cotangent of the output; out and lse: of the log-sum-exps too;
structure: exactly which queries each key's gradient sums over."""


@dataclass(frozen=True, slots=True)
class Case:
    """One call. rows, cols: tile sizes, None for the schedule's own; damaged: the token that `damage` hits, modulo tokens."""

    tokens: int
    batch: int
    heads: int
    kv_heads: int
    d_qk: int
    d_v: int
    dtype: Dtype
    layout: Layout
    values: Values
    damage: Damage
    damaged: int
    documents: int
    rows: int | None
    cols: int | None
    seed: int
    gradients: Gradients = "none"

    @property
    def damaged_token(self) -> int:
        """The token that `damage` hits."""
        return self.damaged % max(1, self.tokens)

    def __str__(self) -> str:
        heads = f"{self.heads}:{self.kv_heads}"
        tiles = "the schedule's own" if self.rows is None else f"{self.rows} x {self.cols}"
        documents = f", {self.documents} documents" if self.documents > 1 else ""
        damage = "" if self.damage == "none" else f", NaN in the {self.damage} of token {self.damaged_token}"
        gradients = "" if self.gradients == "none" else f", gradients {self.gradients}"
        return (
            f"batch {self.batch}, heads {heads}, {self.tokens} tokens, d_qk {self.d_qk}, d_v {self.d_v}, {self.dtype}, "
            f"{self.layout}, values {self.values}, tiles {tiles}{documents}{damage}{gradients}, seed {self.seed}"
        )


@dataclass(frozen=True, slots=True)
class Range:
    """What a device can bear. steps: about how many key tiles a call may walk; pairs: query-key pairs that the reference may look at."""

    lengths: int
    pairs: int
    steps: int
    heads: tuple[tuple[int, int], ...]
    dims: tuple[int, ...]
    tiles: tuple[tuple[int | None, int | None], ...]
    dtypes: tuple[Dtype, ...]


INTERPRETER = Range(
    lengths=160,
    pairs=1 << 18,
    steps=200,
    heads=((1, 1), (2, 1), (2, 2), (3, 1), (4, 2), (6, 2), (7, 1), (16, 1), (33, 11)),
    dims=(16, 8, 5, 24, 40, 80, 3, 1, 64),
    tiles=((32, 32), (16, 16), (16, 32), (32, 16), (64, 16), (16, 64)),
    dtypes=("fp32", "fp16"),
)
GPU = Range(
    lengths=4500,
    pairs=1 << 27,
    steps=1 << 24,
    heads=((1, 1), (2, 1), (2, 2), (3, 1), (4, 2), (7, 1), (16, 1), (33, 11), (64, 4)),
    dims=(64, 16, 128, 40, 80, 96, 192, 256, 24, 5, 1),
    tiles=((None, None), (32, 32), (16, 64), (64, 16), (64, 32), (128, 32)),
    dtypes=("fp32", "fp16", "bf16"),
)
"""What the interpreter bears keeps an example within a few seconds; a GPU is bounded by the reference's memory."""


_LEAST = 8
"""However many heads there are, lengths up to this are always tried."""


def has_documents(pattern: Pattern) -> bool:
    """Whether some branch keeps packed documents apart."""
    return any(isinstance(each, SameDocument) for branch in pattern.branches for each in walk(branch.where))


def edges(pattern: Pattern, limit: int) -> list[int]:
    """Lengths up to `limit` at which something about the pattern changes: its constants, blocks and strides, one less and one more,
    and the same after a tile."""
    sizes = {1, 2, 16, 32, 64}
    for branch in pattern.branches:
        sizes |= _sizes(branch)
    near = {size + base + step for size in sizes for base in (0, 32) for step in (-1, 0, 1)}
    near |= {each.block * ((each.count or 0) + 2) + 1 for branch in pattern.branches for each in branch.choices}
    return sorted(each for each in near if 0 <= each <= limit)


def _sizes(branch: Branch) -> set[int]:
    sizes = {abs(each.value) for each in walk(branch.where) if isinstance(each, Const)}
    sizes |= {size for each in branch.choices for size in (each.block, each.block * (each.count or 1), each.every)}
    if isinstance(branch.memory, Compress):
        sizes |= {branch.memory.block, branch.memory.stride, branch.memory.block + branch.memory.stride}
    return sizes


@st.composite
def cases(draw: st.DrawFn, pattern: Pattern, bounds: Range, dtypes: Sequence[Dtype]) -> Case:
    """Calls of the pattern within bounds, the simplest first."""
    packed = has_documents(pattern)
    batch = 1 if packed else draw(st.sampled_from((1, 1, 2)))
    heads, kv_heads = draw(st.sampled_from(bounds.heads))
    d_qk, d_v = draw(st.sampled_from(bounds.dims)), draw(st.sampled_from(bounds.dims))
    rows, cols = draw(st.sampled_from(bounds.tiles))
    gradients: Gradients = draw(st.sampled_from(("none", "none", "out", "out and lse", "structure")))
    damage: Damage = draw(st.sampled_from(("none", "none", "none", "none", "key", "value", "query", "cotangent")))
    # A backward pass costs about twice as much as the forward before it, and damage is shown by two calls.
    calls = batch * (1 if gradients == "none" else 4 if damage == "none" else 6)
    limit = _longest(pattern, bounds, calls, (heads, kv_heads), (rows or 64, cols or 64))
    lengths = [each for each in edges(pattern, limit) if each >= limit // 4] or [limit]
    if rows is not None and max(d_qk, d_v) > 128:
        # Tiles that nobody chose for these dimensions may not fit in shared memory.
        rows = cols = None if (None, None) in bounds.tiles else 16
    return Case(
        tokens=draw(st.one_of(st.integers(0, limit), st.sampled_from(lengths), st.sampled_from(lengths))),
        batch=batch,
        heads=heads,
        kv_heads=kv_heads,
        d_qk=d_qk,
        d_v=d_v,
        dtype=draw(st.sampled_from(tuple(dtypes))),
        layout=draw(st.sampled_from(("contiguous", "token major", "packed", "guarded", "far apart"))),
        values=draw(st.sampled_from(("ordinary", "ordinary", "ordinary", "ties", "large", "far below zero"))),
        damage=damage,
        damaged=draw(st.integers(0, limit)),
        documents=draw(st.integers(1, 4)) if packed else 1,
        rows=rows,
        cols=cols,
        seed=draw(st.integers(0, 1 << 16)),
        gradients=gradients,
    )


def _longest(pattern: Pattern, bounds: Range, calls: int, heads: tuple[int, int], tiles: tuple[int, int]) -> int:
    """The greatest length whose call stays within bounds. calls: the batch; tiles: rows and columns."""
    limit = min(bounds.lengths, int((bounds.pairs / (calls * heads[0])) ** 0.5))
    # A choice shows nothing until there are more blocks than it takes: it may cost more.
    steps = bounds.steps * (2 if any(each.choices for each in pattern.branches) else 1)
    while limit > _LEAST and calls * _steps(pattern, limit, heads, tiles) > steps:
        limit = limit * 7 // 8
    return max(_LEAST, limit)


def _steps(pattern: Pattern, length: int, heads: tuple[int, int], tiles: tuple[int, int]) -> int:
    """About how many key tiles a call walks: every query tile of a static branch all of them; every run of queries that choose together
    those of its blocks, plus about two for finding them."""
    rows, cols = tiles
    total = 0
    for branch in pattern.branches:
        if not branch.choices:
            total += heads[0] * -(-length // rows) * (1 + -(-length // cols))
            continue
        run = min(each.every for each in branch.choices)
        units = heads[0] if any(each.share == "head" for each in branch.choices) else heads[1]
        blocks = sum(each.block * min(-(-length // each.block), each.count or 1) for each in branch.choices)
        total += units * -(-length // run) * (3 + -(-blocks // cols))
    return total
