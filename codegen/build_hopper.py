"""From a plan to the contexts of Hopper templates."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from nsa_dsl.codegen import build
from nsa_dsl.codegen.contexts import PieceText, Walk
from nsa_dsl.codegen.contexts_hopper import HopperAttend, HopperWalk
from nsa_dsl.integer_set import TooComplex
from nsa_dsl.launch import Tiles
from nsa_dsl.pairs import counterexample
from nsa_dsl.pattern import Compress
from nsa_dsl.relation import Compare, Const, Scale, Sum, Var, symbols
from nsa_dsl.schedule import StaticStep


def static_attend(step: StaticStep, tiles: Tiles, turns: bool, tail: int) -> HopperAttend:
    """The context of attention over a static relation, as build.static_attend makes it for the plain template. turns, tail: as in the
    context."""
    plain = build.static_attend(replace(step, tiles=tiles))
    name = f"{plain.name}_hopper"
    return HopperAttend(
        name=name,
        doc=plain.doc,
        consumers=tiles.warps // 4,
        packed=tiles.rows < 16 * tiles.warps,
        tile_n=tiles.cols,
        buffers=tiles.stages,
        turns=turns,
        walk=one_walk(name, plain.walks),
        mask=in_gluon(plain.mask),
        ragged=not _sees_the_past(step),
        tail=tail,
    )


def _sees_the_past(step: StaticStep) -> bool:
    """Whether a query sees only what has ended with it or before, so that it sees no key past the last one. A relation that speaks of the
    number of tokens proves nothing: it is asked at every length."""
    memory = step.branch.memory
    stride, block = (memory.stride, memory.block) if isinstance(memory, Compress) else (1, 1)
    if "N" in symbols(step.relation):
        return False
    try:
        return counterexample(step.relation, Compare("<=", Sum((Scale(stride, Var("j")), Const(block - 1))), Var("i"))) is None
    except TooComplex:
        return False


def in_gluon(text: str) -> str:
    """An expression of Triton's language in Gluon's, which calls the same functions by the same names."""
    return text.replace("tl.", "gl.")


def one_walk(name: str, walks: Iterable[Walk]) -> HopperWalk:
    """All pieces in Gluon's language, masked ones first. name: of the device functions."""
    pieces = sorted((piece for walk in walks for piece in walk.pieces), key=lambda piece: piece.full)
    return HopperWalk(name, sum(not piece.full for piece in pieces), tuple(_piece(piece) for piece in pieces))


def _piece(piece: PieceText) -> PieceText:
    guard = None if piece.guard is None else in_gluon(piece.guard)
    return replace(piece, low=in_gluon(piece.low), high=in_gluon(piece.high), guard=guard)
