"""Choices: `top(...)`, `over(...)` and `mass(...)`, with everything that makes one well-formed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from nsa_dsl.diagnostics import Label
from nsa_dsl.pattern import (
    BranchScore,
    Choice,
    Compress,
    GivenIndices,
    GivenScores,
    IndexScore,
    PooledScore,
    Reduce,
    Score,
    Share,
)
from nsa_dsl.relation import Chosen, Condition
from nsa_dsl.resolve.arguments import match_arguments, option, real
from nsa_dsl.resolve.choice_checks import CHECKS, Site
from nsa_dsl.resolve.integers import at_least
from nsa_dsl.resolve.kinds import unknown_name, wrong_kind
from nsa_dsl.resolve.local import Local
from nsa_dsl.resolve.problems import RefusedError
from nsa_dsl.resolve.relations import static
from nsa_dsl.resolve.scope import Context, Scope, Unknown
from nsa_dsl.syntax import Argument, Call, Expression, Name

_OPTIONS = ("block", "by", "share", "reduce", "every", "queries", "keep", "keep_extra", "among")
_SIZES: Mapping[str, str] = {"top": "n", "over": "threshold", "mass": "p"}
_SHARES: tuple[Share, ...] = ("group", "head", "all")
_REDUCES: tuple[Reduce, ...] = ("sum", "mean", "max")
_POOLS: tuple[Literal["mean", "max", "minmax"], ...] = ("mean", "max", "minmax")
_GIVEN = ("scores", "indices")
_ANY_SCORE: Score = GivenScores()


def choose(call: Call, branch: str, scope: Scope, local: Local, context: Context) -> Chosen:
    """Resolve one choice, note it in `local` and return its atom. Raises RefusedError."""
    given = _required(call, context)
    rule = _rule(call)
    tried, together = context.problems.tried, context.problems.together
    values = {name: each.value for name, each in given.items()}

    def size(name: str, what: str) -> int:
        return tried(lambda: at_least(1, values[name], scope, context, what), 1) if name in values else 1

    def kept(name: str) -> Condition | None:
        return tried(lambda: _keep(values[name], scope, context), None) if name in values else None

    with together():
        count = size("n", "n, the number of blocks chosen,") if rule == "top" else None
        threshold = None if rule == "top" else tried(lambda: _threshold(rule, values[_SIZES[rule]], scope, context), 0.0)
        block = size("block", "block, the keys of a block,")
        score = tried(lambda: _score(values["by"], scope, local, context), _ANY_SCORE)
        share: Share = tried(lambda: option(values["share"], _SHARES, scope, context), "head")
        reduce: Reduce = "sum"
        if "reduce" in values:
            reduce = tried(lambda: option(values["reduce"], _REDUCES, scope, context), reduce)
        every = size("every", "every, the queries of a run,")
        queries = size("queries", "queries, the queries of a tile,")
        keep, keep_extra = kept("keep"), kept("keep_extra")
        among = tried(lambda: _among(values["among"], local, context), None) if "among" in values else None
    choice = Choice(
        local.free_choice_name(branch), rule, count, threshold, block, score, share, reduce,
        every, queries, keep, keep_extra, among,
    )  # fmt: skip
    with together():
        for check in CHECKS:
            with context.problems.attempt():
                check(choice, Site(values, local), context)
    local.choices[choice.name] = choice
    return Chosen(choice.name)


def _rule(call: Call) -> Literal["top", "over", "mass"]:
    for rule in ("top", "over", "mass"):
        if rule == call.name:
            return rule
    raise ValueError(call.name)


def _required(call: Call, context: Context) -> dict[str, Argument]:
    """The choice's arguments by name. Raises RefusedError if one that has no default is missing."""
    size = _SIZES[call.name]
    given = match_arguments(call, (size, *_OPTIONS), context, positional=1)
    with context.problems.together():
        for name in (size, "block", "by"):
            if name not in given:
                with context.problems.attempt():
                    raise context.problems.refusal("missing-argument", f"{call.name} needs {name}", call.span, f"no {name} given")
        if "share" not in given:
            with context.problems.attempt():
                _refuse_no_share(call, context)
    return given


def _refuse_no_share(call: Call, context: Context) -> None:
    raise context.problems.refusal(
        "missing-share",
        "a choice says which heads choose together",
        call.span,
        "no share given",
        help=(
            "share = group: all query heads of a KV head choose together",
            "share = head: each query head chooses for itself",
            "share = all: all heads choose together",
        ),
    )


def _threshold(rule: str, node: Expression, scope: Scope, context: Context) -> float:
    value = real(node, scope, context)
    if rule == "mass" and not 0 < value <= 1:
        raise context.problems.refusal("bad-probability", "p must be above 0 and at most 1", node.span, f"this is {value:g}")
    return value


def _keep(node: Expression, scope: Scope, context: Context) -> Condition:
    """A relation in block units; `among` the blocks, the query's own is i and a key's is j."""
    return static(node, Scope(scope.values), context, "a relation between blocks")


def _score(node: Expression, scope: Scope, local: Local, context: Context) -> Score:
    if isinstance(node, Call) and node.name == "index":
        given = match_arguments(node, ("heads", "dim"), context)
        for name in ("heads", "dim"):
            if name not in given:
                raise context.problems.refusal("missing-argument", f"index needs {name}", node.span, f"no {name} given")
        sizes = [at_least(1, given[name].value, scope, context, f"{name} of an index") for name in ("heads", "dim")]
        return IndexScore(sizes[0], sizes[1])
    candidates = (*_POOLS, *_GIVEN, *local.branches)
    wanted = f"a compressed branch, {', '.join((*_POOLS, *_GIVEN))} or index(heads, dim)"
    if not isinstance(node, Name):
        raise wrong_kind(node, wanted, candidates, scope, context)
    value = scope.values.get(node.text, node.text)
    for pool in _POOLS:
        if pool == value:
            return PooledScore(pool)
    if isinstance(value, Unknown) or value == "scores":
        return GivenScores()
    if value == "indices":
        return GivenIndices()
    if node.text in scope.values:
        raise wrong_kind(node, wanted, candidates, scope, context)
    branch = local.branch(node, wanted, candidates, scope, context)
    if not isinstance(branch.memory, Compress):
        raise context.problems.refusal(
            "score-not-compressed",
            "a choice is scored by a branch that attends to a compressed memory",
            node.span,
            f"{branch.name} attends to tokens",
            context=(Label(local.defined[branch.name], "defined here"),),
        )
    return BranchScore(branch.name)


def _among(node: Expression, local: Local, context: Context) -> str:
    if not isinstance(node, Name):
        raise context.problems.refusal("wrong-kind", "expected the name of an earlier choice", node.span, "this is no name")
    if node.text in local.choices:
        return node.text
    if node.text in local.failed:
        raise RefusedError
    raise unknown_name(node.text, node.span, "an earlier choice: the name of the branch that made it", local.choices, context)
