"""What a benchmark asks for and what it finds, as plain values; effective operations. No tensors, so that a command starts quickly."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

if TYPE_CHECKING:
    from nsa_dsl.launch import Dtype

Sharing: TypeAlias = Literal["random", "clustered", "identical"]
"""How much neighbouring queries agree on the blocks that they choose."""

Peer: TypeAlias = Literal["cudnn", "flash", "flex", "fla"]
PEERS: tuple[Peer, ...] = get_args(Peer)
OWN = "nsa_dsl"
DENSE = ("cudnn", "flash")
FORMAT = 1
"""Of the JSON; rises when a field changes its meaning."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What to measure. lengths: tokens, one row of the table each; dtype: of q, k and v; own: whether the pattern's own op is measured, or
    its peers alone; graphs: whether passes are captured as CUDA graphs and replays are timed; budget: seconds after which no further
    measurement begins, None for no limit."""

    lengths: tuple[int, ...]
    heads: int = 64
    kv_heads: int = 4
    dim_qk: int = 128
    dim_v: int = 128
    dtype: Dtype = "bf16"
    sharing: Sharing = "random"
    peers: tuple[Peer, ...] = PEERS
    own: bool = True
    backward: bool = True
    graphs: bool = False
    budget: float | None = None

    def __str__(self) -> str:
        dims = f"{self.dim_qk}" if self.dim_qk == self.dim_v else f"{self.dim_qk}/{self.dim_v}"
        return f"{self.heads}/{self.kv_heads} heads, D = {dims}, {self.dtype}{', CUDA graphs' if self.graphs else ''}"


@dataclass(frozen=True, slots=True)
class Row:
    """One contender at one length; None is not measured. Times in milliseconds, memory in GiB above the inputs, `both` being forward and
    backward; tflops: effective, over the pairs that the contender's own mask leaves visible.

    mask_first_ms, mask_ms, mask_gib: making FlexAttention's block mask, the first time (compilation included) and again.
    choices: how much queries agree on what they choose, "" where nothing is chosen. union: different blocks that four neighbouring queries
    choose, on average. kernels: milliseconds of each generated kernel. pattern, parameters: the
    spec's, of which `case` is what the table says.
    refused: why something was not measured. note: what a reader must know to compare. commit: what was measured, where rows of several
    commits may stand together.
    """

    case: str
    settings: str
    tokens: int
    contender: str
    choices: str = ""
    forward_ms: float | None = None
    backward_ms: float | None = None
    forward_tflops: float | None = None
    backward_tflops: float | None = None
    forward_gib: float | None = None
    both_gib: float | None = None
    mask_first_ms: float | None = None
    mask_ms: float | None = None
    mask_gib: float | None = None
    union: float | None = None
    kernels: Mapping[str, float] = field(default_factory=dict)
    pattern: str = ""
    parameters: Mapping[str, int | float | str] = field(default_factory=dict)
    refused: str = ""
    note: str = ""
    commit: str = ""


@dataclass(frozen=True, slots=True)
class Products:
    """Floating-point operations of the two passes over so many visible pairs, by the convention of `nsa_dsl.flops`: two products forward,
    five backward, so that with d_qk = d_v the backward pass counts 2.5 times the forward one."""

    pairs: int
    dim_qk: int
    dim_v: int

    @property
    def forward(self) -> int:
        """Scores; probabilities times values."""
        return 2 * (self.dim_qk + self.dim_v) * self.pairs

    @property
    def backward(self) -> int:
        """Scores again; the output's gradient times values; the gradients of queries, keys and values."""
        return 2 * (3 * self.dim_qk + 2 * self.dim_v) * self.pairs


def tflops(operations: int | None, ms: float | None) -> float | None:
    """10^12 operations a second; None where either is unknown."""
    return None if operations is None or ms is None or ms <= 0 else operations / ms * 1e-9


def dense_row(rows: Sequence[Row], like: Row, direction: Literal["forward", "backward"]) -> Row | None:
    """The fastest dense attention of the same case and length; None if there is none."""
    found = [each for each in rows if each.contender in DENSE and _place(each) == _place(like) and _ms(each, direction) is not None]
    return min(found, key=lambda each: _ms(each, direction) or 0.0, default=None)


def speedup(rows: Sequence[Row], row: Row, direction: Literal["forward", "backward"]) -> float | None:
    """How many times faster than the fastest dense attention beside it; None where either time is missing."""
    dense, own = dense_row(rows, row, direction), _ms(row, direction)
    beside = None if dense is None else _ms(dense, direction)
    return None if beside is None or not own else beside / own


def _place(row: Row) -> tuple[str, str, int]:
    return row.case, row.settings, row.tokens


def _ms(row: Row, direction: Literal["forward", "backward"]) -> float | None:
    return row.forward_ms if direction == "forward" else row.backward_ms


def to_json(machine: Mapping[str, str], rows: Sequence[Row], extra: Mapping[str, Any] | None = None) -> str:
    """The results as text. extra: further entries beside the rows."""
    found = {"format": FORMAT, "machine": dict(machine), **(extra or {}), "rows": [asdict(each) for each in rows]}
    return json.dumps(found, indent=1) + "\n"


def from_json(text: str) -> list[Row]:
    """The rows that `to_json` wrote. Raises ValueError for text that it did not write."""
    found = json.loads(text)
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ValueError(f"not the results of a benchmark in format {FORMAT}")
    known = {each.name for each in fields(Row)}
    return [Row(**{name: value for name, value in each.items() if name in known}) for each in found["rows"]]


def write_json(path: Path, machine: Mapping[str, str], rows: Sequence[Row], extra: Mapping[str, Any] | None = None) -> None:
    """Write the results, whole, so that a run that is cut off leaves those of before."""
    aside = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    aside.write_text(to_json(machine, rows, extra), encoding="utf-8")
    aside.replace(path)
