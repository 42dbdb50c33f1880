"""From a branch in which every query sees the blocks of one list to the contexts of its kernels."""

from __future__ import annotations

import math

from nsa_dsl.codegen.build import SCALARS
from nsa_dsl.codegen.contexts import LaunchValue
from nsa_dsl.codegen.contexts_schedules import ByBlocks, Combining, OneChoice
from nsa_dsl.codegen.expressions import print_condition
from nsa_dsl.launch import Tiles
from nsa_dsl.relation import CAUSAL, FULL, Chosen, rewrite
from nsa_dsl.schedule import ChosenStep, CombineStep
from nsa_dsl.schedule_chosen import BY_BLOCKS_GROUP, BY_BLOCKS_LISTS, BY_BLOCKS_SHARE, FULL_GROUP, MERGED, PART_BYTES, PART_ROWS

BY_BLOCKS = "\n".join(
    (
        f"BY_BLOCKS_GROUP, BY_BLOCKS_LISTS, BY_BLOCKS_SHARE = {BY_BLOCKS_GROUP}, {BY_BLOCKS_LISTS}, {BY_BLOCKS_SHARE}",
        f"PART_ROWS, PART_BYTES = {PART_ROWS}, {PART_BYTES}",
    )
)
"""A module's constants where there are kernels by blocks."""


def one_choice(step: ChosenStep, tiles: Tiles, suffix: str = "", combining: Combining | None = None) -> OneChoice:
    """The context of one kernel of the branch. suffix: what its name ends with; combining: how it ends with the output, if it does."""
    branch, (choice,) = step.branch, step.branch.choices
    width = choice.count or 0
    cols = math.gcd(tiles.cols, choice.block)
    seen = rewrite(step.where, {}, {Chosen(choice.name): FULL})
    return OneChoice(
        name=f"attend_{branch.name}{suffix}",
        doc=f"Branch {branch.name}: {_WHAT[suffix]}.",
        softcap=branch.softcap,
        alibi=branch.bias == "alibi",
        sink=branch.sink,
        block=choice.block,
        width=width,
        padded_width=max(2, 1 << (width - 1).bit_length()),
        tile_n=cols,
        tiles=choice.block // cols,
        causal=seen == CAUSAL,
        mask=print_condition(seen, {**SCALARS, "i": "tokens[:, None]", "j": "cols[None, :]"}, {}),
        mask_alone=print_condition(seen, {**SCALARS, "i": "token", "j": "cols"}, {}),
        combining=combining,
        first=step.first,
    )


_WHAT = {
    "": "attention over the blocks that a query chose, one query at a time",
    "_union": "attention over the blocks that neighbouring queries chose",
    "_by_blocks": "attention of the queries that chose a block, for each block alone",
    "_merged": "the softmaxes of single blocks as one",
    "_queries": "the gradient of its queries, one query at a time",
    "_union_queries": "the gradient of its queries, over the blocks that neighbouring queries chose",
}


def labels(step: CombineStep) -> tuple[str, ...]:
    """What kernels that combine call the output's branches, in the order of the gates: one may stand there several times."""
    return tuple(f"{n}_{each.removeprefix('attend.')}" for n, each in enumerate(step.branches))


def combining(step: CombineStep) -> Combining:
    """How the kernels of the branch `step.within` end with the output. Raises ValueError for a step with a kernel of its own."""
    if step.within is None or step.kind not in ("gate", "mix"):
        raise ValueError(f"a {step.kind} of {', '.join(step.branches)} has a kernel of its own")
    own = tuple(label for label, each in zip(labels(step), step.branches, strict=True) if each == step.within)
    return Combining(step.kind, labels(step), own)


def by_blocks_host(step: ChosenStep, tiles: Tiles, combines: bool) -> ByBlocks:
    """The context of the host's side of the kernels by blocks. combines: they end with the output."""
    branch, (choice,) = step.branch, step.branch.choices
    name = f"attend_{branch.name}"
    merge_rows, _, merge_warps, merge_stages = MERGED
    return ByBlocks(
        name=name,
        doc=f"Branch {branch.name} by blocks: a part for every row and block, then their sum.",
        by_blocks=f"{name}_by_blocks",
        merge=f"{name}_merged",
        sink=branch.sink,
        combines=combines,
        block=choice.block,
        width=choice.count or 0,
        rows=tiles.rows,
        warps=tiles.warps,
        stages=tiles.stages,
        merge_rows=merge_rows,
        merge_warps=merge_warps,
        merge_stages=merge_stages,
    )


def launch(step: ChosenStep, tiles: Tiles, union: str) -> dict[str, LaunchValue]:
    """What a launch says of unions. union: the kernel over them."""
    choice = step.branch.choices[0]
    return {
        "block": choice.block,
        "width": choice.count or 0,
        "union": union,
        "full_group": FULL_GROUP,
        "union_rows": tiles.rows,
        "union_warps": tiles.warps,
        "union_stages": tiles.stages,
        "first": step.first,
    }
