"""The search: all kernels try a candidate each at the same time, so that one compilation and one call measure one of every kernel."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from nsa_dsl.launch import Pin

GAIN = 0.97
"""A candidate replaces the default if it takes at most this share of its time: less is noise."""

_LEAST_MS = 0.005
"""Kernels that take less are not worth a candidate."""

Pins: TypeAlias = Mapping[str, Pin]


class Bench(Protocol):
    """What the search needs of a card. Both calls may raise whatever a kernel raises that does not compile or does not run."""

    def problems(self, pins: Pins) -> list[str]:
        """What is wrong with results and gradients under these pins; nothing if they may be used."""

    def times(self, pins: Pins) -> dict[str, float]:
        """Milliseconds of each kernel under these pins, those that did not run left out."""


@dataclass(frozen=True, slots=True)
class Found:
    """What is best for one kernel. pin: None for the default."""

    pin: Pin | None
    ms: float
    default_ms: float


@dataclass(slots=True)
class Outcome:
    """What a search found. found: kernels that ran; refused: (kernel, candidate, why); tried: candidates measured; of: there were."""

    found: dict[str, Found]
    tried: int = 0
    of: int = 0
    refused: list[tuple[str, Pin, str]] = field(default_factory=list)


def search(
    bench: Bench,
    candidates: Mapping[str, Sequence[Pin]],
    *,
    budget: float,
    progress: Callable[[int], None] = lambda _: None,
    clock: Callable[[], float] = time.monotonic,
) -> Outcome:
    """The best of the candidates of each kernel, in their order, as far as `budget` seconds go.

    No candidate is timed before results and gradients under it were found right, and what wins is checked once more together. A round
    whose failure cannot be assigned is halved until it can. progress: called with how many candidates are done.
    """
    deadline = clock() + budget
    default = bench.times({})
    left = {name: list(each) for name, each in candidates.items() if default.get(name, 0.0) > _LEAST_MS}
    outcome = Outcome({name: Found(None, ms, ms) for name, ms in default.items()}, of=sum(map(len, left.values())))
    longest = 0.0
    while any(left.values()) and clock() + longest <= deadline:
        started = clock()
        turn = {name: each.pop(0) for name, each in left.items() if each}
        _try(bench, turn, outcome, deadline, clock)
        longest = max(longest, clock() - started)
        progress(outcome.tried + len(outcome.refused))
    _confirm(bench, outcome)
    return outcome


def _try(bench: Bench, turn: Pins, outcome: Outcome, deadline: float, clock: Callable[[], float]) -> None:
    """Measure one candidate of each kernel; where something is wrong, each half of them alone."""
    problem, times = _measure(bench, turn)
    if problem is None:
        for name, pin in turn.items():
            best = outcome.found[name]
            outcome.tried += 1
            if name in times and times[name] < best.ms:
                outcome.found[name] = Found(pin, times[name], best.default_ms)
    elif len(turn) == 1:
        ((name, pin),) = turn.items()
        outcome.refused.append((name, pin, problem))
    else:
        names = list(turn)
        for half in (names[: len(names) // 2], names[len(names) // 2 :]):
            if clock() < deadline:
                _try(bench, {name: turn[name] for name in half}, outcome, deadline, clock)


def _measure(bench: Bench, pins: Pins) -> tuple[str | None, dict[str, float]]:
    """What is wrong, or the times."""
    try:
        wrong = bench.problems(pins)
        return ("; ".join(wrong[:3]), {}) if wrong else (None, bench.times(pins))
    except Exception as error:  # whatever a candidate raises is a reason not to use it
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200] if str(error).strip() else ''}", {}


def _confirm(bench: Bench, outcome: Outcome) -> None:
    """Keep what wins by more than noise, if all of it together is right, and faster once more."""
    for name, each in outcome.found.items():
        if each.pin is not None and each.ms > GAIN * each.default_ms:
            outcome.found[name] = Found(None, each.default_ms, each.default_ms)
    winners = {name: each.pin for name, each in outcome.found.items() if each.pin is not None}
    if not winners:
        return
    problem, times = _measure(bench, winners)
    for name, pin in winners.items():
        best = outcome.found[name]
        if problem is not None or times.get(name, best.ms) > GAIN * best.default_ms:
            outcome.found[name] = Found(None, best.default_ms, best.default_ms)
            outcome.refused.append((name, pin, problem or "the gain was noise"))
        else:
            outcome.found[name] = Found(pin, times.get(name, best.ms), best.default_ms)
