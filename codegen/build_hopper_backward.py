"""From a backward plan to the contexts of the Hopper kernels of attention's gradient over a static relation."""

from __future__ import annotations

from dataclasses import replace

from nsa_dsl.codegen import build, build_backward
from nsa_dsl.codegen import contexts_hopper_backward as ctx
from nsa_dsl.codegen.build_hopper import in_gluon, one_walk
from nsa_dsl.launch import Tiles
from nsa_dsl.schedule import StaticStep
from nsa_dsl.schedule_backward import StaticKeysStep


def queries(attend: StaticStep, hopper: Tiles) -> ctx.HopperQueries:
    """The context of one branch's share of the queries' gradient."""
    name = f"attend_{attend.branch.name}_queries_hopper"
    plain = build.static_attend(replace(attend, tiles=hopper))
    pair = build.static_attend(replace(attend, tiles=replace(hopper, rows=hopper.rows // 2)))
    return ctx.HopperQueries(
        name=name,
        doc=f"Branch {attend.branch.name}: the gradient of its queries.",
        tile_n=hopper.cols,
        buffers=hopper.stages,
        mask=in_gluon(plain.mask),
        walk=one_walk(name, plain.walks),
        pair_walk=one_walk(f"{name}_pair", pair.walks),
    )


def static_keys(step: StaticKeysStep, hopper: Tiles) -> ctx.HopperKeys:
    """The context of the gradients of keys and values."""
    plain = build_backward.static_keys(replace(step, tiles=hopper))
    half = build_backward.static_keys(replace(step, tiles=replace(hopper, cols=hopper.cols // 2)))
    name = f"{plain.name}_hopper"
    return ctx.HopperKeys(
        name=name,
        doc=plain.doc,
        tile_m=hopper.rows,
        buffers=hopper.stages,
        mask=in_gluon(plain.mask),
        walk=one_walk(name, plain.walks),
        half=one_walk(name, half.walks).pieces,
    )
