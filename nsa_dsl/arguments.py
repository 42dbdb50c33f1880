"""What a call of an op must look like, and the one clear error when it does not."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch

from nsa_dsl.launch import Dtype
from nsa_dsl.pattern import Choice, Compress, GivenIndices, GivenScores, Pattern
from nsa_dsl.relation import SameDocument, walk

PerBranch: TypeAlias = torch.Tensor | Mapping[str, torch.Tensor]
DTYPES: dict[torch.dtype, Dtype] = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.float64: "fp64"}
"""Element types of q, k and v; float64 only where Triton interprets the kernels."""

MOST_HEADS = 4096
"""Relations over heads are printed for head numbers below this (`codegen.expressions`)."""


class ArgumentError(ValueError):
    """A tensor that does not fit. str() names the argument, what was expected and what came."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of one call."""

    batch: int
    heads: int
    kv_heads: int
    tokens: int
    dim_qk: int
    dim_v: int


@dataclass(frozen=True, slots=True)
class Arguments:
    """What a call passes besides q, k and v; language.md's calling convention, as AttentionOp documents it."""

    gates: torch.Tensor | None
    weights: Mapping[str, tuple[torch.Tensor, torch.Tensor]] | None
    compressors: Mapping[str, torch.nn.Module] | None
    scores: PerBranch | None
    indices: PerBranch | None
    choices: Mapping[str, torch.Tensor] | None
    cu_seqlens: torch.Tensor | None
    sinks: Mapping[str, torch.Tensor] | None


def check_arguments(pattern: Pattern, q: torch.Tensor, k: PerBranch, v: PerBranch, given: Arguments, *, gated: bool = True) -> Shape:
    """The sizes of a call whose arguments all fit the pattern. gated: the output is wanted, so gates must be there.

    Raises ArgumentError for the first argument that does not fit.
    """
    shape = _check_qkv(pattern, q, k, v)
    branches = len(pattern.output.branches)
    if pattern.output.kind in ("gate", "mix"):
        if gated:
            _check_tensor(
                "gates",
                given.gates,
                q,
                (shape.batch, shape.heads, shape.tokens, branches),
                "(batch, heads, tokens, branches)",
                floating=True,
            )
    elif given.gates is not None:
        raise ArgumentError(f"gates: pattern {pattern.name} has one branch's output and takes no gates")
    _check_memories(pattern, shape, q, given)
    _check_choices(pattern, shape, q, given)
    if given.cu_seqlens is not None:
        _check_documents(pattern, shape, q, given.cu_seqlens)
    wanted = [each.name for each in pattern.branches if each.sink]
    sinks = given.sinks or {}
    _check_names("sinks", sinks, wanted)
    for name in wanted:
        _check_tensor(f"sinks[{name!r}]", sinks[name], q, (shape.heads,), "(heads,)", floating=True)
    return shape


def _check_qkv(pattern: Pattern, q: torch.Tensor, k: PerBranch, v: PerBranch) -> Shape:
    if not isinstance(q, torch.Tensor) or q.dim() != 4:
        raise ArgumentError(f"q: expected a tensor (batch, heads, tokens, d_qk), got {_describe(q)}")
    if q.dtype not in DTYPES:
        raise ArgumentError(f"q: expected bfloat16, float16 or float32, got {q.dtype}")
    if q.dtype == torch.float64 and os.environ.get("TRITON_INTERPRET") != "1":
        raise ArgumentError("q: expected bfloat16, float16 or float32, got torch.float64, which runs under TRITON_INTERPRET=1 only")
    batch, heads, tokens, dim_qk = q.shape
    names = [each.name for each in pattern.branches]
    keys, values = _per_branch("k", k, pattern, names), _per_branch("v", v, pattern, names)
    first_k, first_v = next(iter(keys.values())), next(iter(values.values()))
    for label, tensor in (*keys.items(), *values.items()):
        if not isinstance(tensor, torch.Tensor) or tensor.dim() != 4:
            raise ArgumentError(f"{label}: expected a tensor (batch, kv_heads, tokens, head_dim), got {_describe(tensor)}")
    kv_heads, dim_v = first_k.shape[1], first_v.shape[3]
    for label, tensor in keys.items():
        _check_tensor(label, tensor, q, (batch, kv_heads, tokens, dim_qk), "(batch, kv_heads, tokens, d_qk)", dtype=q.dtype)
    for label, tensor in values.items():
        _check_tensor(label, tensor, q, (batch, kv_heads, tokens, dim_v), "(batch, kv_heads, tokens, d_v)", dtype=q.dtype)
    if heads > MOST_HEADS:
        raise ArgumentError(f"q: expected at most {MOST_HEADS} heads, got {heads}")
    if kv_heads == 0 or heads % kv_heads:
        raise ArgumentError(f"k: {heads} query heads are not a multiple of {kv_heads} KV heads")
    for label, dim in (("q", dim_qk), ("v", dim_v)):
        if not 1 <= dim <= 256:
            raise ArgumentError(f"{label}: expected a head dimension from 1 to 256, got {dim}")
    for label, tensor in (("q", q), *keys.items(), *values.items()):
        if tensor.numel() and tensor.stride(3) != 1 and tensor.shape[3] > 1:
            raise ArgumentError(f"{label}: expected a last stride of 1, got {tensor.stride(3)}; call .contiguous()")
    return Shape(batch, heads, kv_heads, tokens, dim_qk, dim_v)


def _per_branch(label: str, given: PerBranch, pattern: Pattern, names: list[str]) -> dict[str, torch.Tensor]:
    if not pattern.kv_per_branch:
        if isinstance(given, Mapping):
            raise ArgumentError(
                f"{label}: expected one tensor, got a dict; write `kv per branch` in pattern {pattern.name} to pass one a branch"
            )
        return {label: given}
    if not isinstance(given, Mapping):
        raise ArgumentError(
            f"{label}: pattern {pattern.name} has `kv per branch`: expected a dict with {', '.join(names)}, got {_describe(given)}"
        )
    _check_names(label, given, names)
    return {f"{label}[{name!r}]": given[name] for name in names}


def _check_memories(pattern: Pattern, shape: Shape, q: torch.Tensor, given: Arguments) -> None:
    weights, compressors = given.weights or {}, given.compressors or {}
    used = [each.memory for each in pattern.branches if isinstance(each.memory, Compress)]
    weighted = {each.name: each for each in used if each.by == "weighted"}
    _check_names("weights", weights, list(weighted))
    for name, memory in weighted.items():
        pair = weights[name]
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise ArgumentError(f"weights[{name!r}]: expected (for keys, for values), got {_describe(pair)}")
        for place, each in enumerate(pair):
            _check_tensor(f"weights[{name!r}][{place}]", each, q, (shape.kv_heads, memory.block), "(kv_heads, block)", floating=True)
    learned = list(dict.fromkeys(each.name for each in used if each.by == "mlp"))
    _check_names("compressors", compressors, learned)
    for name in learned:
        if not callable(compressors[name]):
            raise ArgumentError(
                f"compressors[{name!r}]: expected a module that maps (k_blocks, v_blocks) to slots; `pattern.modules(...)` makes one"
            )


def _check_choices(pattern: Pattern, shape: Shape, q: torch.Tensor, given: Arguments) -> None:
    every = _choices(pattern)
    fixed = given.choices or {}
    unknown = [name for name in fixed if name not in every]
    if unknown:
        raise ArgumentError(f"choices: pattern {pattern.name} makes no choice named {unknown[0]!r}; it makes {', '.join(every) or 'none'}")
    for name, tensor in fixed.items():
        wanted = choice_shape(every[name], shape, every[name].count or 0)
        _check_tensor(f"choices[{name!r}]", tensor, q, wanted, "(batch, units, query units, n)", floating=False)
    scored = {name: choice for name, choice in every.items() if isinstance(choice.score, GivenScores)}
    for name, each in _given(pattern, "scores", given.scores, list(scored), fixed):
        wanted = choice_shape(scored[name], shape, -(-shape.tokens // scored[name].block))
        _check_tensor("scores", each, q, wanted, "(batch, units, query units, key blocks)", floating=True)
    listed = {name: choice for name, choice in every.items() if isinstance(choice.score, GivenIndices)}
    for name, each in _given(pattern, "indices", given.indices, list(listed), fixed):
        wanted = choice_shape(listed[name], shape, listed[name].count or 0)
        _check_tensor("indices", each, q, wanted, "(batch, units, query units, n)", floating=False)


def _given(
    pattern: Pattern, label: str, given: PerBranch | None, takers: list[str], fixed: Mapping[str, torch.Tensor]
) -> list[tuple[str, object]]:
    """(choice, tensor) for the choices that take `given`, less those that `choices` fixes."""
    wanted = [name for name in takers if name not in fixed]
    if not takers and given is not None:
        raise ArgumentError(f"{label}: pattern {pattern.name} has no choice with `by = {label}`")
    if not wanted:
        return []
    if isinstance(given, Mapping):
        _check_names(label, given, wanted)
        return [(name, given[name]) for name in wanted]
    if len(wanted) > 1:
        raise ArgumentError(f"{label}: {len(wanted)} choices take them: expected a dict with {', '.join(wanted)}, got {_describe(given)}")
    return [(wanted[0], given)]


def _choices(pattern: Pattern) -> dict[str, Choice]:
    return {choice.name: choice for branch in pattern.branches for choice in branch.choices}


def choice_shape(choice: Choice, shape: Shape, last: int) -> tuple[int, ...]:
    """(batch, units, query units, last) of a choice's tensors."""
    units = {"group": shape.kv_heads, "head": shape.heads, "all": 1}[choice.share]
    return (shape.batch, units, -(-shape.tokens // (choice.every * choice.queries)), last)


def check_blocks(pattern: Pattern, tokens: int, indices: PerBranch | None, choices: Mapping[str, torch.Tensor] | None) -> None:
    """Refuse chosen blocks that do not exist. Waits for the device. Raises ArgumentError."""
    for name, choice in _choices(pattern).items():
        n_blocks = -(-tokens // choice.block)
        for label, source in (("indices", indices), ("choices", choices)):
            tensor = source.get(name) if isinstance(source, Mapping) else source
            if tensor is not None and isinstance(choice.score, GivenIndices) | (label == "choices") and bool((tensor >= n_blocks).any()):
                raise ArgumentError(f"{label}: block {int(tensor.max())} of choice {name} is out of range: {tokens} tokens make {n_blocks}")


def _check_documents(pattern: Pattern, shape: Shape, q: torch.Tensor, cu_seqlens: torch.Tensor) -> None:
    if not any(isinstance(node, SameDocument) for branch in pattern.branches for node in walk(branch.where)):
        raise ArgumentError(f"cu_seqlens: pattern {pattern.name} does not keep documents apart; write `& document` in its relations")
    if not isinstance(cu_seqlens, torch.Tensor) or cu_seqlens.dim() != 1 or cu_seqlens.dtype != torch.int32 or len(cu_seqlens) < 2:
        raise ArgumentError(f"cu_seqlens: expected an int32 tensor (documents + 1,), got {_describe(cu_seqlens)}")
    if cu_seqlens.device != q.device:
        raise ArgumentError(f"cu_seqlens: expected device {q.device}, got {cu_seqlens.device}")
    if shape.batch != 1:
        raise ArgumentError(f"cu_seqlens: expected batch 1 for packed documents, got {shape.batch}")


def _check_names(label: str, given: Mapping[str, object], wanted: list[str]) -> None:
    missing = [name for name in wanted if name not in given]
    if missing:
        raise ArgumentError(f"{label}: expected an entry {missing[0]!r}, got {', '.join(map(repr, given)) or 'none'}")
    extra = [name for name in given if name not in wanted]
    if extra:
        raise ArgumentError(f"{label}: unexpected entry {extra[0]!r}; expected {', '.join(map(repr, wanted)) or 'none'}")


def _check_tensor(
    label: str,
    tensor: object,
    q: torch.Tensor,
    shape: tuple[int, ...],
    axes: str,
    *,
    dtype: torch.dtype | None = None,
    floating: bool | None = None,
) -> None:
    if not isinstance(tensor, torch.Tensor):
        raise ArgumentError(f"{label}: expected {axes} = {shape}, got {_describe(tensor)}")
    if tensor.shape != shape:
        raise ArgumentError(f"{label}: expected {axes} = {shape}, got {tuple(tensor.shape)}")
    if tensor.device != q.device:
        raise ArgumentError(f"{label}: expected device {q.device} like q, got {tensor.device}")
    if dtype is not None and tensor.dtype != dtype:
        raise ArgumentError(f"{label}: expected {dtype} like q, got {tensor.dtype}")
    countable = not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)
    if floating is not None and not (tensor.is_floating_point() if floating else countable):
        raise ArgumentError(f"{label}: expected {'floating-point' if floating else 'integer'} entries, got {tensor.dtype}")


def _describe(value: object) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor {tuple(value.shape)} of {value.dtype}"
    return "nothing" if value is None else f"a {type(value).__name__}"
