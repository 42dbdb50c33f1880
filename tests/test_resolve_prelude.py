"""The prelude against definitions in Python that share nothing with it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from nsa_dsl.diagnostics import SpecError
from nsa_dsl.loader import load_spec, prelude
from nsa_dsl.relation import allows
from nsa_dsl.resolve.prelude_limits import AT_MOST, LEAST

_SPEC = load_spec("pattern p { output attend(tokens, full) }\n")

Sees = Callable[[int, int], set[int]]
"""(query, tokens) -> the keys it sees."""


def _shifted(i: int, n: int, k: int) -> set[int]:
    """NATTEN's own way of writing it: start left of the query, then move the window back from the border it crosses."""
    left, right = k // 2, k // 2 + (k % 2 - 1)
    start = max(i - left, 0)
    if i + right >= n:
        start += n - right - i - 1
    return set(range(start, start + k))


def _grid(sizes: tuple[int, ...], windows: tuple[int, ...]) -> Sees:
    def places(position: int) -> list[int]:
        result = []
        for size in reversed(sizes):
            result.append(position % size)
            position //= size
        return result[::-1]

    def sees(i: int, n: int) -> set[int]:
        near = [_shifted(*each) for each in zip(places(i), sizes, windows, strict=True)]
        return {j for j in range(n) if all(place in axis for place, axis in zip(places(j), near, strict=True))}

    return sees


_LENGTHS = (1, 2, 7, 24)
_CASES: list[tuple[str, tuple[int, ...], tuple[int, ...], Sees]] = [
    ("full", (), _LENGTHS, lambda _, n: set(range(n))),
    ("causal", (), _LENGTHS, lambda i, _: set(range(i + 1))),
    *(("window", (w,), _LENGTHS, lambda i, _, w=w: {i - back for back in range(w)}) for w in (1, 2, 5, 24, 100)),
    *(("around", (a, b), _LENGTHS, lambda i, _, a=a, b=b: set(range(i - a, i + b + 1))) for a, b in ((0, 0), (3, 0), (2, 5))),
    *(("first", (n,), _LENGTHS, lambda _, __, n=n: set(range(n))) for n in (1, 4, 30)),
    *(("prefix", (n,), _LENGTHS, lambda _, __, n=n: set(range(n))) for n in (1, 4, 30)),
    *(("blocks", (b,), _LENGTHS, lambda i, n, b=b: {j for j in range(n) if i // b == j // b}) for b in (1, 3, 8)),
    *(("dilated", (w, d), _LENGTHS, lambda i, _, w=w, d=d: {i - d * t for t in range(w)}) for w, d in ((1, 1), (4, 1), (3, 4), (9, 2))),
    *(("stride", (s,), _LENGTHS, lambda i, n, s=s: {j for j in range(n) if abs(i - j) % s == 0}) for s in (1, 3, 10)),
    *(("neighborhood_1d", (k,), (k, k + 1, 24), lambda i, n, k=k: _shifted(i, n, k)) for k in (1, 2, 3, 6, 7)),
    *(("neighborhood", (*s, *k), (s[0] * s[1],), _grid(s, k)) for s in ((4, 6), (5, 5)) for k in ((1, 1), (3, 3), (2, 5), (4, 4))),
    *(("neighborhood_3d", (*s, *k), (s[0] * s[1] * s[2],), _grid(s, k)) for s in ((2, 3, 4), (3, 3, 3)) for k in ((1, 3, 3), (2, 2, 3))),
    ("outer_axis", (6, 4, 3), (24,), lambda i, n: {j for j in range(n) if j // 6 in _shifted(i // 6, 4, 3)}),
    ("inner_axis", (2, 3, 2), (24,), lambda i, n: {j for j in range(n) if j // 2 % 3 in _shifted(i // 2 % 3, 3, 2)}),
]


@pytest.mark.parametrize(("name", "arguments", "lengths", "sees"), _CASES)
def test_each_relation_is_what_its_definition_says(name: str, arguments: tuple[int, ...], lengths: tuple[int, ...], sees: Sees) -> None:
    relation = _SPEC.relation(name, *arguments)
    for n in lengths:
        for i in range(n):
            assert {j for j in range(n) if allows(relation, i, j, 0, n)} == sees(i, n) & set(range(n)), (n, i)


@pytest.mark.parametrize(("name", "arguments", "lengths", "sees"), [each for each in _CASES if each[0].startswith("neighborhood")])
def test_every_query_has_the_same_number_of_neighbours(name: str, arguments: tuple[int, ...], lengths: tuple[int, ...], sees: Sees) -> None:
    wanted = 1
    for window in arguments[len(arguments) // 2 :]:
        wanted *= window
    assert {len(sees(i, n)) for n in lengths for i in range(n)} == {wanted}
    relation = _SPEC.relation(name, *arguments)
    assert {sum(allows(relation, i, j, 0, n) for j in range(n)) for n in lengths for i in range(n)} == {wanted}


def test_a_grid_ignores_tokens_beyond_it() -> None:
    relation = _SPEC.relation("neighborhood", 3, 4, 3, 3)
    assert not any(allows(relation, i, j, 0, 30) for i in range(12) for j in range(12, 30))


def test_every_prelude_relation_is_tested_and_has_its_least_arguments() -> None:
    declared = {each.name.text: tuple(p.name.text for p in each.parameters) for each in prelude().declarations}
    assert {name: tuple(least) for name, least in LEAST.items()} == declared
    assert {name for name, *_ in _CASES} == set(declared)
    assert all(bound in declared[name] for name, bounds in AT_MOST.items() for pair in bounds.items() for bound in pair)


@pytest.mark.parametrize("name", [name for name, least in LEAST.items() if least])
def test_arguments_below_the_least_are_refused(name: str) -> None:
    least = list(LEAST[name].values())
    if name not in AT_MOST:
        _SPEC.relation(name, *least)
    for index in range(len(least)):
        below = [value - (place == index) for place, value in enumerate(least)]
        with pytest.raises(SpecError, match="too-small"):
            _SPEC.relation(name, *below)
