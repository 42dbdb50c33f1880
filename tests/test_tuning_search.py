"""How the search for tiles goes, on a bench whose kernels take made-up times."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from nsa_dsl.launch import Pin, Tiles
from nsa_dsl.tuning.search import AHEAD, KernelFailed, Pins, search

SMALL, LARGE = Pin(Tiles(64, 64, 4, 2)), Pin(Tiles(128, 32, 8, 2))


class Made:
    """A bench: milliseconds by kernel and tiles; `wrong` are pins that together give wrong results, `ragged` pins of which only a thorough
    check says so, `broken` pins that do not run, `nameless` if nobody says which of them."""

    check_seconds = 0.0

    def __init__(
        self,
        times: dict[str, dict[Pin | None, float]],
        wrong: Pins | None = None,
        ragged: Pins | None = None,
        broken: Pins | None = None,
        nameless: bool = False,
    ) -> None:
        self.table, self.wrong, self.ragged, self.broken, self.nameless = times, wrong, ragged, broken, nameless
        self.now, self.timed, self.prepared = 0.0, list[dict[str, Pin]](), list[int]()

    def prepare(self, turns: Sequence[Pins]) -> None:
        self.prepared.append(len(turns))

    def problems(self, pins: Pins, *, thorough: bool = False) -> list[str]:
        if self.broken and self.broken.items() <= pins.items():
            (kernel,) = self.broken
            raise RuntimeError("out of resource") if self.nameless else KernelFailed(kernel, "out of resource: shared memory")
        wrong = [self.wrong, self.ragged] if thorough else [self.wrong]
        return ["the output is off"] if any(each and each.items() <= pins.items() for each in wrong) else []

    def times(self, pins: Pins, runs: int) -> dict[str, float]:  # noqa: ARG002
        self.now += 1.0
        self.timed.append(dict(pins))
        return {name: each[pins.get(name)] for name, each in self.table.items()}


def test_every_kernel_gets_its_own_best_in_common_rounds() -> None:
    bench = Made({"a": {None: 2.0, SMALL: 1.0, LARGE: 3.0}, "b": {None: 2.0, SMALL: 2.5, LARGE: 1.5}, "rest": {None: 1.0}})
    outcome = search(bench, {"a": [SMALL, LARGE], "b": [SMALL, LARGE]}, budget=100, clock=lambda: bench.now)
    assert {name: each.pin for name, each in outcome.found.items()} == {"a": SMALL, "b": LARGE, "rest": None}
    assert (outcome.tried, outcome.of, outcome.refused) == (4, 4, [])
    # The default, two rounds of both kernels at once, and what won.
    assert len(bench.timed) == 4


@pytest.mark.parametrize("nameless", [False, True])
def test_what_is_wrong_or_does_not_run_never_wins_and_costs_the_others_nothing(nameless: bool) -> None:
    times = {"a": {None: 2.0, SMALL: 0.1, LARGE: 1.0}, "b": {None: 2.0, SMALL: 1.0, LARGE: 0.1}}
    bench = Made(times, wrong={"a": SMALL}, broken={"b": LARGE}, nameless=nameless)
    outcome = search(bench, {"a": [SMALL, LARGE], "b": [SMALL, LARGE]}, budget=100, clock=lambda: bench.now)
    assert {name: each.pin for name, each in outcome.found.items()} == {"a": LARGE, "b": SMALL}
    assert [(name, pin) for name, pin, _ in outcome.refused] == [("a", SMALL), ("b", LARGE)]
    assert "off" in outcome.refused[0][2]
    assert "out of resource" in outcome.refused[1][2]


def test_winners_that_are_wrong_together_are_given_up() -> None:
    bench = Made({"a": {None: 2.0, SMALL: 1.0}, "b": {None: 2.0, LARGE: 1.0, SMALL: 2.5}}, wrong={"a": SMALL, "b": LARGE})
    outcome = search(bench, {"a": [SMALL], "b": [SMALL, LARGE]}, budget=100, clock=lambda: bench.now)
    assert all(each.pin is None and each.ms == each.default_ms for each in outcome.found.values())
    assert [(name, pin) for name, pin, _ in outcome.refused] == [("a", SMALL), ("b", LARGE)]


def test_a_winner_that_a_thorough_check_refuses_costs_the_others_nothing() -> None:
    bench = Made({"a": {None: 2.0, SMALL: 1.0}, "b": {None: 2.0, LARGE: 1.0}}, ragged={"a": SMALL})
    outcome = search(bench, {"a": [SMALL], "b": [LARGE]}, budget=100, clock=lambda: bench.now)
    assert {name: each.pin for name, each in outcome.found.items()} == {"a": None, "b": LARGE}
    assert outcome.refused == [("a", SMALL, "the output is off")]


def test_kernels_that_take_no_part_of_the_time_keep_their_tiles() -> None:
    bench = Made({"a": {None: 9.0, SMALL: 5.0}, "exits": {None: 0.1, SMALL: 0.01}})
    outcome = search(bench, {"a": [SMALL], "exits": [SMALL]}, budget=100, clock=lambda: bench.now)
    assert {name: each.pin for name, each in outcome.found.items()} == {"a": SMALL, "exits": None}
    assert outcome.of == 1


def test_noise_does_not_win_and_the_budget_ends_the_search() -> None:
    noisy = Made({"a": {None: 2.0, SMALL: 1.99}})
    assert search(noisy, {"a": [SMALL]}, budget=100, clock=lambda: noisy.now).found["a"].pin is None
    pins = [Pin(Tiles(16 << n, 16, 4, 1)) for n in range(5)]
    slow = Made({"a": {None: 9.0, **dict(zip(pins, (8.0, 7.0, 6.0, 5.0, 4.0), strict=True))}})
    said = list[tuple[int, int]]()
    outcome = search(slow, {"a": pins}, budget=4.5, progress=lambda *each: said.append(each), clock=lambda: slow.now)
    # The default, two candidates, and the better one once more: a third would have been too late.
    assert (outcome.tried, outcome.of, slow.now) == (2, 5, 4.0)
    assert outcome.found["a"].pin == pins[1]
    assert said == [(0, 5), (1, 5), (2, 5)]
    # Those that would have come next were compiled with them.
    assert slow.prepared == [AHEAD]
