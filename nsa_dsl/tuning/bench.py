"""Candidates on a GPU: their results and gradients held to the dense reference and to the default's, and the time of each kernel."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nsa_dsl.arguments import Shape
from nsa_dsl.bench.inputs import make_inputs, token_major
from nsa_dsl.bench.rows import Sharing
from nsa_dsl.bench.timing import L2_BYTES, launches
from nsa_dsl.launch import Dtype
from nsa_dsl.op import AttentionOp
from nsa_dsl.pattern import Pattern
from nsa_dsl.tuning.search import Pins
from nsa_dsl.verify.cases import Case
from nsa_dsl.verify.example import check_case
from nsa_dsl.verify.inputs import TYPES
from nsa_dsl.verify.leaves import watch

RUNS = 5
"""Calls that a time is the median of."""

CHECKED_TOKENS = (300, 1300)
"""Lengths at which the dense reference judges: inside the first tiles, and past the blocks and windows that patterns usually have."""

CHOICES = 0.01
"""Entries of a choice that may differ from the default's: those whose scores are equal but for rounding."""

WHOLE, ROW = 0.02, 0.1
"""How far results may lie from the default's at the length that is timed, where no dense reference can be had: of the norm of the tensor,
and of a row beside the tensor's usual one. What a wrong tile does is of the size of the row itself."""


class GpuBench:
    """`search.Bench` for one pattern and one size of calls."""

    def __init__(
        self,
        pattern: Pattern,
        shape: Shape,
        dtype: Dtype,
        kernels: Collection[str],
        *,
        sharing: Sharing = "random",
        backward: bool = True,
        device: str = "cuda",
    ) -> None:
        """kernels: the names that times are kept by. sharing: how much neighbouring queries agree on their choices in what is timed."""
        self._kernels = sorted(kernels, key=len, reverse=True)
        self._pattern, self._shape, self._backward, self._dtype = pattern, shape, backward, dtype
        inputs = make_inputs(pattern, TYPES[dtype], shape, sharing=sharing, device=device)
        generator = torch.Generator(device=inputs.q.device).manual_seed(1)
        self._cotangent = token_major((shape.batch, shape.heads, shape.tokens, shape.dim_v), TYPES[dtype], generator)
        self._call, self._leaves = watch(inputs)
        self._device = inputs.q.device
        default = self._op({})
        self._choices = self._chosen(default)
        self._expected = self._results(default)

    def problems(self, pins: Pins) -> list[str]:
        """By the rules of `nsa_dsl.verify` at short lengths, and by comparison with the default at the timed one."""
        op = self._op(pins)
        wrong = [str(each) for tokens in CHECKED_TOKENS for each in check_case(op, self._case(tokens), self._device)]
        if wrong:
            return wrong
        chosen = self._chosen(op)
        shares = {name: _differing(each, self._choices[name]) for name, each in chosen.items()}
        wrong = [f"choice {name} differs in {share:.1%} of its entries" for name, share in shares.items() if share > CHOICES]
        results = self._results(op)
        return wrong + [each for name, tensor in results.items() for each in _far(name, tensor, self._expected[name])]

    def times(self, pins: Pins) -> dict[str, float]:
        """Medians of CUDA events with a cold L2, launches of one kernel and of those made from it added up."""
        op = self._op(pins)
        call = self._both(op, {}) if self._backward else self._forward(op, {})
        call()
        q, shape = self._call.q, self._shape
        passes = (False, True) if self._backward else (False,)
        modules = [op.module(q, shape.dim_v, kv_heads=shape.kv_heads, backward=each) for each in passes]
        flush = torch.empty(L2_BYTES, dtype=torch.int8, device=self._device)
        runs: list[list[tuple[str, Any, Any]]] = []

        def marked(kernel: str, launch: Callable[[], None]) -> None:
            event: Any = torch.cuda.Event
            begin, end = event(enable_timing=True), event(enable_timing=True)
            flush.zero_()
            begin.record()
            launch()
            end.record()
            runs[-1].append((kernel, begin, end))

        with launches(modules, marked):
            for _ in range(RUNS):
                runs.append([])
                call()
        torch.cuda.synchronize()
        sums = [_by_kernel(each, self._kernels) for each in runs]
        return {name: statistics.median(each.get(name, 0.0) for each in sums) for name in sums[0]}

    def _op(self, pins: Pins) -> AttentionOp:
        return AttentionOp(self._pattern, pins=pins, tune="off")

    def _case(self, tokens: int) -> Case:
        """A short call with the same heads a group and the same head dimensions."""
        shape = self._shape
        heads = 2 if shape.kv_heads > 1 else 1
        return Case(
            tokens=tokens, batch=1, heads=heads * (shape.heads // shape.kv_heads), kv_heads=heads, d_qk=shape.dim_qk, d_v=shape.dim_v,
            dtype=self._dtype, layout="token major", values="ordinary", damage="none", damaged=0, documents=1, rows=None, cols=None, seed=4,
            gradients="out and lse" if self._backward else "none",
        )  # fmt: skip

    def _forward(self, op: AttentionOp, fixed: Mapping[str, Any]) -> Callable[[], Tensor]:
        def forward() -> Tensor:
            out = op(self._call.q, self._call.k, self._call.v, **{**self._call.options, **fixed})
            assert isinstance(out, Tensor)
            return out

        return forward

    def _both(self, op: AttentionOp, fixed: Mapping[str, Any]) -> Callable[[], tuple[Tensor, ...]]:
        forward, leaves = self._forward(op, fixed), tuple(self._leaves.values())
        return lambda: (out := forward(), *torch.autograd.grad(out, leaves, self._cotangent))

    def _chosen(self, op: AttentionOp) -> dict[str, Tensor]:
        if not op.signature.choices:
            return {}
        options = {name: each for name, each in self._call.options.items() if name != "gates"}
        return op.choose(self._call.q, self._call.k, self._call.v, **options)

    def _results(self, op: AttentionOp) -> dict[str, Tensor]:
        """The output and the gradients of queries, keys and values, for the default's choices: a rounding may decide a choice, and the
        results with it. Sums over all tokens, as a parameter's gradient, may be all rounding: they are judged at short lengths only."""
        fixed = {"choices": self._choices} if self._choices else {}
        if not self._backward:
            with torch.no_grad():
                return {"out": self._forward(op, fixed)()}
        made = self._both(op, fixed)()
        named = zip(("out", *self._leaves), (each.detach() for each in made), strict=True)
        return {name: each for name, each in named if name.partition(".")[0] in ("out", "q", "k", "v")}


def _by_kernel(marks: Sequence[tuple[str, Any, Any]], kernels: Sequence[str]) -> dict[str, float]:
    """Milliseconds by kernel. marks: launches between two events; kernels: longer names first. A kernel that stands beside another for the
    same work, as `attend_windowed_hopper` does, counts with it."""
    total: dict[str, float] = {}
    for name, begin, end in marks:
        owner = next((each for each in kernels if name == each or name.startswith(f"{each}_")), name)
        total[owner] = total.get(owner, 0.0) + begin.elapsed_time(end)
    return total


def _differing(one: Tensor, other: Tensor) -> float:
    """The share of entries in which two lists of blocks (batch, units, query units, n) differ."""
    return float((one.sort(-1).values != other.sort(-1).values).float().mean()) if one.numel() else 0.0


def _far(name: str, actual: Tensor, expected: Tensor) -> list[str]:
    """What lies further from the default than WHOLE and ROW allow. Rows are the last dimension; norms are sums of float32."""
    difference, size = (each.norm(dim=-1, dtype=torch.float32) for each in (actual - expected, expected))
    whole, usual = float(difference.norm() / size.norm().clamp(min=1e-30)), size.square().mean().sqrt()
    worst = float((difference / (size + usual).clamp(min=1e-30)).max()) if size.numel() else 0.0
    if whole <= WHOLE and worst <= ROW:
        return []
    what = name if name == "out" else f"the gradient of {name}"
    return [f"{what} differs from the default's by {whole:.3g} of its norm, in the worst row by {worst:.3g}"]
