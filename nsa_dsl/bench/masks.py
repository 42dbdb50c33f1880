"""A static pattern as FlexAttention takes it: one softmax, and a function of positions that says which keys are visible.

The function is printed from the pattern's relation, so that both sides of a comparison read the same keys.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from nsa_dsl.bench.contender import Refused
from nsa_dsl.codegen.expressions import print_elementwise
from nsa_dsl.execute import load_module
from nsa_dsl.pattern import Branch, Pattern, Tokens
from nsa_dsl.relation import Condition, disjunction, symbols

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
    sizes = {"N": n, "heads": heads, "kv_heads": kv_heads}
    names = {"i": "i", "j": "j", "h": "h", **{name: str(size) for name, size in sizes.items()}, "same_document": "True"}
    text = print_elementwise(relation, names)
    if not symbols(relation) & {"i", "j", "h"}:
        text = f"(j == j) & ({text})"
    return _MASK.format(text)


# torch.minimum takes no numbers, and min() no tensors.
_MASK = """def smaller(a, b):
    return (a + b - abs(a - b)) // 2


def greater(a, b):
    return (a + b + abs(a - b)) // 2


def mask_mod(batch, h, i, j):
    return {}
"""
