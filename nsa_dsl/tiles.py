"""From a relation to loops over tiles: which key tiles a query tile visits, and which of them need no mask.

A tile is `rows` query positions by `cols` key positions. With symbolic sequence length and head, isl projects the relation
onto tiles, splits the tiles into full and partial ones and turns each part into loops:

    causal, 128 x 64:   full     0 <= t < 2 * tile
                        partial  2 * tile <= t < min(2 * tile + 2, (N - 1) // 64 + 1)

Nothing here depends on the data, and no list of tiles is ever stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Literal, TypeAlias

import islpy as isl

from nsa_dsl.integer_set import (
    PARAMETERS,
    TooComplex,
    condition_of,
    enum_name,
    is_exhausted,
    limited,
    pair_space,
    term_of,
    to_affine,
    to_set,
)
from nsa_dsl.relation import FULL, Compare, Condition, Const, Extreme, FloorDiv, Modulo, Term, Var, conjunction, disjunction, rewrite, walk
from nsa_dsl.terms import MOST_TOKENS, push_negation, scaled, sum_of

Side: TypeAlias = Literal["keys", "queries"]


@dataclass(frozen=True, slots=True)
class Piece:
    """Tiles low, low + step, ... < high of the inner loop, for one tile of the outer one.

    low, high: over tile (the outer tile's index), N, h, heads and kv_heads; high <= low means none. full: every pair of
    positions in these tiles is allowed, also for queries at or past N where the last query tile sticks out, and every key
    of them exists. guard: the piece is empty unless this holds, over the same symbols. inner: only tiles that satisfy this,
    over Var("j") = the inner tile's index as well, belong to the piece.
    """

    low: Term
    high: Term
    step: int
    full: bool
    guard: Condition | None = None
    inner: Condition | None = None


@dataclass(frozen=True, slots=True)
class Tiling:
    """Pairwise disjoint pieces. exact: together they hold exactly the tiles with an allowed pair; otherwise, every tile
    that exists, as partial: right, but slow."""

    pieces: tuple[Piece, ...]
    exact: bool


_MOST_DIVISIONS = 16


def _divisions(relation: Condition) -> int:
    """How many different `//` and `%` there are."""
    return len({each for each in walk(relation) if isinstance(each, FloorDiv | Modulo)})


@lru_cache(maxsize=512)  # one pattern is compiled for many head dimensions and types, and its tiles depend on neither
def tiling(
    relation: Condition,
    rows: int,
    cols: int,
    *,
    keys: Term = Var("N"),  # noqa: B008
    most: int = 8,
    over: Side = "keys",
) -> Tiling:
    """The key tiles that hold a pair which query tile `tile`, queries [tile * rows, tile * rows + rows) below N, allows; or, over queries,
    the query tiles that hold one which key tile `tile` allows.

    relation: over i, j, h, N, heads, kv_heads, without choices; SameDocument counts as true, the caller masks it. keys: the number of
    key positions as a term in N. most: more pieces than this are merged, at the price of an `inner`. A relation too hard for isl gives
    every tile as partial. Raises ValueError for a choice.
    """
    # Projecting many divisions at once takes isl minutes in steps that it does not count.
    hopeless = _divisions(relation) > _MOST_DIVISIONS
    for split in () if hopeless else (True, False):
        try:
            with limited() as context:
                return Tiling(_exact_pieces(_TileSets(context, relation, rows, cols, keys, over), most, split), True)
        except TooComplex:
            continue
    count = FloorDiv(sum_of(Var("N"), Const(rows - 1)), rows) if over == "queries" else FloorDiv(sum_of(keys, Const(cols - 1)), cols)
    return Tiling((Piece(Const(0), Extreme("max", (Const(0), count)), 1, False),), False)


def _exact_pieces(sets: _TileSets, most: int, split: bool) -> tuple[Piece, ...]:
    """Loops over full and partial tiles apart if split, otherwise over all as partial. Of isl's ways to make loops those with
    the fewest conditions inside loops, then the first, that are proved to visit the tiles they should; if isl decides for none of them,
    the first that it does not refute. Raises TooComplex if every way takes too many pieces."""
    visited = sets.visited()
    parts = [(visited, False)]
    if split:
        full = sets.full()
        parts = [(full, True), (visited.subtract(full), False)]
    choices: list[tuple[tuple[int, int], tuple[tuple[Piece, ...], ...]]] = []
    for ways in product(*(_ways(sets, tiles, is_full) for tiles, is_full in parts)):
        pieces = tuple(each for _, loops in ways for each in loops)
        if len(pieces) <= most:
            rank = sum(each.inner is not None for each in pieces), sum(order for order, _ in ways)
            choices.append((rank, tuple(loops for _, loops in ways)))
    undecided: tuple[tuple[Piece, ...], ...] | None = None
    for _, nest in sorted(choices, key=lambda choice: choice[0]):
        verdicts = [sets.proved(tiles, loops) for (tiles, _), loops in zip(parts, nest, strict=True)]
        if all(verdicts):
            return tuple(each for loops in nest for each in loops)
        if undecided is None and False not in verdicts:
            undecided = nest
    if undecided is None:
        raise TooComplex(f"more than {most} pieces, or loops that miss tiles")
    return tuple(each for loops in undecided for each in loops)


def _ways(sets: _TileSets, tiles: isl.Set, full: bool) -> list[tuple[int, tuple[Piece, ...]]]:
    """The loops that each of _WAYS makes, as far as pieces can say them, with its place in the order; one is enough if it is
    short and simple."""
    found: list[tuple[int, tuple[Piece, ...]]] = []
    for order, way in enumerate(_WAYS):
        if way in _STRIDES and any(all(each.inner is None for each in pieces) for _, pieces in found):
            break
        try:
            pieces = sets.loops(tiles, full, way)
        except TooComplex:
            continue
        except isl.Error:
            if not found or not is_exhausted(sets.context):
                raise
            break
        found.append((order, pieces))
        if len(pieces) <= _SHORT and all(each.inner is None for each in pieces):
            break
    return found


_SHORT = 4
_MOST_UNDECIDED = 2
_MOST_PARTS = 24
_Way: TypeAlias = Literal["separate", "disjoint", "default", "atomic", "halves", "quarters"]
_WAYS: tuple[_Way, ...] = ("separate", "disjoint", "default", "atomic", "halves", "quarters")
"""isl's loop types (as many loops as it takes, what it finds best, one loop around a condition), and a loop nest for each
convex part by itself, which keeps apart the strides of parts that interleave. Last, loops over every second and fourth tile: where
a relation takes blocks of so many tiles at a stride, isl sees the stride of each, but not that of all together."""

_STRIDES: dict[_Way, int] = {"halves": 2, "quarters": 4}


class _TileSets:
    """The tiles of one relation as sets of inner tile indices, with the outer tile's index as a parameter."""

    def __init__(self, context: isl.Context, relation: Condition, rows: int, cols: int, keys: Term, over: Side) -> None:
        space = pair_space(context)
        self.context = context
        self.some = to_set(relation, context)
        self.all = to_set(relation, context, across_documents=False)
        last_key = to_affine(sum_of(keys, Const(-1)), space)
        self.existing_keys = to_affine(Var("j"), space).le_set(last_key)
        parameters = f"[{', '.join(PARAMETERS)}, tile]"
        query_tile, key_tile = ("tile", "t") if over == "keys" else ("t", "tile")
        self.to_tiles = isl.Map(
            f"{parameters} -> {{ [i, j] -> [t] : {rows} {query_tile} <= i < {rows} {query_tile} + {rows}"
            f" and {cols} {key_tile} <= j < {cols} {key_tile} + {cols} }}",
            context=context,
        )
        outer = f"{rows} tile < N" if over == "keys" else "1 = 1"
        self.known = isl.Set(
            f"{parameters} -> {{ : 0 <= tile and {outer} and 1 <= N <= {MOST_TOKENS} and 0 <= h < heads and 1 <= kv_heads <= heads }}",
            context=context,
        )
        if over == "queries":
            exists = self.existing_keys.lower_bound_val(isl.dim_type.set, 1, isl.Val.zero(context)).apply(self.to_tiles)
            self.known = self.known.intersect(exists.params())
        self.queries = isl.Set("[N] -> { [i, j] : 0 <= i < N and 0 <= j }", context=context)
        self._verdicts: dict[tuple[Piece, ...], bool | None] = {}
        self._undecided = 0
        self.beyond = isl.Set(f"[N] -> {{ [i, j] : 0 <= i and {rows} * floor(i / {rows}) < N and 0 <= j }}", context=context)

    def visited(self) -> isl.Set:
        """Tiles with an allowed pair."""
        return self._project(self.some.intersect(self.queries).intersect(self.existing_keys))

    def full(self) -> isl.Set:
        """Tiles whose every pair is allowed, queries past N in the last query tile included."""
        forbidden = self.beyond.subtract(self.all.intersect(self.existing_keys))
        return self.visited().subtract(self._project(forbidden)).coalesce()

    def _project(self, pairs: isl.Set) -> isl.Set:
        return pairs.apply(self.to_tiles).intersect_params(self.known).coalesce()

    def proved(self, tiles: isl.Set, pieces: tuple[Piece, ...]) -> bool | None:
        """Whether the pieces are these tiles; None if that takes too long. isl's loops have been seen to lose some: for blocks at a
        stride that differs by row, those of every second outer tile."""
        if pieces not in self._verdicts:
            # A proof has operations of its own.
            self.context.reset_operations()
            try:
                self._verdicts[pieces] = self._are(tiles, pieces) if self._undecided < _MOST_UNDECIDED else None
            except isl.Error:
                if not is_exhausted(self.context):
                    raise
                self._verdicts[pieces] = None
                self._undecided += 1
            finally:
                self.context.reset_operations()
        return self._verdicts[pieces]

    def _are(self, tiles: isl.Set, pieces: tuple[Piece, ...]) -> bool:
        """Whether the pieces are exactly these tiles, for every outer tile, head and length."""
        inner = Var("j")
        conditions = (
            conjunction(
                Compare("<=", each.low, inner),
                Compare("<", inner, each.high),
                Compare("==", Modulo(sum_of(inner, scaled(-1, each.low)), each.step), Const(0)),
                *(condition for condition in (each.guard, each.inner) if condition is not None),
            )
            for each in pieces
        )
        made = to_set(rewrite(disjunction(*conditions), {"tile": Var("i")}), self.context)
        outer = self.known.find_dim_by_name(isl.dim_type.param, "tile")
        known = self.known.move_dims(isl.dim_type.set, 0, isl.dim_type.param, outer, 1).add_dims(isl.dim_type.set, 1)
        outer = tiles.find_dim_by_name(isl.dim_type.param, "tile")
        wanted = tiles.move_dims(isl.dim_type.set, 0, isl.dim_type.param, outer, 1)
        return made.intersect(known.reset_tuple_id()).is_equal(wanted.reset_tuple_id())

    def loops(self, tiles: isl.Set, full: bool, way: _Way) -> tuple[Piece, ...]:
        """The set as pieces."""
        if way == "disjoint":
            if tiles.n_basic_set() > _MOST_PARTS:
                raise TooComplex(f"more than {_MOST_PARTS} convex parts")
            parts = [isl.Set.from_basic_set(each) for each in tiles.coalesce().make_disjoint().get_basic_sets()]
            return tuple(piece for each in parts for piece in self.loops(each, full, "default"))
        tiles = tiles.coalesce()
        if tiles.is_empty():
            return ()
        if way in _STRIDES:
            step = _STRIDES[way]
            places = (isl.Set(f"{{ [t] : t mod {step} = {place} }}", context=self.context) for place in range(step))
            parts = [tiles.intersect(each.align_params(tiles.get_space())) for each in places]
            return tuple(piece for each in parts for piece in self.loops(each, full, "separate"))
        build = isl.AstBuild.from_context(self.known)
        build = build.set_iterators(isl.IdList.alloc(self.context, 1).add(isl.Id("j", context=self.context)))
        if way != "default":
            build = build.set_options(isl.UnionMap(f"{{ [t] -> {way}[0] }}", context=self.context))
        tree = build.node_from_schedule_map(isl.UnionMap.from_map(tiles.identity()))
        return tuple(_walk(tree, full, FULL))


def _walk(node: isl.AstNode, full: bool, guard: Condition) -> list[Piece]:
    """The loops of isl's tree, each under the conditions around it."""
    match enum_name(node.get_type()):
        case "block":
            children = node.block_get_children()
            return [piece for index in range(children.n_ast_node()) for piece in _walk(children.get_at(index), full, guard)]
        case "if_":
            condition = condition_of(node.if_get_cond())
            pieces = _walk(node.if_get_then_node(), full, conjunction(guard, condition))
            if node.if_has_else_node():
                pieces += _walk(node.if_get_else_node(), full, conjunction(guard, push_negation(condition)))
            return pieces
        case "for_":
            return [_loop(node, full, None if guard == FULL else guard)]
        case "user":
            tile = term_of(node.user_get_expr().get_op_arg(1))
            return [Piece(tile, sum_of(tile, Const(1)), 1, full, None if guard == FULL else guard)]
    raise TooComplex(f"no piece says what isl does: {node.to_C_str()}")


def _loop(node: isl.AstNode, full: bool, guard: Condition | None) -> Piece:
    low, until = term_of(node.for_get_init()), node.for_get_cond()
    high = term_of(until.get_op_arg(1))
    if enum_name(until.get_op_type()) == "le":
        high = sum_of(high, Const(1))
    step = node.for_get_inc().get_val().to_python()
    body = node.for_get_body()
    match enum_name(body.get_type()):
        case "user":
            return Piece(low, high, step, full, guard)
        case "if_" if not body.if_has_else_node() and enum_name(body.if_get_then_node().get_type()) == "user":
            return Piece(low, high, step, full, guard, condition_of(body.if_get_cond()))
    raise TooComplex(f"no piece says what isl does: {node.to_C_str()}")
