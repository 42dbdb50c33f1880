"""The measuring: every contender at every length, one row each.

What a contender cannot do is a line of the table, not the end of the run.
"""

from __future__ import annotations

import gc
import time
import types
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TypeAlias

import torch

from nsa_dsl.arguments import Shape
from nsa_dsl.bench.compilers import Compilers
from nsa_dsl.bench.contender import Case, Prepared, Refused
from nsa_dsl.bench.fla import prepare_fla
from nsa_dsl.bench.graphs import capture, capture_both, warm
from nsa_dsl.bench.inputs import make_inputs, mean_union, token_major
from nsa_dsl.bench.peers import prepare_dense, prepare_flex, prepare_own
from nsa_dsl.bench.rows import DENSE, OWN, Products, Row, Settings, tflops
from nsa_dsl.bench.timing import median_ms, peak_bytes, time_kernels
from nsa_dsl.flops import visible_pairs
from nsa_dsl.integer_set import TooComplex
from nsa_dsl.op import AttentionOp
from nsa_dsl.pattern import Pattern
from nsa_dsl.prove import leaks
from nsa_dsl.verify.inputs import TYPES, Inputs

SPENT = "left out: the budget was spent"
UNFINISHED = "backward: not reached"

PATIENCE = 0.5
"""Seconds of runs that a median is taken of, if they are enough: 10 runs of up to 50 ms, 5 of 100, 3 of more than 150."""

Measured: TypeAlias = dict[tuple[object, ...], Row]
"""Rows of dense attention by all that their numbers depend on, which is neither the choices nor the pattern."""

ONCE = "measured once for every case of its shape"


def run(
    pattern: Pattern,
    settings: Settings,
    *,
    case: str | None = None,
    started: float | None = None,
    compilers: Compilers | None = None,
    dense: Measured | None = None,
    op: AttentionOp | None = None,
    early: Callable[[Row], None] = lambda _: None,
    device: str = "cuda",
) -> Iterator[Row]:
    """Measure a pattern's op, then its peers, at every length; rows as they come.

    case: what to call it (default: the pattern's name). started: when the budget began to run, by `time.perf_counter` (default: now).
    The budget is looked at before each measurement; one that runs is not interrupted. compilers: who compiles the op's kernels (default:
    this process). dense: rows of earlier calls, that are given again instead of measured again; new ones are added. op: the pattern's, if
    there is one already. early: told every row before its backward pass is begun, which may take long to compile.
    """
    known = {} if dense is None else dense
    begin = time.perf_counter() if started is None else started
    op, causal = op or AttentionOp(pattern), _is_causal(pattern)
    chooses = bool(op.signature.choices)
    for tokens in settings.lengths:
        blank = Row(case or pattern.name, str(settings), tokens, OWN, pattern=pattern.name, parameters=dict(pattern.parameters))
        names: tuple[str, ...] = (*((OWN,) if settings.own else ()), *settings.peers)
        problem: Case | None = None
        for name in names:
            row = replace(blank, contender=name, choices=settings.sharing if chooses and name not in DENSE else "")
            alike = (name, replace(settings, lengths=(), sharing="random", peers=(), own=True, budget=None), tokens, causal)
            if alike in known:
                yield replace(
                    known[alike], **{each: getattr(row, each) for each in ("case", "pattern", "parameters")}, note=_again(known[alike])
                )
                continue
            if settings.budget is not None and time.perf_counter() - begin > settings.budget:
                yield replace(row, refused=SPENT)
                continue
            try:
                if problem is None:
                    problem, union = make_case(op, settings, tokens, causal, device, compilers)
                if name == OWN:
                    row = replace(row, union=union)
                row = measure(row, _prepare(problem, op, name), backward=settings.backward, graphs=settings.graphs, early=early)
                if name == OWN and not settings.graphs:
                    row = _with_kernels(row, problem, op, settings.backward)
            except Exception as error:  # a contender that fails is a line of the table
                row = replace(row, refused=reason(error))
            clean()
            if name in DENSE and not row.refused:
                known[alike] = row
            yield row
        del problem
        clean()


def _again(row: Row) -> str:
    """The note of a row that is given again."""
    return row.note if row.note.endswith(ONCE) else f"{row.note}; {ONCE}"


def clean() -> None:
    """Give memory back, so that one contender's does not count against the next."""
    gc.collect()
    torch.cuda.empty_cache()


def reason(error: Exception) -> str:
    """A failure in the words of the table."""
    match error:
        case Refused():
            return str(error)
        case torch.cuda.OutOfMemoryError():
            return "out of memory"
        case _:
            text = str(error).strip().split("\n")[0]
            return f"{type(error).__name__}: {text[:160]}"


def _is_causal(pattern: Pattern) -> bool:
    """Whether it is proved that no query sees a later key."""
    try:
        return not leaks(pattern)
    except TooComplex:
        return False


def make_case(
    op: AttentionOp, settings: Settings, tokens: int, causal: bool, device: str, compilers: Compilers | None = None
) -> tuple[Case, float | None]:
    """The problem at one length, and how many blocks four neighbouring queries choose together (None without a choice).

    Peers do not wait for the pattern's own kernels to work: where those that choose fail, pairs and union stay unknown.
    compilers: who compiles them.
    """
    shape = Shape(1, settings.heads, settings.kv_heads, tokens, settings.dim_qk, settings.dim_v)
    dtype = TYPES[settings.dtype]
    inputs = make_inputs(op.pattern, dtype, shape, sharing=settings.sharing, device=device)
    generator = torch.Generator(device=device).manual_seed(1)
    cotangent = token_major((1, settings.heads, tokens, settings.dim_v), dtype, generator)
    blank = Case(op.pattern, shape, inputs, cotangent, causal, None)
    try:
        if compilers is not None:
            for module in modules_of(op, inputs, shape, settings.backward):
                compilers.take_over(module, op.pattern.name)
        chosen = choose(op, inputs)
    except Exception:  # its own row says what failed, when it runs the same kernels
        return blank, None
    pairs = sum(visible_pairs(each, shape, chosen, None) for each in op.signature.computed)
    union = mean_union(next(iter(chosen.values()))) if chosen else None
    return replace(blank, products=Products(pairs, shape.dim_qk, shape.dim_v)), union


def modules_of(op: AttentionOp, inputs: Inputs, shape: Shape, backward: bool) -> list[types.ModuleType]:
    """The generated modules of a call, forward first. backward: and of its gradients."""
    passes = (False, True) if backward else (False,)
    return [op.module(inputs.q, shape.dim_v, kv_heads=shape.kv_heads, backward=each) for each in passes]


def choose(op: AttentionOp, inputs: Inputs) -> dict[str, torch.Tensor]:
    """What the op chooses for these inputs: {choice: blocks}."""
    if not op.signature.choices:
        return {}
    options = {name: value for name, value in inputs.options.items() if name != "gates"}
    return op.choose(inputs.q, inputs.k, inputs.v, **options)


def _prepare(case: Case, op: AttentionOp, name: str) -> Prepared:
    match name:
        case "cudnn" | "flash":
            return prepare_dense(case, name)
        case "flex":
            return prepare_flex(case)
        case "fla":
            return prepare_fla(case)
        case _:
            return prepare_own(case, op)


def measure(row: Row, prepared: Prepared, *, backward: bool, graphs: bool = False, early: Callable[[Row], None] = lambda _: None) -> Row:
    """The row with times and memory filled in. Where backward fails, forward's numbers stay and the row says why. graphs: as of `Settings`.
    early: as of `run`."""
    row = replace(row, note=prepared.note)
    if prepared.mask is not None:
        row = replace(row, mask_first_ms=prepared.mask.first_ms, mask_ms=prepared.mask.ms, mask_gib=prepared.mask.gib)
    with torch.no_grad():
        prepared.forward()
        memory = peak_bytes(prepared.forward)
        ms = _forward_ms(prepared, graphs)
    work = prepared.products
    row = replace(row, forward_ms=ms, forward_gib=memory / 2**30, forward_tflops=tflops(work.forward if work else None, ms))
    if not backward:
        return row
    early(replace(row, refused=UNFINISHED))
    try:
        prepared.both()
        memory = peak_bytes(prepared.both)
        ms = _backward_ms(prepared, graphs)
    except Exception as error:  # as in `run`
        return replace(row, refused=f"backward: {reason(error)}")
    return replace(row, backward_ms=ms, both_gib=memory / 2**30, backward_tflops=tflops(work.backward if work else None, ms))


def _forward_ms(prepared: Prepared, graphs: bool) -> float:
    if not graphs:
        return median_ms(prepared.forward, patience=PATIENCE)
    warm(prepared.forward)
    graph, _ = capture(prepared.forward)
    return median_ms(graph.replay, patience=PATIENCE)


def _backward_ms(prepared: Prepared, graphs: bool) -> float:
    if graphs:
        forward, backward, held = capture_both(prepared)
        forward.replay()
        ms = median_ms(backward.replay, patience=PATIENCE)
        del held
        return ms
    if not prepared.once:
        out = prepared.forward()
        return median_ms(lambda: torch.autograd.grad(out, prepared.leaves, prepared.cotangent, retain_graph=True), patience=PATIENCE)
    outs: list[torch.Tensor] = []
    return median_ms(
        lambda: torch.autograd.grad(outs.pop(), prepared.leaves, prepared.cotangent),
        patience=PATIENCE,
        before=lambda: outs.append(prepared.forward()),
    )


def _with_kernels(row: Row, case: Case, op: AttentionOp, backward: bool) -> Row:
    """The row with the milliseconds of each generated kernel, in one call whose kernels wait for each other as ever."""
    if row.refused:
        return row
    prepared = prepare_own(case, op)
    modules = modules_of(op, case.inputs, case.shape, backward)
    try:
        with torch.set_grad_enabled(backward):
            return replace(row, kernels=time_kernels(modules, prepared.both if backward else prepared.forward))
    except Exception as error:  # as in `run`
        return replace(row, refused=f"kernels one by one: {reason(error)}")
