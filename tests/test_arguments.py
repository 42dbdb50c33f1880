"""One clear error for a tensor that does not fit: it names the argument, what was expected and what came. No kernel runs here."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from nsa_dsl.arguments import MOST_HEADS, ArgumentError, Arguments, Shape, check_arguments, check_blocks, choice_shape
from nsa_dsl.loader import load_spec
from nsa_dsl.op import AttentionOp
from nsa_dsl.pattern import Pattern

B, H, G, N, D, V = 2, 4, 2, 12, 16, 8
NONE: dict[str, Any] = dict.fromkeys(("gates", "weights", "compressors", "scores", "indices", "choices", "cu_seqlens", "sinks"))

TEXTS = {
    "causal": "output attend(tokens, causal)",
    "gated": "a = attend(tokens, window(4)) b = attend(tokens, causal) output gate(a, b)",
    "mixed": "a = attend(tokens, window(4)) b = attend(tokens, causal) output mix(a, b)",
    "apart": "kv per branch a = attend(tokens, window(4)) b = attend(tokens, causal) output gate(a, b)",
    "weighted": "m = compress(block = 4, stride = 2, by = weighted) output attend(m, causal)",
    "learned": "m = compress(block = 4, stride = 2, by = mlp) output attend(m, causal)",
    "sink": "a = attend(tokens, causal, sink = learned) output a",
    "scored": "a = attend(tokens, causal & top(2, block = 4, by = scores, share = group, every = 2)) output a",
    "listed": "a = attend(tokens, causal & top(2, block = 4, by = indices, share = all)) output a",
    "both": (
        "a = attend(tokens, causal & (top(2, block = 4, by = scores, share = head) | top(1, block = 4, by = scores, share = all))) output a"
    ),
    "packed": "output attend(tokens, causal & document)",
}


def parse(name: str) -> Pattern:
    return load_spec(f"pattern tried {{ {TEXTS[name]} }}").pattern("tried")


def tensors(**changes: Tensor) -> dict[str, Any]:
    return {"q": torch.zeros(B, H, N, D), "k": torch.zeros(B, G, N, D), "v": torch.zeros(B, G, N, V), **changes}


def check(name: str, arguments: dict[str, Any]) -> Shape:
    given = dict(arguments)
    q, k, v = (given.pop(each) for each in "qkv")
    return check_arguments(parse(name), q, k, v, Arguments(**{**NONE, **given}))


GOOD: dict[str, dict[str, Any]] = {
    "causal": tensors(),
    "gated": tensors(gates=torch.zeros(B, H, N, 2)),
    "mixed": tensors(gates=torch.zeros(B, H, N, 2, dtype=torch.float16)),
    "apart": {
        "q": torch.zeros(B, H, N, D),
        "k": {"a": torch.zeros(B, G, N, D), "b": torch.zeros(B, G, N, D)},
        "v": {"b": torch.zeros(B, G, N, V), "a": torch.zeros(B, G, N, V)},
        "gates": torch.zeros(B, H, N, 2),
    },
    "weighted": {**tensors(), "weights": {"m": (torch.zeros(G, 4), torch.zeros(G, 4))}},
    "learned": {**tensors(), "compressors": {"m": torch.nn.Identity()}},
    "sink": {**tensors(), "sinks": {"a": torch.zeros(H)}},
    "scored": tensors(scores=torch.zeros(B, G, 6, 3)),
    "listed": tensors(indices=torch.zeros(B, 1, N, 2, dtype=torch.int64)),
    "both": {**tensors(), "scores": {"a": torch.zeros(B, H, N, 3), "a_2": torch.zeros(B, 1, N, 3)}},
    "packed": {
        "q": torch.zeros(1, H, N, D),
        "k": torch.zeros(1, G, N, D),
        "v": torch.zeros(1, G, N, V),
        "cu_seqlens": torch.tensor([0, 5, N], dtype=torch.int32),
    },
}


@pytest.mark.parametrize("name", GOOD)
def test_arguments_that_fit(name: str) -> None:
    assert check(name, GOOD[name]) == Shape(1 if name == "packed" else B, H, G, N, D, V)


ODD_STRIDE = torch.zeros(B, H, D, N).transpose(2, 3)

# (pattern, argument -> what is passed for it, the message)
BAD: list[tuple[str, dict[str, Any], str]] = [
    (
        "causal",
        {"q": torch.zeros(H, N, D)},
        r"q: expected a tensor \(batch, heads, tokens, d_qk\), got a tensor \(4, 12, 16\) of torch.float32",
    ),
    ("causal", {"q": None}, "q: expected a tensor .*, got nothing"),
    ("causal", {"q": [1]}, "q: expected a tensor .*, got a list"),
    ("causal", {"q": torch.zeros(B, H, N, D, dtype=torch.float64)}, "q: expected bfloat16, float16 or float32, got torch.float64"),
    ("causal", {"q": torch.zeros(B, H, N, D, dtype=torch.int32)}, "q: expected bfloat16, float16 or float32, got torch.int32"),
    ("causal", {"q": ODD_STRIDE}, r"q: expected a last stride of 1, got 12; call .contiguous\(\)"),
    (
        "causal",
        {"k": torch.zeros(B, G, N + 1, D)},
        r"k: expected \(batch, kv_heads, tokens, d_qk\) = \(2, 2, 12, 16\), got \(2, 2, 13, 16\)",
    ),
    ("causal", {"k": torch.zeros(B, G, N, D + 1)}, r"k: expected .* got \(2, 2, 12, 17\)"),
    ("causal", {"k": torch.zeros(B + 1, G, N, D)}, r"k: expected .* got \(3, 2, 12, 16\)"),
    ("causal", {"k": torch.zeros(B, 3, N, D), "v": torch.zeros(B, 3, N, V)}, "k: 4 query heads are not a multiple of 3 KV heads"),
    ("causal", {"k": torch.zeros(B, 0, N, D), "v": torch.zeros(B, 0, N, V)}, "k: 4 query heads are not a multiple of 0 KV heads"),
    ("causal", {"k": torch.zeros(B, G, N, D, dtype=torch.float16)}, "k: expected torch.float32 like q, got torch.float16"),
    ("causal", {"k": torch.zeros(B, G, N, D, device="meta")}, "k: expected device cpu like q, got meta"),
    ("causal", {"k": torch.zeros(B, G, D, N).transpose(2, 3)}, "k: expected a last stride of 1, got 12"),
    ("causal", {"k": {"output": torch.zeros(B, G, N, D)}}, "k: expected one tensor, got a dict; write `kv per branch` in pattern tried"),
    ("causal", {"k": torch.zeros(B, N, D)}, r"k: expected a tensor \(batch, kv_heads, tokens, head_dim\), got a tensor \(2, 12, 16\)"),
    ("causal", {"v": None}, "v: expected a tensor .*, got nothing"),
    ("causal", {"v": torch.zeros(B, G + 2, N, V)}, r"v: expected \(batch, kv_heads, tokens, d_v\) = \(2, 2, 12, 8\), got \(2, 4, 12, 8\)"),
    ("causal", {"v": torch.zeros(B, G, N, 257)}, "v: expected a head dimension from 1 to 256, got 257"),
    ("causal", {"v": torch.zeros(B, G, N, 0)}, "v: expected a head dimension from 1 to 256, got 0"),
    ("causal", {"v": torch.zeros(B, G, V, N).transpose(2, 3)}, "v: expected a last stride of 1"),
    ("causal", {"gates": torch.zeros(B, H, N, 1)}, "gates: pattern tried has one branch's output and takes no gates"),
    ("causal", {"weights": {"m": ()}}, "weights: unexpected entry 'm'; expected none"),
    ("causal", {"compressors": {"m": torch.nn.Identity()}}, "compressors: unexpected entry 'm'"),
    ("causal", {"sinks": {"a": torch.zeros(H)}}, "sinks: unexpected entry 'a'"),
    ("causal", {"scores": torch.zeros(1)}, "scores: pattern tried has no choice with `by = scores`"),
    ("causal", {"indices": torch.zeros(1)}, "indices: pattern tried has no choice with `by = indices`"),
    ("causal", {"choices": {"a": torch.zeros(1)}}, "choices: pattern tried makes no choice named 'a'; it makes none"),
    (
        "causal",
        {"cu_seqlens": torch.tensor([0, N], dtype=torch.int32)},
        "cu_seqlens: pattern tried does not keep documents apart; write `& document`",
    ),
    ("gated", {"gates": None}, r"gates: expected \(batch, heads, tokens, branches\) = \(2, 4, 12, 2\), got nothing"),
    ("gated", {"gates": torch.zeros(B, H, N, 3)}, r"gates: expected .* got \(2, 4, 12, 3\)"),
    ("gated", {"gates": torch.zeros(B, H, N, 2, dtype=torch.int32)}, "gates: expected floating-point entries, got torch.int32"),
    ("mixed", {"gates": torch.zeros(B, N, H, 2)}, r"gates: expected .* got \(2, 12, 4, 2\)"),
    ("apart", {"k": torch.zeros(B, G, N, D)}, "k: pattern tried has `kv per branch`: expected a dict with a, b, got a tensor"),
    ("apart", {"k": {"a": torch.zeros(B, G, N, D)}}, "k: expected an entry 'b', got 'a'"),
    ("apart", {"v": {each: torch.zeros(B, G, N, V) for each in "abc"}}, "v: unexpected entry 'c'; expected 'a', 'b'"),
    ("apart", {"v": {"a": torch.zeros(B, G, N, V), "b": torch.zeros(B, G, N, V + 1)}}, r"v\['b'\]: expected .* got \(2, 2, 12, 9\)"),
    ("apart", {"k": {"a": torch.zeros(B, G, N, D), "b": None}}, r"k\['b'\]: expected a tensor .*, got nothing"),
    ("weighted", {"weights": None}, "weights: expected an entry 'm', got none"),
    ("weighted", {"weights": {"m": torch.zeros(G, 4)}}, r"weights\['m'\]: expected \(for keys, for values\), got a tensor \(2, 4\)"),
    (
        "weighted",
        {"weights": {"m": (torch.zeros(G, 4), torch.zeros(G, 5))}},
        r"weights\['m'\]\[1\]: expected \(kv_heads, block\) = \(2, 4\), got \(2, 5\)",
    ),
    ("learned", {"compressors": None}, "compressors: expected an entry 'm', got none"),
    ("learned", {"compressors": {"m": 3}}, r"compressors\['m'\]: expected a module that maps .*; `pattern.modules\(...\)` makes one"),
    ("sink", {"sinks": None}, "sinks: expected an entry 'a', got none"),
    ("sink", {"sinks": {"a": torch.zeros(H, 1)}}, r"sinks\['a'\]: expected \(heads,\) = \(4,\), got \(4, 1\)"),
    ("scored", {"scores": None}, r"scores: expected \(batch, units, query units, key blocks\) = \(2, 2, 6, 3\), got nothing"),
    ("scored", {"scores": torch.zeros(B, H, 6, 3)}, r"scores: expected .* got \(2, 4, 6, 3\)"),
    ("scored", {"scores": torch.zeros(B, G, 6, 3, dtype=torch.int64)}, "scores: expected floating-point entries, got torch.int64"),
    ("scored", {"scores": {"b": torch.zeros(B, G, 6, 3)}}, "scores: expected an entry 'a', got 'b'"),
    (
        "scored",
        {"choices": {"a": torch.zeros(B, G, 6, 3, dtype=torch.int32)}},
        r"choices\['a'\]: expected .* = \(2, 2, 6, 2\), got \(2, 2, 6, 3\)",
    ),
    ("scored", {"choices": {"a": torch.zeros(B, G, 6, 2)}}, r"choices\['a'\]: expected integer entries, got torch.float32"),
    ("listed", {"indices": torch.zeros(B, 1, N, 2)}, "indices: expected integer entries, got torch.float32"),
    ("listed", {"indices": torch.zeros(B, 1, N, 2, dtype=torch.bool)}, "indices: expected integer entries, got torch.bool"),
    ("listed", {"indices": torch.zeros(B, 1, N, 3, dtype=torch.int32)}, r"indices: expected .* got \(2, 1, 12, 3\)"),
    ("both", {"scores": torch.zeros(B, H, N, 3)}, "scores: 2 choices take them: expected a dict with a, a_2, got a tensor"),
    (
        "packed",
        {"cu_seqlens": torch.tensor([0, N])},
        r"cu_seqlens: expected an int32 tensor \(documents \+ 1,\), got a tensor \(2,\) of torch.int64",
    ),
    ("packed", {"cu_seqlens": torch.tensor([0], dtype=torch.int32)}, "cu_seqlens: expected an int32 tensor"),
    ("packed", {"cu_seqlens": torch.tensor([[0, N]], dtype=torch.int32)}, "cu_seqlens: expected an int32 tensor"),
    ("packed", {"cu_seqlens": torch.tensor([0, N], dtype=torch.int32, device="meta")}, "cu_seqlens: expected device cpu, got meta"),
    (
        "packed",
        {**tensors(), "cu_seqlens": torch.tensor([0, N], dtype=torch.int32)},
        "cu_seqlens: expected batch 1 for packed documents, got 2",
    ),
]


@pytest.mark.parametrize(
    ("name", "changes", "message"), BAD, ids=[f"{name}-{next(iter(each))}-{n}" for n, (name, each, _) in enumerate(BAD)]
)
def test_arguments_that_do_not_fit(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message) as caught:
        check(name, {**GOOD[name], **changes})
    assert "\n" not in str(caught.value)


def test_more_heads_than_relations_are_printed_for() -> None:
    q, k = torch.zeros(1, MOST_HEADS + 1, 1, 1), torch.zeros(1, 1, 1, 1)
    with pytest.raises(ArgumentError, match=f"q: expected at most {MOST_HEADS} heads, got {MOST_HEADS + 1}"):
        check("causal", {"q": q, "k": k, "v": k})


def test_a_fixed_choice_needs_no_scores() -> None:
    fixed = {"a": torch.zeros(B, G, 6, 2, dtype=torch.int32)}
    check("scored", {**tensors(), "choices": fixed})
    one = {"a_2": torch.zeros(B, 1, N, 1, dtype=torch.int32)}
    check("both", {**tensors(), "choices": one, "scores": torch.zeros(B, H, N, 3)})


def test_gates_are_not_needed_for_choosing() -> None:
    q, k, v = (tensors()[each] for each in "qkv")
    assert check_arguments(parse("gated"), q, k, v, Arguments(**NONE), gated=False).tokens == N


@pytest.mark.parametrize(("share", "units"), [("group", G), ("head", H), ("all", 1)])
def test_shapes_of_choices(share: str, units: int) -> None:
    text = f"pattern p {{ output attend(tokens, causal & top(2, block = 4, by = scores, share = {share}, every = 5)) }}"
    (choice,) = load_spec(text).pattern("p").branches[0].choices
    assert choice_shape(choice, Shape(B, H, G, N, D, V), 7) == (B, units, 3, 7)


@pytest.mark.parametrize("label", ["indices", "choices"])
@pytest.mark.parametrize(("block", "fits"), [(2, True), (3, False), (-1, True), (2**40, False)])
def test_blocks_out_of_range(label: str, block: int, fits: bool) -> None:
    listed = {"indices": None, "choices": None, label: {"a": torch.full((B, 1, N, 2), block)}}
    if fits:
        check_blocks(parse("listed"), N, **listed)
        return
    with pytest.raises(ArgumentError, match=rf"{label}: block {block} of choice a is out of range: 12 tokens make 3"):
        check_blocks(parse("listed"), N, **listed)


@pytest.mark.parametrize("interpreted", [False, True])
def test_float64_runs_interpreted_only(interpreted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", str(int(interpreted)))
    q, k, v = (each.double() for each in tensors().values())
    if interpreted:
        assert check("causal", {"q": q, "k": k, "v": v}).tokens == N
        return
    with pytest.raises(
        ArgumentError, match=r"q: expected bfloat16, float16 or float32, got torch.float64, which runs under TRITON_INTERPRET=1"
    ):
        check("causal", {"q": q, "k": k, "v": v})


def test_no_gpu_and_no_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(RuntimeError, match=r"the generated kernels need a GPU, and the tensors are on cpu"):
        AttentionOp(parse("causal"))(**tensors())
