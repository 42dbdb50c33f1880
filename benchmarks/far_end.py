"""NSA where tensors have more than 2^31 elements: time, memory, and results at the far end held to the paper's equations.

q, k and v are views of one packed tensor, as a model's projection leaves them, so that the offsets of all three pass 2^31. Under a causal
pattern the last rows alone give the gradients of the last tokens: what reaches those can be computed without going through all rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from benchmarks.cases import Sizes, ungated
from benchmarks.cases_backward import Cotangents, op_gradients
from benchmarks.literal_nsa import BRANCHES, Given, attend_rows, check_runs, check_sums, make_given
from nsa_dsl.arguments import Shape
from nsa_dsl.bench.contender import Case
from nsa_dsl.bench.inputs import fill_normal, token_major
from nsa_dsl.bench.peers import prepare_own
from nsa_dsl.bench.rows import Products, Row
from nsa_dsl.bench.run import clean, measure
from nsa_dsl.compare import Mismatch, check_rows
from nsa_dsl.flops import visible_pairs
from nsa_dsl.op import AttentionOp
from nsa_dsl.pattern import Pattern
from nsa_dsl.verify.inputs import Inputs

FAR = 1 << 31
"""Elements that 32-bit offsets reach."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Which rows are checked: the last `tail` ones, and as many about the middle, `run` at a time."""

    tail: int = 128
    run: int = 64

    def runs(self, tokens: int, device: torch.device) -> list[Tensor]:
        """The rows, none twice, the last ones last."""
        last = max(0, tokens - self.tail)
        middle = min(tokens // 2, max(0, last - self.tail))
        rows = torch.arange(tokens, device=device)
        parts = (rows[middle : min(last, middle + self.tail)], rows[last:])
        return [run for part in parts if len(part) for run in torch.split(part, self.run)]


def packed_inputs(tokens: int, sizes: Sizes, dtype: torch.dtype, device: str = "cuda", seed: int = 0) -> Inputs:
    """q, k and v as views of one tensor (1, tokens, heads + 2 kv_heads, dim), and gates. Raises ValueError unless d_qk = d_v."""
    if sizes.dim_qk != sizes.dim_v:
        raise ValueError(f"one packed tensor needs d_qk = d_v, not {sizes.dim_qk} and {sizes.dim_v}")
    generator = torch.Generator(device=device).manual_seed(seed)
    whole = torch.empty(1, tokens, sizes.heads + 2 * sizes.kv_heads, sizes.dim_qk, dtype=dtype, device=device)
    fill_normal(whole, generator)
    q, k, v = (each.transpose(1, 2) for each in torch.split(whole, [sizes.heads, sizes.kv_heads, sizes.kv_heads], 2))
    gates = torch.randn(1, sizes.heads, tokens, len(BRANCHES), generator=generator, device=device, dtype=dtype)
    return Inputs(q, k, v, {"gates": gates})


def time_far(row: Row, op: AttentionOp, inputs: Inputs, sizes: Sizes) -> Row:
    """The row with times and memory of forward and backward."""
    tokens = inputs.q.shape[2]
    shape = Shape(1, sizes.heads, sizes.kv_heads, tokens, sizes.dim_qk, sizes.dim_v)
    chosen = op.choose(inputs.q, inputs.k, inputs.v, **ungated(inputs))
    pairs = sum(visible_pairs(each, shape, chosen, None) for each in op.signature.computed)
    del chosen
    generator = torch.Generator(device=inputs.q.device).manual_seed(1)
    sent = token_major((1, sizes.heads, tokens, sizes.dim_v), inputs.q.dtype, generator)
    case = Case(op.pattern, shape, inputs, sent, True, Products(pairs, sizes.dim_qk, sizes.dim_v))
    return measure(row, prepare_own(case, op), backward=True)


def check_far(op: AttentionOp, inputs: Inputs, sizes: Sizes, sample: Sample = Sample(), exact: torch.dtype = torch.float32) -> list[str]:
    """What is wrong, in sampled rows, with the output and with the gradients of queries and gates, and, of the last tokens, with those of
    keys and values; all for a loss of output and log-sum-exps, on the op's own choices and slots, against the equations in `exact`."""
    pattern, tokens, device = op.pattern, inputs.q.shape[2], inputs.q.device
    generator = torch.Generator(device=device).manual_seed(1)
    sent = token_major((1, sizes.heads, tokens, sizes.dim_v), inputs.q.dtype, generator)
    lse = {name: torch.randn(1, sizes.heads, tokens, generator=generator, device=device) for name in BRANCHES}
    cotangents = Cotangents(sent, lse)
    made = op_gradients(op, inputs, cotangents)
    clean()
    with torch.no_grad():
        out = op(inputs.q, inputs.k, inputs.v, **inputs.options)
        assert isinstance(out, Tensor)
        chosen = op.choose(inputs.q, inputs.k, inputs.v, **ungated(inputs))["selected"]
        slots = op.compress(pattern.memories[0].name, inputs.k, inputs.v)
    clean()
    given = make_given(pattern, inputs, slots, chosen, exact)
    runs = sample.runs(tokens, device)
    found = check_outputs(given, inputs, out, runs)
    del out
    wrong, sums = check_runs(given, inputs, cotangents, made, runs)
    first = max(0, tokens - sample.tail)
    return [str(each) for each in (*found, *wrong, *check_sums(given, sums, made, None, inputs.q.dtype, first))]


def check_outputs(given: Given, inputs: Inputs, out: Tensor, runs: Sequence[Tensor]) -> list[Mismatch]:
    """What is wrong with some rows of the output."""
    grouped = [each[0].unflatten(0, (len(given.k), -1)) for each in (inputs.q, inputs.options["gates"], out)]
    found = []
    with torch.no_grad():
        for at in runs:
            q, gates, actual = (each[:, :, at] for each in grouped)
            exact = attend_rows(given, q.to(given.k.dtype), gates.to(given.k.dtype), at, given.k.dtype).out
            rounded = attend_rows(given, q, gates, at, inputs.q.dtype).out
            found += check_rows(actual, exact, rounded, what=f"out, rows from {int(at[0])}")
    return found


def far_row(pattern: Pattern, row: Row, sizes: Sizes, report: Callable[[Row], None], sample: Sample = Sample()) -> None:
    """Time, then check: the row is reported once it has times, and again with the verdict in its note, or what is wrong as refused."""
    op = AttentionOp(pattern)
    inputs = packed_inputs(row.tokens, sizes, torch.bfloat16)
    row = time_far(row, op, inputs, sizes)
    report(row)
    clean()
    found = check_far(op, inputs, sizes, sample)
    elements = inputs.q.stride(2) * row.tokens
    rows = sum(map(len, sample.runs(row.tokens, inputs.q.device)))
    where = f"out, dq and gates of {rows} rows, dk and dv of the last {sample.tail} tokens"
    reached = f"offsets to {elements / FAR:.2f} x 2^31 elements"
    report(replace(row, note=f"{where} are right; {reached}") if not found else replace(row, refused=f"WRONG: {found[0]}"))
