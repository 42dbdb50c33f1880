"""What a measured decision is for: names of kernels become keys that patterns of equal kernels share."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from nsa_dsl.launch import LaunchShape
from nsa_dsl.pattern import Branch, BranchScore, Choice, Compress, GivenIndices, GivenScores, Pattern
from nsa_dsl.relation import EMPTY, Chosen, Condition, rewrite, symbols
from nsa_dsl.schedule_chosen import takes_one_list
from nsa_dsl.signature import Signature

_SHORTEST, _LONGEST = 1024, 1 << 20


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel whose tiles can be decided. key: equal for kernels of any pattern that do the same work; backward: whether gradients need
    it; optional: it stands beside another for the same work, so that nobody need have measured it."""

    name: str
    key: str
    backward: bool
    optional: bool = False


def length_bucket(tokens: int) -> int:
    """The length that a call of so many tokens is decided by: 1k, 4k, 16k, 64k ... whichever is the next one up."""
    bucket = _SHORTEST
    while bucket < tokens and bucket < _LONGEST:
        bucket *= 4
    return bucket


def entry_key(kernel: Kernel, shape: LaunchShape, tokens: int, heads: int, kv_heads: int) -> str:
    """The key of one kernel's decision: `static/0123456789abcdef/128x128/bf16/64k/16`, the last the query heads of a KV head."""
    bucket = length_bucket(tokens) // 1024
    return f"{kernel.key}/{shape.dim_qk}x{shape.dim_v}/{shape.dtype}/{bucket}k/{heads // max(1, kv_heads)}"


def tunable_kernels(pattern: Pattern, signature: Signature) -> tuple[Kernel, ...]:
    """The kernels of a pattern that tiles matter to, forward first. Neither names nor what does not matter to time are part of the keys."""
    found: list[Kernel] = []
    for choice in signature.choices:
        if not isinstance(choice.score, GivenScores | GivenIndices):
            found.append(Kernel(f"score_{choice.name}", f"score/{_digest(_scored(pattern, choice))}", False))
    for branch in signature.computed:
        kind, digest = "chosen" if branch.choices else "static", _digest(_work(branch))
        found.append(Kernel(f"attend_{branch.name}", f"{kind}/{digest}", False))
        found.append(Kernel(f"attend_{branch.name}_queries", f"{kind}_queries/{digest}", True))
        if not branch.choices or _has_static_part(branch):
            found.append(Kernel(f"attend_{branch.name}_keys", f"static_keys/{digest}", True))
        if _takes_one_list(branch):
            found.append(Kernel(f"attend_{branch.name}_union", f"union/{digest}", False, optional=True))
            found.append(Kernel(f"attend_{branch.name}_union_queries", f"union_queries/{digest}", True, optional=True))
        for place, choice in enumerate(branch.choices):
            found.append(Kernel(f"chosen_keys_{choice.name}", f"chosen_keys_{place}/{digest}", True))
    return tuple(sorted(found, key=lambda each: each.backward))


def _has_static_part(branch: Branch) -> bool:
    """Whether a query sees something when nothing is chosen."""
    nothing = rewrite(branch.where, {}, {Chosen(each.name): EMPTY for each in branch.choices})
    return nothing != EMPTY or any(each.keep_extra is not None for each in branch.choices)


def _takes_one_list(branch: Branch) -> bool:
    """As the schedule decides it, which adds to `where` what `keep_extra` keeps; such a branch has more than one list's blocks."""
    per_head = "h" in symbols(branch.where) or any(each.share == "head" for each in branch.choices)
    extra = any(each.keep_extra is not None for each in branch.choices)
    return bool(branch.choices) and not extra and takes_one_list(branch, branch.where, per_head)


def _digest(work: object) -> str:
    return hashlib.sha256(repr(work).encode()).hexdigest()[:16]


def _work(branch: Branch) -> object:
    """What a branch's time depends on."""
    names: dict[Condition, Condition] = {Chosen(each.name): Chosen(f"choice_{n}") for n, each in enumerate(branch.choices)}
    lists = tuple((each.count, each.block, each.share, each.every, each.keep_extra) for each in branch.choices)
    memory = (branch.memory.block, branch.memory.stride) if isinstance(branch.memory, Compress) else ()
    return memory, rewrite(branch.where, {}, names), lists, branch.softcap is not None, branch.bias, branch.sink


def _scored(pattern: Pattern, choice: Choice) -> object:
    """What the time of a choice's scores depends on."""
    by = _work(pattern.branch(choice.score.branch)) if isinstance(choice.score, BranchScore) else choice.score
    return by, choice.block, choice.share, choice.reduce, choice.every
