"""The backward's mask probe: inputs for which gradients say exactly which queries see a key, and which keys a query sees.

With equal scores every visible key weighs 1/n. A log-sum-exp's cotangent of n then makes every visible pair's logit gradient 1, so that
the gradient of a key is the sum of the queries that see it, and that of a query the sum of its keys: with entries of +1 and -1, integer
hashes of these sets. An output's cotangent of n times such entries does it for values. One wrong pair among thousands is a whole unit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from nsa_dsl import reference
from nsa_dsl.compare import Mismatch
from nsa_dsl.mask_probe import OPEN, Probe, probe_inputs
from nsa_dsl.op import AttentionOp
from nsa_dsl.pattern import Pattern
from nsa_dsl.verify.cases import Case
from nsa_dsl.verify.checks import laid_out, named, random_choices, with_extra
from nsa_dsl.verify.gradients import Cotangents, op_gradients
from nsa_dsl.verify.inputs import Inputs, document_borders, place
from nsa_dsl.verify.leaves import Leaves, gradients, watch

D_QK, D_V = 16, 32


def check_transposed(op: AttentionOp, case: Case, device: torch.device) -> list[Mismatch]:
    """Exactly which pairs gradients sum over, all branches at once: those of keys and values, or, one time in three, those of queries.

    A pattern with `bias` is passed over: nothing makes its scores equal.
    """
    try:
        made = probe_inputs(
            op.pattern, batch=case.batch, heads=case.heads, kv_heads=case.kv_heads, n=case.tokens, d_qk=D_QK, d_v=D_V, device=device,
            seed=case.seed,
        )  # fmt: skip
    except reference.NotSupported:
        return []
    chosen = random_choices(op.pattern, case, device)
    shown = with_extra(op.pattern, case, chosen)
    queries = case.seed % 3 > 0
    return _check_side(op, case, _inputs(made, case, chosen, queries=queries), shown, ("k", "v") if queries else ("q",))


def _signs(like: Tensor, seed: int) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return (torch.randint(0, 2, like.shape, generator=random) * 2 - 1).to(like)


def _inputs(made: Probe, case: Case, chosen: dict[str, Tensor], *, queries: bool) -> Inputs:
    """queries: whether queries carry the signs, or keys; the other side and all values are zero."""

    def zeros(value: Any) -> Any:
        return {name: torch.zeros_like(each) for name, each in value.items()} if isinstance(value, dict) else torch.zeros_like(value)

    def keys(value: Any) -> Any:
        # Slots of means stay integers when their tokens are as large as a block.
        size = max((each.block for each in made.pattern.memories if each.by == "mean"), default=1)
        named_keys = value if isinstance(value, dict) else {"": value}
        signed = {name: size * _signs(each, case.seed + 7 + place) for place, (name, each) in enumerate(named_keys.items())}
        return signed if isinstance(value, dict) else signed[""]

    q = _signs(made.q, case.seed + 5) if queries else torch.zeros_like(made.q)
    probe = laid_out(replace(made, q=q, k=zeros(made.k) if queries else keys(made.k), v=zeros(made.v)), case, made.q.device)
    options = probe.arguments(made.pattern.output.branches[0])
    if "gates" in options:
        options["gates"] = torch.full_like(options["gates"], OPEN if made.pattern.output.kind == "gate" else 0.0)
    options["scale"] = 1.0
    if case.documents > 1:
        options["cu_seqlens"] = document_borders(case, made.q.device)
    if chosen:
        options["choices"] = chosen
    return Inputs(probe.q, probe.k, probe.v, options)


def _check_side(op: AttentionOp, case: Case, inputs: Inputs, shown: dict[str, Tensor], sides: tuple[str, ...]) -> list[Mismatch]:
    expected = _expect(op.pattern, case, inputs, shown)
    actual = op_gradients(op, inputs, expected.cotangents, [name for name in expected.exact if name[0] in sides])
    found: list[Mismatch] = []
    for name, gradient in actual.items():
        exact = expected.exact[name]
        error = (gradient.double() - exact).abs().amax(-1)
        allowed = 0.25 * _unit(op.pattern, name) + 1e-6 * expected.added[name].amax(-1)
        for each in map(tuple, (~(error <= allowed)).nonzero()[:4].tolist()):
            note = _explain(exact[each] - gradient[each].double(), inputs, each) if name[0] == "k" else ""
            found.append(Mismatch(f"probed gradient of {name}", each, float(error[each]), float(allowed[each]), note))
    return found


@dataclass(frozen=True, slots=True, eq=False)
class _Expected:
    """added: an upper bound of the terms' sum, for the rounding of 1/n."""

    cotangents: Cotangents
    exact: Leaves
    added: Leaves


def _expect(pattern: Pattern, case: Case, inputs: Inputs, shown: dict[str, Tensor]) -> _Expected:
    options = {**inputs.options, **({"choices": shown} if shown else {})}
    with torch.enable_grad():
        live, leaves = watch(inputs, torch.float64)
        leaves = {name: each for name, each in leaves.items() if name[0] in "qkv"}
        options |= {name: each for name, each in live.options.items() if name not in ("choices", "cu_seqlens", "scale")}
        result: Any = reference.attend(pattern, live.q, live.k, live.v, **options, return_lse=True)
        counts = {name: each.detach().exp().round() for name, each in named(result[1]).items()}
        most = torch.stack(list(counts.values())).amax(0) * (len(counts) if pattern.output.kind == "mix" else 1)
        (out,) = place([most[..., None] * _signs(result[0], case.seed + 6)], case.layout, torch.float32, inputs.q.device)
        cotangents = Cotangents(out, {name: each.float() for name, each in counts.items()})
        exact = gradients(*cotangents.of(*result), leaves, keep=True)
        positive = Cotangents(out.abs(), cotangents.lse)
        added = gradients(*positive.of(*result), leaves)
    return _Expected(cotangents, exact, {name: each.abs() for name, each in added.items()})


def _unit(pattern: Pattern, name: str) -> float:
    """The least that one pair adds to an entry: a slot's gradient is shared among its block's tokens, at most equally."""
    shared = max((each.block for each in pattern.memories if each.by in ("mean", "max")), default=1)
    scale = min(each.scale or 1.0 for each in pattern.outputs)
    return (scale if name[0] in "qk" else 1.0) / (1 if name == "q" else shared)


def _explain(missing: Tensor, inputs: Inputs, place: tuple[int, ...]) -> str:
    """Which single query, missing or one too many, explains a key's gradient. missing: (d_qk,)."""
    batch, kv_head, _ = place
    kv_heads = (next(iter(inputs.k.values())) if isinstance(inputs.k, dict) else inputs.k).shape[1]
    queries = inputs.q[batch].chunk(kv_heads)[kv_head].double()
    for sign, verdict in ((1, "missing"), (-1, "one too many")):
        match = ((missing - sign * queries).abs().amax(-1) < 0.25).nonzero()
        if len(match) == 1:
            head, row = match[0].tolist()
            return f"query {row} of head {kv_head * queries.shape[0] + head} is {verdict}"
    return ""
