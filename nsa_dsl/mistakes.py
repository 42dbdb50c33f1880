"""Which message a syntax error deserves: chosen by malformed examples (grammar/mistakes/*.toml).

Each example is parsed once, on the first error of a process, up to its own error; the situation that it leaves the parser
in (see `Situation`) is the key under which its message is found again. A situation that no example shows gets a plain
message, which lists what the parser would have taken.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from string import Template
from typing import Any, cast

from lark import UnexpectedToken
from lark.parsers.lalr_analysis import Reduce
from lark.parsers.lalr_interactive_parser import InteractiveParser

from nsa_dsl.diagnostics import Diagnostic, Label, Span, did_you_mean
from nsa_dsl.tokens import MISTAKEN, LocatedToken, end_token, grammar, tokenize

_DECLARING = ("pattern", "relation", "model", "use")
_PARTNERS = {"RPAR": "LPAR", "RBRACE": "LBRACE"}
_WORDS = {"NAME": "a name", "CALLED": "a call", "INTEGER": "a number", "REAL": "a number", "STRING": "a quoted path", "$END": "the end"}


@dataclass(frozen=True, slots=True)
class Mistake:
    """One file of grammar/mistakes.

    where: what is underlined, the token that was `found`, the one `before` it, or the gap `after` the one before.
    anywhere: the found token alone decides. any_token: the place alone decides. opener: label of the innermost open bracket.
    In texts, $found and $before stand for the tokens in quotes, $word for the bare one before, $guess for the declaring word
    most like it.
    """

    code: str
    title: str
    help: tuple[str, ...]
    examples: tuple[str, ...]
    label: str = ""
    where: str = "found"
    opener: str = ""
    anywhere: bool = False
    any_token: bool = False


@dataclass(frozen=True, slots=True)
class Situation:
    """A parser that cannot take a token.

    state: the LALR state. context: the state once everything complete is reduced, so that `a`, `a + b` and `f(x)` count as
    one. expected: the terminals that it would have taken. taken: the tokens that it did take. found: what it cannot.
    """

    state: int
    context: int
    expected: tuple[str, ...]
    taken: tuple[LocatedToken, ...]
    found: LocatedToken

    @classmethod
    def of(cls, machine: InteractiveParser, taken: Sequence[LocatedToken], found: LocatedToken) -> Situation:
        """machine: as the refused token left it."""
        stack = list(machine.parser_state.state_stack)
        states = machine.parser_state.parse_conf.states
        while True:
            rules = {arg for action, arg in states[stack[-1]].values() if action is Reduce}
            if len(rules) != 1:
                break
            rule = rules.pop()
            if rule.expansion:
                del stack[-len(rule.expansion) :]
            stack.append(states[stack[-1]][rule.origin.name][1])
        return cls(machine.parser_state.position, stack[-1], tuple(sorted(cast(Any, machine).accepts())), tuple(taken), found)

    @property
    def before(self) -> LocatedToken:
        return self.taken[-1] if self.taken else self.found

    @property
    def opened(self) -> tuple[LocatedToken, ...]:
        """The brackets that are open where the token was found, outermost first."""
        stack: list[LocatedToken] = []
        for token in self.taken:
            if token.type in _PARTNERS.values():
                stack.append(token)
            elif stack and token.type in _PARTNERS and stack[-1].type == _PARTNERS[token.type]:
                stack.pop()
        return tuple(stack)

    @property
    def keys(self) -> tuple[tuple[object, ...], ...]:
        """Most particular first; no two have the same length, so one table holds them all."""
        kind = self.found.type
        opened = tuple(each.type for each in self.opened[-2:])
        inner = opened[-1:]
        return (
            (self.state, self.context, kind, opened, self.before.type),
            (self.state, self.context, kind, inner),
            (self.context, kind, inner),
            (self.context, inner),
            (kind,),
        )


def describe(situation: Situation) -> Diagnostic:
    """The message of the example most like the situation, or a plain one."""
    known = _known()
    keys = situation.keys
    # Text that belongs to no spec decides alone, wherever it stands.
    for key in keys[-1:] if situation.found.type in MISTAKEN else keys:
        if key in known:
            return _fill(known[key], situation)
    expected = ", ".join(_spell(situation.expected))
    help_texts = (f"expected here: {expected}",) if expected else ()
    return Diagnostic("unexpected-token", f"unexpected {_quote(situation.found)}", Label(situation.found.span), help=help_texts)


@cache
def load() -> tuple[Mistake, ...]:
    """Every mistake on file, by file name."""
    folder = files("nsa_dsl") / "grammar" / "mistakes"
    found = sorted((each for each in folder.iterdir() if each.name.endswith(".toml")), key=lambda each: each.name)
    return tuple(_read(each.name.removesuffix(".toml"), tomllib.loads(each.read_text(encoding="utf-8"))) for each in found)


def _read(code: str, data: dict[str, Any]) -> Mistake:
    help_texts, examples = tuple(data.pop("help")), tuple(data.pop("examples"))
    return Mistake(code=code, help=help_texts, examples=examples, **data)


@cache
def _known() -> dict[tuple[object, ...], Mistake]:
    """Each example's situation. An example that parses, or that means what another does, is a defect of the data."""
    known: dict[tuple[object, ...], Mistake] = {}
    for mistake in load():
        for example in mistake.examples:
            keys = situation_of(example).keys
            for key in keys[-1:] if mistake.anywhere else keys[:-1] if mistake.any_token else keys[:-2]:
                known.setdefault(key, mistake)
    return known


def situation_of(text: str) -> Situation:
    """The first error of one malformed declaration. Raises ValueError when it is not malformed."""
    tokens, _ = tokenize(text, "example")
    fed = [*tokens, end_token(text, "example", tokens[-1])]
    machine = grammar().parse_interactive("")
    for index, token in enumerate(fed):
        try:
            machine.feed_token(token)
        except UnexpectedToken:
            return Situation.of(machine, fed[:index], token)
    raise ValueError(f"not malformed: {text!r}")


def _fill(mistake: Mistake, situation: Situation) -> Diagnostic:
    word = str(situation.found if mistake.where == "found" else situation.before)
    guess = did_you_mean(word, _DECLARING)
    texts = {
        "found": _quote(situation.found),
        "before": _quote(situation.before),
        "word": str(situation.before),
        "guess": f"did you mean `{guess}`?" if guess else "a declaration begins with `pattern`, `relation`, `model` or `use`",
    }

    def fill(text: str) -> str:
        return Template(text).safe_substitute(texts)

    opened = situation.opened
    context = (Label(opened[-1].span, mistake.opener),) if mistake.opener and opened else ()
    primary = Label(_where(mistake, situation), fill(mistake.label))
    return Diagnostic(mistake.code, fill(mistake.title), primary, context, tuple(fill(each) for each in mistake.help))


def _where(mistake: Mistake, situation: Situation) -> Span:
    before = situation.before.span
    if mistake.where == "found" or not situation.taken:
        return situation.found.span
    if mistake.where == "before":
        return before
    return Span(before.source, before.end, before.end, before.line, before.column + before.end - before.start)


def _quote(token: LocatedToken) -> str:
    return "the end" if token.type == "$END" else f"`{token}`" if len(token) <= 40 else f"`{token[:40]}`..."


def _spell(terminals: Sequence[str]) -> list[str]:
    """Terminals as a reader knows them: operators and words in quotes, names once."""
    literal = {each.name: each.pattern.value for each in grammar().terminals if each.pattern.type == "str"}
    soft = grammar_words("_name") if "NAME" in terminals else frozenset()
    spelled = [_WORDS.get(each) or f"`{literal.get(each, each.lower().replace('_', ' '))}`" for each in terminals if each not in soft]
    return list(dict.fromkeys(spelled))


@cache
def grammar_words(rule: str) -> frozenset[str]:
    """The terminals that a rule of the grammar consists of."""
    return frozenset(each.name for found in grammar().rules if found.origin.name == rule for each in found.expansion if each.name != "NAME")
