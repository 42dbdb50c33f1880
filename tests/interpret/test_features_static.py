"""Branches over static relations, over tokens and over slots: masks, logits, compression, and what the output makes of branches."""

from __future__ import annotations

from typing import Any

import pytest
from interpret.support import agree

RELATIONS = {
    "both ways": "output attend(tokens, around(7, 12))",
    "the future alone": "output attend(tokens, full - causal)",
    "nothing": "output attend(tokens, causal & (full - causal))",
    "a longer window than the text": "output attend(tokens, window(500))",
    "dilated": "output attend(tokens, dilated(5, 3))",
    "every third, both ways": "output attend(tokens, stride(3))",
    "rows of a grid": "output attend(tokens, neighborhood(5, 9, 3, 4))",
    "the length": "relation far = { i, j : j >= N - 9 or i - j == N // 3 } pattern p { output attend(tokens, far) }",
    "by head": (
        "relation sharded(b, s) = { i, j, h : (j // b + h) % s == 0 } "
        "pattern p { output attend(tokens, causal & (window(6) | sharded(4, 3))) }"
    ),
    "directions by head": (
        "relation split = { i, j, h : h % 2 == 0 and j <= i or h % 2 == 1 and j >= i } pattern p { output attend(tokens, split) }"
    ),
    "a union of many": "output attend(tokens, causal & (union p in 0..6 { i, j : i // 2 - j // 2 == 2 ** p } | first(2)))",
    "written three times": "output attend(tokens, window(11) | window(11) & causal | window(4))",
}

LOGITS = {
    "sink": "sink = learned",
    "softcap": "softcap = 2.5",
    "alibi": "bias = alibi",
    "scale": "scale = 0.3",
    "together": "scale = 0.7, softcap = 3, bias = alibi, sink = learned",
}

COMPRESS = {
    "overlap": (8, 4),
    "side by side": (4, 4),
    "gaps": (3, 5),
    "uneven": (5, 3),
    "single tokens": (1, 1),
    "longer than the text": (50, 2),
}

OUTPUTS = {
    "gate": "a = attend(tokens, window(5)) b = attend(tokens, causal & first(3)) output gate(b, a)",
    "mix": (
        "a = attend(tokens, window(5)) b = attend(compress(block = 4, stride = 2, by = weighted), causal) "
        "c = attend(tokens, first(3) & causal) output mix(c, a, b)"
    ),
    "merge": "a = attend(tokens, window(5)) b = attend(tokens, causal - window(5)) output merge(a, b)",
    "merge of three": (
        "a = attend(tokens, window(5)) b = attend(tokens, first(3) - window(5)) "
        "c = attend(compress(block = 4, stride = 4, by = mean), causal) output merge(c, b, a)"
    ),
    "merge of branches that see nothing": (
        "a = attend(tokens, causal & first(3) - window(9)) b = attend(tokens, dilated(3, 4) - first(3) - window(1)) output merge(a, b)"
    ),
    "merge with a sink": (
        "a = attend(tokens, window(5), scale = 0.1, sink = learned) b = attend(tokens, causal - window(5), softcap = 2) output merge(a, b)"
    ),
    "a branch called merged": "merged = attend(tokens, window(5)) b = attend(tokens, causal - window(5)) output merge(merged, b)",
    "equal branches": "a = attend(tokens, window(5)) b = attend(tokens, window(5)) output gate(a, b)",
    "dead branches": "a = attend(tokens, window(5)) b = attend(tokens, window(7)) c = attend(tokens, window(7)) output b",
    "one of one": "a = attend(tokens, window(5)) output gate(a)",
    "kv per branch": (
        "kv per branch a = attend(tokens, window(5)) b = attend(compress(block = 4, stride = 2, by = max), causal, bias = alibi) "
        "c = attend(tokens, window(5)) output gate(a, b, c)"
    ),
    "kv per branch, one memory": (
        "kv per branch s = compress(block = 4, stride = 3, by = weighted) a = attend(s, causal) b = attend(s, full - causal) "
        "output mix(a, b)"
    ),
    "kv per branch, merged": "kv per branch a = attend(tokens, window(5)) b = attend(tokens, causal - window(5)) output merge(a, b)",
}

DOCUMENTS = {
    "tokens": "output attend(tokens, around(20, 3) & document)",
    "slots": "output attend(compress(block = 6, stride = 4, by = mean), around(20, 9) & document)",
    "slots of one token": "output attend(compress(block = 1, stride = 3, by = max), causal & document)",
    "both": (
        "a = attend(tokens, causal & document, sink = learned) "
        "b = attend(compress(block = 4, stride = 2, by = mean), document) output gate(a, b)"
    ),
}


@pytest.mark.parametrize("name", RELATIONS)
@pytest.mark.parametrize(("rows", "cols"), [(32, 16), (16, 32)])
def test_relations(name: str, rows: int, cols: int) -> None:
    agree(RELATIONS[name], rows=rows, cols=cols, heads=3, kv_heads=1)


@pytest.mark.parametrize("name", LOGITS)
@pytest.mark.parametrize(
    ("memory", "dtype"), [("tokens, causal", "fp32"), ("compress(block = 6, stride = 4, by = mean), around(20, 9)", "fp16")]
)
def test_logits(name: str, memory: str, dtype: str) -> None:
    agree(f"output attend({memory}, {LOGITS[name]})", dtype=dtype, heads=3, kv_heads=1)


@pytest.mark.parametrize("by", ["mean", "max", "weighted", "mlp"])
@pytest.mark.parametrize("name", COMPRESS)
def test_compression(name: str, by: str) -> None:
    block, stride = COMPRESS[name]
    agree(
        f"output attend(compress(block = {block}, stride = {stride}, by = {by}), causal)", dtype="fp16" if stride == 4 else "fp32", heads=2
    )


@pytest.mark.parametrize("where", ["around(11, 7)", "full", "full - causal", "stride(1) & dilated(30, 1)"])
def test_relations_lift_to_slots(where: str) -> None:
    agree(f"output attend(compress(block = 6, stride = 4, by = mean), {where})", batch=2, heads=2)


def test_relations_by_head_lift_to_slots() -> None:
    agree(
        "relation split = { i, j, h : h % 2 == 0 and j <= i or h % 2 == 1 and j >= i } "
        "pattern p { output attend(compress(block = 3, stride = 2, by = max), split) }"
    )


@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs(name: str) -> None:
    agree(OUTPUTS[name], dtype="fp16" if "kv" in name or "equal" in name else "fp32", tokens=35, heads=2)


@pytest.mark.parametrize("name", DOCUMENTS)
@pytest.mark.parametrize("call", [{"documents": 4}, {"documents": 3, "tokens": 33, "rows": 32, "seed": 5}, {"documents": 1}], ids=str)
def test_documents(name: str, call: dict[str, Any]) -> None:
    agree(DOCUMENTS[name], **call)
