"""From a backward plan to the source of a module: contexts through Jinja."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, assert_never

from nsa_dsl.codegen import build, build_backward, build_gradient, build_hopper_backward, build_schedules
from nsa_dsl.codegen import contexts as ctx
from nsa_dsl.codegen.contexts_backward import BackwardModule, GuardedLaunch
from nsa_dsl.codegen.contexts_hopper_backward import HopperShared
from nsa_dsl.codegen.contexts_schedules import Inverse
from nsa_dsl.codegen.emit import quoted, render, render_module, settings, title
from nsa_dsl.codegen.limits_backward import LIMITS
from nsa_dsl.launch import Tiles
from nsa_dsl.pattern import Branch
from nsa_dsl.relation import symbols
from nsa_dsl.schedule import AttendStep, ChosenStep, OneListTiles, StaticStep
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
from nsa_dsl.schedule_chosen import UNION_QUERIES_MOST

_PARTS = ("keys", "values")


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
        # Features of queries and keys past the first box of the copy engine.
        self._tail = max(0, plan.shape.dim_qk - 128)
        self._kernels: dict[str, str] = {}
        self._launches: list[GuardedLaunch] = []
        self._branches: dict[str, Branch] = {}
        self._merged = plan.pattern.output.kind == "merge"
        # What fast kernels read and find_wild looks at: they run if all of it is finite.
        self._read: dict[str, None] = {}
        self._left = Counter(target for step in plan.steps for target in _targets(step))
        self._splits = self._left["q"] > 1 and all(_same_for_all_heads(each) for each in plan.pattern.branches)
        self._begun: set[str] = set()
        # How the steps for keys store queries' gradients, by branch: those that keep slopes do.
        self._slopes: dict[str, dict[str, ctx.LaunchValue]] = {}
        # Which of the results a gradient of slots or tokens is for.
        self._leads_to = {_target(each.node): _targets(each) for each in plan.steps if isinstance(each, CompressGradStep)}

    def add(self, step: BackwardStep) -> None:
        match step:
            case RowsStep():
                self._add_rows(step)
            case SinksStep(branch):
                self._launch(
                    "sinks", f"Sinks of {branch}.", f"sinks.{branch}", (f"sinks.{branch}",), sink=f'sinks["{branch}"]',
                    folded_lse=f"folded_lse_{branch}", folded_delta=f"folded_delta_{branch}",
                )  # fmt: skip
            case QueriesStep(attend):
                if isinstance(attend, ChosenStep):
                    self._add_chosen_queries(step, attend)
                elif not step.joined:
                    self._add_static_queries((attend, *step.others), step.hopper)
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
            kernels=(f"{LIMITS}\n{shared}", *self._kernels.values()),
            launches=tuple(self._launches),
            inverts=any(isinstance(each, ChosenKeysStep) for each in plan.steps),
            wild=", ".join(self._read),
            splits=self._splits,
        )
        return render_module("module_backward.py.j2", context)

    def _kernel(self, template: str, context: Any) -> str:
        name: str = context.name
        self._kernels[name] = render(template, context)
        return name

    def _wild(self, *tensors: str) -> str:
        """The variable that says whether what the fast kernels read is finite, these keys and values among it."""
        self._kernels["find_wild"] = render("find_wild.py.j2", None)
        self._read |= dict.fromkeys(tensors)
        return "wild"

    def _launch(self, kind: str, note: str, out: str, wanted: tuple[str, ...], **values: ctx.LaunchValue) -> None:
        self._launches.append(GuardedLaunch(ctx.Launch(kind, note, out, tuple(values.items())), wanted))

    def _lse(self, branch: str) -> str:
        return 'lse["merge"]' if self._merged else f'lse["{branch}"]'

    def _add_rows(self, step: RowsStep) -> None:
        nodes = tuple(each.removeprefix("attend.") for each in step.branches)
        vouching = build_gradient.vouching(step.kind, tuple(map(self._plan.pattern.branch, nodes)))
        context = build_gradient.rows_backward(step.kind, nodes, any(map(_has_fast, self._plan.steps)), vouching)
        self._read |= dict.fromkeys(("q",) if context.wild and not context.vouching else ())
        self._kernel("rows_backward.py.j2", context)
        launch = build_gradient.rows_launch(context, self._plan.pattern.output.branches, nodes)
        self._launches.append(GuardedLaunch(launch, ()))

    def _row_values(self, branch: Branch, keys: str, values: str) -> dict[str, ctx.LaunchValue]:
        self._branches[branch.name] = branch
        return {
            "keys": _tensor(keys),
            "values": _tensor(values),
            "lse": self._lse(branch.name),
            "folded_lse": f"folded_lse_{branch.name}",
            "folded_delta": f"folded_delta_{branch.name}",
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

    def _query_values(self, attend: AttendStep) -> dict[str, ctx.LaunchValue]:
        stores = self._stores("q", "q.dtype")
        return {**self._row_values(attend.branch, attend.keys, attend.values), **stores, "splits": self._splits}

    def _add_static_queries(self, attends: Sequence[StaticStep], hopper: Tiles | None) -> None:
        """One Gluon kernel for all branches, if there is one, then the plain kernel of each."""
        kernels = [self._kernel("attend_static_queries.py.j2", build_backward.queries(QueriesStep(each, hopper))) for each in attends]
        values = [self._query_values(each) for each in attends]
        if hopper is not None:
            self._add_hopper_queries(attends, hopper, values)
        for attend, kernel, each in zip(attends, kernels, values, strict=True):
            self._launch(
                "static_queries", f"Queries of {attend.branch.name}.", str(each.pop("out")), ("q",), **each, kernel=kernel,
                hopper=hopper is not None, tile_m=attend.tiles.rows, warps=attend.tiles.warps, stages=attend.tiles.stages,
            )  # fmt: skip

    def _add_hopper_queries(self, attends: Sequence[StaticStep], tiles: Tiles, values: Sequence[dict[str, ctx.LaunchValue]]) -> None:
        """A launch that adds to what the first of some plain launches adds to, and stores what the last of them stores. values: of those
        launches, which learn what flag to look at, and what is there already."""
        self._kernels["hopper_backward"] = render("hopper_backward.py.j2", HopperShared(self._tail))
        out, add = str(values[-1]["out"]), values[0]["add"]
        same = [each for each in values if each["out"] == out]
        kernel = self._kernel("hopper_queries.py.j2", build_hopper_backward.queries(attends, tiles, self._tail))
        for each in values:
            each["wild"] = self._wild(str(each["keys"]), str(each["values"]))
        self._launch(
            "hopper_queries", f"Queries of {' and '.join(each.branch.name for each in attends)}, on Hopper.", out, ("q",), kernel=kernel,
            memories=tuple((str(each["keys"]), str(each["values"])) for each in values),
            facts=tuple((str(each["folded_lse"]), str(each["folded_delta"])) for each in values),
            partial=values[0]["partial"] if add else out, add=add, fresh=any(each["fresh"] for each in same), dtype=values[-1]["dtype"],
            splits=self._splits, scale=values[0]["scale"], wild="wild", rows=tiles.rows, cols=tiles.cols, warps=tiles.warps,
            dim_qk=self._plan.shape.dim_qk, dim_v=self._plan.shape.dim_v, tail=self._tail,
        )  # fmt: skip
        for each in same:
            each["fresh"] = False

    def _add_chosen_queries(self, step: QueriesStep, attend: ChosenStep) -> None:
        values = self._query_values(attend)
        out = str(values.pop("out"))
        if attend.one_list is not None:
            self._add_one_list_queries(attend, attend.one_list, out, values)
            return
        self._launch(
            "chosen_queries", f"Queries of {attend.branch.name}.", out, ("q",), **values,
            kernel=self._kernel("attend_chosen_queries.py.j2", build_backward.queries(step)),
            lists=_lists(each.name for each in attend.branch.choices), run=attend.run, per_head=attend.per_head,
            warps=attend.tiles.warps, stages=attend.tiles.stages,
        )  # fmt: skip

    def _add_one_list_queries(self, step: ChosenStep, tiles: OneListTiles, out: str, values: dict[str, ctx.LaunchValue]) -> None:
        for name in ("load_tile", "unite_blocks"):
            self._kernels[name] = render(f"{name}.py.j2", None)
        alone = build_schedules.one_choice(step, tiles.queries, "_queries")
        union = build_schedules.one_choice(step, tiles.union_queries, "_union_queries")
        values |= build_schedules.launch(step, tiles.union_queries, self._kernel("attend_union_queries.py.j2", union))
        wanted: tuple[str, ...] = ()
        block = step.branch.choices[0].block
        if self._left["q"] == 0 and block & (block - 1) == 0:
            # Nothing is added after this step, so that the step for keys may be the one that does it.
            self._slopes[step.branch.name] = {"out_q": out, "partial_q": values["partial"], "add_q": values["add"]}
            wanted = tuple(name for each in (_target(step.keys), _target(step.values)) for name in self._leads_to.get(each, (each,)))
        names = ", ".join(f'"{each}"' for each in wanted)
        kept = f"KEEP_SLOPES and any(each in wanted for each in ({names},))" if wanted else "False"
        self._launch(
            "one_list_queries", f"Queries of {step.branch.name}.", out, ("q",), **values, kept=kept,
            kernel=self._kernel("attend_alone_queries.py.j2", alone), list=f'chosen["{step.branch.choices[0].name}"]',
            most=UNION_QUERIES_MOST,
            wild=self._wild(str(values["keys"]), str(values["values"])), warps=tiles.queries.warps, stages=tiles.queries.stages,
        )  # fmt: skip

    def _beside(self, template: str, fast: Any, tiles: Tiles | None, values: dict[str, ctx.LaunchValue]) -> dict[str, ctx.LaunchValue]:
        """What the launch of a static step needs to know of the Gluon kernel beside the plain one. fast: its context; tiles: its tiles;
        None where there is none. values: of the launch so far."""
        if tiles is None:
            return {"hopper": ""}
        self._kernels["hopper_backward"] = render("hopper_backward.py.j2", HopperShared(self._tail))
        return {
            "hopper": self._kernel(template, fast),
            "hopper_rows": tiles.rows,
            "hopper_cols": tiles.cols,
            "hopper_warps": tiles.warps,
            "wild": self._wild(str(values["keys"]), str(values["values"])),
            "dim_qk": self._plan.shape.dim_qk,
            "dim_v": self._plan.shape.dim_v,
            "tail": self._tail,
        }

    def _key_values(self, branch: Branch, keys: str, values: str) -> tuple[str, tuple[str, ...], dict[str, ctx.LaunchValue]]:
        """What the steps for keys and values share: the keys' output, which gradients it is for, and the launch's values."""
        targets = _target(keys), _target(values)
        found = self._row_values(branch, keys, values)
        found |= self._stores(targets[1], f"{_tensor(values)}.dtype", "_values")
        found |= self._stores(targets[0], f"{_tensor(keys)}.dtype")
        wanted = tuple(dict.fromkeys(name for each in targets for name in self._leads_to.get(each, (each,))))
        return str(found.pop("out")), wanted, found

    def _add_static_keys(self, step: StaticKeysStep) -> None:
        context = build_backward.static_keys(step)
        kernel = self._kernel("attend_static_keys.py.j2", context)
        self._kernels["add_splits"] = render("add_splits.py.j2", None)
        out, wanted, values = self._key_values(step.branch, step.keys, step.values)
        fast = None if step.hopper is None else build_hopper_backward.static_keys(step, step.hopper, self._tail)
        values |= self._beside("hopper_keys.py.j2", fast, step.hopper, values)
        self._launch(
            "static_keys", f"Keys and values of {step.branch.name}.", out, wanted, **values, kernel=kernel,
            lists=_lists(each.pointer.removeprefix("list_") for each in context.members), tile_n=step.tiles.cols,
            warps=step.tiles.warps, stages=step.tiles.stages,
        )  # fmt: skip

    def _add_chosen_keys(self, step: ChosenKeysStep) -> None:
        attend = step.attend
        choice = attend.branch.choices[step.place]
        context = build_backward.chosen_keys(step)
        kernel, total = self._kernel("attend_chosen_keys.py.j2", context), build_backward.sum_blocks(choice)
        self._kernels["invert_blocks"] = render("invert_blocks.py.j2", Inverse(may_skip=False))
        out, wanted, values = self._key_values(attend.branch, attend.keys, attend.values)
        sharing = {"group": "group, 1, kv_heads", "head": "1, 1, kv_heads", "all": "group, kv_heads, 1"}[choice.share]
        note = f"Keys and values of {attend.branch.name}, by the blocks of {choice.name}."
        slopes = ""
        if attend.branch.name in self._slopes:
            slopes = self._kernel("slopes_queries.py.j2", build_backward.slopes_queries(step))
        self._launch(
            "chosen_keys", note, out, wanted, **values, kernel=kernel, wild=self._wild(str(values["keys"]), str(values["values"])),
            sum=self._kernel("sum_blocks.py.j2", total), sum_tiles=total.tiles, list=f'chosen["{choice.name}"]', block=choice.block,
            every=choice.every, tiles=context.tiles, sharing=sharing, warps=step.tiles.warps, stages=step.tiles.stages,
            lists=_lists(each.pointer.removeprefix("list_") for each in context.members), width=context.width, slopes=slopes,
            slopes_warps=step.slopes.warps, slopes_stages=step.slopes.stages, first=attend.first,
            **self._slopes.get(attend.branch.name, {}),
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


def _same_for_all_heads(branch: Branch) -> bool:
    """Whether a head's gradient is the same when its kernels see a part of the heads."""
    return branch.bias != "alibi" and not symbols(branch.where) & {"h", "heads", "kv_heads"}


def _has_fast(step: BackwardStep) -> bool:
    """Whether the step has a kernel for finite inputs."""
    match step:
        case QueriesStep(attend, hopper):
            return hopper is not None or (isinstance(attend, ChosenStep) and attend.one_list is not None)
        case StaticKeysStep():
            return step.hopper is not None
        case ChosenKeysStep():
            return True
        case RowsStep() | SinksStep() | CompressGradStep():
            return False
        case _:
            assert_never(step)


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
