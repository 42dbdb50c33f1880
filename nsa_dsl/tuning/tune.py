"""Tuning of a pattern on this process's GPU."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import triton

from nsa_dsl.arguments import Shape
from nsa_dsl.cache import templates_hash
from nsa_dsl.cost import load_model, order_candidates
from nsa_dsl.launch import LaunchShape, Pin
from nsa_dsl.op import card_of
from nsa_dsl.pattern import Pattern
from nsa_dsl.signing import sign
from nsa_dsl.tuned.keys import entry_key, tunable_kernels
from nsa_dsl.tuned.lookup import SHIPPED, keep
from nsa_dsl.tuned.table import Entry, Table
from nsa_dsl.tuning.bench import GpuBench
from nsa_dsl.tuning.candidates import candidates, find_stands
from nsa_dsl.tuning.ranks import tune_on_first_rank
from nsa_dsl.tuning.search import Outcome, search
from nsa_dsl.work import Call, kernels


@dataclass(frozen=True, slots=True)
class Tuned:
    """What was found at one length. defaults: how each kernel runs without being tuned."""

    pattern: str
    tokens: int
    seconds: float
    outcome: Outcome
    defaults: dict[str, Pin]


def tune_pattern(
    pattern: Pattern,
    shapes: list[Shape],
    launch: LaunchShape,
    *,
    budget: float,
    backward: bool = True,
    report: Callable[[Tuned], None] = lambda _: None,
    progress: Callable[[int, int], None] = lambda _, __: None,
) -> Table:
    """Tune at every one of these sizes, with an equal part of `budget` seconds each (what one leaves goes to the next); entries go to the
    user's cache. In a distributed program rank 0 tunes, and every rank must call.

    launch: head dimensions and element type. report: called after each size; progress: with candidates done, and how many there are.
    Returns the entries found, as a table. Raises NotSupported.
    """
    card = torch.cuda.get_device_name()

    def make() -> Table:
        table = Table(card, triton.__version__, templates_hash(), {})
        deadline = time.monotonic() + budget
        for at, shape in enumerate(shapes):
            share = max(0.0, deadline - time.monotonic()) / (len(shapes) - at)
            made, entries = _tune_one(pattern, shape, launch, share, backward, progress)
            table = table.with_entries(entries)
            report(made)
        return table

    found = tune_on_first_rank(make)
    keep(card, triton.__version__, found.entries)
    return found


def _tune_one(
    pattern: Pattern, shape: Shape, launch: LaunchShape, budget: float, backward: bool, progress: Callable[[int, int], None]
) -> tuple[Tuned, dict[str, Entry]]:
    launch = LaunchShape(shape.dim_qk, shape.dim_v, launch.dtype, card_of(torch.device("cuda")), templates=launch.templates)
    started = time.monotonic()
    stands = find_stands(pattern, launch, backward=backward)
    tried = {name: candidates(each, launch) for name, each in stands.items()}
    known = SHIPPED.get(torch.cuda.get_device_name())
    if known is not None:
        work = kernels(pattern, launch, Call(shape.tokens, shape.heads, shape.kv_heads, shape.batch), backward=backward)
        model = load_model(known)
        tried |= {name: order_candidates(work[name], each, model) for name, each in tried.items() if name in work}
    total = sum(map(len, tried.values()))
    progress(0, total)
    bench = GpuBench(pattern, shape, launch.dtype, stands, backward=backward)
    try:
        outcome = search(bench, tried, budget=max(0.0, budget - (time.monotonic() - started)), progress=lambda done: progress(done, total))
    finally:
        del bench
        gc.collect()
        torch.cuda.empty_cache()
    entries: dict[str, Entry] = {}
    for kernel in tunable_kernels(pattern, sign(pattern)):
        if kernel.name in outcome.found and kernel.name in stands:
            best = outcome.found[kernel.name]
            key = entry_key(kernel, launch, shape.tokens, shape.heads, shape.kv_heads)
            entries[key] = Entry(best.pin or stands[kernel.name].pin, round(best.ms, 4), round(best.default_ms, 4), shape.tokens)
    defaults = {name: each.pin for name, each in stands.items()}
    return Tuned(pattern.name, shape.tokens, time.monotonic() - started, outcome, defaults), entries
