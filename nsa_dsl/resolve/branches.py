"""Memories and branches: `compress(...)` and `attend(...)`."""

from __future__ import annotations

from typing import Literal

from nsa_dsl.diagnostics import Label
from nsa_dsl.pattern import Branch, Compress, Compressor, Memory, Tokens
from nsa_dsl.relation import Condition, choices
from nsa_dsl.resolve.arguments import match_arguments, option, real
from nsa_dsl.resolve.choices import choose
from nsa_dsl.resolve.integers import at_least
from nsa_dsl.resolve.kinds import wrong_kind
from nsa_dsl.resolve.local import Local
from nsa_dsl.resolve.problems import RefusedError
from nsa_dsl.resolve.relations import relation
from nsa_dsl.resolve.scope import Context, Scope
from nsa_dsl.syntax import Argument, Call, Expression, Name

_COMPRESSORS: tuple[Compressor, ...] = ("mean", "max", "weighted", "mlp")
_ATTEND = ("memory", "where", "scale", "softcap", "bias", "sink", "skip")
_ALIBI: tuple[Literal["alibi"], ...] = ("alibi",)
_LEARNED: tuple[Literal["learned"], ...] = ("learned",)


def compress(call: Call, name: str, scope: Scope, local: Local, context: Context) -> Compress:
    """Resolve a compressed memory and note it in `local` under `name`. Raises RefusedError."""
    given = _given(call, ("block", "stride", "by"), ("block", "stride", "by"), 0, context)
    tried = context.problems.tried
    with context.problems.together():
        block = tried(lambda: at_least(1, given["block"], scope, context, "block, the keys of a slot,"), 1)
        stride = tried(lambda: at_least(1, given["stride"], scope, context, "stride, the keys from slot to slot,"), 1)
        by: Compressor = tried(lambda: option(given["by"], _COMPRESSORS, scope, context), "mean")
    memory = Compress(name, block, stride, by)
    local.memories[name] = memory
    local.strides[name] = given["stride"].span
    return memory


def _given(call: Call, names: tuple[str, ...], needed: tuple[str, ...], positional: int, context: Context) -> dict[str, Expression]:
    """The arguments' expressions by name, all needed ones present. Raises RefusedError."""
    matched: dict[str, Argument] = match_arguments(call, names, context, positional)
    missing = [name for name in needed if name not in matched]
    if missing:
        raise context.problems.refusal(
            "missing-argument", f"{call.name} needs {' and '.join(missing)}", call.span, f"no {missing[0]} given"
        )
    return {name: each.value for name, each in matched.items()}


def attend(call: Call, name: str, scope: Scope, local: Local, context: Context) -> Branch:
    """Resolve a branch and note it in `local` under `name`. Raises RefusedError."""
    given = _given(call, _ATTEND, ("memory", "where"), 2, context)
    problems = context.problems
    memory: Memory = Tokens()

    def positive(option_name: str) -> float | None:
        if option_name not in given:
            return None
        return problems.tried(lambda: _positive(option_name, given[option_name], scope, context), None)

    with problems.together():
        with problems.attempt():
            memory = _memory(given["memory"], name, scope, local, context)
        slots = isinstance(memory, Compress)
        where = problems.tried(lambda: _where(given["where"], name, slots, scope, local, context), None)
        scale, softcap, skip = positive("scale"), positive("softcap"), positive("skip")
        bias = problems.tried(lambda: option(given["bias"], _ALIBI, scope, context), None) if "bias" in given else None
        sink = problems.tried(lambda: option(given["sink"], _LEARNED, scope, context), None) if "sink" in given else None
    if where is None:
        raise RefusedError
    made = tuple(local.choices[each] for each in choices(where))
    branch = Branch(name, memory, where, made, scale, softcap, bias, sink is not None, skip)
    local.branches[name] = branch
    return branch


def _memory(node: Expression, branch: str, scope: Scope, local: Local, context: Context) -> Memory:
    match node:
        case Name("tokens"):
            return Tokens()
        case Name(text) if text in local.memories:
            return local.memories[text]
        case Call("compress"):
            return compress(node, branch, scope, local, context)
        case Name(text) if text in local.failed:
            raise RefusedError
        case Name(text) if text in local.defined and text not in local.branches:
            raise context.problems.refusal(
                "used-before-definition",
                f"{text} is used before it is defined",
                node.span,
                "used here",
                context=(Label(local.defined[text], "defined here"),),
            )
        case _:
            raise wrong_kind(node, "a memory", ("tokens", "compress", *local.memories), scope, context)


def _where(node: Expression, branch: str, slots: bool, scope: Scope, local: Local, context: Context) -> Condition:
    def chooser(call: Call) -> Condition:
        if slots:
            raise context.problems.refusal(
                "choice-on-slots", "a choice picks blocks of tokens, not slots of a compressed memory", call.span, "attend to tokens"
            )
        return choose(call, branch, scope, local, context)

    return relation(node, scope, context, chooser)


def _positive(name: str, node: Expression, scope: Scope, context: Context) -> float:
    value = real(node, scope, context)
    if value <= 0:
        raise context.problems.refusal("not-positive", f"{name} must be above 0", node.span, f"this is {value:g}")
    return value
