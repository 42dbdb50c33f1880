"""From a backward plan to the source of a module: contexts through Jinja."""

from __future__ import annotations

from collections import Counter
from typing import Any, assert_never

from nsa_dsl.codegen import build, build_backward, build_gradient
from nsa_dsl.codegen import contexts as ctx
from nsa_dsl.codegen.contexts_backward import BackwardModule, GuardedLaunch
from nsa_dsl.codegen.emit import quoted, render, render_module, settings, title
from nsa_dsl.pattern import Branch
from nsa_dsl.schedule import ChosenStep
from nsa_dsl.schedule_backward import (
    BackwardPlan,
    BackwardStep,
    ChosenKeysStep,
    CompressGradStep,
    QueriesStep,
    RowsStep,
    SinksStep,
    StaticKeysStep,
)

_PARTS = ("keys", "values")

ITEM_ROWS = 16384
"""Query rows that one program of the inverse index goes through: enough that parts of sums stay few, few enough that a block which
every query chose is shared by many programs."""

PROGRAMS_WANTED = 264
"""Programs that fill a large GPU twice."""


def emit_backward(plan: BackwardPlan) -> str:
    """The source of a module that computes the plan; it needs torch and triton only."""
    emitter = _BackwardEmitter(plan)
    for step in plan.steps:
        emitter.add(step)
    return emitter.module()


class _BackwardEmitter:
    """Collects kernels and host launches while it walks the steps.

    Several steps may contribute to one gradient. They run in the plan's order: the first makes the tensor, every other adds to what is
    there, and what the last one stores has the type of the result.
    """

    def __init__(self, plan: BackwardPlan) -> None:
        self._plan = plan
        self._kernels: dict[str, str] = {}
        self._launches: list[GuardedLaunch] = []
        self._branches: dict[str, Branch] = {}
        self._weighted = plan.pattern.output.kind in ("gate", "mix")
        self._merged = plan.pattern.output.kind == "merge"
        self._left = Counter(target for step in plan.steps for target in _targets(step))
        self._begun: set[str] = set()
        # Which of the results a gradient of slots or tokens is for.
        self._leads_to = {_target(each.node): _targets(each) for each in plan.steps if isinstance(each, CompressGradStep)}

    def add(self, step: BackwardStep) -> None:
        match step:
            case RowsStep():
                self._add_rows(step)
            case SinksStep(branch):
                self._launch(
                    "sinks", f"Sinks of {branch}.", f"sinks.{branch}", (f"sinks.{branch}",), sink=f'sinks["{branch}"]',
                    lse=self._lse(branch), delta=f"delta_{branch}",
                )  # fmt: skip
            case QueriesStep():
                self._add_queries(step)
            case StaticKeysStep():
                self._add_static_keys(step)
            case ChosenKeysStep():
                self._add_chosen_keys(step)
            case CompressGradStep():
                self._add_compress(step)
            case _:
                assert_never(step)

    def module(self) -> str:
        plan = self._plan
        shared = render("shared.py.j2", build.shared(tuple(self._branches.values()), plan.shape, gradient=True))
        context = BackwardModule(
            title=title(plan.pattern, "the backward pass of sparse attention"),
            quoted=quoted(plan.pattern),
            settings=settings(plan.shape),
            kernels=(f"ITEM_ROWS = {ITEM_ROWS}\nPROGRAMS_WANTED = {PROGRAMS_WANTED}\n{shared}", *self._kernels.values()),
            launches=tuple(self._launches),
            inverts=any(isinstance(each, ChosenKeysStep) for each in plan.steps),
        )
        return render_module("module_backward.py.j2", context)

    def _kernel(self, template: str, context: Any) -> str:
        name: str = context.name
        self._kernels[name] = render(template, context)
        return name

    def _launch(self, kind: str, note: str, out: str, wanted: tuple[str, ...], **values: ctx.LaunchValue) -> None:
        self._launches.append(GuardedLaunch(ctx.Launch(kind, note, out, tuple(values.items())), wanted))

    def _lse(self, branch: str) -> str:
        return 'lse["merge"]' if self._merged else f'lse["{branch}"]'

    def _add_rows(self, step: RowsStep) -> None:
        nodes = tuple(each.removeprefix("attend.") for each in step.branches)
        context = build_gradient.rows_backward(step.kind, nodes)
        self._kernel("rows_backward.py.j2", context)
        launch = build_gradient.rows_launch(context, self._plan.pattern.output.branches, nodes)
        self._launches.append(GuardedLaunch(launch, ()))

    def _row_values(self, branch: Branch, keys: str, values: str) -> dict[str, ctx.LaunchValue]:
        self._branches[branch.name] = branch
        return {
            "keys": _tensor(keys),
            "values": _tensor(values),
            "lse": self._lse(branch.name),
            "delta": f"delta_{branch.name}",
            "weighted": self._weighted,
            "weight": f"weight_{branch.name}",
            "scale": "scale" if branch.scale is None else repr(float(branch.scale)),
            "document": build.has_document(branch.where),
        }

    def _contribute(self, target: str, dtype: str) -> tuple[str, str, bool]:
        """The tensor that the next contribution to `target` stores to, its type, and whether others have stored before.
        dtype: of the result, as an expression."""
        self._left[target] -= 1
        added = target in self._begun
        self._begun.add(target)
        last = self._left[target] == 0 and target not in self._leads_to
        return (f'grads["{target}"]', dtype, added) if last else (_sum_of(target), "ACC_TORCH", added)

    def _stores(self, target: str, dtype: str, suffix: str = "") -> dict[str, ctx.LaunchValue]:
        out, made_in, added = self._contribute(target, dtype)
        partial = _sum_of(target)
        return {
            f"out{suffix}": out,
            f"dtype{suffix}": made_in,
            f"partial{suffix}": partial if added else out,
            "add": added,
            "fresh": not added or out != partial,
        }

    def _add_queries(self, step: QueriesStep) -> None:
        attend = step.attend
        context = build_backward.queries(step, self._weighted)
        stores = self._stores("q", "q.dtype")
        out = str(stores.pop("out"))
        values = {**self._row_values(attend.branch, attend.keys, attend.values), **stores}
        if isinstance(attend, ChosenStep):
            kernel = self._kernel("attend_chosen_queries.py.j2", context)
            values |= {"lists": _lists(each.name for each in attend.branch.choices), "run": attend.run, "per_head": attend.per_head}
        else:
            kernel = self._kernel("attend_static_queries.py.j2", context)
            values |= {"tile_m": attend.tiles.rows}
        kind = "chosen_queries" if isinstance(attend, ChosenStep) else "static_queries"
        self._launch(
            kind,
            f"Queries of {attend.branch.name}.",
            out,
            ("q",),
            **values,
            kernel=kernel,
            warps=attend.tiles.warps,
            stages=attend.tiles.stages,
        )

    def _key_values(self, branch: Branch, keys: str, values: str) -> tuple[str, tuple[str, ...], dict[str, ctx.LaunchValue]]:
        """What the steps for keys and values share: the keys' output, which gradients it is for, and the launch's values."""
        targets = _target(keys), _target(values)
        found = self._row_values(branch, keys, values)
        found |= self._stores(targets[1], f"{_tensor(values)}.dtype", "_values")
        found |= self._stores(targets[0], f"{_tensor(keys)}.dtype")
        wanted = tuple(dict.fromkeys(name for each in targets for name in self._leads_to.get(each, (each,))))
        return str(found.pop("out")), wanted, found

    def _add_static_keys(self, step: StaticKeysStep) -> None:
        context = build_backward.static_keys(step, self._weighted)
        kernel = self._kernel("attend_static_keys.py.j2", context)
        out, wanted, values = self._key_values(step.branch, step.keys, step.values)
        self._launch(
            "static_keys", f"Keys and values of {step.branch.name}.", out, wanted, **values, kernel=kernel,
            lists=_lists(each.pointer.removeprefix("list_") for each in context.members), tile_n=step.tiles.cols,
            warps=step.tiles.warps, stages=step.tiles.stages,
        )  # fmt: skip

    def _add_chosen_keys(self, step: ChosenKeysStep) -> None:
        attend = step.attend
        choice = attend.branch.choices[step.place]
        context = build_backward.chosen_keys(step, self._weighted)
        kernel, total = self._kernel("attend_chosen_keys.py.j2", context), build_backward.sum_blocks(choice)
        out, wanted, values = self._key_values(attend.branch, attend.keys, attend.values)
        sharing = {"group": "group, 1, kv_heads", "head": "1, 1, kv_heads", "all": "group, kv_heads, 1"}[choice.share]
        note = f"Keys and values of {attend.branch.name}, by the blocks of {choice.name}."
        self._launch(
            "chosen_keys", note, out, wanted, **values, kernel=kernel,
            sum=self._kernel("sum_blocks.py.j2", total), sum_tiles=total.tiles, list=f'chosen["{choice.name}"]', block=choice.block,
            every=choice.every, tiles=context.tiles, sharing=sharing, warps=step.tiles.warps, stages=step.tiles.stages,
            lists=_lists(each.pointer.removeprefix("list_") for each in context.members),
        )  # fmt: skip

    def _add_compress(self, step: CompressGradStep) -> None:
        memory, part, tokens = step.memory, step.part, _target(step.source)
        grad = _sum_of(_target(step.node))
        weight = f'weights["{memory.name}"][{_PARTS.index(part)}]'
        if memory.by == "weighted":
            # Before compress_backward, which by max overwrites the slots' gradient.
            weights = build_gradient.weights_backward(memory)
            self._kernel("weights_backward.py.j2", weights)
            name = f"weights.{memory.name}.{part}"
            out, dtype, added = self._contribute(name, f"{weight}.dtype")
            launch = build_gradient.weights_launch(
                weights, part, grad=grad, x=_tensor(step.source), partial=_sum_of(name) if added else "", out=out, dtype=dtype
            )
            self._launches.append(GuardedLaunch(launch, (name,)))
        context = build_gradient.compress_backward(memory)
        self._kernel("compress_backward.py.j2", context)
        stores = self._stores(tokens, f"{_tensor(step.source)}.dtype")
        launch = build_gradient.compress_launch(
            context, part, grad=grad, x=_tensor(step.source), slots=_tensor(step.node), weight=weight,
            partial=str(stores["partial"]) if stores["add"] else "", out=str(stores["out"]), dtype=str(stores["dtype"]),
        )  # fmt: skip
        # Both or neither: another step adds to the gradients of keys and values together.
        self._launches.append(GuardedLaunch(launch, tuple(f"{each}{tokens[1:]}" for each in ("k", "v"))))


def _targets(step: BackwardStep) -> tuple[str, ...]:
    """The gradients that a step contributes to and others may, too."""
    match step:
        case QueriesStep():
            return ("q",)
        case StaticKeysStep():
            return _target(step.keys), _target(step.values)
        case ChosenKeysStep(attend):
            return _target(attend.keys), _target(attend.values)
        case CompressGradStep(_, source, memory, part):
            weights = (f"weights.{memory.name}.{part}",) if memory.by == "weighted" else ()
            return (_target(source), *weights)
        case RowsStep() | SinksStep():
            return ()
        case _:
            assert_never(step)


def _target(node: str) -> str:
    """The name of the gradient of a node: input.k.a -> k.a, compress.m.keys.a -> slots.m.a.keys."""
    kind, _, rest = node.partition(".")
    if kind == "input":
        return rest
    memory, part, *owner = rest.split(".")
    return ".".join(("slots", memory, *owner, part))


def _tensor(node: str) -> str:
    """How the host function calls a node's tensor: an input, or one of a memory's slots."""
    kind, _, rest = node.partition(".")
    if kind == "input":
        role, _, owner = rest.partition(".")
        return f'{role}["{owner}"]' if owner else role
    memory, part, *owners = rest.split(".")
    return f'slots["{".".join((memory, *owners))}"][{_PARTS.index(part)}]'


def _sum_of(target: str) -> str:
    """The variable that holds a gradient while contributions are added up."""
    return f"sum_{target.replace('.', '_')}"


def _lists(choices: Any) -> str:
    return "".join(f'chosen["{each}"], ' for each in choices)
