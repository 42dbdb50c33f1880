"""What must hold between the arguments of a choice, once each is known to be good by itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from nsa_dsl.diagnostics import Label
from nsa_dsl.pattern import BranchScore, Choice, Compress, GivenIndices
from nsa_dsl.relation import allows, symbols
from nsa_dsl.resolve.conditions import NODES_PER_WORK, size
from nsa_dsl.resolve.local import Local
from nsa_dsl.resolve.scope import Context
from nsa_dsl.syntax import Expression

_KEEP_SAMPLES = (0, 1, 2, 7, 63, 255)
"""Query blocks for which kept blocks are counted: the first ones, and some where every usual relation has grown."""

MAX_AMONG = 8


@dataclass(frozen=True, slots=True)
class Site:
    """Where a choice is written: its arguments as expressions, and what the pattern has defined before it."""

    arguments: Mapping[str, Expression]
    local: Local


def _check_alignment(choice: Choice, site: Site, context: Context) -> None:
    if not isinstance(choice.score, BranchScore):
        return
    memory = site.local.branches[choice.score.branch].memory
    if not isinstance(memory, Compress) or choice.block % memory.stride == 0:
        return
    legal = -(-choice.block // memory.stride) * memory.stride
    raise context.problems.refusal(
        "selection-misaligned",
        "a selected block must be whole compression strides",
        site.arguments["block"].span,
        keys(choice.block),
        context=(Label(site.local.strides[memory.name], f"a stride is {keys(memory.stride)}"),),
        help=(f"use block = {legal}, the next multiple of {memory.stride}",),
    )


def keys(count: int) -> str:
    """`1 key`, `40 keys`."""
    return "1 key" if count == 1 else f"{count} keys"


def _check_among(choice: Choice, site: Site, context: Context) -> None:
    if choice.among is None:
        return
    levels, outermost = 1, choice.among
    while (further := site.local.choices[outermost].among) is not None:
        levels, outermost = levels + 1, further
    if levels > MAX_AMONG:
        raise context.problems.refusal(
            "among-too-deep",
            f"choices are made among each other at most {MAX_AMONG} levels deep",
            site.arguments["among"].span,
            "level too many",
        )
    if site.local.choices[choice.among].block % choice.block == 0:
        return
    outer = site.local.choices[choice.among].block
    raise context.problems.refusal(
        "among-misaligned",
        f"the blocks of {choice.among} must be whole blocks of the choice made among them",
        site.arguments["block"].span,
        f"{keys(outer)} are not a multiple of {choice.block}",
    )


def _check_queries(choice: Choice, site: Site, context: Context) -> None:
    if choice.queries == 1:
        return
    if choice.every > 1:
        raise context.problems.refusal(
            "every-with-queries",
            "queries choose either in runs (every) or in tiles (queries)",
            site.arguments["queries"].span,
            "every is given too",
            context=(Label(site.arguments["every"].span),),
        )
    if not site.local.allow_lookahead:
        raise context.problems.refusal(
            "lookahead",
            f"a tile of {choice.queries} queries chooses together, so an early query depends on later ones",
            site.arguments["queries"].span,
            "reads later queries",
            help=("write `allow lookahead` in the pattern to accept that, or use every = m, which reads earlier ones only",),
        )


def _check_indices(choice: Choice, site: Site, context: Context) -> None:
    if isinstance(choice.score, GivenIndices) and choice.rule != "top":
        raise context.problems.refusal(
            "indices-without-top", f"{choice.rule} needs scores; the caller passes the choice itself", site.arguments["by"].span, "use top"
        )


def _check_keep(choice: Choice, site: Site, context: Context) -> None:
    for name, kept in (("keep", choice.keep), ("keep_extra", choice.keep_extra)):
        if kept is not None and choice.share != "head" and "h" in symbols(kept):
            raise context.problems.refusal(
                "keep-per-head",
                f"{name} differs by head, but heads choose together",
                site.arguments[name].span,
                "uses the head",
                context=(Label(site.arguments["share"].span, f"share = {choice.share}"),),
            )
    if choice.keep is None or choice.count is None:
        return
    context.spend(size(choice.keep) * sum(i + 1 for i in _KEEP_SAMPLES) // NODES_PER_WORK, site.arguments["keep"].span)
    for i in _KEEP_SAMPLES:
        count = sum(allows(choice.keep, i, j, 0, i + 1) for j in range(i + 1))
        if count > choice.count:
            raise context.problems.refusal(
                "keep-exceeds-count",
                "kept blocks count inside n, which cannot hold them",
                site.arguments["keep"].span,
                f"keeps {count} blocks for query block {i}",
                context=(Label(site.arguments["n"].span, f"n is {choice.count}"),),
                help=(f"use n = {count} or more, or keep_extra, which counts outside n",),
            )


CHECKS: Sequence[Callable[[Choice, Site, Context], None]] = (
    _check_alignment,
    _check_among,
    _check_queries,
    _check_indices,
    _check_keep,
)
"""Each refuses one kind of contradiction; all of them are tried."""
