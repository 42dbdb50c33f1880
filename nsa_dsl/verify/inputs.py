"""The tensors of one case: values that make scores exact, laid out as the case says, with NaN wherever nobody may look."""

from __future__ import annotations

import math
import mmap
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nsa_dsl.arguments import DTYPES, Shape, choice_shape
from nsa_dsl.compressors import make_modules
from nsa_dsl.pattern import Choice, GivenIndices, GivenScores, Pattern
from nsa_dsl.verify.cases import Case, Layout

TYPES = {name: dtype for dtype, name in DTYPES.items()}
FAR = 1 << 31
"""Elements that 32-bit offsets reach; those of `far apart` go beyond."""

LARGEST_TILE = 128
"""The most rows that a kernel loads at once."""


@dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    """Arguments of a call. k, v: dicts by branch under `kv per branch`. options: the keyword arguments."""

    q: Tensor
    k: Tensor | dict[str, Tensor]
    v: Tensor | dict[str, Tensor]
    options: dict[str, Any]


def all_choices(pattern: Pattern) -> dict[str, Choice]:
    """Every choice that the pattern makes, by name."""
    return {each.name: each for branch in pattern.branches for each in branch.choices}


def make_inputs(pattern: Pattern, case: Case, device: torch.device) -> Inputs:
    """The tensors of a case; the same case always gives the same."""
    random = torch.Generator().manual_seed(case.seed)
    q = _features(case, (case.batch, case.heads, case.tokens, case.d_qk), random, 200.0)
    if case.damage == "query" and case.tokens:
        q[:, :, case.damaged_token] = torch.nan
    pairs = [_keys_and_values(case, random) for _ in (pattern.branches if pattern.kv_per_branch else (None,))]
    q, *placed = place([q, *(each for pair in pairs for each in pair)], case.layout, TYPES[case.dtype], device)
    ks, vs = placed[0::2], placed[1::2]
    if not pattern.kv_per_branch:
        return Inputs(q, ks[0], vs[0], _options(pattern, case, random, device))
    names = [each.name for each in pattern.branches]
    return Inputs(q, dict(zip(names, ks, strict=True)), dict(zip(names, vs, strict=True)), _options(pattern, case, random, device))


def _features(case: Case, shape: tuple[int, ...], random: torch.Generator, offset: float) -> Tensor:
    """Entries of q or k. They are multiples of 1/8, so that products and their sums are exact in float32: scores that should be
    equal are equal, whatever the order of summation. offset: what `far below zero` puts in the first feature."""
    drawn = torch.randn(shape, generator=random)
    match case.values:
        case "ordinary":
            return (drawn * 8).round() / 8
        case "ties":
            return drawn.round()
        case "large":
            return (drawn * 8).round()
        case "far below zero":
            # Whole numbers: means of them still give exact products beside 55,000.
            drawn = drawn.round()
            drawn[..., 0] = offset
            return drawn


def _keys_and_values(case: Case, random: torch.Generator) -> tuple[Tensor, Tensor]:
    rows = (case.batch, case.kv_heads, case.tokens)
    k, v = _features(case, (*rows, case.d_qk), random, -275.0), torch.randn(*rows, case.d_v, generator=random)
    if case.damage in ("key", "value") and case.tokens:
        (k if case.damage == "key" else v)[:, :, case.damaged_token] = torch.nan
    return k, v


def place(tensors: list[Tensor], layout: Layout, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """The tensors (batch, heads, tokens, dim), in this layout, with NaN around and between them (zeros if `far apart`)."""
    cast = [each.to(device, dtype) for each in tensors]
    # Room for reads that go wrong: with another tensor's strides, or past the last row of a tile.
    margin = max(each.numel() for each in cast) + LARGEST_TILE * max(each.shape[1] * (each.shape[3] + 5) for each in cast)
    if layout == "packed":
        return _packed(cast, margin)
    return [_placed(each, layout, margin) for each in cast]


def _room(like: Tensor, shape: tuple[int, ...], margin: int) -> Tensor:
    """A tensor of this shape, NaN throughout and for `margin` elements before and after it."""
    size = math.prod(shape)
    return like.new_full((size + 2 * margin,), torch.nan)[margin : margin + size].view(shape)


def _packed(tensors: list[Tensor], margin: int) -> list[Tensor]:
    batch, _, tokens, _ = tensors[0].shape
    widths = [each.shape[1] * each.shape[3] for each in tensors]
    row = _room(tensors[0], (batch, tokens, sum(widths) + 3), margin * len(tensors))
    views = []
    for each, part in zip(tensors, torch.split(row[..., : sum(widths)], widths, -1), strict=True):
        view = part.view(batch, tokens, each.shape[1], each.shape[3]).transpose(1, 2)
        view.copy_(each)
        views.append(view)
    return views


def _placed(tensor: Tensor, layout: Layout, margin: int) -> Tensor:
    batch, heads, tokens, dim = tensor.shape
    match layout:
        case "contiguous":
            view = _room(tensor, tuple(tensor.shape), margin)
        case "token major":
            view = _room(tensor, (batch, tokens + 2, heads, dim), margin)[:, 1 : tokens + 1].transpose(1, 2)
        case "guarded":
            view = _room(tensor, (batch, heads + 1, tokens + 3, dim + 5), margin)[:, :heads, 1 : tokens + 1, 2 : dim + 2]
        case "far apart":
            view = _far_apart(tensor)
        case "packed":
            raise AssertionError("packed tensors are placed together")
    view.copy_(tensor)
    return view


def _far_apart(tensor: Tensor) -> Tensor:
    """An empty tensor like this one whose last tokens lie more than 2^31 elements from its first.

    On the CPU an offset that has lost its upper half still lands in the same storage, on a wrong value and not on somebody else's memory,
    and memory that nobody touches is free. A GPU whose memory is too small for this gets neighbouring rows instead.
    """
    batch, heads, tokens, dim = tensor.shape
    stride = FAR * 9 // 8 // max(1, tokens - 1)
    if tokens < 2 or batch * heads * dim > stride:
        return torch.empty_like(tensor)
    strides = (heads * dim, dim, stride, 1)
    if tensor.device.type == "cpu":
        return _sparse(FAR + (tokens + LARGEST_TILE) * stride, tensor.dtype).as_strided(tensor.shape, strides, FAR)
    size = tokens * stride
    if 4 * size * tensor.element_size() > torch.cuda.mem_get_info(tensor.device)[0]:
        return torch.empty_like(tensor)
    return torch.empty(size, dtype=tensor.dtype, device=tensor.device).as_strided(tensor.shape, strides)


def _sparse(size: int, dtype: torch.dtype) -> Tensor:
    """Zeros that take memory only where they are touched."""
    no_reserve = 0x4000  # MAP_NORESERVE on Linux, the only system with Triton; Python's mmap names it from 3.13 on
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | no_reserve
    return torch.frombuffer(mmap.mmap(-1, size * dtype.itemsize, flags=flags), dtype=dtype)


def _options(pattern: Pattern, case: Case, random: torch.Generator, device: torch.device) -> dict[str, Any]:
    """The keyword arguments that the pattern asks for."""
    dtype, n = TYPES[case.dtype], case.tokens
    shape = Shape(case.batch, case.heads, case.kv_heads, n, case.d_qk, case.d_v)

    def drawn(*size: int) -> Tensor:
        return torch.randn(*size, generator=random).to(device, dtype)

    options: dict[str, Any] = {}
    if case.values == "far below zero":
        options["scale"] = 1.0
    if pattern.output.kind in ("gate", "mix"):
        options["gates"] = drawn(case.batch, case.heads, n, len(pattern.output.branches))
    used = {each.memory.name: each.memory for each in pattern.branches if each.memory in pattern.memories}
    weighted = {name: each.block for name, each in used.items() if each.by == "weighted"}
    if weighted:
        # Quarters, so that sums of weighted keys stay as exact as the keys: beside 55,000 a rounded product would be all that is seen.
        quarters = {name: [(drawn(case.kv_heads, block) * 4).round() / 4 for _ in "kv"] for name, block in weighted.items()}
        options["weights"] = {name: (for_k, for_v) for name, (for_k, for_v) in quarters.items()}
    learned = [name for name, each in used.items() if each.by == "mlp"]
    if learned:
        options["compressors"] = _compressors(pattern, case, learned, device)
    sinks = {each.name: drawn(case.heads) for each in pattern.branches if each.sink}
    if sinks:
        options["sinks"] = sinks
    if case.documents > 1:
        options["cu_seqlens"] = document_borders(case, device)
    table = all_choices(pattern)
    scored = {name: choice_shape(each, shape, -(-n // each.block)) for name, each in table.items() if isinstance(each.score, GivenScores)}
    if scored:
        # Few different numbers, so that many blocks tie.
        options["scores"] = {name: drawn(*size).round() for name, size in scored.items()}
    listed = {name: random_blocks(each, shape, random).to(device) for name, each in table.items() if isinstance(each.score, GivenIndices)}
    if listed:
        options["indices"] = listed
    return options


def document_borders(case: Case, device: torch.device) -> Tensor:
    """cu_seqlens of as many documents as the case asks for; some may be empty."""
    random = torch.Generator().manual_seed(case.seed + 2)
    borders = torch.randint(0, case.tokens + 1, (case.documents - 1,), generator=random).sort().values
    return torch.tensor([0, *borders.tolist(), case.tokens], dtype=torch.int32, device=device)


def _compressors(pattern: Pattern, case: Case, names: list[str], device: torch.device) -> dict[str, torch.nn.Module]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(case.seed)
        made = make_modules(pattern, kv_heads=case.kv_heads, d_qk=case.d_qk, d_v=case.d_v)
    return {name: made[name].to(device, TYPES[case.dtype]).requires_grad_(False) for name in names}


def random_blocks(choice: Choice, shape: Shape, random: torch.Generator) -> Tensor:
    """A choice that no score made: blocks in any order, some twice, some that do not exist."""
    blocks = -(-shape.tokens // choice.block)
    return torch.randint(-2, blocks + 2, choice_shape(choice, shape, choice.count or 0), generator=random, dtype=torch.int32)
