"""One call of a pattern: its tensors, checked once, upcast, and looked up by branch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from nsa_dsl.pattern import Branch, Choice, Compress, Pattern
from nsa_dsl.reference.memory import Compressor, compress

LARGEST = 50_000_000
"""Scores held at once, in elements; longer problems go through in runs of query rows."""

TensorOrByName: TypeAlias = Tensor | Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Extent:
    """The sizes that visibility depends on. document: (n,) the document of each token, or None for an unpacked batch."""

    batch: int
    heads: int
    kv_heads: int
    n: int
    device: torch.device
    document: Tensor | None

    def units(self, choice: Choice) -> int:
        """How many choices are made at each query: one a query head, a KV head or a layer."""
        return {"head": self.heads, "group": self.kv_heads, "all": 1}[choice.share]

    def runs(self, keys: int, queries: int) -> tuple[Tensor, ...]:
        """0 .. queries - 1, cut into runs whose scores against this many keys stay below `LARGEST`; one empty run for no queries."""
        step = max(1, LARGEST // max(1, self.batch * self.heads * keys))
        return torch.split(torch.arange(queries, device=self.device), step)


def documents(cu_seqlens: Tensor | None, n: int, device: torch.device) -> Tensor | None:
    """(n,) the index of each token's document. cu_seqlens: (documents + 1,), from 0 to n; documents may be empty."""
    if cu_seqlens is None:
        return None
    if int(cu_seqlens[0]) != 0 or int(cu_seqlens[-1]) != n or bool((cu_seqlens.diff() < 0).any()):
        raise ValueError(f"cu_seqlens must rise from 0 to the number of tokens, {n}")
    positions = torch.arange(n, device=device)
    return torch.searchsorted(cu_seqlens[1:].to(device=device, dtype=torch.int64).contiguous(), positions, right=True)


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """The arguments of one call, floating tensors cast to `dtype`; shapes as in the calling convention."""

    pattern: Pattern
    extent: Extent
    q: Tensor
    k: TensorOrByName
    v: TensorOrByName
    gates: Tensor | None
    weights: Mapping[str, tuple[Tensor, Tensor]]
    compressors: Mapping[str, Compressor]
    scores: TensorOrByName | None
    indices: TensorOrByName | None
    sinks: Mapping[str, Tensor]
    scale: float | None

    def memory(self, branch: Branch) -> tuple[Tensor, Tensor]:
        """The keys and values the branch attends to: (batch, kv_heads, tokens or slots, d_qk) and (..., d_v)."""
        k, v = _named(self.k, branch.name), _named(self.v, branch.name)
        if not isinstance(branch.memory, Compress):
            return k, v
        name = branch.memory.name
        return compress(branch.memory, k, v, weights=self.weights.get(name), compressor=self.compressors.get(name))

    def tokens(self, branch: Branch) -> Tensor:
        """The keys of the tokens, (batch, kv_heads, n, d_qk), whatever the branch's memory is."""
        return _named(self.k, branch.name)

    def sink(self, branch: Branch) -> Tensor | None:
        """(heads,) the branch's learned logits, None when it has none. Raises ValueError when they are missing."""
        if not branch.sink:
            return None
        heads = self.extent.heads
        if branch.name not in self.sinks or self.sinks[branch.name].shape != (heads,):
            raise ValueError(f"branch {branch.name!r} has a learned sink: pass sinks={{{branch.name!r}: ({heads},) logits}}")
        return self.sinks[branch.name]

    def given(self, choice: Choice, argument: str) -> Tensor:
        """The caller's scores or indices for this choice. Raises ValueError when they are missing."""
        value = self.scores if argument == "scores" else self.indices
        if value is None or (isinstance(value, Mapping) and choice.name not in value):
            raise ValueError(f"choice {choice.name!r} is made by the caller: pass {argument}=")
        return _named(value, choice.name)


def _named(value: TensorOrByName, name: str) -> Tensor:
    if isinstance(value, Tensor):
        return value
    if name not in value:
        raise ValueError(f"nothing was passed for {name!r}: the dictionary has {sorted(value)}")
    return value[name]


def prepare(pattern: Pattern, q: Tensor, k: TensorOrByName, v: TensorOrByName, dtype: torch.dtype, **optional: Any) -> Call:
    """Check the arguments of a call and cast them. optional: gates, weights, compressors, scores, indices, cu_seqlens, sinks,
    scale, as in the calling convention. Raises ValueError for shapes that do not fit."""
    if pattern.kv_per_branch and (isinstance(k, Tensor) or isinstance(v, Tensor)):
        raise ValueError("the pattern says `kv per branch`: k and v are dictionaries, branch name -> tensor")
    if not pattern.kv_per_branch and not (isinstance(k, Tensor) and isinstance(v, Tensor)):
        raise ValueError("the pattern shares keys and values between branches: k and v are tensors")
    batch, heads, n, width = q.shape
    keys, values = _tensors(k), _tensors(v)
    kv_heads = keys[0].shape[1]
    for each in keys:
        if each.shape != (batch, kv_heads, n, width):
            raise ValueError(f"k must be {(batch, kv_heads, n, width)} to fit q {tuple(q.shape)}, not {tuple(each.shape)}")
    for each in values:
        if each.shape[:3] != (batch, kv_heads, n):
            raise ValueError(f"v must be {(batch, kv_heads, n)} x d_v to fit k, not {tuple(each.shape)}")
    if kv_heads < 1 or heads % kv_heads:
        raise ValueError(f"{heads} query heads cannot share {kv_heads} KV heads equally")
    cu_seqlens = optional.get("cu_seqlens")
    if cu_seqlens is not None and batch != 1:
        raise ValueError(f"packed documents need batch 1, not {batch}")
    gates: Tensor | None = optional.get("gates")
    if pattern.output.kind in ("gate", "mix"):
        expected = (batch, heads, n, len(pattern.output.branches))
        if gates is None or gates.shape != expected:
            raise ValueError(f"gates must be logits of shape {expected}, not {None if gates is None else tuple(gates.shape)}")
    sinks: Mapping[str, Tensor] = optional.get("sinks") or {}
    return Call(
        pattern=pattern,
        extent=Extent(batch, heads, kv_heads, n, q.device, documents(cu_seqlens, n, q.device)),
        q=q.to(dtype),
        k=_cast(k, dtype),
        v=_cast(v, dtype),
        gates=None if gates is None else gates.to(dtype),
        weights=optional.get("weights") or {},
        compressors=optional.get("compressors") or {},
        scores=optional.get("scores"),
        indices=optional.get("indices"),
        sinks={name: each.to(dtype) for name, each in sinks.items()},
        scale=optional.get("scale"),
    )


def _tensors(value: TensorOrByName) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else list(value.values())


def _cast(value: TensorOrByName, dtype: torch.dtype) -> TensorOrByName:
    return value.to(dtype) if isinstance(value, Tensor) else {name: each.to(dtype) for name, each in value.items()}
