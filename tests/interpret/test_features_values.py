"""Values that are easy to get wrong: not numbers, far below zero, very large; documents of every length; who sees a bad key, exactly."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from interpret.support import USUAL, agree, agree_on, call, inputs_of, parse, refuse

from nsa_dsl.compare import check_poisoned

KINDS = {
    "full tiles": "output attend(tokens, causal)",
    "window": "output attend(tokens, window(7))",
    "both ways": "output attend(tokens, around(3, 9))",
    "slots": "output attend(compress(block = 4, stride = 2, by = mean), causal)",
    "slots by max": "output attend(compress(block = 3, stride = 5, by = max), causal)",
    "chosen by each": "output attend(tokens, causal & top(2, block = 4, by = scores, share = group, keep = window(1)))",
    "chosen by runs": "output attend(tokens, causal & (window(3) | top(2, block = 4, by = indices, share = all, every = 6)))",
    "chosen by head": "output attend(tokens, causal & (first(1) | top(1, block = 20, by = indices, share = head, every = 6)))",
    "chosen apart": "output attend(tokens, causal - top(2, block = 4, by = indices, share = group, every = 5))",
    "merged": "a = attend(tokens, causal & window(4)) b = attend(tokens, causal - window(4)) output merge(a, b)",
    "gated": "a = attend(tokens, window(4)) b = attend(compress(block = 4, stride = 4, by = max), causal) output gate(a, b)",
}
BAD = {"nan": float("nan"), "inf": float("inf"), "-inf": float("-inf")}


# The greatest of a block is not the least number there is: compression by max takes an infinite one away.
SEEN = [(kind, bad) for kind in KINDS for bad in BAD if bad != "-inf" or "by = max" not in KINDS[kind]]


@pytest.mark.parametrize(("kind", "bad"), SEEN)
def test_a_bad_value_reaches_the_rows_that_see_it(kind: str, bad: str) -> None:
    """And no other; nor does it change them."""
    text, sizes = KINDS[kind], {"tokens": 37, "heads": 2, "kv_heads": 1}
    case = replace(USUAL, **sizes)
    inputs = inputs_of(parse(text), case)
    assert isinstance(inputs.v, torch.Tensor)
    (clean, _), _, _ = call(text, inputs, **sizes)
    inputs.v[:, :, 11] = BAD[bad]
    (out, lse), (expected, expected_lse), _ = call(text, inputs, **sizes)
    refuse(check_poisoned(out, expected))
    hit = ~torch.isfinite(expected).all(-1)
    assert bool(hit.any())
    assert not bool(hit.all())
    assert torch.equal(out[~hit], clean[~hit])
    named = zip(lse.values(), expected_lse.values(), strict=True) if isinstance(lse, dict) else [(lse, expected_lse)]
    assert all(torch.allclose(one.double(), other, atol=1e-4) for one, other in named)


@pytest.mark.parametrize(("kind", "bad"), SEEN)
def test_a_bad_key_reaches_the_rows_that_see_it(kind: str, bad: str) -> None:
    text, sizes = KINDS[kind], {"tokens": 37, "heads": 2, "kv_heads": 1}
    case = replace(USUAL, **sizes)
    inputs = inputs_of(parse(text), case)
    assert isinstance(inputs.k, torch.Tensor)
    # One feature of every query is 1, so that an infinite key makes an infinite logit and not NaN.
    inputs.q[..., 0] = 1.0
    (clean, _), _, _ = call(text, inputs, **sizes)
    inputs.k[:, :, 11, 0] = BAD[bad]
    (out, _), (expected, _), _ = call(text, inputs, **sizes)
    refuse(check_poisoned(out, expected))
    changed = (clean != out).any(-1)
    assert bool(changed.any())
    assert not bool(changed.all())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("values", ["far below zero", "large"])
def test_logits_of_every_size(kind: str, values: str) -> None:
    agree(KINDS[kind], values=values, visible=False, tokens=37, heads=2, kv_heads=1)


@pytest.mark.parametrize("options", ["sink = learned", "softcap = 30", "bias = alibi", "scale = 100"])
def test_options_at_large_logits(options: str) -> None:
    agree(f"output attend(tokens, window(9), {options})", values="large", visible=False)


@pytest.mark.parametrize("kind", ["window", "chosen by runs"])
def test_very_large_logits(kind: str) -> None:
    """A million times the usual: each row is its greatest key, and none is NaN."""
    sizes = {"tokens": 37, "heads": 2, "kv_heads": 1}
    inputs = inputs_of(parse(KINDS[kind]), replace(USUAL, **sizes))
    inputs.q.mul_(1e6)
    agree_on(KINDS[kind], inputs, **sizes)


def test_values_of_fp16_at_its_limits() -> None:
    sizes = {"tokens": 37, "heads": 2, "kv_heads": 1, "dtype": "fp16"}
    inputs = inputs_of(parse(KINDS["window"]), replace(USUAL, **sizes))
    assert isinstance(inputs.v, torch.Tensor)
    inputs.v.copy_(inputs.v.sign() * 60000)
    agree_on(KINDS["window"], inputs, **sizes)


BORDERS = {
    "one": [0, 37],
    "of no token": [0, 0, 20, 20, 20, 37, 37],
    "of one token": [0, 1, 2, 17, 18, 36, 37],
    "of one tile": [0, 16, 32, 37],
    "of one token each": list(range(38)),
}
PACKED = {
    "tokens": "output attend(tokens, causal & document)",
    "slots": "output attend(compress(block = 4, stride = 3, by = mean), causal & document)",
    "choices": "output attend(tokens, causal & document & (window(2) | top(2, block = 4, by = mean, share = group, every = 4)))",
    "scored": (
        "c = attend(compress(block = 4, stride = 2, by = mean), document) "
        "s = attend(tokens, around(9, 5) & document & top(2, block = 4, by = c, share = group, every = 3)) output gate(c, s)"
    ),
}


@pytest.mark.parametrize("borders", BORDERS)
@pytest.mark.parametrize("kind", PACKED)
def test_documents_of_every_length(kind: str, borders: str) -> None:
    sizes = {"tokens": 37, "heads": 2, "kv_heads": 1}
    inputs = inputs_of(parse(PACKED[kind]), replace(USUAL, **sizes))
    inputs.options["cu_seqlens"] = torch.tensor(BORDERS[borders], dtype=torch.int32)
    agree_on(PACKED[kind], inputs, **sizes)


def test_documents_do_not_meet() -> None:
    """A packed call is what calls document by document are."""
    sizes = {"tokens": 37, "heads": 2, "kv_heads": 1}
    inputs = inputs_of(parse(PACKED["tokens"]), replace(USUAL, **sizes))
    assert isinstance(inputs.k, torch.Tensor)
    assert isinstance(inputs.v, torch.Tensor)
    inputs.options["cu_seqlens"] = torch.tensor([0, 11, 12, 37], dtype=torch.int32)
    (packed, _), _, _ = call(PACKED["tokens"], inputs, **sizes)
    for start, stop in ((0, 11), (11, 12), (12, 37)):
        q, k, v = (each[:, :, start:stop] for each in (inputs.q, inputs.k, inputs.v))
        (alone, _), _, _ = call(PACKED["tokens"], replace(inputs, q=q, k=k, v=v, options={}), **{**sizes, "tokens": stop - start})
        assert torch.allclose(packed[:, :, start:stop], alone, atol=1e-6)
