"""Grammar rules to syntax nodes: one method a rule of grammar/nsa.lark, called by the parser as it reduces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar, cast

from lark import Transformer

from nsa_dsl import syntax as s
from nsa_dsl.diagnostics import Span

_Node = TypeVar("_Node")
Children = list[Any]
"""What a rule matched, in order: located tokens and the nodes of sub-rules; each has a `span`, lists apart."""


def _span(children: Sequence[Any]) -> Span:
    first, last = children[0].span, children[-1].span
    return Span(first.source, first.start, last.end, first.line, first.column)


def _only(kind: type[_Node], children: Children) -> tuple[_Node, ...]:
    return tuple(each for each in children if isinstance(each, kind))


def _name(token: Any) -> s.Name:
    return s.Name(str(token), token.span)


def _expressions(children: Children) -> tuple[s.Expression, ...]:
    """Every node among the children that is no token: tokens are strings."""
    return tuple(each for each in children if not isinstance(each, str))


class Builder(Transformer[Any, Any]):
    """Stateless; spans come from the tokens."""

    def start(self, children: Children) -> s.Declaration:
        return cast(s.Declaration, children[0])

    def use(self, children: Children) -> s.Use:
        return s.Use(str(children[1])[1:-1], _span(children))

    def heading(self, children: Children) -> tuple[s.Name, tuple[s.Parameter, ...]]:
        return _name(children[0]), children[2] if len(children) > 1 else ()

    def parameters(self, children: Children) -> tuple[s.Parameter, ...]:
        return _only(s.Parameter, children)

    def parameter(self, children: Children) -> s.Parameter:
        return s.Parameter(_name(children[0]), children[2] if len(children) > 1 else None, _span(children))

    def relation(self, children: Children) -> s.RelationDeclaration:
        name, parameters = children[1]
        return s.RelationDeclaration(name, parameters, children[3], _span(children))

    def pattern(self, children: Children) -> s.PatternDeclaration:
        name, parameters = children[1]
        return s.PatternDeclaration(name, parameters, tuple(children[3:-1]), _span(children))

    def model(self, children: Children) -> s.ModelDeclaration:
        name, parameters = children[1]
        return s.ModelDeclaration(name, parameters, tuple(children[3:-1]), _span(children))

    def binding(self, children: Children) -> s.Binding:
        return s.Binding(_name(children[0]), children[2], _span(children))

    def output(self, children: Children) -> s.OutputStatement:
        return s.OutputStatement(children[1], _span(children))

    def kv_per_branch(self, children: Children) -> s.KvPerBranch:
        return s.KvPerBranch(_span(children))

    def allow_lookahead(self, children: Children) -> s.AllowLookahead:
        return s.AllowLookahead(_span(children))

    def assert_relation(self, children: Children) -> s.AssertRelation:
        return s.AssertRelation(children[1], _span(children))

    def assert_reach(self, children: Children) -> s.AssertReach:
        return s.AssertReach(children[1], children[3], _span(children))

    def assert_bound(self, children: Children) -> s.AssertBound:
        return s.AssertBound("density" if children[1] == "density" else "kv", children[3], children[5], _span(children))

    def layers(self, children: Children) -> s.LayersStatement:
        return s.LayersStatement(children[1], tuple(children[3:-1]), _span(children))

    def repeat(self, children: Children) -> s.Repeat:
        return s.Repeat(_only(s.LayerItem, children), _span(children))

    def layer_range(self, children: Children) -> s.LayerRule:
        return s.LayerRule(children[0], children[2], children[4], _span(children))

    def layer_index(self, children: Children) -> s.LayerRule:
        return s.LayerRule(children[0], None, children[2], _span(children))

    def layer_rest(self, children: Children) -> s.LayerRule:
        return s.LayerRule(None, None, children[2], _span(children))

    def layer_item(self, children: Children) -> s.LayerItem:
        times = children[2] if len(children) > 1 and children[1].type == "STAR" else None
        after = children[3:] if times is not None else children[1:]
        reuse = tuple(_name(each) for each in after[2:-1:2])
        return s.LayerItem(children[0], times, reuse, _span(children))

    def disjunction(self, children: Children) -> s.Logical:
        return s.Logical("or", _expressions(children), _span(children))

    def conjunction(self, children: Children) -> s.Logical:
        return s.Logical("and", _expressions(children), _span(children))

    def negation(self, children: Children) -> s.Negation:
        return s.Negation(children[1], _span(children))

    def comparison(self, children: Children) -> s.Comparison:
        return s.Comparison(tuple(str(each) for each in children[1::2]), _expressions(children), _span(children))

    def binary(self, children: Children) -> s.Binary:
        return s.Binary(cast(s.BinaryOperator, str(children[1])), children[0], children[2], _span(children))

    def negative(self, children: Children) -> s.Negative:
        return s.Negative(children[1], _span(children))

    def integer(self, children: Children) -> s.Integer:
        digits = children[0].replace("_", "")
        value = int(digits[:-1]) * 1024 if digits.endswith("k") else int(digits)
        return s.Integer(value, _span(children))

    def real(self, children: Children) -> s.Real:
        return s.Real(str(children[0]), _span(children))

    def name(self, children: Children) -> s.Name:
        return _name(children[0])

    variable = name

    def call(self, children: Children) -> s.Call:
        return s.Call(str(children[0]), children[2], _span(children))

    def arguments(self, children: Children) -> tuple[s.Argument, ...]:
        return _only(s.Argument, children)

    def argument(self, children: Children) -> s.Argument:
        name = str(children[0]) if len(children) > 1 else None
        return s.Argument(name, children[-1], _span(children))

    def set_builder(self, children: Children) -> s.SetBuilder:
        *variables, condition = _expressions(children)
        return s.SetBuilder(tuple(cast(list[s.Name], variables)), condition, _span(children))

    def union_over(self, children: Children) -> s.UnionOver:
        _, variable, _, low, _, high, body = children
        return s.UnionOver(variable, low, high, body, _span(children))

    def group(self, children: Children) -> s.Expression:
        """Parentheses leave no node, but they belong to the text that the node covers."""
        return replace(cast(s.Expression, children[1]), span=_span(children))
