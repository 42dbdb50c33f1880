"""Random relations, small enough that brute force checks them."""

from __future__ import annotations

from hypothesis import strategies as st

from nsa_dsl.relation import (
    Absolute,
    All,
    Compare,
    Condition,
    Const,
    Either,
    Extreme,
    FloorDiv,
    Modulo,
    Not,
    SameDocument,
    Scale,
    Sum,
    Term,
    Truth,
    Var,
)

I, J, H, N, HEADS = Var("i"), Var("j"), Var("h"), Var("N"), Var("heads")  # noqa: E741 - the names that relations use
OPERATORS = ("<", "<=", ">", ">=", "==", "!=")


def plus(*terms: Term | int) -> Term:
    """The sum of terms and integers."""
    return Sum(tuple(Const(each) if isinstance(each, int) else each for each in terms))


def minus(left: Term, right: Term | int) -> Term:
    """left - right."""
    return plus(left, -right if isinstance(right, int) else Scale(-1, right))


def window(width: int) -> Condition:
    """i - width < j <= i."""
    return All((Compare("<", minus(I, width), J), Compare("<=", J, I)))


def neighbourhood(height: int, width: int, tall: int, wide: int) -> Condition:
    """The tall x wide neighbours in a row-major grid, the window shifted, not cut, at the borders."""

    def near(query: Term, key: Term, size: int, extent: int) -> Condition:
        low = Extreme("max", (Extreme("min", (minus(query, extent // 2), Const(size - extent))), Const(0)))
        return All((Compare("<=", low, key), Compare("<", key, plus(low, extent))))

    return All((near(FloorDiv(I, width), FloorDiv(J, width), height, tall), near(Modulo(I, width), Modulo(J, width), width, wide)))


def powers(block: int, width: int, most: int) -> Condition:
    """Blocks at distance below width, and at every power of two."""
    distance = minus(FloorDiv(I, block), FloorDiv(J, block))
    return Either((Compare("<", distance, Const(width)), *(Compare("==", distance, Const(2**p)) for p in range(most))))


@st.composite
def terms(draw: st.DrawFn, depth: int = 2) -> Term:
    """Quasi-affine terms, of either sign."""
    kind = draw(st.integers(0, 6)) if depth else 0
    match kind:
        case 0:
            return draw(st.sampled_from((I, J, I, J, H, N, HEADS)) | st.integers(-12, 12).map(Const))
        case 1:
            return Sum(tuple(draw(st.lists(terms(depth - 1), min_size=1, max_size=3))))
        case 2:
            return Scale(draw(st.integers(-3, 3)), draw(terms(depth - 1)))
        case 3:
            return FloorDiv(draw(terms(depth - 1)), draw(st.integers(1, 9)))
        case 4:
            return Modulo(draw(terms(depth - 1)), draw(st.integers(1, 9)))
        case 5:
            return Extreme(draw(st.sampled_from(("min", "max"))), tuple(draw(st.lists(terms(depth - 1), min_size=1, max_size=3))))
        case _:
            return Absolute(draw(terms(depth - 1)))


def comparisons() -> st.SearchStrategy[Condition]:
    """One comparison of two random terms."""
    return st.builds(Compare, st.sampled_from(OPERATORS), terms(), terms())


def usual() -> st.SearchStrategy[Condition]:
    """The relations that people write, with small random numbers."""
    small, size = st.integers(1, 9), st.integers(1, 20)
    distance = minus(I, J)
    return st.one_of(
        st.sampled_from((Truth(True), Truth(False), Compare("<=", J, I), Compare(">", J, I))),
        size.map(window),
        size.map(lambda n: Compare("<", J, Const(n))),
        st.builds(lambda left, right: All((Compare("<=", minus(I, left), J), Compare("<=", J, plus(I, right)))), size, size),
        size.map(lambda b: Compare("==", FloorDiv(I, b), FloorDiv(J, b))),
        small.map(lambda s: Compare("==", Modulo(distance, s), Const(0))),
        st.builds(lambda b, s: Compare("==", Modulo(plus(FloorDiv(J, b), H), s), Const(0)), small, small),
        size.map(lambda w: Compare("<", Absolute(distance), Const(w))),
        size.map(lambda w: Compare(">=", J, minus(N, w))),
        st.builds(powers, small, small, st.integers(1, 4)),
        st.builds(neighbourhood, st.integers(3, 6), st.integers(3, 6), st.integers(1, 3), st.integers(1, 3)),
    )


def relations() -> st.SearchStrategy[Condition]:
    """Static relations over i, j, h, N and heads, without choices: every kind of node, empty and non-causal ones too.
    SameDocument stands outside every Not: it only ever removes pairs."""
    plain = st.recursive(
        usual() | comparisons(),
        lambda inner: st.one_of(
            st.lists(inner, min_size=1, max_size=3).map(lambda parts: All(tuple(parts))),
            st.lists(inner, min_size=1, max_size=3).map(lambda parts: Either(tuple(parts))),
            inner.map(Not),
        ),
        max_leaves=4,
    )
    return plain | plain.map(lambda relation: All((relation, SameDocument())))
