"""The differentiable inputs of a call by name, and the gradients with respect to them."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nsa_dsl.verify.inputs import Inputs

Leaves = dict[str, Tensor]
"""Name -> leaf: q, k, v (k.BRANCH under `kv per branch`), gates, weights.MEMORY.keys, sinks.BRANCH, compressors.MEMORY.PARAMETER."""


def watch(inputs: Inputs, dtype: torch.dtype | None = None, wanted: Collection[str] | None = None) -> tuple[Inputs, Leaves]:
    """The same inputs, in this precision, as leaves that record what is made of them.

    dtype: None keeps types and strides. wanted: names whose gradient is asked for; None asks for all.
    """
    recorder = _Recorder(dtype, wanted)
    q, k, v = recorder.leaf("q", inputs.q), recorder.each("k", inputs.k), recorder.each("v", inputs.v)
    return Inputs(q, k, v, recorder.options(inputs.options)), recorder.leaves


def watch_parameters(options: Mapping[str, Any], dtype: torch.dtype) -> tuple[dict[str, Any], Leaves]:
    """`watch` for a call's keyword arguments alone."""
    recorder = _Recorder(dtype, None)
    return recorder.options(options), recorder.leaves


class _Recorder:
    """Makes leaves and notes those that are wanted."""

    def __init__(self, dtype: torch.dtype | None, wanted: Collection[str] | None) -> None:
        self.leaves: Leaves = {}
        self._dtype, self._wanted = dtype, wanted

    def leaf(self, name: str, tensor: Tensor) -> Tensor:
        made = (tensor if self._dtype is None else tensor.to(self._dtype)).detach()
        if self._wanted is None or name in self._wanted:
            self.leaves[name] = made.requires_grad_()
        return made

    def each(self, name: str, value: Any) -> Any:
        """One tensor, or a dict of them."""
        if isinstance(value, Tensor):
            return self.leaf(name, value)
        return {key: self.leaf(f"{name}.{key}", tensor) for key, tensor in value.items()}

    def options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        made = dict(options)
        for name in ("gates", "sinks"):
            if name in made:
                made[name] = self.each(name, made[name])
        if "weights" in made:
            made["weights"] = {
                name: (self.leaf(f"weights.{name}.keys", for_k), self.leaf(f"weights.{name}.values", for_v))
                for name, (for_k, for_v) in made["weights"].items()
            }
        if "compressors" in made:
            made["compressors"] = {name: self._module(name, module) for name, module in made["compressors"].items()}
        return made

    def _module(self, name: str, module: torch.nn.Module) -> torch.nn.Module:
        """A copy whose parameters are leaves."""
        made = copy.deepcopy(module)
        if self._dtype is not None:
            made = made.to(self._dtype)
        for parameter_name, parameter in made.named_parameters():
            full = f"compressors.{name}.{parameter_name}"
            parameter.requires_grad_(self._wanted is None or full in self._wanted)
            if parameter.requires_grad:
                self.leaves[full] = parameter
        return made


def gradients(outputs: Sequence[Tensor], cotangents: Sequence[Tensor], leaves: Mapping[str, Tensor], *, keep: bool = False) -> Leaves:
    """The gradient of every leaf; zeros for one that nothing depends on. keep: the graph is used once more."""
    live = [(output, cotangent) for output, cotangent in zip(outputs, cotangents, strict=True) if output.requires_grad]
    if not live or not leaves:
        return {name: torch.zeros_like(each) for name, each in leaves.items()}
    found = torch.autograd.grad(
        [output for output, _ in live],
        list(leaves.values()),
        [cotangent.to(output.dtype) for output, cotangent in live],
        allow_unused=True,
        retain_graph=keep,
    )
    return {
        name: torch.zeros_like(each) if gradient is None else gradient for (name, each), gradient in zip(leaves.items(), found, strict=True)
    }
