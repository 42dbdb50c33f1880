"""One case on a GPU: inputs of a pattern, and everything that is checked of its kernels' results."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nsa_dsl import reference
from nsa_dsl.arguments import Shape
from nsa_dsl.bench.inputs import make_inputs as bench_inputs
from nsa_dsl.bench.inputs import token_major
from nsa_dsl.bench.rows import Sharing
from nsa_dsl.compare import Mismatch, check_choice, check_lse, check_rows
from nsa_dsl.mask_probe import check_probe, probe_inputs
from nsa_dsl.op import AttentionOp
from nsa_dsl.pattern import Pattern
from nsa_dsl.verify.inputs import Inputs
from nsa_dsl.verify.slots import give_slots

TORCH = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
DTYPES = tuple(TORCH)

GAP = 16
"""Elements of NaN after every row of q, k and v."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """What a case's tensors measure besides their length."""

    batch: int = 1
    heads: int = 8
    kv_heads: int = 2
    dim_qk: int = 64
    dim_v: int = 48


USUAL = Sizes()
UNUSUAL = (
    Sizes(heads=1, kv_heads=1, dim_qk=16, dim_v=16),
    Sizes(heads=3, kv_heads=1, dim_qk=40, dim_v=40),
    Sizes(batch=2, heads=7, kv_heads=1, dim_qk=80, dim_v=96),
    Sizes(heads=33, kv_heads=11, dim_qk=96, dim_v=80),
    Sizes(heads=2, kv_heads=2, dim_qk=256, dim_v=256),
    Sizes(batch=1100, heads=64, kv_heads=4, dim_qk=16, dim_v=16),
)
"""Head ratios, head dimensions, and more rows of programs than a grid's second axis could hold."""

SQUARE = (
    Sizes(dim_qk=64, dim_v=64),
    Sizes(heads=4, kv_heads=1, dim_qk=128, dim_v=128),
    Sizes(heads=16, kv_heads=1, dim_qk=192, dim_v=128),
    Sizes(heads=3, kv_heads=3, dim_qk=64, dim_v=64),
)
"""Head dimensions that Hopper's kernels take: groups of four, and heads that share nothing."""

MANY_LISTS = (
    Sizes(heads=8, kv_heads=8),
    Sizes(heads=16, kv_heads=8),
    Sizes(heads=32, kv_heads=8, dim_qk=128, dim_v=128),
    Sizes(heads=48, kv_heads=8),
)
"""Groups of 1, 2, 4 and 6 heads, with so many lists at LISTED_TOKENS that what neighbours share decides how they are walked."""

LISTED_TOKENS = 2**14 + 1

LONG_NSA = Sizes(heads=64, kv_heads=4, dim_qk=128, dim_v=128)
"""NSA in the shape of its paper."""


def ungated(inputs: Inputs) -> dict[str, Any]:
    """The keyword arguments that choosing takes."""
    return {name: value for name, value in inputs.options.items() if name != "gates"}


def packed(shape: tuple[int, int, int, int], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Normal numbers (batch, heads, tokens, dim) on the generator's device: a view of a packed tensor whose gaps hold NaN."""
    return token_major(shape, dtype, generator, gap=GAP)


def make_inputs(
    pattern: Pattern, dtype: torch.dtype, tokens: int, sizes: Sizes, seed: int = 0, device: str = "cuda", sharing: Sharing = "random"
) -> Inputs:
    """Random inputs; q, k and v are views of packed tensors whose gaps hold NaN."""
    shape = Shape(sizes.batch, sizes.heads, sizes.kv_heads, tokens, sizes.dim_qk, sizes.dim_v)
    return bench_inputs(pattern, dtype, shape, seed=seed, device=device, gap=GAP, sharing=sharing)


def check_example(pattern: Pattern, dtype: str, tokens: int, sizes: Sizes = USUAL, device: str = "cuda") -> list[str]:
    """Rows, log-sum-exp, choices and the mask probe of one pattern at one length; what was refused, as text."""
    op = AttentionOp(pattern)
    inputs = make_inputs(pattern, TORCH[dtype], tokens, sizes, device=device)
    q, k, v = inputs.q, inputs.k, inputs.v
    with torch.no_grad():
        choices = op.choose(q, k, v, **ungated(inputs)) if any(each.choices for each in pattern.branches) else None
        found = _check_choices(pattern, inputs, choices) if choices else []
        out, lse = op(q, k, v, return_lse=True, **inputs.options)
        if not torch.equal(out, op(q, k, v, **inputs.options)):
            found.append(Mismatch("repeat", (), 1.0, 0.0, "two runs differ"))
        if tokens <= 1000:
            found += _check_mask(pattern, op, dtype, tokens, sizes, device)
        pattern, given, wrong = give_slots(op, k, v, inputs.options)
        found += wrong
        expected, expected_lse = reference.attend(pattern, q, k, v, choices=choices, return_lse=True, **given)
        baseline = reference.attend(pattern, q, k, v, choices=choices, dtype=q.dtype, **given)
        found += check_rows(out, expected, baseline)
        for name in lse if isinstance(lse, dict) else ("",):
            found += check_lse(*(each[name] if name else each for each in (lse, expected_lse)))
    return [str(each) for each in found]


def _check_choices(pattern: Pattern, inputs: Inputs, choices: dict[str, Tensor]) -> list[Mismatch]:
    """Choices as sets. The margin covers slots that are rounded to the inputs' dtype before they are scored."""
    ranks = reference.ranking(pattern, inputs.q, inputs.k, inputs.v, **ungated(inputs))
    margin = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}[inputs.q.dtype]
    counts = {each.name: each.count for branch in pattern.branches for each in branch.choices}
    return [found for name, rank in ranks.items() for found in check_choice(choices[name], rank, counts[name] or 0, margin=margin)]


def _check_mask(pattern: Pattern, op: AttentionOp, dtype: str, tokens: int, sizes: Sizes, device: str) -> list[Mismatch]:
    probe = probe_inputs(pattern, batch=1, heads=sizes.heads, kv_heads=sizes.kv_heads, n=tokens, dtype=TORCH[dtype], device=device)
    found: list[Mismatch] = []
    for branch in dict.fromkeys(pattern.output.branches):
        call = probe.arguments(branch)
        ungated = {name: value for name, value in call.items() if name != "gates"}
        choices = op.choose(probe.q, probe.k, probe.v, **ungated) if any(each.choices for each in pattern.branches) else None
        out, lse = op(probe.q, probe.k, probe.v, choices=choices, return_lse=True, **call)
        visible = reference.mask(pattern, tokens, sizes.heads, sizes.kv_heads, choices=choices, device=device)[branch]
        found += check_probe(out, lse[branch] if isinstance(lse, dict) else lse, visible, probe.values(branch))
    return found


def check_long_nsa(
    pattern: Pattern, dtype: str, tokens: int, sizes: Sizes = LONG_NSA, samples: int = 48, device: str = "cuda"
) -> list[str]:
    """NSA in the paper's shape at a length where nothing dense fits: sampled rows against the equations, in float64."""
    heads, kv_heads = sizes.heads, sizes.kv_heads
    inputs = make_inputs(pattern, TORCH[dtype], tokens, sizes, device=device)
    op = AttentionOp(pattern)
    drawn = torch.randint(0, tokens, (samples,), generator=torch.Generator().manual_seed(1)).tolist()
    found: list[Mismatch] = []
    with torch.no_grad():
        chosen = op.choose(inputs.q, inputs.k, inputs.v, **ungated(inputs))["selected"]
        out, lse = op(inputs.q, inputs.k, inputs.v, return_lse=True, **inputs.options)
        memory = pattern.memories[0]
        module = inputs.options.get("compressors", {}).get(memory.name)
        slots = op.compress(memory.name, inputs.k, inputs.v, compressor=module)
        for row in sorted({*drawn, 0, 31, 63, 64, tokens // 2, tokens - 1}):
            for kv_head in range(kv_heads):
                group = slice(kv_head * heads // kv_heads, (kv_head + 1) * heads // kv_heads)
                exact = literal_row(pattern, inputs, slots, chosen, row, kv_head, torch.float64)
                rounded = literal_row(pattern, inputs, slots, chosen, row, kv_head, inputs.q.dtype)
                found += check_rows(out[0, group, row], exact.out, rounded.out, what=f"row {row}, KV head {kv_head}")
                for name, value in exact.lse.items():
                    found += check_lse(lse[name][0, group, row], value, what=f"lse {name}, row {row}")
                found += check_choice(chosen[0, kv_head, row], exact.ranking, chosen.shape[-1], margin=1e-1)
    return [str(each) for each in found]


def check_lists(
    pattern: Pattern, dtype: str, tokens: int, sizes: Sizes, *, sharing: Sharing, samples: int = 40, device: str = "cuda"
) -> list[str]:
    """Attention over given lists of one choice, too long for anything dense: sampled rows against softmax, in float64."""
    inputs = make_inputs(pattern, TORCH[dtype], tokens, sizes, device=device, sharing=sharing)
    op, (choice,) = AttentionOp(pattern), pattern.branches[0].choices
    lists = inputs.options["indices"][choice.name]
    drawn = torch.randint(0, tokens, (samples,), generator=torch.Generator().manual_seed(1)).tolist()
    found: list[Mismatch] = []
    with torch.no_grad():
        out, lse = op(inputs.q, inputs.k, inputs.v, return_lse=True, **inputs.options)
        if not torch.equal(out, op(inputs.q, inputs.k, inputs.v, **inputs.options)):
            found.append(Mismatch("repeat", (), 1.0, 0.0, "two runs differ"))
        rows = sorted({*drawn, 0, choice.block - 1, choice.block, tokens - 1})
        exact, rounded, exact_lse = [], [], []
        for row in rows:
            for kv_head, blocks in enumerate(lists[0, :, row]):
                heads = slice(kv_head * sizes.heads // sizes.kv_heads, (kv_head + 1) * sizes.heads // sizes.kv_heads)
                keys = (blocks[blocks >= 0][:, None] * choice.block + torch.arange(choice.block, device=device)).flatten()
                seen = inputs.q[0, heads, row], *(each[0, kv_head, keys[keys <= row]] for each in (inputs.k, inputs.v))
                row_out, row_lse = _softmax_row(*seen, torch.float64)
                exact.append(row_out)
                exact_lse.append(row_lse)
                rounded.append(_softmax_row(*seen, inputs.q.dtype)[0])
        # All at once: what a row may be off by is also a part of the greatest value of all.
        found += check_rows(out[0, :, rows].transpose(0, 1).flatten(0, 1), torch.cat(exact), torch.cat(rounded))
        found += check_lse(lse[0, :, rows].T.flatten(), torch.cat(exact_lse))
    return [str(each) for each in found]


def _softmax_row(q: Tensor, k: Tensor, v: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Output (heads, d_v) and log-sum-exp of one query that sees all these keys."""
    logits = q.to(dtype) @ k.to(dtype).T * q.shape[-1] ** -0.5
    return logits.softmax(-1) @ v.to(dtype), logits.logsumexp(-1)


@dataclass(frozen=True, slots=True, eq=False)
class LiteralRow:
    """One query of one KV head. out: (group, d_v); lse: branch -> (group,); ranking: (blocks,)."""

    out: Tensor
    lse: dict[str, Tensor]
    ranking: Tensor


def literal_row(
    pattern: Pattern, inputs: Inputs, slots: tuple[Tensor, Tensor], chosen: Tensor, row: int, kv_head: int, dtype: torch.dtype
) -> LiteralRow:
    """NSA's Eq. 5 to 12 for one query, in plain torch. chosen: the blocks to attend to; the ranking says which are best."""
    memory, choice = pattern.memories[0], pattern.branch("selected").choices[0]
    group = inputs.q.shape[1] // chosen.shape[1]
    heads = slice(kv_head * group, (kv_head + 1) * group)
    q = inputs.q[0, heads, row].to(dtype)
    k, v = (each[0, kv_head] for each in (inputs.k, inputs.v))
    seen = max(0, (row + 1 - memory.block) // memory.stride + 1)
    blocks = chosen[0, kv_head, row]
    tokens = (blocks[blocks >= 0][:, None] * choice.block + torch.arange(choice.block, device=q.device)).flatten()
    first = max(0, row - dict(pattern.parameters)["w"] + 1)  # type: ignore[operator]
    parts = {
        "compressed": (slots[0][0, kv_head, :seen], slots[1][0, kv_head, :seen]),
        "selected": tuple(each[tokens[tokens <= row]] for each in (k, v)),
        "windowed": (k[first : row + 1], v[first : row + 1]),
    }
    gates = inputs.options["gates"][0, heads, row].to(dtype).sigmoid()
    out, lse, probabilities = torch.zeros(group, v.shape[-1], dtype=dtype, device=q.device), {}, torch.zeros(group, 0)
    for n, name in enumerate(pattern.output.branches):
        keys, values = (each.to(dtype) for each in parts[name])
        logits = q @ keys.T * q.shape[-1] ** -0.5
        lse[name] = logits.logsumexp(-1)
        if name == "compressed":
            probabilities = logits.to(torch.float64).softmax(-1)
        if len(keys):
            out += gates[:, n, None] * (logits.softmax(-1) @ values)
    return LiteralRow(out, lse, _rank(probabilities.sum(0), memory.block, memory.stride, choice.block, row))


def _rank(probability: Tensor, block: int, stride: int, chosen: int, row: int) -> Tensor:
    """Eq. 9 by overlap length, the first block and the last two kept, later blocks out of reach."""
    last = row // chosen
    start = torch.arange(len(probability), device=probability.device)[:, None] * stride
    begin = torch.arange(last + 1, device=probability.device)[None, :] * chosen
    overlap = (torch.minimum(start + block, begin + chosen) - torch.maximum(start, begin)).clamp(min=0)
    rank = probability @ (overlap / stride).to(probability.dtype)
    rank[[0, last, max(0, last - 1)]] = torch.inf
    return rank
