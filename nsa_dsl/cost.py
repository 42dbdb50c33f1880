"""How long a kernel takes: a model of a card, with coefficients fitted to measurements (`benchmarks/fit_cost.py`). No torch.

A tile takes as long as its products or its operands' way, whichever is longer; a partial tile a little longer, for its mask; a program some
time more; and programs share the card's multiprocessors, the longest first. Whatever came from memory once must have had the time to.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from nsa_dsl.launch import Pin, Tiles
from nsa_dsl.work import Engine, Kernel, Kind, Work

BATCH = 16
"""Below so many programs a multiprocessor, who is left alone at the end counts."""

_REGISTERS = 240
"""What a thread may hold; measured where the gradients' kernels begin to spill."""


@dataclass(frozen=True, slots=True)
class Rate:
    """One kind of kernel on one engine. tflops: 10^12 operations a second of its tiles on the whole card; partial: how much longer a
    partial tile takes; program_us: what a program takes besides."""

    tflops: float
    partial: float
    program_us: float


@dataclass(frozen=True, slots=True)
class Model:
    """One card. processors: multiprocessors; l2_tbs, memory_tbs: 10^12 bytes a second to all of them; launch_us: of a kernel that does
    nothing; rates: by "engine/kind"; tiles: the tiles that a rate was measured with."""

    card: str
    processors: int
    l2_tbs: float
    memory_tbs: float
    launch_us: float
    rates: Mapping[str, Rate]
    tiles: Mapping[str, Tiles]

    def rate(self, engine: Engine, kind: Kind) -> Rate | None:
        """Measured, or the nearest that was: another kind with as many products, or the plain kernel."""
        like = {"union": "static", "union_queries": "static_queries"}.get(kind, kind)
        found = (self.rates.get(each) for each in (f"{engine}/{kind}", f"{engine}/{like}", f"triton/{kind}", f"triton/{like}"))
        return next((each for each in found if each is not None), None)


@cache
def load_model(card: str) -> Model:
    """The model of a card: "h100" or "h200". Raises KeyError for another. While nothing was measured on the H200 it has the rates of the
    H100, whose multiprocessors are the same."""
    cards = json.loads((files("nsa_dsl") / "tuned" / "cost.json").read_text(encoding="utf-8"))
    found = cards[card]
    measured = found if found["rates"] else cards["h100"]
    rates = {name: Rate(*values) for name, values in measured["rates"].items()}
    tiles = {name: Tiles(*values) for name, values in measured["tiles"].items()}
    return Model(card, found["processors"], found["l2_tbs"], found["memory_tbs"], found["launch_us"], rates, tiles)


def predict_ms(work: Work, model: Model) -> float | None:
    """Milliseconds of a kernel; None for a kind that nobody measured."""
    rate = model.rate(work.engine, work.kind)
    if rate is None:
        return None
    usual = model.tiles.get(f"{work.engine}/{work.kind}", work.tiles)
    speed = rate.tflops * efficiency(work.tiles, work.kind) / efficiency(usual, work.kind)
    return milliseconds(work, model, Rate(speed, rate.partial, rate.program_us))


def milliseconds(work: Work, model: Model, rate: Rate) -> float:
    """Milliseconds of a kernel whose tiles run at this rate."""
    # Microseconds of one multiprocessor. 10^12 a second are 10^6 a microsecond.
    products = work.operations * model.processors / rate.tflops * 1e-6
    operands = work.loaded * model.processors / model.l2_tbs * 1e-6
    tile = max(products, operands)
    programs = (work.full + rate.partial * work.partial) * (tile * work.repeats) + rate.program_us
    total = float(programs.sum()) * work.copies
    count = len(programs) * work.copies
    longest = float(programs.max(initial=0.0))
    if count < BATCH * model.processors:
        # Those left at the end: the last wave is as long as one program, however few there are in it.
        waves = -(-count // model.processors)
        busy = max(total / model.processors, longest, waves * total / max(1, count))
    else:
        busy = total / model.processors + longest / 2
    return max(busy, work.moved / model.memory_tbs * 1e-6) / 1e3 + model.launch_us / 1e3


def efficiency(tiles: Tiles, kind: Kind) -> float:
    """What the size of tiles does to the rate: a warp's matrix instructions want 16 rows of what stays, long steps pay less for what every
    step does, loads want to be ahead, and more than a thread's registers goes through memory. Only ratios mean something."""
    keys_stay = kind in ("static_keys", "chosen_keys")
    stays, moves = (tiles.cols, tiles.rows) if keys_stay else (tiles.rows, tiles.cols)
    height, step = min(1.0, stays / (16 * tiles.warps)), moves / (moves + 10)
    ahead = {1: 0.7, 2: 0.95}.get(tiles.stages, 1.0)
    threads = 32 * tiles.warps
    # Scores and sums (two of each where keys stay, at 128 features), and addresses of what is on its way.
    held = (2 if keys_stay else 1) * (tiles.rows * tiles.cols + stays * 128) / threads + tiles.stages * moves * 64 / threads
    return height * step * ahead / (1 + max(0.0, held - _REGISTERS) / 48)


def order_candidates(kernel: Kernel, candidates: Sequence[Pin], model: Model) -> tuple[Pin, ...]:
    """The candidates, those first that should be fastest; those of the engine that the schedule chose before others, for it had reasons."""

    def predicted(pin: Pin) -> tuple[bool, float]:
        engine: Engine = "gluon" if pin.hopper else "triton"
        ms = predict_ms(kernel.recipe(pin.tiles, engine), model)
        return engine != kernel.engine, math.inf if ms is None else ms

    return tuple(sorted(candidates, key=predicted))
