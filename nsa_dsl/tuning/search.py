"""The search: all kernels try a candidate each at the same time, so that one call measures one of every kernel."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeAlias

from nsa_dsl.launch import Pin

GAIN = 0.97
"""A candidate replaces the default if it takes at most this share of its time: less is noise."""

LEAST_SHARE = 0.02
"""Kernels that take a smaller part of the whole keep their tiles: nothing is to be had there, and those that look whether they are needed
and leave would be judged by how they leave."""

AHEAD = 4
"""Rounds whose candidates are compiled together."""

QUICK_RUNS, SURE_RUNS = 3, 9
"""Calls that a time is the median of: a candidate's first one, and those that decide."""

Pins: TypeAlias = Mapping[str, Pin]


class KernelFailed(Exception):  # noqa: N818 - reads as a statement where it is raised
    """One kernel could not be launched; str() says why."""

    def __init__(self, kernel: str, why: str) -> None:
        """kernel: by the name that candidates are listed by."""
        super().__init__(why)
        self.kernel = kernel


class Bench(Protocol):
    """What the search needs of a card. Its calls may raise whatever a kernel raises that does not compile or does not run, as KernelFailed
    where it is known which one it was. check_seconds: what a thorough check takes, or less."""

    check_seconds: float

    def prepare(self, turns: Sequence[Pins]) -> None:
        """Compile what calls under each of these pins will launch. Raises nothing."""

    def problems(self, pins: Pins, *, thorough: bool = False) -> list[str]:
        """What is wrong with results and gradients under these pins, by a short call; thorough: by all means there are."""

    def times(self, pins: Pins, runs: int) -> dict[str, float]:
        """Milliseconds of each kernel under these pins, those that did not run left out: medians of so many calls."""


@dataclass(frozen=True, slots=True)
class Found:
    """What was measured of one kernel. best: the fastest candidate, None if none was timed; wins: whether it goes before the
    default; tried: candidates that were timed."""

    default_ms: float
    best: Pin | None = None
    best_ms: float | None = None
    wins: bool = False
    tried: int = 0

    @property
    def pin(self) -> Pin | None:
        """The choice: None for the default."""
        return self.best if self.wins else None

    @property
    def ms(self) -> float:
        """The time of the choice."""
        return self.best_ms if self.wins and self.best_ms is not None else self.default_ms


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
    progress: Callable[[int, int], None] = lambda _, __: None,
    clock: Callable[[], float] = time.monotonic,
) -> Outcome:
    """The best of the candidates of each kernel, in their order, as far as `budget` seconds go.

    No candidate is timed before a short call under it gave the default's results and gradients; what wins is checked thoroughly, together,
    and timed once more. A round whose failure cannot be assigned is halved until it can. progress: called with how many candidates are
    done, and how many are planned.
    """
    deadline = clock() + budget
    default = bench.times({}, SURE_RUNS)
    worth = LEAST_SHARE * sum(default.values())
    left = {name: each for name, each in candidates.items() if each and default.get(name, 0.0) > worth}
    outcome = Outcome({name: Found(ms) for name, ms in default.items()}, of=sum(map(len, left.values())))
    turns = [{name: each[at] for name, each in left.items() if at < len(each)} for at in range(max(map(len, left.values()), default=0))]
    progress(0, outcome.of)
    round_seconds = compiling_seconds = 0.0
    for at, turn in enumerate(turns):
        # What wins needs a check and a round of its own, at the end.
        if clock() + 2 * round_seconds + bench.check_seconds + (compiling_seconds if at % AHEAD == 0 else 0.0) > deadline:
            break
        started = clock()
        if at % AHEAD == 0:
            bench.prepare(turns[at : at + AHEAD])
            compiling_seconds = clock() - started
            started = clock()
        _try(bench, turn, outcome, deadline, clock)
        round_seconds = max(round_seconds, clock() - started)
        progress(outcome.tried + len(outcome.refused), outcome.of)
    _confirm(bench, outcome, deadline, clock)
    return outcome


def _try(bench: Bench, turn: Pins, outcome: Outcome, deadline: float, clock: Callable[[], float]) -> None:
    """Measure one candidate of each kernel; without those that are known to fail, and where that is not known, each half of them alone."""
    try:
        wrong = bench.problems(turn)
        times = {} if wrong else bench.times(turn, QUICK_RUNS)
    except KernelFailed as failed:
        if failed.kernel in turn:
            outcome.refused.append((failed.kernel, turn[failed.kernel], str(failed)))
            rest = {name: pin for name, pin in turn.items() if name != failed.kernel}
            if rest and clock() < deadline:
                _try(bench, rest, outcome, deadline, clock)
            return
        wrong = [f"{failed.kernel}: {failed}"]
    except Exception as error:  # whatever a candidate raises is a reason not to use it
        wrong = [described(error)]
    if not wrong:
        for name, pin in turn.items():
            found = outcome.found[name]
            outcome.tried += 1
            if name in times:
                found = replace(found, tried=found.tried + 1)
                if found.best_ms is None or times[name] < found.best_ms:
                    found = replace(found, best=pin, best_ms=times[name])
                outcome.found[name] = found
    elif len(turn) == 1:
        ((name, pin),) = turn.items()
        outcome.refused.append((name, pin, "; ".join(wrong[:3])))
    else:
        names = list(turn)
        for half in (names[: len(names) // 2], names[len(names) // 2 :]):
            if clock() < deadline:
                _try(bench, {name: turn[name] for name in half}, outcome, deadline, clock)


def described(error: Exception) -> str:
    """An exception in one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200] if lines else ''}"


def _confirm(bench: Bench, outcome: Outcome, deadline: float, clock: Callable[[], float]) -> None:
    """Keep what wins by more than noise, if all of it together is right, and faster once more."""
    winners = {
        name: each.best
        for name, each in outcome.found.items()
        if each.best is not None and each.best_ms is not None and each.best_ms <= GAIN * each.default_ms
    }
    right, times = _right_together(bench, winners, outcome, lambda: clock() < deadline)
    for name in right:
        found = outcome.found[name]
        ms = times.get(name, found.best_ms)
        wins = ms is not None and ms <= GAIN * found.default_ms
        outcome.found[name] = replace(found, best_ms=ms, wins=wins)
        if not wins:
            outcome.refused.append((name, winners[name], "the gain was noise"))


def _right_together(bench: Bench, winners: Pins, outcome: Outcome, in_time: Callable[[], bool]) -> tuple[Pins, dict[str, float]]:
    """Those that hold a thorough check, and their times: all of them, or else those that hold it alone, as far as there is time to ask, if
    these do so together."""
    if not winners:
        return {}, {}
    problem, times = _measure_thoroughly(bench, winners)
    if problem is None:
        return winners, times
    alone = dict.fromkeys(winners, problem)
    right: dict[str, Pin] = {}
    for name, pin in winners.items():
        if len(winners) > 1 and in_time():
            own, _ = _measure_thoroughly(bench, {name: pin})
            if own is None:
                right[name] = pin
            else:
                alone[name] = own
    again: str | None = problem
    # All of them would be those that are known to be wrong together.
    if 0 < len(right) < len(winners):
        again, times = _measure_thoroughly(bench, right)
    kept = right if again is None else {}
    outcome.refused += [(name, pin, alone[name]) for name, pin in winners.items() if name not in kept]
    return kept, times


def _measure_thoroughly(bench: Bench, pins: Pins) -> tuple[str | None, dict[str, float]]:
    """What is wrong, or the times."""
    try:
        wrong = bench.problems(pins, thorough=True)
        return ("; ".join(wrong[:3]), {}) if wrong else (None, bench.times(pins, SURE_RUNS))
    except Exception as error:  # as for a candidate
        return described(error), {}
