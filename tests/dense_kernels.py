"""Stands in for generated modules: the same `run` and `run_backward`, through the dense reference and torch's autograd.

What surrounds kernels (operators, shapes, autograd, torch.compile) is tested on it without any, and its gradients are an
independent opinion on the real ones.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from nsa_dsl import reference
from nsa_dsl.marshal import first, group
from nsa_dsl.pattern import Compress, Output, Pattern
from nsa_dsl.signing import sign
from nsa_dsl.verify.cases import Case
from nsa_dsl.verify.checks import with_extra


def dense_module(pattern: Pattern) -> types.SimpleNamespace:
    """A module for the pattern."""
    kernels = _Dense(pattern, [])
    return types.SimpleNamespace(run=kernels.run, run_backward=kernels.run_backward, calls=kernels.calls)


@dataclass(frozen=True)
class _Dense:
    """calls: the names that each call of run_backward was asked for."""

    pattern: Pattern
    calls: list[tuple[str, ...]]

    def run(
        self,
        q: Tensor,
        k: Any,
        v: Any,
        *,
        scores: Any = None,
        indices: Any = None,
        choices: Any = None,
        only_choices: bool = False,
        keep: bool = True,  # noqa: ARG002
        **rest: Any,
    ) -> Any:
        pattern, options = self._over_slots(rest)
        plain = replace(pattern, branches=tuple(_without_extra(each) for each in pattern.branches))
        chosen = reference.choose(plain, q, k, v, scores=scores, indices=indices, choices=choices, **options)
        chosen = {name: each.to(torch.int32, copy=True) for name, each in chosen.items()}
        if only_choices:
            return None, {}, chosen, {}, {}
        options["choices"] = self._fixed(q, k, chosen)
        made = {
            name: self._attend(pattern, q, k, v, {**options, "gates": None}, Output("single", (name,)))
            for name, _ in sign(self.pattern).workers
        }
        out, merged = self._attend(pattern, q, k, v, {**options, "gates": rest.get("gates")}, pattern.output)
        lse = {name: _lse(each, q) for name, (_, each) in made.items()}
        if pattern.output.kind == "merge":
            lse["merge"] = _lse(merged, q)
        slots = {
            pair.name: reference.compress(
                pair.memory, _of(k, pair.branch), _of(v, pair.branch), weights=(rest.get("weights") or {}).get(pair.memory.name)
            )
            for pair in sign(self.pattern).made_slots
        }
        pairs = {name: tuple(each.to(q.dtype).contiguous() for each in pair) for name, pair in slots.items()}
        return out.to(q.dtype).contiguous(), lse, chosen, pairs, {name: each.to(q.dtype).contiguous() for name, (each, _) in made.items()}

    def run_backward(self, *given: Any, **rest: Any) -> Any:
        self.calls.append(rest["wanted"])
        # Inside an operator this thread records no gradients; another one does.
        with ThreadPoolExecutor(1) as other:
            return other.submit(self._gradients, *given, **rest).result()

    def _gradients(
        self,
        grad_out: Tensor,
        grad_lse: Any,
        q: Tensor,
        k: Any,
        v: Any,
        outs: Any,  # noqa: ARG002
        lse: Any,  # noqa: ARG002
        *,
        chosen: Any,
        wanted: Any,
        **rest: Any,
    ) -> Any:
        assert grad_out.stride(-1) == 1
        given = {
            "q": q,
            "k": k,
            "v": v,
            **{name: rest[name] for name in ("gates", "weights", "slots", "sinks") if rest.get(name) is not None},
        }
        leaves = {name: each.detach().double().requires_grad_() for name, each in _flat(given).items()}
        named = group(leaves.items())
        pattern, options = self._over_slots(
            {**rest, **{name: named[name] for name in ("gates", "weights", "slots", "sinks") if name in named}}
        )
        options["choices"] = self._fixed(q, k, chosen)
        with torch.enable_grad():
            out, logs = self._attend(pattern, named["q"], named["k"], named["v"], {**options, "gates": named.get("gates")}, pattern.output)
            logs = logs if isinstance(logs, dict) else dict.fromkeys(sign(self.pattern).lses, logs)
            loss = (out * grad_out).sum()
            for name, grad in grad_lse.items():
                loss = loss + torch.where(torch.isfinite(logs[name]), logs[name] * grad, 0.0).sum()
            found = torch.autograd.grad(loss, [leaves[name] for name in wanted], allow_unused=True)
        original = _flat(given)
        return {
            name: torch.zeros_like(original[name]) if each is None else each.to(original[name].dtype).contiguous()
            for name, each in zip(wanted, found, strict=True)
        }

    def _attend(self, pattern: Pattern, q: Tensor, k: Any, v: Any, options: dict[str, Any], output: Output) -> Any:
        return reference.attend(replace(pattern, output=output), q, k, v, **options, return_lse=True)

    def _over_slots(self, rest: Mapping[str, Any]) -> tuple[Pattern, dict[str, Any]]:
        """The pattern with a memory for each branch whose slots are given, and the options for the reference."""
        slots, branches, compressors = rest.get("slots") or {}, [], {}
        for branch in self.pattern.branches:
            memory = branch.memory
            if isinstance(memory, Compress) and memory.by == "mlp":
                name = f"{memory.name}.{branch.name}" if self.pattern.kv_per_branch else memory.name
                memory = replace(memory, name=f"{memory.name}_{branch.name}")
                compressors[memory.name] = _Given(slots.get(name))
            branches.append(replace(branch, memory=memory))
        documents = rest.get("documents")
        options = {"weights": rest.get("weights"), "sinks": rest.get("sinks"), "scale": rest.get("scale"), "compressors": compressors}
        return replace(self.pattern, branches=tuple(branches)), {**options, "cu_seqlens": _borders(documents)}

    def _fixed(self, q: Tensor, k: Any, chosen: Mapping[str, Tensor]) -> dict[str, Tensor]:
        batch, heads, tokens, d_qk = q.shape
        case = Case(tokens, batch, heads, first(k).shape[1], d_qk, d_qk, "fp32", "contiguous", "ordinary", "none", 0, 1, None, None, 0)
        return with_extra(self.pattern, case, dict(chosen))


@dataclass(frozen=True)
class _Given:
    """A compressor that returns slots made before."""

    slots: tuple[Tensor, Tensor] | None

    def __call__(self, k_blocks: Tensor, v_blocks: Tensor) -> tuple[Tensor, Tensor]:
        assert self.slots is not None
        return self.slots[0].to(k_blocks.dtype), self.slots[1].to(v_blocks.dtype)


def _without_extra(branch: Any) -> Any:
    return replace(branch, choices=tuple(replace(each, keep_extra=None) for each in branch.choices))


def _lse(tensor: Tensor, q: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(q.dtype, torch.float32)).contiguous()


def _of(tensors: Any, branch: str | None) -> Tensor:
    return tensors if isinstance(tensors, Tensor) else tensors[branch]


def _flat(given: Any) -> dict[str, Tensor]:
    """Nested arguments by dotted name."""
    result: dict[str, Tensor] = {}
    for name, value in given.items():
        if isinstance(value, Tensor):
            result[name] = value
        elif isinstance(value, tuple):
            result |= {f"{name}.{part}": each for part, each in zip(("keys", "values"), value, strict=True)}
        else:
            result |= {f"{name}.{rest}": each for rest, each in _flat(value).items()}
    return result


def _borders(documents: Tensor | None) -> Tensor | None:
    if documents is None or bool((documents == documents[0]).all()):
        return None
    steps = (documents.diff() != 0).nonzero().flatten() + 1
    return torch.tensor([0, *steps.tolist(), len(documents)], dtype=torch.int32)
