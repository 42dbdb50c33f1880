"""Random relations as a user would write them, with constants so small that their structure shows at short lengths."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import strategies as st

SMALL, SIZE = st.integers(1, 9), st.integers(1, 20)


def _called(name: str, *arguments: st.SearchStrategy[int]) -> st.SearchStrategy[str]:
    return st.tuples(*arguments).map(lambda values: f"{name}({', '.join(map(str, values))})")


@st.composite
def _grids(draw: st.DrawFn) -> str:
    """A window on a small grid; no side of it is longer than the grid's."""
    height, width = draw(st.integers(2, 5)), draw(st.integers(2, 5))
    return f"neighborhood({height}, {width}, {draw(st.integers(1, height))}, {draw(st.integers(1, width))})"


@st.composite
def _conditions(draw: st.DrawFn) -> str:
    """A set builder around one comparison of quasi-affine terms in i, j, h and N."""
    a, b, c = draw(SMALL), draw(SMALL), draw(st.integers(0, 20))
    comparison = draw(st.sampled_from(("<", "<=", ">", ">=", "==", "!=")))
    return draw(
        st.sampled_from(
            (
                f"{{ i, j : i - j {comparison} {c} }}",
                f"{{ i, j : abs(i - j) % {a} < {b} }}",
                f"{{ i, j : {a} * j {comparison} {b} * i + {c} }}",
                f"{{ i, j : (i // {a} + j) % {b + 1} == {c % (b + 1)} }}",
                f"{{ i, j : min(i, {c}) <= j < max(i, N - {c}) }}",
                f"{{ i, j : N - {c} <= j or j // {a} == i // {a} }}",
                f"{{ i, j, h : (j // {a} + h) % {b} == 0 }}",
                f"{{ i, j, h : i - {a} * (h + 1) < j <= i }}",
                f"{{ i, j : 0 <= i // {a} - j // {a} < {b} and not j == {c} }}",
            )
        )
    )


_WAYS: tuple[Callable[[str, str], str], ...] = (
    lambda left, right: f"{left} & {right}",
    lambda left, right: f"({left} | {right})",
    lambda left, right: f"({left} - {right})",
)

_PRELUDE = st.one_of(
    st.just("causal"),
    _called("window", SIZE),
    _called("first", SIZE),
    _called("around", SIZE, SIZE),
    _called("blocks", SIZE),
    _called("dilated", SMALL, SMALL),
    _called("stride", SMALL),
    _called("neighborhood_1d", SMALL),
    st.just("full"),
    _grids(),
    st.builds(lambda b: f"(union p in 0..4 {{ i, j : i // {b} - j // {b} == 2 ** p }})", SMALL),
)


def relations() -> st.SearchStrategy[str]:
    """Static relations as text, causal and not, empty ones too: `causal & (window(3) | first(2))`."""
    return st.recursive(
        st.one_of(_PRELUDE, _PRELUDE, _conditions()),
        lambda inner: st.builds(lambda way, left, right: way(left, right), st.sampled_from(_WAYS), inner, inner),
        max_leaves=3,
    )
