"""A pattern as a layer: projections, rotary positions, gates, compressors and sinks around its attention."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias, assert_never

import torch
from torch import Tensor, nn

from nsa_dsl.arguments import PerBranch
from nsa_dsl.compressors import make_modules
from nsa_dsl.nn.memories import PreRotary, used_memories
from nsa_dsl.nn.rotary import document_positions, rotate
from nsa_dsl.op import AttentionOp
from nsa_dsl.pattern import Compress, NotSupported, Pattern
from nsa_dsl.program import AttentionPattern

Backend: TypeAlias = Literal["kernels", "reference"]
CompressedKeys: TypeAlias = Literal["post-rotary", "pre-rotary"]

compiled = functools.cache(AttentionOp)
"""One op a pattern: the layers of a model that run the same pattern share its kernels."""


class SparseAttention(nn.Module):
    """Self-attention of a transformer layer, over what a pattern lets each token see.

    Queries and keys carry rotary positions. `compress` says which keys become slots (NSA, arXiv 2502.11089, leaves it open):

    - "post-rotary": slots are made of rotated keys and used as they come. Works with every compressor.
    - "pre-rotary": slots are made of keys without positions, and each is then rotated as a key at its first token, slot t at position
      t * stride, as public NSA code does. Only for memories with `by = mlp`: kernels make all other slots, of the keys that they get.

    Everything else, pooled scores included, sees rotated keys either way. Values are never rotated.

    Parameters, by their names in state_dict: `q_proj`, `k_proj`, `v_proj`, `o_proj`, each `.weight` and with bias=True `.bias`; under
    `kv per branch` `k_proj_<branch>` and `v_proj_<branch>` for every branch instead; `gate_proj` when the output is gate or mix, whose
    outputs are logits by head, then branch; `compressor_<memory>` for memories with `by = mlp` or `weighted`; `sink_<branch>` (heads,).
    """

    def __init__(
        self,
        pattern: AttentionPattern,
        dim: int,
        heads: int,
        kv_heads: int | None = None,
        *,
        head_dim: int | None = None,
        value_dim: int | None = None,
        rotary: bool = True,
        rotary_base: float = 10_000.0,
        compress: CompressedKeys = "post-rotary",
        bias: bool = False,
    ) -> None:
        """pattern: a spec's pattern or one layer of its model. dim: features of the input and the output. kv_heads: default heads.
        head_dim: of queries and keys, default dim // heads; value_dim: default head_dim. Raises ValueError for sizes that do not fit."""
        super().__init__()
        self.pattern = pattern
        self.dim, self.heads = dim, heads
        self.kv_heads = heads if kv_heads is None else kv_heads
        self.head_dim = dim // max(1, heads) if head_dim is None else head_dim
        self.value_dim = self.head_dim if value_dim is None else value_dim
        self.rotary, self.rotary_base, self.compress = rotary, rotary_base, compress
        self._check_sizes()
        definition = pattern.definition
        self._check_compress(definition)
        keys, values = self.kv_heads * self.head_dim, self.kv_heads * self.value_dim
        self.q_proj = nn.Linear(dim, heads * self.head_dim, bias=bias)
        for suffix in [f"_{each.name}" for each in definition.branches] if definition.kv_per_branch else [""]:
            self.add_module(f"k_proj{suffix}", nn.Linear(dim, keys, bias=bias))
            self.add_module(f"v_proj{suffix}", nn.Linear(dim, values, bias=bias))
        self.o_proj = nn.Linear(heads * self.value_dim, dim, bias=bias)
        if definition.output.kind in ("gate", "mix"):
            self.gate_proj = nn.Linear(dim, heads * len(definition.output.branches), bias=bias)
        for name, module in self._fresh_compressors().items():
            self.add_module(f"compressor_{name}", module)
        for branch in definition.branches:
            if branch.sink:
                self.register_parameter(f"sink_{branch.name}", nn.Parameter(torch.zeros(heads)))
        self._op = _op_of(definition)

    def _check_sizes(self) -> None:
        sizes = {name: getattr(self, name) for name in ("dim", "heads", "kv_heads", "head_dim", "value_dim")}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name}: expected at least 1, got {size}")
        if self.heads % self.kv_heads:
            raise ValueError(f"kv_heads: {self.heads} query heads are not a multiple of {self.kv_heads} KV heads")
        if self.rotary and self.head_dim % 2:
            raise ValueError(f"head_dim: rotary positions turn pairs of features, and {self.head_dim} is odd; or pass rotary=False")

    def _check_compress(self, definition: Pattern) -> None:
        if self.compress not in ("post-rotary", "pre-rotary"):
            raise ValueError(f"compress: expected 'post-rotary' or 'pre-rotary', got {self.compress!r}")
        if self.compress == "post-rotary":
            return
        if not self.rotary:
            raise ValueError("compress: 'pre-rotary' says what happens before rotary positions, and rotary=False has none")
        for memory in used_memories(definition):
            if memory.by != "mlp":
                raise ValueError(
                    f"compress: 'pre-rotary' needs `by = mlp`, and memory {memory.name} of pattern {definition.name} has "
                    f"`by = {memory.by}`, whose slots kernels make; write `by = mlp` in the spec or pass compress='post-rotary'"
                )

    def _fresh_compressors(self) -> dict[str, nn.Module]:
        used = {each.name for each in used_memories(self.pattern.definition)}
        made = make_modules(self.pattern.definition, kv_heads=self.kv_heads, d_qk=self.head_dim, d_v=self.value_dim)
        return {name: module for name, module in made.items() if name in used}

    def reset_parameters(self) -> None:
        """Draw every parameter anew: projections as nn.Linear does, compressors as they are made, sinks at 0."""
        for module in self.children():
            if isinstance(module, nn.Linear):
                module.reset_parameters()
        for name, fresh in self._fresh_compressors().items():
            self.get_submodule(f"compressor_{name}").load_state_dict(fresh.state_dict())
        for sink in self._sinks().values():
            nn.init.zeros_(sink)

    def extra_repr(self) -> str:
        return (
            f"{self.pattern.definition.name}, dim={self.dim}, heads={self.heads}, kv_heads={self.kv_heads}, head_dim={self.head_dim}, "
            f"value_dim={self.value_dim}, rotary={self.rotary}, compress={self.compress!r}"
        )

    def __getstate__(self) -> dict[str, Any]:
        """Without the op, which holds compiled code: copies and unpickled modules find it again."""
        return {name: each for name, each in self.__dict__.items() if name != "_op"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._op = _op_of(self.pattern.definition)

    @property
    def op(self) -> AttentionOp:
        """The pattern's op. Raises NotSupported for a pattern without kernels."""
        return self._op or compiled(self.pattern.definition)

    def forward(
        self,
        x: Tensor,
        *,
        cu_seqlens: Tensor | None = None,
        positions: Tensor | None = None,
        scores: PerBranch | None = None,
        indices: PerBranch | None = None,
        choices: Mapping[str, Tensor] | None = None,
        return_choices: bool = False,
        backend: Backend = "kernels",
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Attention of every token of x.

        x: (batch, tokens, dim). cu_seqlens: int32 (documents + 1,), batch 1; positions then restart at each document. positions: integers
        (tokens,) or (batch, tokens) instead of 0, 1, ... scores, indices: of the pattern's choices, as the op takes them. choices: {choice:
        block indices}, fixed beforehand; those that the layer reuses must be there. backend: "kernels", or "reference" for the dense
        definition with the same parameters, in float32 at least.

        Returns (batch, tokens, dim) in the dtype of the projections; with return_choices also {choice: int32 block indices}, all that the
        pattern made or was given, for the layers that reuse them. Raises ValueError for tensors that do not fit.
        """
        if x.dim() != 3 or x.shape[2] != self.dim:
            raise ValueError(f"x: expected (batch, tokens, {self.dim}), got {tuple(x.shape)}")
        absent = [name for name in self.pattern.reuse or {} if name not in (choices or {})]
        if absent:
            raise ValueError(f"choices: this layer reuses {absent[0]!r} of an earlier layer: pass what that layer's return_choices gave")
        q, k, v, call = self._call(x, self._positions(x, positions, cu_seqlens))
        call |= {"cu_seqlens": cu_seqlens, "scores": scores, "indices": indices, "choices": choices}
        if return_choices:
            with torch.no_grad():
                made = self._choose(backend, q, k, v, {name: each for name, each in call.items() if name != "gates"})
            call["choices"] = {**(choices or {}), **made}
        out = self._attend(backend, q, k, v, call).transpose(1, 2).flatten(2)
        projected: Tensor = self.o_proj(out)
        return (projected, dict(call["choices"])) if return_choices else projected

    def _positions(self, x: Tensor, positions: Tensor | None, cu_seqlens: Tensor | None) -> Tensor:
        tokens = x.shape[1]
        if positions is None:
            return torch.arange(tokens, device=x.device) if cu_seqlens is None else document_positions(cu_seqlens, tokens)
        if tuple(positions.shape) not in ((tokens,), (x.shape[0], tokens)):
            raise ValueError(f"positions: expected ({tokens},) or ({x.shape[0]}, {tokens}), got {tuple(positions.shape)}")
        return positions

    def _call(self, x: Tensor, positions: Tensor) -> tuple[Tensor, PerBranch, PerBranch, dict[str, Any]]:
        """q, k, v and the keyword arguments that parameters give; k as each branch sees it."""
        definition = self.pattern.definition
        q = self._rotated(_by_head(self.q_proj(x), self.heads), positions)
        plain, values = (self._per_branch(part, x) for part in ("k_proj", "v_proj"))
        compressors, weights = self._compressors(plain.get(""), positions)
        # A branch with keys of its own gives its compressor keys that were never rotated; shared keys reach it by PreRotary.
        bare = {each.name for each in definition.branches if isinstance(each.memory, Compress) and self.compress == "pre-rotary"}
        keys = {name: each if name in bare else self._rotated(each, positions) for name, each in plain.items()}
        call: dict[str, Any] = {"sinks": self._sinks(), "compressors": compressors, "weights": weights}
        if definition.output.kind in ("gate", "mix"):
            call["gates"] = _by_head(self.gate_proj(x), self.heads)
        return (q, keys, values, call) if definition.kv_per_branch else (q, keys[""], values[""], call)

    def _per_branch(self, part: str, x: Tensor) -> dict[str, Tensor]:
        """{branch: (batch, kv_heads, tokens, head_dim)}, of the one projection {"": ...} where branches share it."""
        definition = self.pattern.definition
        if not definition.kv_per_branch:
            return {"": _by_head(self.get_submodule(part)(x), self.kv_heads)}
        return {each.name: _by_head(self.get_submodule(f"{part}_{each.name}")(x), self.kv_heads) for each in definition.branches}

    def _rotated(self, x: Tensor, positions: Tensor) -> Tensor:
        return rotate(x, positions, self.rotary_base) if self.rotary else x

    def _compressors(self, plain: Tensor | None, positions: Tensor) -> tuple[dict[str, nn.Module], dict[str, tuple[Tensor, Tensor]]]:
        """{memory: module} and {memory: (for k, for v)}. plain: keys that all branches share, not rotated."""
        modules: dict[str, nn.Module] = {}
        weights: dict[str, tuple[Tensor, Tensor]] = {}
        for memory in used_memories(self.pattern.definition):
            if memory.by == "weighted":
                weights[memory.name] = self.get_submodule(f"compressor_{memory.name}")()
            elif memory.by == "mlp":
                module = self.get_submodule(f"compressor_{memory.name}")
                modules[memory.name] = (
                    module if self.compress == "post-rotary" else PreRotary(module, memory, plain, positions, self.rotary_base)
                )
        return modules, weights

    def _sinks(self) -> dict[str, nn.Parameter]:
        return {each.name: self.get_parameter(f"sink_{each.name}") for each in self.pattern.definition.branches if each.sink}

    def _attend(self, backend: Backend, q: Tensor, k: PerBranch, v: PerBranch, call: dict[str, Any]) -> Tensor:
        match backend:
            case "kernels":
                out = self.op(q, k, v, **call)
            case "reference":
                # Autocast would round the reference's products to bfloat16.
                with torch.autocast(q.device.type, enabled=False):
                    out = self.pattern.reference(q, k, v, **call, dtype=torch.promote_types(q.dtype, torch.float32))
            case _:
                assert_never(backend)
        assert isinstance(out, Tensor)
        return out.to(q.dtype)

    def _choose(self, backend: Backend, q: Tensor, k: PerBranch, v: PerBranch, call: dict[str, Any]) -> dict[str, Tensor]:
        if backend == "kernels":
            return self.op.choose(q, k, v, **call)
        from nsa_dsl import reference

        with torch.autocast(q.device.type, enabled=False):
            return reference.choose(self.pattern.definition, q, k, v, **call)


def _op_of(definition: Pattern) -> AttentionOp | None:
    """The pattern's op, None where there are no kernels: the reference backend works without."""
    try:
        return compiled(definition)
    except NotSupported:
        return None


def _by_head(x: Tensor, heads: int) -> Tensor:
    """(batch, tokens, heads * dim) -> (batch, heads, tokens, dim), a view."""
    return x.view(*x.shape[:2], heads, x.shape[2] // heads).transpose(1, 2)
