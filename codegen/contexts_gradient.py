"""What the templates of the small backward kernels see: everything of the gradient but attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

RowsKind: TypeAlias = Literal["gate", "mix", "plain"]


@dataclass(frozen=True, slots=True)
class RowsEntry:
    """One weighed branch of the output. gate: its place among the gates; label: unlike that of every other entry;
    node: the label of the Attend node that computes it, which several entries may share."""

    gate: int
    label: str
    node: str


@dataclass(frozen=True, slots=True)
class RowsBackward:
    """rows_backward.py.j2. kind: gate (sigmoids), mix (a softmax) or plain (weight 1: one branch, or a merge's one softmax).

    entries: in the order of the gates; `plain` has one, which stands for the output. tile: query rows a program. wild: say whether the
    output's gradient is finite. vouching: those of the nodes whose log-sum-exp is finite only where the row's query is; if there are any,
    say whether the queries are finite, too.
    """

    name: str
    doc: str
    kind: RowsKind
    entries: tuple[RowsEntry, ...]
    tile: int
    wild: bool
    vouching: tuple[str, ...]

    @property
    def nodes(self) -> tuple[str, ...]:
        """The labels of the Attend nodes, each once, in the order of the gates."""
        return tuple(dict.fromkeys(each.node for each in self.entries))

    def sharing(self, node: str) -> tuple[str, ...]:
        """The labels of the entries that share a node."""
        return tuple(each.label for each in self.entries if each.node == node)


@dataclass(frozen=True, slots=True)
class CompressBackward:
    """compress_backward.py.j2. by: mean, max or weighted; tile: tokens a program (slots, in the kernel `shares` that max needs)."""

    name: str
    shares: str
    doc: str
    by: str
    block: int
    stride: int
    tile: int

    @property
    def taps(self) -> int:
        """The most slots that cover one token."""
        return -(-self.block // self.stride)


@dataclass(frozen=True, slots=True)
class WeightsBackward:
    """weights_backward.py.j2. tile: slots a program."""

    name: str
    doc: str
    block: int
    stride: int
    tile: int
