"""A compiled pattern as a callable on torch tensors: it checks its arguments and hands them to the operators of `custom_op`."""

from __future__ import annotations

import hashlib
import os
import types
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

import torch

from nsa_dsl import custom_op
from nsa_dsl.arguments import DTYPES, Arguments, PerBranch, check_arguments
from nsa_dsl.compiler import compile_backward, compile_source
from nsa_dsl.execute import load_module
from nsa_dsl.marshal import flatten
from nsa_dsl.pattern import Compress, Pattern
from nsa_dsl.schedule import LaunchShape
from nsa_dsl.signature import sign

LogSumExp: TypeAlias = torch.Tensor | dict[str, torch.Tensor]
Slots: TypeAlias = tuple[torch.Tensor, torch.Tensor]


class AttentionOp:
    """One attention layer, forward and backward.

    Called as `op(q, k, v, gates=gates)`; every tensor lives on one device. The output has q's dtype. Ops of equal patterns and
    tile sizes are the same to `torch.compile`; an op can be copied and pickled.
    """

    def __init__(self, pattern: Pattern, *, rows: int | None = None, cols: int | None = None) -> None:
        """rows, cols: tile sizes to use whatever they cost; None lets the schedule choose. Raises NotSupported at once for a
        pattern that has no kernels."""
        self.pattern = pattern
        self.signature = sign(pattern)
        self._tiles = LaunchShape(rows=rows, cols=cols)
        self._modules: dict[tuple[LaunchShape, bool], types.ModuleType] = {}
        compile_source(pattern, self._tiles)
        self._key = f"{pattern.name}-{hashlib.sha256(repr((pattern, self._tiles)).encode()).hexdigest()[:16]}"
        custom_op.register(self._key, self)

    def __repr__(self) -> str:
        return f"AttentionOp({self.pattern.name!r})"

    def __reduce__(self) -> tuple[Callable[[Pattern], AttentionOp], tuple[Pattern]]:
        return partial(AttentionOp, rows=self._tiles.rows, cols=self._tiles.cols), (self.pattern,)

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
        float16 or float32 (float64 where Triton interprets), any strides with last stride 1. With `kv per branch`: dicts by branch.
        gates: logits (batch, heads, tokens, branches). weights: {memory: (for k, for v)}, each (kv_heads, block).
        compressors: {memory: module}. scores: (batch, units, query units, key blocks); indices: (batch, units, query units, n);
        dicts by choice when there are several. choices: {choice: indices}, fixed beforehand. cu_seqlens: int32 (documents + 1,).
        sinks: {branch: (heads,)}. scale: default d_qk ** -0.5. validate: refuse chosen blocks that are out of range
        instead of ignoring them (waits for the device).

        Returns (batch, heads, tokens, d_v) in q's dtype; with return_lse also the natural log-sum-exp, float32 (batch, heads,
        tokens), for `gate` and `mix` a dict by branch; a loss may use both. Gradients reach q, k, v, gates, weights, sinks and the
        parameters of compressors; only those that something asks for are computed. Choices, and scores with them, carry none.

        Under torch.autocast, q, k and v (and what compressors return) are cast to its type; gates, weights, scores and sinks stay.
        Raises ArgumentError for a tensor that does not fit; NotImplementedError for second derivatives.
        """
        arguments = Arguments(gates, weights, compressors, scores, indices, choices, cu_seqlens, sinks)
        tensors, places = self._flat(q, k, v, arguments, gated=True)
        made: list[torch.Tensor] = custom_op.attend(self._key, tensors, places, scale, validate)
        if not return_lse:
            return made[0]
        lse = dict(zip(self.signature.lses, made[1:], strict=False))
        if self.signature.kind in ("gate", "mix"):
            return made[0], {branch: lse[worker] for branch, worker in self.signature.workers}
        return made[0], made[1]

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

        Arguments as for a call. The result fits the argument `choices` of any op whose choice has the same units. No gradient.
        """
        if not self.signature.choices:
            return {}
        arguments = Arguments(None, weights, compressors, scores, indices, choices, cu_seqlens, sinks)
        with torch.no_grad():
            tensors, places = self._flat(q, k, v, arguments, gated=False)
            made = custom_op.choose(self._key, tensors, places, scale)
        return {choice.name: blocks for choice, blocks in zip(self.signature.choices, made, strict=True)}

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

        weights: (for k, for v), each (kv_heads, block), of a weighted memory; compressor: the module of an mlp memory. Gradients
        pass through a module only. Raises KeyError for a name that is no memory of the pattern, or one that no branch attends to.
        """
        made = vars(self.module(k, v.shape[3]))
        nameless = {each.name: replace(each, name="") for each in self.pattern.memories}
        # Memories that differ in name alone are made once, under the name of one of them.
        alike = [name for name, each in nameless.items() if each == nameless[memory]]
        found: Callable[..., Slots] = made[next((f"compress_{name}" for name in alike if f"compress_{name}" in made), memory)]
        with torch.cuda.device(k.device if k.is_cuda else -1):
            return found(k, v, compressor if weights is None else weights)

    def source(self, shape: LaunchShape | None = None) -> str:
        """The generated module. shape: what tiles are chosen for; default head dimension 128, bfloat16, sm_90."""
        return compile_source(self.pattern, shape or self._tiles)

    def module(self, q: torch.Tensor, dim_v: int, *, backward: bool = False) -> types.ModuleType:
        """The generated module, with `run` or `run_backward`, for q's head dimension, type and device, and this value dimension."""
        shape = replace(self._tiles, dim_qk=q.shape[3], dim_v=dim_v, dtype=DTYPES[q.dtype], card=_card(q.device))
        if shape.card == "interpreter" and shape.rows is None:
            # Interpreted steps cost the same whatever their size up to here, and small tiles meet more edges.
            shape = replace(shape, rows=32, cols=32)
        if (shape, backward) not in self._modules:
            source = compile_backward(self.pattern, shape) if backward else compile_source(self.pattern, shape)
            self._modules[shape, backward] = load_module(source, self.pattern.name)
        return self._modules[shape, backward]

    def _flat(
        self, q: torch.Tensor, k: PerBranch, v: PerBranch, arguments: Arguments, *, gated: bool
    ) -> tuple[list[torch.Tensor], list[int]]:
        """The arguments of a call, checked, cast and with their slots made, as the operators take them."""
        check_arguments(self.pattern, q, k, v, arguments, gated=gated)
        if torch.is_autocast_enabled(q.device.type):
            dtype = torch.get_autocast_dtype(q.device.type)
            q, k, v = _cast(q, dtype), _cast(k, dtype), _cast(v, dtype)
        modules = arguments.compressors or {}
        slots: dict[str, Slots] = {}
        for pair in self.signature.given_slots:
            keys, values = (each if isinstance(each, torch.Tensor) else each[pair.branch or ""] for each in (k, v))
            slots[pair.name] = _make_slots(pair.memory, keys, values, modules[pair.memory.name])
        return flatten(self.signature, q, k, v, arguments, slots)


def _cast(tensors: PerBranch, dtype: torch.dtype) -> Any:
    """Cast as autocast casts: float64 stays."""
    if isinstance(tensors, torch.Tensor):
        return tensors if tensors.dtype == torch.float64 else tensors.to(dtype)
    return {name: _cast(each, dtype) for name, each in tensors.items()}


def _make_slots(memory: Compress, k: torch.Tensor, v: torch.Tensor, module: Callable[..., Slots]) -> Slots:
    """What a module makes of each block, in k's and v's dtypes. k, v: (batch, kv_heads, tokens, d)."""
    if k.shape[2] >= memory.block:
        k_blocks, v_blocks = (each.unfold(2, memory.block, memory.stride).transpose(3, 4) for each in (k, v))
    else:
        k_blocks, v_blocks = (each[:, :, :0, None].expand(-1, -1, -1, memory.block, -1) for each in (k, v))
    k_slots, v_slots = module(k_blocks, v_blocks)
    return k_slots.to(k.dtype).contiguous(), v_slots.to(v.dtype).contiguous()


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
