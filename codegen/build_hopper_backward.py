"""From a backward plan to the contexts of the Hopper kernels of attention's gradient over a static relation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from nsa_dsl.codegen import build, build_backward
from nsa_dsl.codegen import contexts_hopper_backward as ctx
from nsa_dsl.codegen.build_hopper import in_gluon, one_walk
from nsa_dsl.launch import Tiles
from nsa_dsl.schedule import StaticStep
from nsa_dsl.schedule_backward import StaticKeysStep


def queries(attends: Sequence[StaticStep], hopper: Tiles, tail: int) -> ctx.HopperQueries:
    """The context of the queries' gradient of branches that are gone through one after the other, or of one. tail: as in the context."""
    first, *others = (each.branch.name for each in attends)
    name = "_".join((f"attend_{first}_queries", *(f"with_{each}" for each in others), "hopper"))
    names = " and ".join((first, *others))
    return ctx.HopperQueries(
        name=name,
        doc=f"Branches {names}: the gradient of their queries." if others else f"Branch {names}: the gradient of its queries.",
        tile_n=hopper.cols,
        buffers=hopper.stages,
        tail=tail,
        branches=tuple(_branch(each, hopper, name, f"_{place}" if others else "") for place, each in enumerate(attends)),
    )


def _branch(attend: StaticStep, hopper: Tiles, kernel: str, tag: str) -> ctx.HopperBranch:
    plain = build.static_attend(replace(attend, tiles=hopper))
    pair = build.static_attend(replace(attend, tiles=replace(hopper, rows=hopper.rows // 2)))
    return ctx.HopperBranch(
        tag=tag,
        mask=in_gluon(plain.mask),
        walk=one_walk(f"{kernel}{tag}", plain.walks),
        pair_walk=one_walk(f"{kernel}{tag}_pair", pair.walks),
    )


def static_keys(step: StaticKeysStep, hopper: Tiles, tail: int) -> ctx.HopperKeys:
    """The context of the gradients of keys and values. tail: as in the context."""
    plain = build_backward.static_keys(replace(step, tiles=hopper))
    half = build_backward.static_keys(replace(step, tiles=replace(hopper, cols=hopper.cols // 2)))
    name = f"{plain.name}_hopper"
    return ctx.HopperKeys(
        name=name,
        doc=plain.doc,
        tile_m=hopper.rows,
        buffers=hopper.stages,
        tail=tail,
        mask=in_gluon(plain.mask),
        walk=one_walk(name, plain.walks),
        half=one_walk(name, half.walks).pieces,
    )
