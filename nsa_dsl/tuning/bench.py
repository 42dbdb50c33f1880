"""Candidates on a GPU: their results and gradients held to the default's and to the dense reference, and the time of each kernel."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from nsa_dsl.arguments import Shape
from nsa_dsl.bench.compilers import Compilers, Prepared, note
from nsa_dsl.bench.inputs import make_inputs, token_major
from nsa_dsl.bench.rows import Sharing
from nsa_dsl.bench.timing import L2_BYTES, launches
from nsa_dsl.launch import Dtype
from nsa_dsl.op import AttentionOp, card_of
from nsa_dsl.pattern import Pattern
from nsa_dsl.tuning.search import KernelFailed, Pins, described
from nsa_dsl.verify.cases import Case
from nsa_dsl.verify.example import check_case
from nsa_dsl.verify.inputs import TYPES
from nsa_dsl.verify.leaves import watch

SHORT = 2048
"""Tokens of the call by which a candidate is judged before it is timed: with the divisors of the lengths that are timed, since it runs what
is compiled for them."""

CHECKED_TOKENS = (300, 1300)
"""Lengths at which the dense reference judges what wins: inside the first tiles, and past the blocks and windows that patterns usually
have, with ragged ends."""

CHOICES = 0.01
"""Entries of a choice that may differ from the default's: those whose scores are equal but for rounding."""

WHOLE, ROW = 0.02, 0.1
"""How far results may lie from the default's where no dense reference is had: of the norm of the tensor, and of a row beside the tensor's
usual one. What a wrong tile does is of the size of the row itself."""


@dataclass(frozen=True, slots=True)
class _Expected:
    """What the default makes of a call."""

    choices: dict[str, Tensor]
    results: dict[str, Tensor]


class _Calls:
    """Calls of one length, the same for all candidates."""

    def __init__(self, pattern: Pattern, shape: Shape, dtype: Dtype, sharing: Sharing, backward: bool, device: str) -> None:
        self.shape, self._backward = shape, backward
        inputs = make_inputs(pattern, TYPES[dtype], shape, sharing=sharing, device=device)
        generator = torch.Generator(device=inputs.q.device).manual_seed(1)
        self._cotangent = token_major((shape.batch, shape.heads, shape.tokens, shape.dim_v), TYPES[dtype], generator)
        self._call, self._leaves = watch(inputs)

    @property
    def q(self) -> Tensor:
        """The queries."""
        return self._call.q

    def run(self, op: AttentionOp, choices: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """The output and, if gradients are tuned, those of every leaf, by name. choices: to be used instead of the op's own."""
        fixed = {"choices": choices} if choices else {}
        with torch.set_grad_enabled(self._backward):
            out = op(self._call.q, self._call.k, self._call.v, **{**self._call.options, **fixed})
        assert isinstance(out, Tensor)
        if not self._backward:
            return {"out": out}
        made = torch.autograd.grad(out, tuple(self._leaves.values()), self._cotangent)
        return dict(zip(("out", *self._leaves), (out.detach(), *made), strict=True))

    def expect(self, op: AttentionOp) -> _Expected:
        """What an op chooses, and what it makes of that."""
        choices = self._chosen(op)
        return _Expected(choices, self._compared(op, choices))

    def differences(self, op: AttentionOp, expected: _Expected) -> list[str]:
        """What is different. Results are compared for the same choices: a rounding may decide a choice, and the results with it."""
        shares = {name: _differing(each, expected.choices[name]) for name, each in self._chosen(op).items()}
        found = [f"choice {name} differs in {share:.1%} of its entries" for name, share in shares.items() if share > CHOICES]
        results = self._compared(op, expected.choices)
        return found + [each for name, tensor in results.items() for each in _far(name, tensor, expected.results[name])]

    def modules(self, op: AttentionOp) -> list[Any]:
        """The generated modules that `run` uses, forward first."""
        passes = (False, True) if self._backward else (False,)
        return [op.module(self.q, self.shape.dim_v, kv_heads=self.shape.kv_heads, backward=each) for each in passes]

    def _compared(self, op: AttentionOp, choices: dict[str, Tensor]) -> dict[str, Tensor]:
        """The results that are comparable: the gradients of parameters are sums over all tokens, which may be all rounding."""
        return {name: each for name, each in self.run(op, choices).items() if name.partition(".")[0] in ("out", "q", "k", "v")}

    def _chosen(self, op: AttentionOp) -> dict[str, Tensor]:
        if not op.signature.choices:
            return {}
        options = {name: each for name, each in self._call.options.items() if name != "gates"}
        return op.choose(self._call.q, self._call.k, self._call.v, **options)


class GpuBench:
    """`search.Bench` for one pattern and one size of calls."""

    check_seconds = 10.0
    """Most of it compiles what ragged lengths need."""

    def __init__(
        self,
        pattern: Pattern,
        shape: Shape,
        dtype: Dtype,
        kernels: Collection[str],
        compilers: Compilers,
        *,
        sharing: Sharing = "random",
        backward: bool = True,
        device: str = "cuda",
    ) -> None:
        """kernels: the names that times are kept by. sharing: how much neighbouring queries agree on their choices in what is timed."""
        self._kernels = sorted(kernels, key=len, reverse=True)
        self._pattern, self._backward, self._dtype, self._compilers = pattern, backward, dtype, compilers
        brief = Shape(shape.batch, shape.heads, shape.kv_heads, min(SHORT, shape.tokens), shape.dim_qk, shape.dim_v)
        self._short = _Calls(pattern, brief, dtype, sharing, backward, device)
        self._timed = _Calls(pattern, shape, dtype, sharing, backward, device)
        self._device = self._short.q.device
        self._ops: dict[tuple[tuple[str, Any], ...], AttentionOp] = {}
        self._default = self._make_op({})
        hosts = zip(self._short.modules(self._default), ("run", "run_backward"), strict=False)
        self._noted = [note(module, entry, lambda: self._short.run(self._default)) for module, entry in hosts]

    def prepare(self, turns: Sequence[Pins]) -> None:
        """Every kernel of all turns side by side. What does not compile is met again by the call that launches it."""
        calls: list[Prepared] = []
        for pins in turns:
            try:
                modules = self._short.modules(self._op(pins))
            except Exception:  # as above
                continue
            calls += [replace(each, module=module) for module, each in zip(modules, self._noted, strict=True)]
        self._compilers.compile(calls, self._pattern.name, card_of(self._device))

    def problems(self, pins: Pins, *, thorough: bool = False) -> list[str]:
        """By comparison with the default in a short call; thorough: by the rules of `nsa_dsl.verify` at other lengths as well, and by
        comparison at the timed length."""
        op = self._op(pins)
        with self._named(self._short.modules(op)):
            wrong = self._short.differences(op, self._expected_short)
        if wrong or not thorough:
            return wrong
        wrong = [str(each) for tokens in CHECKED_TOKENS for each in check_case(op, self._case(tokens), self._device)]
        return wrong or self._timed.differences(op, self._expected_timed)

    def times(self, pins: Pins, runs: int) -> dict[str, float]:
        """Medians of CUDA events with a cold L2, launches of one kernel and of those made from it added up."""
        op = self._op(pins)
        modules = self._timed.modules(op)
        self._timed.run(op)
        flush = torch.empty(L2_BYTES, dtype=torch.int8, device=self._device)
        marks: list[list[tuple[str, Any, Any]]] = []

        def marked(kernel: str, launch: Callable[[], None]) -> None:
            event: Any = torch.cuda.Event
            begin, end = event(enable_timing=True), event(enable_timing=True)
            flush.zero_()
            begin.record()
            launch()
            end.record()
            marks[-1].append((self._owner(kernel), begin, end))

        with launches(modules, marked):
            for _ in range(runs):
                marks.append([])
                self._timed.run(op)
        torch.cuda.synchronize()
        sums = [_by_kernel(each) for each in marks]
        return {name: statistics.median(each.get(name, 0.0) for each in sums) for name in sums[0]}

    @cached_property
    def _expected_short(self) -> _Expected:
        return self._short.expect(self._default)

    @cached_property
    def _expected_timed(self) -> _Expected:
        return self._timed.expect(self._default)

    def _op(self, pins: Pins) -> AttentionOp:
        """The op under these pins, kept so that what was compiled for it stays."""
        if not pins:
            return self._default
        key = tuple(sorted(pins.items(), key=lambda each: each[0]))
        if key not in self._ops:
            self._ops[key] = self._make_op(pins)
        return self._ops[key]

    def _make_op(self, pins: Pins) -> AttentionOp:
        op = AttentionOp(self._pattern, pins=pins, tune="off")
        for module in self._short.modules(op):
            self._compilers.take_over(module, self._pattern.name)
        return op

    @contextmanager
    def _named(self, modules: Sequence[Any]) -> Iterator[None]:
        """While the block runs, a launch of these modules that fails raises KernelFailed."""

        def named(kernel: str, launch: Callable[[], None]) -> None:
            try:
                launch()
            except Exception as error:
                raise KernelFailed(self._owner(kernel), described(error)) from error

        with launches(modules, named):
            yield

    def _owner(self, kernel: str) -> str:
        """The name that a kernel's times are kept by. One that stands beside another for the same work, as `attend_windowed_hopper` does,
        counts with it."""
        return next((each for each in self._kernels if kernel == each or kernel.startswith(f"{each}_")), kernel)

    def _case(self, tokens: int) -> Case:
        """A short call with the same heads a group and the same head dimensions."""
        shape = self._timed.shape
        heads = 2 if shape.kv_heads > 1 else 1
        return Case(
            tokens=tokens, batch=1, heads=heads * (shape.heads // shape.kv_heads), kv_heads=heads, d_qk=shape.dim_qk, d_v=shape.dim_v,
            dtype=self._dtype, layout="token major", values="ordinary", damage="none", damaged=0, documents=1, rows=None, cols=None, seed=4,
            gradients="out and lse" if self._backward else "none",
        )  # fmt: skip


def _by_kernel(marks: Sequence[tuple[str, Any, Any]]) -> dict[str, float]:
    """Milliseconds by kernel. marks: launches between two events."""
    total: dict[str, float] = {}
    for name, begin, end in marks:
        total[name] = total.get(name, 0.0) + begin.elapsed_time(end)
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
