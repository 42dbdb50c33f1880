"""A compiled pattern as a callable on torch tensors: it checks its arguments and hands them to the operators of `custom_op`."""

from __future__ import annotations

import hashlib
import os
import types
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, partial
from typing import Any, TypeAlias

import torch

from nsa_dsl import custom_op
from nsa_dsl.arguments import DTYPES, Arguments, PerBranch, check_arguments
from nsa_dsl.compressors import split_blocks
from nsa_dsl.execute import load_module
from nsa_dsl.launch import LaunchShape, Pin
from nsa_dsl.marshal import flatten
from nsa_dsl.pattern import Compress, Pattern
from nsa_dsl.sources import compile_backward, compile_source, sign
from nsa_dsl.tuned.keys import length_bucket, tunable_kernels
from nsa_dsl.tuned.lookup import MissingTuningError, Tune, find_decisions, tune_mode

LogSumExp: TypeAlias = torch.Tensor | dict[str, torch.Tensor]
Slots: TypeAlias = tuple[torch.Tensor, torch.Tensor]


class AttentionOp:
    """One attention layer, forward and backward.

    Called as `op(q, k, v, gates=gates)`; every tensor lives on one device. The output has q's dtype. Ops of equal patterns and
    tile sizes are the same to `torch.compile`; an op can be copied and pickled.
    """

    def __init__(
        self,
        pattern: Pattern,
        *,
        rows: int | None = None,
        cols: int | None = None,
        pins: Mapping[str, Pin] | None = None,
        tune: Tune | None = None,
    ) -> None:
        """rows, cols: tile sizes to use whatever they cost; None lets the schedule choose. pins: decisions for single kernels, by name.
        tune: whether measured decisions are looked up for the others ("off": they are not; "assert": calls without one are refused with
        MissingTuningError); None asks NSA_TUNE. Raises NotSupported at once for a pattern that has no kernels."""
        self.pattern = pattern
        self.signature = sign(pattern)
        self._tiles = LaunchShape(rows=rows, cols=cols, pins=tuple(sorted((pins or {}).items(), key=lambda each: each[0])))
        self._tune = tune
        self._kernels = tunable_kernels(pattern, self.signature)
        self._modules: dict[tuple[LaunchShape, bool], types.ModuleType] = {}
        self._by_call: dict[tuple[object, ...], types.ModuleType] = {}
        compile_source(pattern, replace(self._tiles, pins=()))
        self._key = f"{pattern.name}-{hashlib.sha256(repr((pattern, self._tiles, tune)).encode()).hexdigest()[:16]}"
        custom_op.register(self._key, self)

    def __repr__(self) -> str:
        return f"AttentionOp({self.pattern.name!r})"

    def __reduce__(self) -> tuple[Callable[[Pattern], AttentionOp], tuple[Pattern]]:
        made = partial(AttentionOp, rows=self._tiles.rows, cols=self._tiles.cols, pins=dict(self._tiles.pins), tune=self._tune)
        return made, (self.pattern,)

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
        keep = torch.is_grad_enabled() and any(each.requires_grad for each in tensors)
        made = custom_op.call(self._key, tensors, places, scale, validate, keep)
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
        made = vars(self.module(k, v.shape[3], tuned=False))
        nameless = {each.name: replace(each, name="") for each in self.pattern.memories}
        # Memories that differ in name alone are made once, under the name of one of them.
        alike = [name for name, each in nameless.items() if each == nameless[memory]]
        found: Callable[..., Slots] = made[next((f"compress_{name}" for name in alike if f"compress_{name}" in made), memory)]
        with torch.cuda.device(k.device if k.is_cuda else -1):
            return found(k, v, compressor if weights is None else weights)

    def source(self, shape: LaunchShape | None = None) -> str:
        """The generated module. shape: what tiles are chosen for; default head dimension 128, bfloat16, sm_90."""
        return compile_source(self.pattern, shape or self._tiles)

    def module(
        self, q: torch.Tensor, dim_v: int, *, kv_heads: int | None = None, backward: bool = False, tuned: bool = True
    ) -> types.ModuleType:
        """The generated module, with `run` or `run_backward`, for calls like this one: q's sizes, type and device, this value dimension,
        and this many heads of keys (None: as many as q has). tuned: whether measured decisions matter to what is wanted of it. Raises
        MissingTuningError if they do, are asked for, and are missing."""
        kv_heads = q.shape[1] if kv_heads is None else kv_heads
        call = (q.dtype, q.device, q.shape[1], length_bucket(q.shape[2]), q.shape[3], dim_v, kv_heads, backward, tuned)
        if call not in self._by_call:
            self._by_call[call] = self._find_module(q, dim_v, kv_heads, backward, tuned)
        return self._by_call[call]

    def _find_module(self, q: torch.Tensor, dim_v: int, kv_heads: int, backward: bool, tuned: bool) -> types.ModuleType:
        shape = replace(self._tiles, dim_qk=q.shape[3], dim_v=dim_v, dtype=DTYPES[q.dtype], card=card_of(q.device))
        if shape.card == "interpreter" and shape.rows is None and not shape.pins:
            # Interpreted steps cost the same whatever their size up to here, and small tiles meet more edges.
            shape = replace(shape, rows=32, cols=32)
        if tuned and q.is_cuda and shape.rows is None and shape.cols is None:
            shape = replace(shape, pins=self._pins(shape, q, kv_heads, backward))
        if (shape, backward) not in self._modules:
            source = compile_backward(self.pattern, shape) if backward else compile_source(self.pattern, shape)
            module = self._modules[shape, backward] = load_module(source, self.pattern.name)
            if q.is_cuda:
                from nsa_dsl.warmup import compile_before_calls

                title = f"{self.pattern.name}'s gradients" if backward else self.pattern.name
                compile_before_calls(module, "run_backward" if backward else "run", title, shape.card)
        return self._modules[shape, backward]

    def _pins(self, shape: LaunchShape, q: torch.Tensor, kv_heads: int, backward: bool) -> tuple[tuple[str, Pin], ...]:
        """The decisions for a call: those the op was made with, before those that were measured."""
        mode = tune_mode() if self._tune is None else self._tune
        if mode == "off" or 0 in q.shape:
            return shape.pins
        heads, tokens, card = q.shape[1], q.shape[2], torch.cuda.get_device_name(q.device)
        wanted = tuple(each for each in self._kernels if each.backward == backward)
        decided = {**find_decisions(wanted, shape, tokens, heads, kv_heads, card, _triton_version()), **dict(shape.pins)}
        missing = [each.name for each in wanted if each.name not in decided and not each.optional]
        if mode == "assert" and missing:
            raise MissingTuningError(
                f"{self.pattern.name}: nothing is measured on {card} for {', '.join(missing)} at {tokens} tokens; run `nsa tune FILE "
                f"--pattern {self.pattern.name} --lengths {tokens} --heads {heads} --kv-heads {kv_heads} --dim {shape.dim_qk} "
                f"--dim-v {shape.dim_v} --dtype {shape.dtype}`, or unset NSA_TUNE to use the schedule's own tiles"
            )
        return tuple((name, pin) for name, pin in sorted(decided.items(), key=lambda each: each[0]) if pin is not None)

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
    k_blocks, v_blocks = (split_blocks(each, memory.block, memory.stride) for each in (k, v))
    k_slots, v_slots = module(k_blocks, v_blocks)
    return k_slots.to(k.dtype).contiguous(), v_slots.to(v.dtype).contiguous()


@cache
def _triton_version() -> str:
    # Importing triton decides whether it interprets; by now there is a call, and the kernels import it as well.
    import triton

    version: str = triton.__version__
    return version


def card_of(device: torch.device) -> str:
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
