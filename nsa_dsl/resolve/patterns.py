"""Pattern declarations: bindings in order, then the output and the claims."""

from __future__ import annotations

from collections.abc import Mapping
from typing import assert_never

from nsa_dsl.diagnostics import Label, Span
from nsa_dsl.pattern import Claim, Output, Pattern
from nsa_dsl.printer import format_spec
from nsa_dsl.resolve.branches import attend, compress
from nsa_dsl.resolve.claims import check_assertions, claim
from nsa_dsl.resolve.conditions import check_reserved
from nsa_dsl.resolve.integers import wrong_arity
from nsa_dsl.resolve.kinds import wrong_kind
from nsa_dsl.resolve.local import Local
from nsa_dsl.resolve.problems import RefusedError
from nsa_dsl.resolve.scope import Context, Scope, Unknown, Value
from nsa_dsl.syntax import (
    AllowLookahead,
    AssertBound,
    AssertReach,
    AssertRelation,
    Binding,
    Call,
    Expression,
    KvPerBranch,
    Name,
    OutputStatement,
    PatternDeclaration,
    SpecFile,
)

_LEAST_BRANCHES = {"gate": 1, "mix": 1, "merge": 2}
_INLINE = "output"
"""The name of a branch written in the output itself; a keyword, so no binding has it."""


def known_pattern(declaration: PatternDeclaration, values: Mapping[str, Value], context: Context) -> Pattern:
    """`pattern`, made once for equal values. Raises RefusedError, silently for values already refused."""
    key = (declaration.name.text, tuple(values.items()), context.problems.sketching)
    if key not in context.known_patterns:
        context.known_patterns[key] = None
        context.known_patterns[key] = pattern(declaration, values, context)
    made = context.known_patterns[key]
    if made is None:
        raise RefusedError
    return made


def pattern(declaration: PatternDeclaration, values: Mapping[str, Value], context: Context) -> Pattern:
    """The pattern under these parameter values. Raises RefusedError after reporting every error in it."""
    problems = context.problems
    flags = [type(each) for each in declaration.body]
    defined = {each.name.text: each.name.span for each in reversed(declaration.body) if isinstance(each, Binding)}
    local = Local(defined, AllowLookahead in flags)
    kinds: dict[str, str] = {}
    scope = Scope(values, bindings=kinds)
    claims: list[Claim] = []
    output: Output | None = None
    with problems.together():
        check_assertions(declaration.body, context)
        _check_statements(declaration, context)
        for statement in declaration.body:
            with problems.attempt():
                match statement:
                    case Binding(name, value):
                        _bind(name, value, kinds, scope, local, context)
                    case OutputStatement(value):
                        output = _output(value, scope, local, context)
                    case AssertRelation() | AssertReach() | AssertBound():
                        claims.append(claim(statement, scope, context))
                    case KvPerBranch() | AllowLookahead():
                        pass
                    case _:
                        assert_never(statement)
    if output is None or any(isinstance(each, Unknown) for each in values.values()):
        raise RefusedError
    return Pattern(
        declaration.name.text,
        tuple((name, value) for name, value in values.items() if not isinstance(value, Unknown)),
        tuple(local.memories.values()),
        tuple(local.branches.values()),
        output,
        KvPerBranch in flags,
        AllowLookahead in flags,
        tuple(claims),
        format_spec(SpecFile((declaration,))).strip(),
    )


def _check_statements(declaration: PatternDeclaration, context: Context) -> None:
    """Report a missing output, and statements of which a pattern has only one."""
    problems = context.problems
    once: dict[type, Span] = {}
    for each in declaration.body:
        if not isinstance(each, OutputStatement | KvPerBranch | AllowLookahead):
            continue
        first = once.setdefault(type(each), each.span)
        if first is not each.span:
            what = {OutputStatement: "output", KvPerBranch: "`kv per branch`", AllowLookahead: "`allow lookahead`"}[type(each)]
            problems.report(
                "duplicate-statement",
                f"a pattern has one {what}",
                each.span,
                "again",
                context=(Label(first, "first here"),),
            )
    if OutputStatement not in once:
        problems.report(
            "missing-output",
            f"pattern {declaration.name.text} has no output",
            declaration.name.span,
            "computes nothing",
            help=("end it with `output NAME` or `output gate(NAME, ...)`",),
        )


def _bind(name: Name, value: Expression, kinds: dict[str, str], scope: Scope, local: Local, context: Context) -> None:
    problems = context.problems
    with problems.together():
        with problems.attempt():
            _check_binding_name(name, scope, local, context)
        try:
            match value:
                case Call("compress"):
                    compress(value, name.text, scope, local, context)
                    kinds[name.text] = "a memory"
                case Call("attend"):
                    attend(value, name.text, scope, local, context)
                    kinds[name.text] = "a branch"
                case _:
                    raise wrong_kind(value, "a memory or a branch", ("compress", "attend"), scope, context)
        finally:
            if name.text not in kinds:
                local.failed.add(name.text)


def _check_binding_name(name: Name, scope: Scope, local: Local, context: Context) -> None:
    check_reserved(name, context.problems)
    if name.text in scope.values:
        raise context.problems.refusal("shadowed-name", f"{name.text} is a parameter already", name.span, "choose another name")
    first = local.defined[name.text]
    if first is not name.span:
        raise context.problems.refusal(
            "duplicate-name", f"{name.text} is defined twice", name.span, "again", context=(Label(first, "first here"),)
        )


def _output(node: Expression, scope: Scope, local: Local, context: Context) -> Output:
    match node:
        case Call("attend"):
            return Output("single", (attend(node, _INLINE, scope, local, context).name,))
        case Call(("gate" | "mix" | "merge") as kind):
            names = _combined(node, scope, local, context)
            for each in ("gate", "mix", "merge"):
                if each == kind:
                    return Output(each, names)
            raise RefusedError
        case Name():
            return Output("single", (local.branch(node, "a branch", local.defined, scope, context).name,))
        case _:
            raise wrong_kind(node, "gate, mix, merge or a branch", ("gate", "mix", "merge", "attend"), scope, context)


def _combined(call: Call, scope: Scope, local: Local, context: Context) -> tuple[str, ...]:
    """The branches that gate, mix or merge names, each once. Raises RefusedError."""
    problems = context.problems
    least = _LEAST_BRANCHES[call.name]
    if len(call.arguments) < least:
        raise wrong_arity(call.name, f"at least {least}", len(call.arguments), call.span, context)
    names: dict[str, Span] = {}
    sinks: list[Label] = []
    with problems.together():
        for each in call.arguments:
            with problems.attempt():
                if each.name is not None:
                    raise problems.refusal("unknown-argument", f"{call.name} has no argument named {each.name}", each.span, "not known")
                if not isinstance(each.value, Name):
                    raise problems.refusal("unnamed-branch", f"{call.name} combines branches by name", each.span, "give it a name first")
                branch = local.branch(each.value, "a branch", local.defined, scope, context)
                if branch.name in names:
                    first = Label(names[branch.name], "first here")
                    raise problems.refusal("duplicate-branch", f"{branch.name} is combined twice", each.span, "again", context=(first,))
                names[branch.name] = each.span
                if branch.sink:
                    sinks.append(Label(each.span, "has a learned sink"))
        if call.name == "merge" and len(sinks) > 1:
            with problems.attempt():
                raise problems.refusal(
                    "sinks-merged", "one softmax has one sink at most", sinks[-1].span, sinks[-1].text, context=sinks[:-1]
                )
    return tuple(names)
