"""Between the arguments of a call, by name, and the flat lists that operators take; and the shapes of what operators return."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nsa_dsl.arguments import Arguments, PerBranch, Shape, choice_shape
from nsa_dsl.pattern import Choice, Compress
from nsa_dsl.signature import Signature


def flatten(
    signature: Signature,
    q: Tensor,
    k: PerBranch,
    v: PerBranch,
    arguments: Arguments,
    slots: Mapping[str, tuple[Tensor, Tensor]],
) -> tuple[list[Tensor], list[int]]:
    """The tensors of a call in the order of `Signature.inputs`, and the index of each there. slots: of memories `by = mlp`.

    Tensors that carry no gradient are detached, so that nothing waits for one.
    """
    values = {
        "q": q,
        "k": k,
        "v": v,
        "gates": arguments.gates,
        "weights": arguments.weights,
        "slots": slots,
        "scores": arguments.scores,
        "indices": arguments.indices,
        "choices": arguments.choices,
        "cu_seqlens": arguments.cu_seqlens,
        "sinks": arguments.sinks,
    }
    tensors: list[Tensor] = []
    places: list[int] = []
    for place, name in enumerate(signature.inputs):
        role, _, owner = name.partition(".")
        tensor = _find(values[role], role, owner)
        if tensor is not None:
            tensors.append(tensor if name in signature.differentiable else tensor.detach())
            places.append(place)
    return tensors, places


def _find(value: Any, role: str, owner: str) -> Any:
    """The tensor that belongs to `owner` (with a pair's part: `memory.keys`), None if there is none."""
    if value is None or isinstance(value, Tensor):
        return value
    if role in ("weights", "slots"):
        memory, _, part = owner.rpartition(".")
        return value[memory][0 if part == "keys" else 1] if memory in value else None
    return value.get(owner)


def named(signature: Signature, tensors: Sequence[Tensor], places: Sequence[int]) -> dict[str, Tensor]:
    """Name in `Signature.inputs` -> tensor."""
    return {signature.inputs[place]: tensor for place, tensor in zip(places, tensors, strict=True)}


def group(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Any]:
    """Tensors by dotted name as generated modules take them: role -> tensor, {owner: tensor}, or {owner: (for keys, for values)}."""
    result: dict[str, Any] = {}
    for name, tensor in tensors:
        role, _, owner = name.partition(".")
        if not owner:
            result[role] = tensor
        elif role in ("weights", "slots"):
            memory, _, _ = owner.rpartition(".")
            pairs = result.setdefault(role, {})
            pairs[memory] = (*pairs.get(memory, ()), tensor)
        else:
            result.setdefault(role, {})[owner] = tensor
    return result


def first(tensors: PerBranch) -> Tensor:
    """The tensor, or any of a dict's."""
    return tensors if isinstance(tensors, Tensor) else next(iter(tensors.values()))


def sizes(given: Mapping[str, Tensor]) -> Shape:
    """The sizes of a call. given: `named`."""
    batch, heads, tokens, dim_qk = given["q"].shape
    k, v = (next(tensor for name, tensor in given.items() if name.partition(".")[0] == role) for role in "kv")
    return Shape(batch, heads, k.shape[1], tokens, dim_qk, v.shape[3])


def placeholders(signature: Signature, given: Mapping[str, Tensor], keep: bool) -> list[Tensor]:
    """Tensors with the shapes and types of `Signature.returned`: zeros, and -1 for blocks. Sizes may be symbolic."""
    shape, q = sizes(given), given["q"]
    rows = (shape.batch, shape.heads, shape.tokens)
    memories = {part: pair.memory for pair in signature.made_slots for part in pair.parts()}
    choices = {f"chosen.{each.name}": each for each in signature.chosen}
    made: list[Tensor] = []
    for name in signature.returned(keep):
        match name.partition(".")[0]:
            case "out" | "branch":
                made.append(q.new_zeros((*rows, shape.dim_v)))
            case "lse":
                made.append(q.new_zeros(rows, dtype=torch.float64 if q.dtype == torch.float64 else torch.float32))
            case "slots":
                dim = shape.dim_qk if name.endswith(".keys") else shape.dim_v
                made.append(q.new_zeros((shape.batch, shape.kv_heads, slot_count(memories[name], shape.tokens), dim)))
            case _:
                made.append(no_blocks(choices[name], shape, q))
    return made


def slot_count(memory: Compress, tokens: int) -> int:
    """How many slots summarise this many tokens, which may be symbolic."""
    count: int = torch.sym_max(0, (tokens - memory.block) // memory.stride + 1)  # type: ignore[no-untyped-call]
    return count


def no_blocks(choice: Choice, shape: Shape, like: Tensor) -> Tensor:
    """The blocks of a choice that takes none, on the device of `like`."""
    return like.new_full(choice_shape(choice, shape, choice.count or 0), -1, dtype=torch.int32)
