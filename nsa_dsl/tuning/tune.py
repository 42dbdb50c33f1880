"""Tuning of a pattern on this process's GPU."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
import triton

from nsa_dsl.arguments import Shape
from nsa_dsl.bench.compilers import Compilers
from nsa_dsl.cache import templates_hash
from nsa_dsl.cost import load_model
from nsa_dsl.launch import LaunchShape, Pin
from nsa_dsl.op import card_of
from nsa_dsl.pattern import Pattern
from nsa_dsl.signing import sign
from nsa_dsl.tuned.keys import entry_key, tunable_kernels
from nsa_dsl.tuned.lookup import SHIPPED, keep
from nsa_dsl.tuned.table import Entry, Table
from nsa_dsl.tuning.bench import GpuBench
from nsa_dsl.tuning.candidates import Stand, candidates, find_stands
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


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a search is. done: candidates that were tried at this length, of those planned; seconds: what is left for this length."""

    tokens: int
    done: int
    planned: int
    seconds: float


def tune_pattern(
    pattern: Pattern,
    shapes: list[Shape],
    launch: LaunchShape,
    *,
    budget: float,
    backward: bool = True,
    commit: str = "",
    report: Callable[[Tuned], None] = lambda _: None,
    progress: Callable[[Progress], None] = lambda _: None,
) -> Table:
    """Tune at every one of these sizes, with an equal part of `budget` seconds each (what one leaves goes to the next); entries go to the
    user's cache. In a distributed program rank 0 tunes, and every rank must call.

    launch: head dimensions and element type. commit: what is measured, for the entries to say. report: called after each size; progress:
    after each round. Returns the entries found, as a table. Raises NotSupported.
    """
    card = torch.cuda.get_device_name()
    versions = f"torch {torch.__version__}, triton {triton.__version__}, templates {templates_hash()[:12]}"
    versions += f", commit {commit}" if commit else ""

    def make() -> Table:
        table = Table(card, triton.__version__, templates_hash(), {})
        deadline = time.monotonic() + budget
        with Compilers() as compilers:
            for at, shape in enumerate(shapes):
                share = max(0.0, deadline - time.monotonic()) / (len(shapes) - at)
                made, entries = _tune_one(pattern, shape, launch, share, backward, compilers, progress)
                table = table.with_entries({key: replace(each, versions=versions) for key, each in entries.items()})
                report(made)
        return table

    found = tune_on_first_rank(make)
    keep(card, triton.__version__, found.entries)
    return found


def _tune_one(
    pattern: Pattern,
    shape: Shape,
    launch: LaunchShape,
    budget: float,
    backward: bool,
    compilers: Compilers,
    progress: Callable[[Progress], None],
) -> tuple[Tuned, dict[str, Entry]]:
    launch = LaunchShape(shape.dim_qk, shape.dim_v, launch.dtype, card_of(torch.device("cuda")), templates=launch.templates)
    started = time.monotonic()
    stands = find_stands(pattern, launch, backward=backward)
    tried = _candidates(pattern, shape, launch, stands, backward)

    def left() -> float:
        return max(0.0, budget - (time.monotonic() - started))

    bench = GpuBench(pattern, shape, launch.dtype, stands, compilers, backward=backward)
    try:
        outcome = search(bench, tried, budget=left(), progress=lambda done, of: progress(Progress(shape.tokens, done, of, left())))
    finally:
        del bench
        gc.collect()
        torch.cuda.empty_cache()
    entries: dict[str, Entry] = {}
    for kernel in tunable_kernels(pattern, sign(pattern)):
        if kernel.name in outcome.found and kernel.name in stands:
            # Joined kernels take the tiles of the one that all are timed as, or they would not be joined.
            measured = stands[kernel.name].joined or kernel.name
            name = f"{pattern.name}.{kernel.name}"
            key = entry_key(kernel, launch, shape.tokens, shape.heads, shape.kv_heads)
            entries[key] = _entry(name, measured, stands[measured].pin, outcome, shape.tokens)
    defaults = {name: each.pin for name, each in stands.items()}
    return Tuned(pattern.name, shape.tokens, time.monotonic() - started, outcome, defaults), entries


def _entry(name: str, measured: str, default: Pin, outcome: Outcome, tokens: int) -> Entry:
    found = outcome.found[measured]
    best_ms = None if found.best_ms is None else round(found.best_ms, 4)
    refused = next((why for kernel, pin, why in outcome.refused if (kernel, pin) == (measured, found.best)), "")
    return Entry(name, default, round(found.default_ms, 4), found.best, best_ms, found.wins, tokens, found.tried, refused)


def _candidates(
    pattern: Pattern, shape: Shape, launch: LaunchShape, stands: Mapping[str, Stand], backward: bool
) -> dict[str, tuple[Pin, ...]]:
    """What to try for each kernel; in the order of what is expected of them where something is known of the card."""
    known = SHIPPED.get(torch.cuda.get_device_name())
    if known is None:
        return {name: candidates(each, launch) for name, each in stands.items()}
    work = kernels(pattern, launch, Call(shape.tokens, shape.heads, shape.kv_heads, shape.batch), backward=backward)
    return {name: candidates(each, launch, work.get(name), load_model(known)) for name, each in stands.items()}
