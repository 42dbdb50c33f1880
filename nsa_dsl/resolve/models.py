"""Model declarations: which pattern each layer runs, and whose choices it reuses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import cycle, groupby

from nsa_dsl.diagnostics import Label, Span
from nsa_dsl.pattern import Choice, Claim, Layer, Model, Pattern
from nsa_dsl.printer import format_spec
from nsa_dsl.resolve.arguments import bind
from nsa_dsl.resolve.claims import check_assertions, claim
from nsa_dsl.resolve.integers import MAX_LAYERS, at_least, constant, layer_count
from nsa_dsl.resolve.kinds import unknown_name, wrong_kind
from nsa_dsl.resolve.patterns import known_pattern
from nsa_dsl.resolve.relations import called_with
from nsa_dsl.resolve.scope import Context, Scope, Unknown, Value
from nsa_dsl.syntax import LayerItem, LayerRule, LayersStatement, ModelDeclaration, Name, Repeat, SpecFile


@dataclass(frozen=True, slots=True)
class _Item:
    """A layer item whose pattern is resolved."""

    pattern: Pattern
    reuse: tuple[Name, ...]


def model(declaration: ModelDeclaration, values: Mapping[str, Value], context: Context) -> Model:
    """The model under these parameter values. Raises RefusedError after reporting every error in it."""
    problems = context.problems
    scope = Scope(values)
    statements = [each for each in declaration.body if isinstance(each, LayersStatement)]
    claims: list[Claim] = []
    layers: tuple[Layer, ...] = ()
    with problems.together():
        check_assertions(declaration.body, context)
        if not statements:
            with problems.attempt():
                raise problems.refusal(
                    "missing-layers",
                    f"model {declaration.name.text} has no layers",
                    declaration.name.span,
                    "runs nothing",
                    help=("say which pattern each layer runs: `layers 24 { repeat NAME }`",),
                )
        for each in statements[1:]:
            first = Label(statements[0].span, "first here")
            problems.report("duplicate-statement", "a model has one `layers`", each.span, "again", context=(first,))
        for statement in declaration.body:
            with problems.attempt():
                if isinstance(statement, LayersStatement):
                    layers = _layers(statement, scope, context)
                else:
                    claims.append(claim(statement, scope, context))
    return Model(
        declaration.name.text,
        tuple((name, value) for name, value in values.items() if not isinstance(value, Unknown)),
        layers,
        tuple(claims),
        format_spec(SpecFile((declaration,))).strip(),
    )


def _layers(statement: LayersStatement, scope: Scope, context: Context) -> tuple[Layer, ...]:
    problems = context.problems
    rules = [each for each in statement.schedule if isinstance(each, LayerRule) and each.low is not None]
    fillers = [each for each in statement.schedule if isinstance(each, Repeat) or each.low is None]
    items: dict[int, _Item] = {}
    taken: dict[int, Span] = {}
    fill: list[_Item] = []
    with problems.together():
        count = problems.tried(lambda: layer_count(statement.count, scope, context), 0)
        for rule in rules:
            with problems.attempt():
                _apply_rule(rule, count, items, taken, scope, context)
        for filler in fillers[:1]:
            with problems.attempt():
                fill = list(_filling(filler, scope, context))
        for extra in fillers[1:]:
            with problems.attempt():
                raise problems.refusal(
                    "overlapping-layers",
                    "only one line can fill the layers that no other names",
                    extra.span,
                    "fills them again",
                    context=(Label(fillers[0].span, "fills them"),),
                )
    missing = [index for index in range(count) if index not in taken]
    if missing and not fill:
        raise problems.refusal(
            "uncovered-layers",
            f"{_ranges(missing)} of {count} layers have no pattern",
            statement.count.span,
            f"{len(missing)} not named",
            help=("add `rest: NAME` or `repeat NAME`",),
        )
    for index, item in zip(missing, cycle(fill), strict=False):
        items[index] = item
    return _linked([items[index] for index in range(count)], context)


def _ranges(numbers: list[int]) -> str:
    """`layers 2..5, 7` for 2, 3, 4, 7: half-open, as in a spec."""
    runs = []
    for _, group in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0]):
        run = [number for _, number in group]
        runs.append(f"{run[0]}..{run[-1] + 1}" if len(run) > 1 else f"{run[0]}")
    shown = runs if len(runs) <= 4 else [*runs[:4], "..."]
    return f"layers {', '.join(shown)}"


def _apply_rule(rule: LayerRule, count: int, items: dict[int, _Item], taken: dict[int, Span], scope: Scope, context: Context) -> None:
    problems = context.problems
    if rule.low is None:
        raise ValueError(rule)
    if rule.item.times is not None:
        problems.report(
            "times-in-rule",
            "a rule names its layers already",
            rule.item.times.span,
            "repeats nothing",
            help=("write the layers as a range, `0..5: NAME`",),
        )
    low = constant(rule.low, scope, context)
    high = low + 1 if rule.high is None else constant(rule.high, scope, context)
    span = rule.low.span if rule.high is None else rule.span
    if high <= low:
        raise problems.refusal("bad-range", "a range must not end before it begins", span, f"{low}..{high} names no layer")
    if count and not 0 <= low < high <= count:
        outside = high - 1 if high > count else low
        raise problems.refusal("layer-out-of-range", f"the layers are 0 to {count - 1}", span, f"names layer {outside}")
    named = range(max(low, 0), min(high, MAX_LAYERS))
    double = next((index for index in named if index in taken), None)
    if double is not None:
        raise problems.refusal(
            "overlapping-layers",
            f"layer {double} is named twice",
            rule.span,
            "again",
            context=(Label(taken[double], "first here"),),
        )
    taken.update((index, rule.span) for index in named)
    item = _item(rule.item, scope, context)
    items.update((index, item) for index in named)


def _filling(filler: Repeat | LayerRule, scope: Scope, context: Context) -> Iterator[_Item]:
    """The items of `repeat` or `rest`, each as often as its `* n` says."""
    for each in filler.items if isinstance(filler, Repeat) else (filler.item,):
        with context.problems.attempt():
            times = 1 if each.times is None else at_least(1, each.times, scope, context, "a number of layers")
            if times > MAX_LAYERS:
                raise context.problems.refusal(
                    "bad-layer-count", f"a model has 1 to {MAX_LAYERS:,} layers", each.span, f"repeats {times:,} times"
                )
            yield from [_item(each, scope, context)] * times


def _item(item: LayerItem, scope: Scope, context: Context) -> _Item:
    node = item.pattern
    name = node.text if isinstance(node, Name) else node.name
    if name not in context.patterns:
        raise wrong_kind(node, "a pattern", context.patterns, scope, context)
    declaration = context.patterns[name]
    values = bind(declaration, node, scope, context)
    with context.problems.called_at(node.span, called_with(values)):
        return _Item(known_pattern(declaration, values, context), item.reuse)


def _linked(items: list[_Item], context: Context) -> tuple[Layer, ...]:
    """The layers, each reused choice tied to the last earlier layer that made it. Raises RefusedError."""
    makers: dict[str, int] = {}
    layers: list[Layer] = []
    with context.problems.together():
        for index, item in enumerate(items):
            own = {each.name: each for branch in item.pattern.branches for each in branch.choices}
            reuse: dict[str, int] = {}
            for name in item.reuse:
                with context.problems.attempt():
                    reuse[name.text] = _source(name, own, index, makers, layers, context)
            makers.update({name: index for name in own if name not in reuse})
            layers.append(Layer(item.pattern, tuple(reuse.items())))
    return tuple(layers)


def _source(name: Name, own: Mapping[str, Choice], index: int, makers: Mapping[str, int], layers: list[Layer], context: Context) -> int:
    """The layer whose choice `name` layer `index` reuses. Raises RefusedError."""
    if name.text not in own:
        raise unknown_name(name.text, name.span, "a choice that this layer's pattern would make", own, context)
    if name.text not in makers:
        raise context.problems.refusal(
            "nothing-to-reuse", f"no layer before layer {index} chooses {name.text}", name.span, "nothing to take"
        )
    maker = makers[name.text]
    made = next(each for branch in layers[maker].pattern.branches for each in branch.choices if each.name == name.text)
    wanted = own[name.text]
    for what in ("block", "share", "every", "queries"):
        ours, theirs = getattr(wanted, what), getattr(made, what)
        if ours != theirs:
            raise context.problems.refusal(
                "reuse-mismatch",
                f"layer {index} cannot take the choice of layer {maker}: their {what} differs",
                name.span,
                f"{what} = {ours} here, {theirs} there",
            )
    return maker
