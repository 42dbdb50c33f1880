"""The dense reference against independent computations: loops, PyTorch's own attention, and its own definition."""

from __future__ import annotations

import itertools
import math
from typing import Any

import nsa_literal
import patterns
import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from nsa_dsl import reference, relation
from nsa_dsl.loader import load_spec
from nsa_dsl.pattern import Branch, Compress, Output, Pattern
from nsa_dsl.reference import call
from nsa_dsl.relation import CAUSAL, FULL, Compare, Const, Scale, Sum, Var, conjunction, disjunction, negate

STRICT_PAST = Compare("<", Var("j"), Var("i"))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def inputs(heads: int, kv_heads: int, n: int, batch: int = 2, d_qk: int = 6, d_v: int = 5, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
    options = {"dtype": torch.float64} | options
    return (
        torch.randn(batch, heads, n, d_qk, **options),
        torch.randn(batch, kv_heads, n, d_qk, **options),
        torch.randn(batch, kv_heads, n, d_v, **options),
    )


def out_of(pattern: Pattern, *tensors: Any, **options: Any) -> Tensor:
    result = reference.attend(pattern, *tensors, **options)
    assert isinstance(result, Tensor)
    return result


def out_and_lse(pattern: Pattern, *tensors: Any, **options: Any) -> tuple[Tensor, Tensor]:
    out, lse = reference.attend(pattern, *tensors, return_lse=True, **options)
    assert isinstance(lse, Tensor)
    return out, lse


@pytest.mark.parametrize(
    ("l", "d", "b", "n", "w", "tokens"),
    [(8, 4, 8, 3, 5, 40), (8, 4, 16, 4, 8, 61), (4, 4, 4, 5, 3, 33), (32, 16, 64, 3, 10, 150), (16, 4, 8, 4, 6, 50), (8, 2, 8, 3, 1, 7)],
)
def test_nsa_equals_the_papers_equations(l: int, d: int, b: int, n: int, w: int, tokens: int) -> None:  # noqa: E741
    pattern = patterns.nsa(l, d, b, n, w, kv_per_branch=True)
    q, _, _ = inputs(4, 2, tokens, batch=1)
    k = {name: inputs(4, 2, tokens, batch=1)[1] for name in pattern.output.branches}
    v = {name: inputs(4, 2, tokens, batch=1)[2] for name in pattern.output.branches}
    gates = torch.randn(1, 4, tokens, 3, dtype=torch.float64)
    expected = nsa_literal.nsa(
        q[0], {name: each[0] for name, each in k.items()}, {name: each[0] for name, each in v.items()}, gates[0],
        l=l, d=d, l_prime=b, n=n, w=w,
    )  # fmt: skip
    torch.testing.assert_close(out_of(pattern, q, k, v, gates=gates)[0], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (33, 11), (3, 1)])
def test_causal_equals_pytorch(heads: int, kv_heads: int) -> None:
    q, k, v = inputs(heads, kv_heads, 17)
    expected = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(out_of(patterns.causal(), q, k, v), expected)


@pytest.mark.parametrize("w", [1, 5, 40])
def test_a_window_is_exactly_w_keys(w: int) -> None:
    q, k, v = inputs(2, 1, 23)
    seen = torch.tensor([[i - w < j <= i for j in range(23)] for i in range(23)])
    out, lse = out_and_lse(patterns.windowed(w), q, k, v)
    torch.testing.assert_close(out, scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=True))
    score = (q @ k.repeat_interleave(2, 1).mT / math.sqrt(6)).masked_fill(~seen, -math.inf)
    torch.testing.assert_close(lse, score.logsumexp(-1))


RELATIONS = {
    "power": disjunction(Compare("==", Sum((relation.FloorDiv(Var("i"), 4), Scale(-1, relation.FloorDiv(Var("j"), 4)))), Const(2)), FULL),
    "head": Compare("==", relation.Modulo(Sum((relation.FloorDiv(Var("j"), 2), Var("h"))), 3), Const(0)),
    "hole": conjunction(CAUSAL, negate(patterns.window(3))),
    "last": Compare(">=", Var("j"), Sum((Var("N"), Const(-3)))),
    "shifted": Compare("<=", relation.Absolute(Sum((Var("i"), Scale(-1, Var("j"))))), relation.Extreme("min", (Var("i"), Const(2)))),
    "group": Compare("<", Var("j"), Sum((Var("heads"), Scale(2, Var("kv_heads"))))),
    "nothing": relation.EMPTY,
}


@pytest.mark.parametrize("name", RELATIONS)
def test_the_mask_is_what_allows_says(name: str) -> None:
    where = RELATIONS[name]
    mask = reference.mask(patterns.single(where), 13, 4, 2)["only"]
    expected = [[[relation.allows(where, i, j, h, 13, 4, 2) for j in range(13)] for i in range(13)] for h in range(4)]
    assert mask[0].tolist() == expected


@pytest.mark.parametrize(("block", "stride"), [(4, 4), (4, 2), (3, 5), (20, 4)])
@pytest.mark.parametrize("name", ["hole", "head", "last"])
def test_a_slot_is_visible_when_every_token_it_covers_is(name: str, block: int, stride: int) -> None:
    where, memory = RELATIONS[name], Compress("summary", block, stride, "mean")
    mask = reference.mask(patterns.single(where, memory=memory), 19, 2, 1)["only"]
    starts = range(0, 19 - block + 1, stride)
    for h in range(2):
        for i in range(19):
            expected = [all(relation.allows(where, i, j, h, 19, 2) for j in range(s, s + block)) for s in starts]
            assert mask[0, h, i].tolist() == expected


def test_inputs_are_taken_as_quantised() -> None:
    q, k, v = inputs(2, 1, 9, dtype=torch.bfloat16)
    assert torch.equal(out_of(patterns.causal(), q, k, v), out_of(patterns.causal(), q.double(), k.double(), v.double()))
    assert out_of(patterns.causal(), q, k, v, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_rows_without_keys_give_zero_and_no_gradient() -> None:
    q, k, v = (each.requires_grad_() for each in inputs(2, 1, 6))
    out, lse = out_and_lse(patterns.single(STRICT_PAST), q, k, v)
    assert not out[:, :, 0].any()
    assert bool((lse[:, :, 0] == -math.inf).all())
    (out.square().sum() + lse[:, :, 1:].sum() + out[:, :, 0].sum()).backward()
    for each in (q, k, v):
        assert each.grad is not None
        assert bool(torch.isfinite(each.grad).all())
    assert q.grad is not None
    assert not q.grad[:, :, 0].any()


def test_nothing_visible_at_all_keeps_the_graph() -> None:
    q, k, v = (each.requires_grad_() for each in inputs(2, 1, 6))
    out_of(patterns.single(relation.EMPTY), q, k, v).sum().backward()
    assert q.grad is not None
    assert not q.grad.any()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_masked_keys_that_are_not_numbers_change_nothing(bad: float) -> None:
    """Key 2 is seen by rows 2 to 4 only. Everything of rows 5 and later, and the gradients at keys that only they see, must stay
    bitwise as they were; rows 0 and 1 too."""
    results = []
    for poison in (False, True):
        torch.manual_seed(1)
        q, k, v = inputs(2, 1, 9)
        if poison:
            k[:, :, 2], v[:, :, 2] = bad, bad
        for each in (q, k, v):
            each.requires_grad_()
        out, lse = out_and_lse(patterns.windowed(3), q, k, v)
        grads = torch.autograd.grad((out[:, :, 5:].square().sum() + lse[:, :, 5:].sum()), (q, k, v))
        results.append((out, lse, *grads))
    for clean, poisoned in zip(*results, strict=True):
        torch.testing.assert_close(poisoned[:, :, 5:], clean[:, :, 5:], rtol=0, atol=0)
    for clean, poisoned in zip(results[0][:3], results[1][:3], strict=True):
        torch.testing.assert_close(poisoned[:, :, :2], clean[:, :, :2], rtol=0, atol=0)


@pytest.mark.parametrize("which", ["q", "k", "v"])
def test_nan_reaches_exactly_the_rows_that_see_it(which: str) -> None:
    tensors = dict(zip("qkv", inputs(2, 1, 9), strict=True))
    tensors[which][0, 0, 3, 1] = math.nan
    out = out_of(patterns.windowed(3), **tensors)
    rows = torch.isnan(out).any(-1)
    expected = torch.zeros_like(rows)
    if which == "q":
        expected[0, 0, 3] = True
    else:
        expected[0, :, 3:6] = True
    assert torch.equal(rows, expected)
    if which == "v":
        assert torch.equal(torch.isnan(out).any(2)[0, 0], torch.tensor([False, True, False, False, False]))


@pytest.mark.parametrize(("batch", "n"), [(1, 0), (0, 5), (2, 1), (1, 3), (1, 7)])
@pytest.mark.parametrize("make", [patterns.nsa, patterns.asa_global, patterns.moba, patterns.causal])
def test_any_size_works(make: Any, batch: int, n: int) -> None:
    pattern = make()
    q, k, v = (each.requires_grad_() for each in inputs(4, 2, n, batch=batch))
    gates = torch.randn(batch, 4, n, len(pattern.output.branches)) if pattern.output.kind == "gate" else None
    out = out_of(pattern, q, k, v, gates=gates)
    assert out.shape == (batch, 4, n, 5)
    assert bool(torch.isfinite(out).all())
    out.sum().backward()


def far_and_near() -> tuple[Branch, Branch]:
    return patterns.branch("far", conjunction(CAUSAL, negate(patterns.window(4)))), patterns.branch("near", patterns.window(4))


def test_a_merge_is_one_softmax_over_both() -> None:
    q, k, v = inputs(4, 2, 15)
    merged = patterns.pattern("merged", *far_and_near(), output=Output("merge", ("far", "near")))
    for a, b in zip(out_and_lse(merged, q, k, v), out_and_lse(patterns.causal(), q, k, v), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", ["gate", "mix"])
def test_gates_weigh_separate_softmaxes(kind: Any) -> None:
    q, k, v = inputs(4, 2, 15)
    gates = torch.randn(2, 4, 15, 2, dtype=torch.float64)
    far, near = far_and_near()
    out, lse = reference.attend(
        patterns.pattern("both", far, near, output=Output(kind, ("near", "far"))), q, k, v, gates=gates, return_lse=True
    )
    (near_out, near_lse), (far_out, far_lse) = (out_and_lse(patterns.pattern("one", each), q, k, v) for each in (near, far))
    amounts = 1 / (1 + torch.exp(-gates)) if kind == "gate" else torch.exp(gates) / torch.exp(gates).sum(-1, keepdim=True)
    torch.testing.assert_close(out, amounts[..., :1] * near_out + amounts[..., 1:] * far_out)
    assert isinstance(lse, dict)
    assert list(lse) == ["near", "far"]
    torch.testing.assert_close(lse["near"], near_lse)
    torch.testing.assert_close(lse["far"], far_lse)


def test_a_sink_is_one_more_logit() -> None:
    q, k, v = inputs(2, 2, 7)
    logit = torch.tensor([0.3, -2.0], dtype=torch.float64)
    out, lse = out_and_lse(patterns.single(STRICT_PAST, sink=True), q, k, v, sinks={"only": logit})
    plain, plain_lse = out_and_lse(patterns.single(STRICT_PAST), q, k, v)
    joined = torch.logaddexp(plain_lse, logit[None, :, None])
    torch.testing.assert_close(lse[:, :, 1:], joined[:, :, 1:])
    torch.testing.assert_close(out, plain * torch.exp(plain_lse - joined)[..., None])
    torch.testing.assert_close(lse[0, :, 0], logit)
    assert not out[:, :, 0].any()


def test_slots_stand_at_their_last_token_for_a_bias() -> None:
    q, k, v = inputs(1, 1, 12)
    memory = Compress("summary", 4, 2, "mean")
    _, lse = out_and_lse(patterns.single(CAUSAL, memory=memory, bias="alibi"), q, k, v)
    slots, _ = reference.compress(memory, k, v)
    score = q[:, :, 11:] @ slots.mT / math.sqrt(6) - 2**-8 * (11 - torch.tensor([3, 5, 7, 9, 11], dtype=torch.float64))
    torch.testing.assert_close(lse[:, :, 11:], score.logsumexp(-1))


def test_softcap_then_bias() -> None:
    q, k, v = inputs(4, 4, 9)
    score = 2 * torch.tanh(q @ k.mT * 0.7 / 2)
    slopes = torch.tensor([2**-2, 2**-4, 2**-6, 2**-8], dtype=torch.float64)[:, None, None]
    position = torch.arange(9)
    score = score - slopes * (position[:, None] - position[None, :])
    expected = score.masked_fill(position[None, :] > position[:, None], -math.inf).softmax(-1) @ v
    torch.testing.assert_close(out_of(patterns.single(CAUSAL, softcap=2.0, bias="alibi", scale=0.7), q, k, v), expected)


def test_the_calls_scale_serves_branches_that_name_none() -> None:
    q, k, v = inputs(1, 1, 9)
    expected = scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3)
    torch.testing.assert_close(out_of(patterns.causal(), q, k, v, scale=0.3), expected)
    torch.testing.assert_close(out_of(patterns.single(CAUSAL, scale=0.3), q, k, v, scale=0.9), expected)


def test_packed_documents_equal_separate_ones() -> None:
    q, k, v = inputs(2, 1, 21, batch=1)
    borders = [0, 0, 5, 6, 6, 18, 21]
    packed = out_of(patterns.packed(patterns.window(4)), q, k, v, cu_seqlens=torch.tensor(borders, dtype=torch.int32))
    for start, end in itertools.pairwise(borders):
        alone = out_of(patterns.windowed(4), *(each[:, :, start:end] for each in (q, k, v)))
        torch.testing.assert_close(packed[:, :, start:end], alone)
    torch.testing.assert_close(out_of(patterns.packed(patterns.window(4)), q, k, v), out_of(patterns.windowed(4), q, k, v))


def test_slots_that_cross_documents_are_invisible() -> None:
    pattern = patterns.single(conjunction(CAUSAL, relation.SameDocument()), memory=Compress("summary", 4, 2, "mean"))
    mask = reference.mask(pattern, 12, 1, 1, cu_seqlens=torch.tensor([0, 5, 12]))["only"][0, 0]
    assert mask[4].tolist() == [True, False, False, False, False]
    assert mask[11].tolist() == [False, False, False, True, True]


def test_cutting_the_rows_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = inputs(4, 2, 37)
    gates = torch.randn(2, 4, 37, 3, dtype=torch.float64)
    whole = reference.attend(patterns.nsa(), q, k, v, gates=gates, return_lse=True)
    monkeypatch.setattr(call, "LARGEST", 2 * 4 * 37 * 5)
    cut = reference.attend(patterns.nsa(), q, k, v, gates=gates, return_lse=True)
    torch.testing.assert_close(cut, whole, rtol=0, atol=1e-14)


def test_batches_and_groups_may_be_permuted() -> None:
    pattern = patterns.nsa()
    q, k, v = inputs(6, 3, 30, batch=3)
    gates = torch.randn(3, 6, 30, 3, dtype=torch.float64)
    out = out_of(pattern, q, k, v, gates=gates)
    batch, groups = torch.tensor([2, 0, 1]), torch.tensor([1, 2, 0])
    heads = (groups[:, None] * 2 + torch.tensor([1, 0])).flatten()
    moved = out_of(pattern, q[batch][:, heads], k[batch][:, groups], v[batch][:, groups], gates=gates[batch][:, heads])
    torch.testing.assert_close(moved, out[batch][:, heads])


def test_gradients_of_nsa_agree_with_differences() -> None:
    pattern = patterns.nsa(4, 2, 4, 3, 3, by="weighted")
    tensors = [each.requires_grad_() for each in inputs(2, 1, 11, batch=1, d_qk=3, d_v=2)]
    gates = torch.randn(1, 2, 11, 3, dtype=torch.float64, requires_grad=True)
    pair = [torch.randn(1, 4, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    chosen = reference.choose(pattern, *tensors, weights={"summary": tuple(pair)})

    def run(q: Tensor, k: Tensor, v: Tensor, gates: Tensor, for_k: Tensor, for_v: Tensor) -> Tensor:
        return out_of(pattern, q, k, v, gates=gates, weights={"summary": (for_k, for_v)}, choices=chosen)

    assert torch.autograd.gradcheck(run, (*tensors, gates, *pair), fast_mode=True)


def test_gradients_of_every_option_agree_with_differences() -> None:
    branches = (
        patterns.branch("far", conjunction(STRICT_PAST, negate(patterns.window(3))), softcap=1.5, sink=True),
        patterns.branch("near", conjunction(STRICT_PAST, patterns.window(3)), bias="alibi"),
    )
    pattern = patterns.pattern("options", *branches, output=Output("merge", ("far", "near")))
    tensors = [each.requires_grad_() for each in inputs(2, 1, 7, batch=1, d_qk=3, d_v=2)]
    sink = torch.randn(2, dtype=torch.float64, requires_grad=True)

    def run(q: Tensor, k: Tensor, v: Tensor, sink: Tensor) -> tuple[Tensor, Tensor]:
        out, lse = out_and_lse(pattern, q, k, v, sinks={"far": sink})
        return out, lse[:, :, 1:]

    assert torch.autograd.gradcheck(run, (*tensors, sink))


def test_arguments_that_do_not_fit_are_refused() -> None:
    q, k, v = inputs(4, 2, 8)
    gates = torch.zeros(2, 4, 8, 3)
    refused: list[tuple[Pattern, tuple[Any, ...], dict[str, Any], str]] = [
        (patterns.nsa(), (q, k, v), {}, "gates"),
        (patterns.nsa(kv_per_branch=True), (q, k, v), {"gates": gates}, "kv per branch"),
        (patterns.causal(), (q, {"only": k}, v), {}, "shares"),
        (patterns.causal(), (q, k[:, :, :5], v), {}, "to fit q"),
        (patterns.causal(), (q[:, :3], k, v), {}, "share"),
        (patterns.causal(), (q, k, v), {"cu_seqlens": torch.tensor([0, 8])}, "batch 1"),
        (patterns.causal(), (q[:1], k[:1], v[:1]), {"cu_seqlens": torch.tensor([0, 7])}, "rise from 0"),
        (patterns.single(CAUSAL, sink=True), (q, k, v), {}, "sink"),
        (patterns.nsa(), (q, k, v), {"gates": gates, "choices": {"selected": torch.zeros(2, 4, 8, 2)}}, "must be"),
    ]
    for pattern, tensors, options, text in refused:
        with pytest.raises(ValueError, match=text):
            reference.attend(pattern, *tensors, **options)
    with pytest.raises(ValueError, match="selected"):
        reference.mask(patterns.nsa(), 8, 4, 2)
    with pytest.raises(reference.NotSupported, match="skip"):
        reference.attend(patterns.single(CAUSAL, skip=0.1), q, k, v)


def test_a_parsed_spec_means_what_the_pattern_built_by_hand_means() -> None:
    spec = load_spec(
        """
pattern nsa(l = 8, d = 4, b = 8, n = 4, w = 8) {
    summary    = compress(block = l, stride = d, by = mean)
    compressed = attend(summary, causal)
    selected   = attend(tokens, causal & top(n, block = b, by = compressed, share = group, keep = first(1) | window(2)))
    windowed   = attend(tokens, window(w))
    output gate(compressed, selected, windowed)
}
"""
    )
    q, k, v = inputs(4, 2, 45)
    gates = torch.randn(2, 4, 45, 3, dtype=torch.float64)
    for parsed, built in ((spec.pattern("nsa"), patterns.nsa()), (spec.pattern("nsa", n=3, w=2), patterns.nsa(n=3, w=2))):
        assert torch.equal(out_of(parsed, q, k, v, gates=gates), out_of(built, q, k, v, gates=gates))
