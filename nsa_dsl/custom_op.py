"""The operators that PyTorch sees: `nsa_dsl::attend`, its backward `nsa_dsl::attend_backward`, and `nsa_dsl::choose`.

One set for all patterns. An operator's arguments are flat: `key` says which pattern (its kernels are looked up in a registry of
this process), `tensors` are those that the call has, and `places` says which of the pattern's inputs each one is, as an index
into `Signature.inputs`. (Autograd follows no list with gaps in it.) Shapes are computed without branching on sizes, so that one
trace serves every length.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor

from nsa_dsl.arguments import check_blocks
from nsa_dsl.marshal import first, group, named, no_blocks, placeholders, sizes
from nsa_dsl.pattern import Pattern
from nsa_dsl.signature import Signature


class Kernels(Protocol):
    """What the operators need of a compiled pattern."""

    pattern: Pattern
    signature: Signature

    def module(self, q: Tensor, dim_v: int, *, kv_heads: int | None = None, backward: bool = False) -> types.ModuleType:
        """The generated module for calls like this one: q's sizes, type and device, this value dimension, this many heads of keys."""


_REGISTRY: dict[str, Kernels] = {}


def register(key: str, kernels: Kernels) -> None:
    """Let the operators find a pattern's kernels under this key. Whoever registers last under a key serves it."""
    _register_flops()
    _REGISTRY[key] = kernels


def find(key: str) -> Kernels:
    """The kernels registered under a key. Raises RuntimeError for a graph that outlived its process."""
    if key not in _REGISTRY:
        raise RuntimeError(f"no pattern is registered as {key!r} in this process: compile its spec before running a saved graph")
    return _REGISTRY[key]


def _operator(schema: str) -> Callable[[Callable[..., Any]], Any]:
    """Make a function the operator of its name, on every device. `torch.library.custom_op` would do so, too, but what it makes imports
    torch._dynamo when it is first called: seconds in every process, also in those that never compile a model."""

    def define(function: Callable[..., Any]) -> Any:
        torch.library.define(f"nsa_dsl::{function.__name__}", schema, tags=(torch.Tag.pt2_compliant_tag,))
        torch.library.impl(f"nsa_dsl::{function.__name__}", "default")(function)
        return getattr(torch.ops.nsa_dsl, function.__name__).default

    return define


@_operator("(str key, Tensor[] tensors, int[] places, float? scale, bool validate, bool keep) -> Tensor[]")
def attend(key: str, tensors: Sequence[Tensor], places: Sequence[int], scale: float | None, validate: bool, keep: bool) -> list[Tensor]:
    """A call of the pattern: the tensors of `Signature.outputs`, in that order.

    validate: refuse chosen blocks out of range (waits for the device). keep: also return what only backward reads and takes memory, the
    branches' outputs; without, they are left out. Raises ArgumentError for a block out of range.
    """
    kernels = find(key)
    signature, given = kernels.signature, named(kernels.signature, tensors, places)
    if validate:
        arguments = group(given.items())
        check_blocks(kernels.pattern, sizes(given).tokens, arguments.get("indices"), arguments.get("choices"))
    if given["q"].numel() == 0:
        return placeholders(signature, given, keep)
    made = _run(kernels, given, scale, keep=keep)
    return [made[name] for name in signature.returned(keep)]


@_operator("(str key, Tensor[] tensors, int[] places, Tensor[] saved, Tensor[] grads, int[] given, int[] wanted, float? scale) -> Tensor[]")
def attend_backward(
    key: str,
    tensors: Sequence[Tensor],
    places: Sequence[int],
    saved: Sequence[Tensor],
    grads: Sequence[Tensor],
    given: Sequence[int],
    wanted: Sequence[int],
    scale: float | None,
) -> list[Tensor]:
    """The gradients of the inputs at the places `wanted`, in that order, each contiguous and of its input's shape and type.

    tensors: those inputs that `Signature.read_backward` names. saved: as `Signature.saved`. grads: derivatives of the loss by the
    outputs numbered `given`: 0 is the output, 1 + n its n-th log-sum-exp. Those that are missing are zero.
    """
    kernels = find(key)
    signature, inputs = kernels.signature, named(kernels.signature, tensors, places)
    names = tuple(signature.inputs[each] for each in wanted)
    q = inputs["q"]
    if q.numel() == 0:
        return [torch.zeros_like(inputs[name], memory_format=torch.contiguous_format) for name in names]
    kept, arguments = group(zip(signature.saved, saved, strict=True)), group(inputs.items())
    cotangents = dict(zip(given, grads, strict=True))
    dim_v = first(arguments["v"]).shape[3]
    outs = kept["branch"] if "branch" in kept else dict.fromkeys(signature.lses, kept["out"])
    with _device_of(q):
        made: dict[str, Tensor] = kernels.module(q, dim_v, kv_heads=first(arguments["k"]).shape[1], backward=True).run_backward(
            _rows(cotangents[0]) if 0 in cotangents else q.new_zeros(*q.shape[:3], dim_v),
            {name: cotangents[n] for n, name in enumerate(signature.lses, 1) if n in cotangents},
            q,
            arguments["k"],
            arguments["v"],
            _with_equals(signature, outs),
            _with_equals(signature, kept["lse"]),
            gates=arguments.get("gates"),
            weights=arguments.get("weights"),
            slots={**kept.get("slots", {}), **arguments.get("slots", {})},
            chosen=kept.get("chosen", {}),
            documents=_documents(signature, arguments.get("cu_seqlens"), q),
            sinks=arguments.get("sinks"),
            scale=scale,
            wanted=names,
        )
    return [made[name] for name in names]


@_operator("(str key, Tensor[] tensors, int[] places, float? scale) -> Tensor[]")
def choose(key: str, tensors: Sequence[Tensor], places: Sequence[int], scale: float | None) -> list[Tensor]:
    """The blocks of `Signature.choices`, in that order: int32 (batch, units, query units, n)."""
    kernels = find(key)
    given = named(kernels.signature, tensors, places)
    if given["q"].numel() == 0:
        return [no_blocks(each, sizes(given), given["q"]) for each in kernels.signature.choices]
    made = _run(kernels, given, scale, only_choices=True)
    return [made[f"chosen.{each.name}"] for each in kernels.signature.choices]


def _attend_fake(
    key: str,
    tensors: Sequence[Tensor],
    places: Sequence[int],
    scale: float | None,  # noqa: ARG001
    validate: bool,  # noqa: ARG001
    keep: bool,
) -> list[Tensor]:
    signature = find(key).signature
    return placeholders(signature, named(signature, tensors, places), keep)


def _attend_backward_fake(
    key: str,  # noqa: ARG001
    tensors: Sequence[Tensor],
    places: Sequence[int],
    saved: Sequence[Tensor],  # noqa: ARG001
    grads: Sequence[Tensor],  # noqa: ARG001
    given: Sequence[int],  # noqa: ARG001
    wanted: Sequence[int],
    scale: float | None,  # noqa: ARG001
) -> list[Tensor]:
    inputs = dict(zip(places, tensors, strict=True))
    return [inputs[each].new_empty(inputs[each].shape) for each in wanted]


def _choose_fake(key: str, tensors: Sequence[Tensor], places: Sequence[int], scale: float | None) -> list[Tensor]:  # noqa: ARG001
    signature = find(key).signature
    given = named(signature, tensors, places)
    return [no_blocks(each, sizes(given), given["q"]) for each in signature.choices]


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    ctx.key, tensors, ctx.places, ctx.scale, _, keep = inputs
    signature = find(ctx.key).signature
    if not keep:
        raise ValueError("nsa_dsl::attend keeps nothing for backward with keep=False: pass True where a gradient is wanted")
    ctx.kept = [n for n, place in enumerate(ctx.places) if signature.inputs[place] in signature.read_backward]
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[1 + len(signature.lses) :])
    ctx.save_for_backward(*(tensors[n] for n in ctx.kept), *output[len(signature.outputs) - len(signature.saved) :])


def _gradients(ctx: Any, grads: Sequence[Tensor | None]) -> tuple[Any, ...]:
    return None, _input_gradients(ctx, grads, ctx.needs_input_grad[1]), None, None, None, None


def _input_gradients(ctx: Any, grads: Sequence[Tensor | None], needed: Sequence[bool]) -> list[Tensor | None]:
    """A gradient, or None, for every tensor that the operator was given. needed: for which of them something asks."""
    signature = find(ctx.key).signature
    inputs, differentiable = signature.inputs, signature.differentiable
    given = [n for n, grad in enumerate(grads) if grad is not None]
    wanted = [place for place, need in zip(ctx.places, needed, strict=True) if need and inputs[place] in differentiable]
    made: dict[int, Tensor] = {}
    if given and wanted:
        both, places = ctx.saved_tensors, [ctx.places[n] for n in ctx.kept]
        tensors, saved = list(both[: len(places)]), list(both[len(places) :])
        found = attend_backward(ctx.key, tensors, places, saved, [grads[n] for n in given], given, wanted, ctx.scale)
        made = dict(zip(wanted, found, strict=True))
    return [made.get(place) for place in ctx.places]


def _refuse_second_derivative(ctx: Any, grads: Sequence[Tensor | None]) -> tuple[Any, ...]:
    raise NotImplementedError(
        "sparse attention has no second derivatives: leave out create_graph=True, or differentiate `.reference(...)`, which computes "
        "the same densely"
    )


torch.library.register_fake("nsa_dsl::attend", _attend_fake)
torch.library.register_fake("nsa_dsl::attend_backward", _attend_backward_fake)
torch.library.register_fake("nsa_dsl::choose", _choose_fake)
torch.library.register_autograd("nsa_dsl::attend", _gradients, setup_context=_keep_for_backward)
torch.library.register_autograd("nsa_dsl::attend_backward", _refuse_second_derivative)


class _Attend(torch.autograd.Function):
    """`attend` with the same gradients. What PyTorch does with an operator's lists of tensors on both ways takes the host as long as a
    dozen launches; here every tensor is an argument of its own."""

    @staticmethod
    def forward(ctx: Any, key: str, places: Sequence[int], scale: float | None, validate: bool, *tensors: Tensor) -> tuple[Tensor, ...]:
        output = attend(key, tensors, places, scale, validate, True)
        _keep_for_backward(ctx, (key, tensors, places, scale, validate, True), output)
        return tuple(output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        return None, None, None, None, *_input_gradients(ctx, grads, ctx.needs_input_grad[4:])


def call(key: str, tensors: Sequence[Tensor], places: Sequence[int], scale: float | None, validate: bool, keep: bool) -> Sequence[Tensor]:
    """What `attend` returns, with gradients if `keep`. The operator itself is for whoever traces: a graph holds it, with its autograd."""
    if not keep or torch.compiler.is_compiling():
        made: list[Tensor] = attend(key, tensors, places, scale, validate, keep)
        return made
    kept: tuple[Tensor, ...] = _Attend.apply(key, places, scale, validate, *tensors)  # type: ignore[no-untyped-call]
    return kept


def _attend_flops(
    key: str,
    tensors: Sequence[Tensor],
    places: Sequence[int],
    scale: float | None,  # noqa: ARG001
    validate: bool,  # noqa: ARG001
    keep: bool,
    *,
    out_val: Sequence[Tensor],
) -> int:
    # Counting asks isl, which a call does not.
    from nsa_dsl.flops import forward_flops

    signature = find(key).signature
    given, made = named(signature, tensors, places), group(zip(signature.returned(keep), out_val, strict=True))
    return forward_flops(signature, sizes(given), made.get("chosen", {}), given.get("cu_seqlens"))


def _attend_backward_flops(
    key: str,
    tensors: Sequence[Tensor],
    places: Sequence[int],
    saved: Sequence[Tensor],
    grads: Sequence[Tensor],  # noqa: ARG001
    given: Sequence[int],  # noqa: ARG001
    wanted: Sequence[int],
    scale: float | None,  # noqa: ARG001
    *,
    out_val: Sequence[Tensor],  # noqa: ARG001
) -> int:
    from nsa_dsl.flops import backward_flops

    signature = find(key).signature
    inputs, kept = named(signature, tensors, places), group(zip(signature.saved, saved, strict=True))
    names = [signature.inputs[each] for each in wanted]
    return backward_flops(signature, sizes(inputs), kept.get("chosen", {}), inputs.get("cu_seqlens"), names)


@cache
def _register_flops() -> None:
    """Let FlopCounterMode count the operators."""
    # The counter imports triton, which decides then and there whether it interprets; until there is an op, that is left open.
    from torch.utils.flop_counter import register_flop_formula

    for operator, formula in ((torch.ops.nsa_dsl.attend, _attend_flops), (torch.ops.nsa_dsl.attend_backward, _attend_backward_flops)):
        register_flop_formula(operator, get_raw=True)(formula)


def _run(
    kernels: Kernels, given: Mapping[str, Tensor], scale: float | None, *, only_choices: bool = False, keep: bool = False
) -> dict[str, Tensor]:
    """What a generated `run` makes, by the names of `Signature.outputs`."""
    arguments = group(given.items())
    q = arguments["q"]
    arguments["documents"] = _documents(kernels.signature, arguments.pop("cu_seqlens", None), q)
    with _device_of(q):
        run = kernels.module(q, first(arguments["v"]).shape[3], kv_heads=first(arguments["k"]).shape[1]).run
        out, lse, chosen, slots, branches = run(**arguments, scale=scale, only_choices=only_choices, keep=keep)
    pairs = ((f"slots.{name}.{part}", each) for name, pair in slots.items() for part, each in zip(("keys", "values"), pair, strict=True))
    return {
        "out": out,
        **{f"lse.{name}": each for name, each in lse.items()},
        **{f"branch.{name}": each for name, each in branches.items()},
        **{f"chosen.{name}": each for name, each in chosen.items()},
        **dict(pairs),
    }


def _with_equals(signature: Signature, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by branch, with those branches of the output that an equal one computes."""
    return {**tensors, **{name: tensors[worker] for name, worker in signature.workers if worker in tensors}}


def _rows(tensor: Tensor) -> Tensor:
    """The tensor with last stride 1; an expanded gradient has none."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _documents(signature: Signature, cu_seqlens: Tensor | None, q: Tensor) -> Tensor | None:
    """The document of each token, int32 (tokens,); None for a pattern that does not ask."""
    if "cu_seqlens" not in signature.inputs:
        return None
    if cu_seqlens is None:
        return torch.zeros(q.shape[2], dtype=torch.int32, device=q.device)
    return torch.bucketize(torch.arange(q.shape[2], dtype=torch.int32, device=q.device), cu_seqlens, right=True, out_int32=True)


def _device_of(q: Tensor) -> torch.cuda.device:
    """Triton launches on the current device: make it q's."""
    return torch.cuda.device(q.device if q.is_cuda else -1)
