"""A spec as Python sees it: a program of patterns and models, each of which compiles, explains itself and has a reference."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nsa_dsl.launch import Dtype, LaunchShape
from nsa_dsl.loader import load_spec
from nsa_dsl.pattern import Model, Pattern
from nsa_dsl.resolve.spec import Spec

if TYPE_CHECKING:
    import torch

    from nsa_dsl.arguments import PerBranch
    from nsa_dsl.graph import BlockGraph
    from nsa_dsl.op import AttentionOp, LogSumExp
    from nsa_dsl.prove import Verdict
    from nsa_dsl.tuned.lookup import Tune

# torch and isl take seconds to import; a spec can be loaded, listed and printed without them.


def load(path_or_text: str | bytes | os.PathLike[str]) -> Program:
    """The program in a spec file or a spec's text.

    path_or_text: the text itself if it holds a line break or a brace, or is bytes; otherwise a path. Raises SpecError, with every error
    found, each with its place and a way out.
    """
    return Program(load_spec(path_or_text))


@dataclass(frozen=True, slots=True)
class Program:
    """A checked spec. Made by `nsa_dsl.load`."""

    spec: Spec

    def __repr__(self) -> str:
        return f"Program(patterns={self.patterns}, models={self.models})"

    @property
    def patterns(self) -> tuple[str, ...]:
        """The names of the patterns declared, in order."""
        return self.spec.patterns

    @property
    def models(self) -> tuple[str, ...]:
        """The names of the models declared, in order."""
        return self.spec.models

    def pattern(self, name: str, /, **parameters: int | float | str) -> AttentionPattern:
        """The pattern of this name; parameters replace its defaults. Raises SpecError."""
        return AttentionPattern(self.spec.pattern(name, **parameters))

    def model(self, name: str, /, **parameters: int | float | str) -> LayeredModel:
        """The model of this name; parameters replace its defaults. Raises SpecError."""
        return LayeredModel(self.spec.model(name, **parameters))


@dataclass(frozen=True, slots=True)
class AttentionPattern:
    """One pattern with its parameters bound. definition: what it means, resolved. reuse: choice -> the earlier layer of its model that
    makes it; the op of such a layer takes those blocks as `choices={choice: indices}`, from the earlier layer's `op.choose(...)`."""

    definition: Pattern
    reuse: Mapping[str, int] | None = None

    def __repr__(self) -> str:
        parameters = "".join(f", {name}={value!r}" for name, value in self.definition.parameters)
        reused = f", reuse={dict(self.reuse)}" if self.reuse else ""
        return f"AttentionPattern({self.definition.name!r}{parameters}{reused})"

    def compile(self, *, rows: int | None = None, cols: int | None = None, tune: Tune | None = None) -> AttentionOp:
        """A callable op(q, k, v, ...) that runs generated kernels.

        rows, cols: tile sizes to use whatever they cost; None lets the schedule choose. tune: "off" leaves out decisions that `nsa tune`
        measured, "assert" refuses calls without one; None asks NSA_TUNE. Raises NotSupported for a construct that has no kernel yet.
        """
        from nsa_dsl.op import AttentionOp

        return AttentionOp(self.definition, rows=rows, cols=cols, tune=tune)

    def reference(
        self,
        q: torch.Tensor,
        k: PerBranch,
        v: PerBranch,
        *,
        gates: torch.Tensor | None = None,
        weights: Mapping[str, tuple[torch.Tensor, torch.Tensor]] | None = None,
        compressors: Mapping[str, torch.nn.Module] | None = None,
        scores: PerBranch | None = None,
        indices: PerBranch | None = None,
        choices: Mapping[str, torch.Tensor] | None = None,
        cu_seqlens: torch.Tensor | None = None,
        sinks: Mapping[str, torch.Tensor] | None = None,
        scale: float | None = None,
        return_lse: bool = False,
        dtype: torch.dtype | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, LogSumExp]:
        """The same by definition: dense, differentiable, on any device; arguments as for the op, of any floating type.

        dtype: what it is computed and returned in, default float64. Raises ValueError for arguments that do not fit, NotSupported for parts
        of a pattern without a dense meaning.
        """
        import torch

        from nsa_dsl import reference

        return reference.attend(
            self.definition, q, k, v, gates=gates, weights=weights, compressors=compressors, scores=scores, indices=indices,
            choices=choices, cu_seqlens=cu_seqlens, sinks=sinks, scale=scale, return_lse=return_lse, dtype=dtype or torch.float64,
        )  # fmt: skip

    def mask(
        self,
        tokens: int,
        *,
        heads: int = 1,
        kv_heads: int = 1,
        choices: Mapping[str, torch.Tensor] | None = None,
        cu_seqlens: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """What every branch of the output sees: branch -> (batch or 1, heads, tokens, tokens or slots) truth.

        choices: choice -> (batch, units, query units, n) block indices, for branches that data decides. Raises ValueError without them.
        """
        from nsa_dsl import reference

        return reference.mask(self.definition, tokens, heads, kv_heads, choices, cu_seqlens=cu_seqlens)

    def source(self, *, head_dim: int = 128, value_dim: int | None = None, dtype: Dtype = "bf16", card: str = "sm_90") -> str:
        """The generated module, which needs torch and triton only; tiles are chosen for these head dimensions, element type and card
        (one of `nsa_dsl.schedule.CARDS`). Raises NotSupported."""
        from nsa_dsl.compiler import compile_source

        return compile_source(self.definition, LaunchShape(head_dim, head_dim if value_dim is None else value_dim, dtype, card))

    def modules(self, *, kv_heads: int, head_dim: int, value_dim: int | None = None) -> dict[str, torch.nn.Module]:
        """A fresh module for every memory that has parameters: memory -> module. Those of `by = mlp` go to the op as `compressors`; one of
        `by = weighted`, called, gives its pair of `weights`."""
        from nsa_dsl.compressors import make_modules

        return make_modules(self.definition, kv_heads=kv_heads, d_qk=head_dim, d_v=value_dim)

    def graph(self) -> BlockGraph:
        """The block-dependency graph, after the passes."""
        from nsa_dsl.lower import lower
        from nsa_dsl.passes import run_passes

        return run_passes(lower(self.definition))

    def check(self, *, heads: int = 8, kv_heads: int = 1) -> list[Verdict]:
        """A verdict for each of the pattern's assertions. heads, kv_heads: for densities and relations that differ by head."""
        from nsa_dsl.prove import check_claims

        return check_claims(self.definition, heads=heads, kv_heads=kv_heads)


@dataclass(frozen=True, slots=True)
class LayeredModel:
    """One model with its parameters bound: a sequence of layers."""

    definition: Model

    def __repr__(self) -> str:
        return f"LayeredModel({self.definition.name!r}, layers={len(self)})"

    def __len__(self) -> int:
        return len(self.definition.layers)

    def __iter__(self) -> Iterator[AttentionPattern]:
        return (self.layer(index) for index in range(len(self)))

    def layer(self, index: int) -> AttentionPattern:
        """What layer `index` runs, counted from 0. Raises IndexError."""
        if not 0 <= index < len(self):
            raise IndexError(f"model {self.definition.name} has layers 0 to {len(self) - 1}, not {index}")
        layer = self.definition.layers[index]
        return AttentionPattern(layer.pattern, dict(layer.reuse) or None)

    def check(self, *, heads: int = 8, kv_heads: int = 1) -> list[Verdict]:
        """A verdict for each of the model's assertions. heads, kv_heads: for densities and relations that differ by head."""
        from nsa_dsl.prove import check_claims

        return check_claims(self.definition, heads=heads, kv_heads=kv_heads)
