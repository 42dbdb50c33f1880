"""A static pattern as FlexAttention takes it: one softmax, and a function of positions that says which keys are visible.

The function is printed from the pattern's relation, so that both sides of a comparison read the same keys.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import assert_never

from torch import Tensor

from nsa_dsl.bench.contender import Refused
from nsa_dsl.execute import load_module
from nsa_dsl.pattern import Branch, Pattern, Tokens
from nsa_dsl.relation import (
    Absolute,
    All,
    Chosen,
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
    disjunction,
    symbols,
)

MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(batch, query head, query position, key position), integer tensors that broadcast -> whether the key is visible."""


def one_softmax(pattern: Pattern) -> tuple[Condition, float | None]:
    """The relation and the scale of a pattern that is one softmax over a static set of tokens. Raises Refused for any other."""
    branches = pattern.outputs
    if pattern.output.kind not in ("single", "merge"):
        raise Refused(f"one softmax only, and the pattern has {len(branches)} (`{pattern.output.kind}`)")
    if pattern.kv_per_branch and len(branches) > 1:
        raise Refused("one set of keys and values only")
    if len({each.scale for each in branches}) > 1:
        raise Refused("one scale only")
    for each in branches:
        _check_static(each)
    return disjunction(*(each.where for each in branches)), branches[0].scale


def _check_static(branch: Branch) -> None:
    if not isinstance(branch.memory, Tokens):
        raise Refused("tokens only, and the pattern compresses keys")
    if branch.choices:
        raise Refused("static masks only, and the pattern chooses keys by data")
    for name, used in (("sink", branch.sink), ("softcap", branch.softcap), ("bias", branch.bias), ("skip", branch.skip)):
        if used:
            raise Refused(f"compared without `{name}` only")


def make_mask(relation: Condition, n: int, heads: int, kv_heads: int) -> MaskMod:
    """FlexAttention's `mask_mod` for a static relation at n tokens, unpacked batch."""
    function: MaskMod = load_module(print_mask(relation, n, heads, kv_heads), "mask_mod").mask_mod
    return function


def by_head(relation: Condition) -> bool:
    """Whether heads see different keys."""
    return "h" in symbols(relation)


def print_mask(relation: Condition, n: int, heads: int, kv_heads: int) -> str:
    """The source of that function: Python on integers, or elementwise on tensors."""
    text = _condition(relation)
    if not symbols(relation) & {"i", "j", "h"}:
        text = f"(j == j) & {text}"
    sizes = {"N": n, "heads": heads, "kv_heads": kv_heads}
    known = "".join(f"    {name} = {sizes[name]}\n" for name in sorted(symbols(relation) & set(sizes)))
    return f"def mask_mod(batch, h, i, j):\n{known}    return {text}\n"


def _term(term: Term) -> str:
    match term:
        case Const(value):
            return str(value) if value >= 0 else f"({value})"
        case Var(name):
            return name
        case Sum(terms):
            return f"({' + '.join(map(_term, terms))})"
        case Scale(factor, inner):
            return f"({factor} * {_term(inner)})"
        case FloorDiv(inner, divisor):
            return f"({_term(inner)} // {divisor})"
        case Modulo(inner, divisor):
            return f"({_term(inner)} % {divisor})"
        case Absolute(inner):
            return f"abs({_term(inner)})"
        case Extreme(kind, terms):
            sign, text = ("+" if kind == "max" else "-"), _term(terms[0])
            for other in map(_term, terms[1:]):
                # Of numbers and tensors alike, which torch.minimum and min() are not.
                text = f"(({text} + {other} {sign} abs({text} - {other})) // 2)"
            return text
        case _:
            assert_never(term)


def _condition(condition: Condition) -> str:
    match condition:
        case Truth(value):
            return str(value)
        case Compare(op, left, right):
            return f"({_term(left)} {op} {_term(right)})"
        case Not(part):
            return f"({_condition(part)} ^ True)"
        case All(parts):
            return f"({' & '.join(map(_condition, parts))})"
        case Either(parts):
            return f"({' | '.join(map(_condition, parts))})"
        case SameDocument():
            return "True"
        case Chosen(choice):
            raise Refused(f"static masks only, and {choice} is chosen by data")
        case _:
            assert_never(condition)
