"""A compiled pattern as a callable on torch tensors: it checks its arguments, picks the kernels and runs them."""

from __future__ import annotations

import os
import types
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeAlias

import torch

from nsa_dsl.arguments import DTYPES, Arguments, PerBranch, Shape, check_arguments, check_blocks, choice_shape
from nsa_dsl.compiler import compile_source
from nsa_dsl.execute import load_module
from nsa_dsl.pattern import Pattern
from nsa_dsl.relation import SameDocument, walk
from nsa_dsl.schedule import LaunchShape

LogSumExp: TypeAlias = torch.Tensor | dict[str, torch.Tensor]
Slots: TypeAlias = tuple[torch.Tensor, torch.Tensor]
Result: TypeAlias = tuple[torch.Tensor, dict[str, torch.Tensor], dict[str, torch.Tensor], dict[str, Slots]]
"""Output, log-sum-exp by branch, blocks by choice, slots by memory."""


class AttentionOp:
    """One attention layer, forward only.

    Called as `op(q, k, v, gates=gates)`; every tensor lives on one device. The output has q's dtype.
    """

    def __init__(self, pattern: Pattern, *, rows: int | None = None, cols: int | None = None) -> None:
        """rows, cols: tile sizes to use whatever they cost; None lets the schedule choose. Raises NotSupported at once for a
        pattern that has no kernels."""
        self.pattern = pattern
        self._tiles = LaunchShape(rows=rows, cols=cols)
        self._modules: dict[LaunchShape, types.ModuleType] = {}
        compile_source(pattern, self._tiles)

    def __repr__(self) -> str:
        return f"AttentionOp({self.pattern.name!r})"

    def __call__(
        self,
        q: torch.Tensor,
        k: PerBranch,
        v: PerBranch,
        *,
        gates: torch.Tensor | None = None,
        weights: Mapping[str, tuple[torch.Tensor, torch.Tensor]] | None = None,
        compressors: Mapping[str, torch.nn.Module] | None = None,
        scores: PerBranch | None = None,
        indices: PerBranch | None = None,
        choices: Mapping[str, torch.Tensor] | None = None,
        cu_seqlens: torch.Tensor | None = None,
        sinks: Mapping[str, torch.Tensor] | None = None,
        scale: float | None = None,
        return_lse: bool = False,
        validate: bool = False,
    ) -> torch.Tensor | tuple[torch.Tensor, LogSumExp]:
        """Attention of q over what the pattern lets it see.

        q: (batch, heads, tokens, d_qk); k: (batch, kv_heads, tokens, d_qk); v: (batch, kv_heads, tokens, d_v); bfloat16,
        float16 or float32, any strides with last stride 1. With `kv per branch`: dicts by branch.
        gates: logits (batch, heads, tokens, branches). weights: {memory: (for k, for v)}, each (kv_heads, block).
        compressors: {memory: module}. scores: (batch, units, query units, key blocks); indices: (batch, units, query units, n);
        dicts by choice when there are several. choices: {choice: indices}, fixed beforehand. cu_seqlens: int32 (documents + 1,).
        sinks: {branch: (heads,)}. scale: default d_qk ** -0.5. validate: refuse chosen blocks that are out of range
        instead of ignoring them (waits for the device).

        Returns (batch, heads, tokens, d_v) in q's dtype; with return_lse also the natural log-sum-exp, float32 (batch, heads,
        tokens), for `gate` and `mix` a dict by branch. Raises ArgumentError for a tensor that does not fit, and
        NotImplementedError when a gradient would be needed: there are no backward kernels yet.
        """
        arguments = Arguments(gates, weights, compressors, scores, indices, choices, cu_seqlens, sinks)
        out, lse, _, _ = self._run(q, k, v, arguments, scale, validate=validate)
        if not return_lse:
            return out
        kind = self.pattern.output.kind
        if kind in ("gate", "mix"):
            return out, {each: lse[each] for each in dict.fromkeys(self.pattern.output.branches)}
        return out, lse["merge" if kind == "merge" else self.pattern.output.branches[0]]

    def choose(
        self,
        q: torch.Tensor,
        k: PerBranch,
        v: PerBranch,
        *,
        weights: Mapping[str, tuple[torch.Tensor, torch.Tensor]] | None = None,
        compressors: Mapping[str, torch.nn.Module] | None = None,
        scores: PerBranch | None = None,
        indices: PerBranch | None = None,
        choices: Mapping[str, torch.Tensor] | None = None,
        cu_seqlens: torch.Tensor | None = None,
        sinks: Mapping[str, torch.Tensor] | None = None,
        scale: float | None = None,
    ) -> dict[str, torch.Tensor]:
        """The blocks that each choice takes: {choice: int32 (batch, units, query units, n)}, ascending, -1 where there are fewer.

        Arguments as for a call. The result fits the argument `choices` of any op whose choice has the same units.
        """
        if not any(each.choices for each in self.pattern.branches):
            return {}
        arguments = Arguments(None, weights, compressors, scores, indices, choices, cu_seqlens, sinks)
        return self._run(q, k, v, arguments, scale, only_choices=True)[2]

    def compress(
        self,
        memory: str,
        k: torch.Tensor,
        v: torch.Tensor,
        *,
        weights: tuple[torch.Tensor, torch.Tensor] | None = None,
        compressor: torch.nn.Module | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The slots of one memory, as a call of the op makes them: (batch, kv_heads, slots, d_qk) and (batch, kv_heads, slots, d_v).

        weights: (for k, for v), each (kv_heads, block), of a weighted memory; compressor: the module of an mlp memory.
        Raises KeyError for a name that is no memory of the pattern, or one that no branch attends to.
        """
        made = vars(self._module(k, v.shape[3]))
        nameless = {each.name: replace(each, name="") for each in self.pattern.memories}
        # Memories that differ in name alone are made once, under the name of one of them.
        alike = [name for name, each in nameless.items() if each == nameless[memory]]
        found: Callable[..., Slots] = made[next((f"compress_{name}" for name in alike if f"compress_{name}" in made), memory)]
        with _device_of(k):
            return found(k, v, compressor if weights is None else weights)

    def source(self, shape: LaunchShape | None = None) -> str:
        """The generated module. shape: what tiles are chosen for; default head dimension 128, bfloat16, sm_90."""
        return compile_source(self.pattern, shape or self._tiles)

    def _run(
        self,
        q: torch.Tensor,
        k: PerBranch,
        v: PerBranch,
        arguments: Arguments,
        scale: float | None,
        *,
        validate: bool = False,
        only_choices: bool = False,
    ) -> Result:
        shape = check_arguments(self.pattern, q, k, v, arguments, gated=not only_choices)
        _refuse_gradients(q, k, v, arguments)
        if validate:
            check_blocks(self.pattern, shape, arguments)
        if shape.batch == 0 or shape.tokens == 0 or shape.heads == 0:
            return self._empty(q, shape)
        module = self._module(q, shape.dim_v)
        documents = self._documents(arguments.cu_seqlens, shape.tokens, q.device)
        with _device_of(q):
            result: Result = module.run(q, k, v, documents=documents, scale=scale, only_choices=only_choices, **arguments.for_kernels())
        return result

    def _module(self, q: torch.Tensor, dim_v: int) -> types.ModuleType:
        shape = replace(self._tiles, dim_qk=q.shape[3], dim_v=dim_v, dtype=DTYPES[q.dtype], card=_card(q.device))
        if shape.card == "interpreter" and shape.rows is None:
            # Interpreted steps cost the same whatever their size up to here, and small tiles meet more edges.
            shape = replace(shape, rows=32, cols=32)
        if shape not in self._modules:
            self._modules[shape] = load_module(compile_source(self.pattern, shape), self.pattern.name)
        return self._modules[shape]

    def _documents(self, cu_seqlens: torch.Tensor | None, tokens: int, device: torch.device) -> torch.Tensor | None:
        if not any(isinstance(node, SameDocument) for branch in self.pattern.branches for node in walk(branch.where)):
            return None
        if cu_seqlens is None:
            return torch.zeros(tokens, dtype=torch.int32, device=device)
        return torch.bucketize(torch.arange(tokens, dtype=torch.int32, device=device), cu_seqlens, right=True, out_int32=True)

    def _empty(self, q: torch.Tensor, shape: Shape) -> Result:
        """Zero-size inputs give zero-size outputs."""
        rows = (shape.batch, shape.heads, shape.tokens)
        lse = {name: q.new_empty(rows, dtype=torch.float32) for name in (*self.pattern.output.branches, "merge")}
        chosen = {
            each.name: q.new_full(choice_shape(each, shape, each.count or 0), -1, dtype=torch.int32)
            for branch in self.pattern.branches
            for each in branch.choices
        }
        return q.new_empty(*rows, shape.dim_v), lse, chosen, {}


def _refuse_gradients(q: torch.Tensor, k: PerBranch, v: PerBranch, arguments: Arguments) -> None:
    if not torch.is_grad_enabled():
        return
    for label, value in (("q", q), ("k", k), ("v", v), *arguments.for_kernels().items()):
        for tensor in _tensors(value):
            if tensor.requires_grad:
                raise NotImplementedError(
                    f"{label} requires a gradient and there are no backward kernels yet: use torch.no_grad() or .reference(...)"
                )


def _tensors(value: object) -> list[torch.Tensor]:
    match value:
        case torch.Tensor():
            return [value]
        case torch.nn.Module():
            return list(value.parameters())
        case Mapping():
            return [tensor for each in value.values() for tensor in _tensors(each)]
        case tuple() | list():
            return [tensor for each in value for tensor in _tensors(each)]
        case _:
            return []


def _device_of(q: torch.Tensor) -> torch.cuda.device:
    """Triton launches on the current device: make it q's."""
    return torch.cuda.device(q.device if q.is_cuda else -1)


def _card(device: torch.device) -> str:
    """The entry of schedule.CARDS that the device is closest to. Raises RuntimeError where no kernel can run."""
    if device.type == "cuda":
        if torch.version.hip:
            return "gfx942"
        capability = torch.cuda.get_device_capability(device)
        return {(8, 0): "sm_80", (9, 0): "sm_90", (10, 0): "sm_100", (10, 3): "sm_100"}.get(capability, "sm_86")
    if os.environ.get("TRITON_INTERPRET") == "1":
        return "interpreter"
    raise RuntimeError(
        f"the generated kernels need a GPU, and the tensors are on {device}: move them, use .reference(...), or set TRITON_INTERPRET=1 "
        "before triton is imported to run them slowly on the CPU"
    )
