"""Which key blocks the queries choose: ranking by scores, and the rules. Nothing here carries a gradient."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, assert_never

import torch
from torch import Tensor

from nsa_dsl import relation
from nsa_dsl.pattern import Branch, BranchScore, Choice, GivenIndices, NotSupported, Pattern, PooledScore
from nsa_dsl.reference.call import Call, TensorOrByName, prepare
from nsa_dsl.reference.scoring import block_scores
from nsa_dsl.reference.visible import begun, block_count, choices_of, chosen_blocks, finished, positions


def scores(
    pattern: Pattern, q: Tensor, k: TensorOrByName, v: TensorOrByName, *, dtype: torch.dtype = torch.float32, **call: Any
) -> dict[str, Tensor]:
    """The blocks' scores, reduced over the heads that share, before candidates and `keep`: choice -> (batch, units, query units,
    blocks). Arguments as in `attend`. A pooled block that ends after the choosing query scores -inf."""
    chooser = _chooser(pattern, q, k, v, dtype, call)
    return {name: chooser.scores(name) for name in chooser.scored()}


def ranking(
    pattern: Pattern, q: Tensor, k: TensorOrByName, v: TensorOrByName, *, dtype: torch.dtype = torch.float32, **call: Any
) -> dict[str, Tensor]:
    """The scores that compete, after the rules: -inf cannot be chosen, +inf is kept, everything else is finite (NaN and -inf
    become the least number there is). Shapes and arguments as `scores`."""
    chooser = _chooser(pattern, q, k, v, dtype, call)
    return {name: chooser.ranking(name)[0] for name in chooser.scored()}


def choose(
    pattern: Pattern, q: Tensor, k: TensorOrByName, v: TensorOrByName, *, dtype: torch.dtype = torch.float32, **call: Any
) -> dict[str, Tensor]:
    """What every choice that the output depends on takes: choice -> int32 (batch, units, query units, width), ascending, then -1.

    width: `count` for top (more by the most `keep_extra` blocks of a unit), the number of blocks for over and mass.
    Arguments as in `attend`; `choices` fixes some of them.
    """
    chooser = _chooser(pattern, q, k, v, dtype, call)
    return {name: chooser.indices(name) for name in chooser.live()}


def _chooser(pattern: Pattern, q: Tensor, k: TensorOrByName, v: TensorOrByName, dtype: torch.dtype, call: dict[str, Any]) -> Chooser:
    fixed = dict(call.pop("choices", None) or {})
    if pattern.output.kind in ("gate", "mix"):
        # Gates play no part in choosing: callers need not have them yet.
        call["gates"] = q.new_zeros(*q.shape[:3], len(pattern.output.branches))
    return Chooser(prepare(pattern, q, k, v, torch.float64, **call), fixed, dtype)


@dataclass(frozen=True, slots=True, eq=False)
class Chooser:
    """Makes the choices of one call on demand, each once. call: in float64. made: choice -> indices known so far."""

    call: Call
    made: dict[str, Tensor]
    dtype: torch.dtype

    @property
    def table(self) -> dict[str, tuple[Choice, Branch]]:
        """Every choice of the pattern, with its branch."""
        return choices_of(self.call.pattern)

    def live(self) -> tuple[str, ...]:
        """The choices that the output depends on, directly or through another choice, each after those it depends on."""
        order: dict[str, None] = {}

        def visit(names: Iterable[str]) -> None:
            for name in names:
                choice, _ = self.table[name]
                if isinstance(choice.score, BranchScore):
                    visit(relation.choices(self.call.pattern.branch(choice.score.branch).where))
                if choice.among is not None:
                    visit((choice.among,))
                order[name] = None

        for branch in self.call.pattern.outputs:
            visit(relation.choices(branch.where))
        return tuple(order)

    def scored(self) -> tuple[str, ...]:
        """The live choices that scores decide; the others the caller made."""
        return tuple(name for name in self.live() if not isinstance(self.table[name][0].score, GivenIndices))

    def required(self, branches: Iterable[Branch]) -> dict[str, tuple[Choice, Tensor]]:
        """The choices that these branches name, made."""
        names = [name for branch in branches for name in relation.choices(branch.where)]
        return {name: (self.table[name][0], self.indices(name)) for name in names}

    @torch.no_grad()
    def indices(self, name: str) -> Tensor:
        """int32 (batch, units, query units, width), ascending, then -1."""
        if name not in self.made:
            choice = self.table[name][0]
            self.made[name] = self._given(choice) if isinstance(choice.score, GivenIndices) else self._best(choice)
        return self.made[name]

    def _given(self, choice: Choice) -> Tensor:
        given, extent = self.call.given(choice, "indices"), self.call.extent
        heads_apart = chosen_blocks(choice, given, extent, positions(choice, extent))
        return _listed(heads_apart[:, :: extent.heads // extent.units(choice)], given.shape[-1])

    def _best(self, choice: Choice) -> Tensor:
        rank, extra = self.ranking(choice.name)
        blocks = rank.shape[-1]
        match choice.rule:
            case "top":
                assert choice.count is not None
                best = rank.sort(dim=-1, descending=True, stable=True).indices[..., : choice.count]
                member = torch.zeros_like(rank, dtype=torch.bool).scatter(-1, best, True) & (rank > -math.inf)
                width = choice.count + (int(extra.sum(-1).max()) if extra.numel() else 0)
            case "over":
                assert choice.threshold is not None
                member, width = rank > choice.threshold, blocks
            case "mass":
                member, width = self._mass(choice, rank), blocks
            case _:
                assert_never(choice.rule)
        return _listed(member | extra, width)

    def _mass(self, choice: Choice, rank: Tensor) -> Tensor:
        """The fewest best blocks that hold the threshold's share of the row's total; kept blocks compete too, and are added."""
        assert choice.threshold is not None
        if isinstance(choice.score, PooledScore):
            raise NotSupported(f"choice {choice.name!r}: `mass` needs scores that add up, and those of `by = {choice.score.by}` do not")
        kept = rank == math.inf
        weight = torch.where(rank > -math.inf, torch.where(kept, _numbers(self.scores(choice.name)), rank), 0.0)
        weight = weight.to(torch.float64).clamp(min=0.0)
        ordered = weight.sort(dim=-1, descending=True, stable=True)
        before = ordered.values.cumsum(-1) - ordered.values
        taken = (before < choice.threshold * weight.sum(-1, keepdim=True)) & (ordered.values > 0)
        return torch.zeros_like(kept).scatter(-1, ordered.indices, taken) | kept

    @torch.no_grad()
    def ranking(self, name: str) -> tuple[Tensor, Tensor]:
        """What competes, (batch, units, query units, blocks), and the blocks that `keep_extra` adds, of the same shape."""
        choice, _ = self.table[name]
        score, extent = _numbers(self.scores(name)), self.call.extent
        early = begun(choice, extent).expand(score.shape)
        candidate = early
        if isinstance(choice.score, PooledScore):
            candidate = candidate & finished(choice, extent)
        if choice.among is not None:
            candidate = candidate & self._bounded(choice)
        kept, extra = (self._kept(choice, each, early) for each in (choice.keep, choice.keep_extra))
        score = torch.where(candidate, score, -math.inf)
        return torch.where(extra, -math.inf, torch.where(kept, math.inf, score)), extra

    def _bounded(self, choice: Choice) -> Tensor:
        """Blocks whose every token the choice named by `among` took for the choosing query."""
        assert choice.among is not None
        other, extent = self.table[choice.among][0], self.call.extent
        if extent.units(choice) % extent.units(other):
            raise NotSupported(f"choice {choice.name!r}: `among = {other.name}` differs between heads that choose together")
        rows = positions(choice, extent)
        taken = chosen_blocks(other, self.indices(other.name), extent, rows)[:, :: extent.heads // extent.units(choice)]
        tokens = taken[..., torch.arange(extent.n, device=extent.device) // other.block]
        short = block_count(choice, extent.n) * choice.block - extent.n
        padded = torch.cat((tokens, tokens.new_ones(*tokens.shape[:3], short)), -1)
        return padded.reshape(*tokens.shape[:3], block_count(choice, extent.n), choice.block).all(-1)

    def _kept(self, choice: Choice, keep: relation.Condition | None, early: Tensor) -> Tensor:
        if keep is None:
            return torch.zeros_like(early)
        extent = self.call.extent
        if any(isinstance(each, relation.SameDocument | relation.Chosen) for each in relation.walk(keep)):
            raise NotSupported(f"choice {choice.name!r}: `keep` must be a plain relation between blocks")
        environment: dict[str, Any] = {
            "i": (positions(choice, extent) // choice.block)[:, None],
            "j": torch.arange(early.shape[-1], device=extent.device)[None, :],
            "N": early.shape[-1],
            "heads": extent.heads,
            "kv_heads": extent.kv_heads,
        }
        if choice.share == "head":
            environment["h"] = torch.arange(extent.heads, device=extent.device)[:, None, None]
        elif "h" in relation.symbols(keep):
            raise NotSupported(f"choice {choice.name!r}: `keep` speaks of the head, but heads share the choice (`share = {choice.share}`)")
        return early & torch.as_tensor(relation.evaluate(keep, environment), device=extent.device)

    @torch.no_grad()
    def scores(self, name: str) -> Tensor:
        """(batch, units, query units, blocks), reduced over the heads that share, rounded to `dtype`."""
        choice, branch = self.table[name]
        return block_scores(self.call, choice, branch, self.required).to(self.dtype)


def _numbers(score: Tensor) -> Tensor:
    """Finite scores: NaN counts as -inf, which is still better than not being a candidate, as +inf is less than being kept."""
    least = torch.finfo(score.dtype).min
    return score.nan_to_num(nan=least, posinf=-least, neginf=least)


def _listed(member: Tensor, width: int) -> Tensor:
    """Membership (..., blocks) as int32 (..., width): ascending block indices, then -1."""
    blocks = member.shape[-1]
    index = torch.arange(blocks, device=member.device).expand(member.shape)
    ascending = torch.where(member, index, blocks).sort(-1).values[..., :width]
    ascending = torch.nn.functional.pad(ascending, (0, width - ascending.shape[-1]), value=blocks)
    return torch.where(ascending == blocks, -1, ascending).to(torch.int32)
