"""One malformed spec (or more) for every diagnostic of name resolution; `goldens` hold the message that each deserves."""

from __future__ import annotations

from collections.abc import Mapping

_COMPRESSED = """    summary = compress(block = 32, stride = 16, by = mean)
    overview = attend(summary, causal)
"""


def _where(relation: str) -> str:
    return f"pattern p {{\n    output attend(tokens, {relation})\n}}\n"


def _set(condition: str) -> str:
    return f"relation r = {{ i, j : {condition} }}\n"


def _selecting(choice: str) -> str:
    return f"pattern p {{\n{_COMPRESSED}    selected = attend(tokens, causal & {choice})\n    output gate(overview, selected)\n}}\n"


def _model(schedule: str) -> str:
    return f"""pattern local {{ output attend(tokens, window(4)) }}
pattern choosing(b = 16) {{
    selected = attend(tokens, causal & top(2, block = b, by = mean, share = head))
    output selected
}}
model m {{ {schedule} }}
"""


CASES: Mapping[str, str] = {
    # Names and calls.
    "unknown-name": _where("casual"),
    "unknown-name-call": _where("windw(4)"),
    "unknown-name-term": _set("j <= k"),
    "unknown-name-memory": "pattern p {\n    summary = compress(block = 4, stride = 4, by = mean)\n    output attend(sumary, causal)\n}\n",
    "unknown-name-branch": "pattern p {\n    near = attend(tokens, window(4))\n    output gate(neer)\n}\n",
    "unknown-name-default": "pattern p(by = meen) {\n    output attend(compress(block = 4, stride = 4, by = by), causal)\n}\n",
    "unknown-name-choice": _selecting("top(2, block = 16, by = overview, share = head, among = other)"),
    "unknown-argument": _where("window(width = 4)"),
    "unknown-argument-choice": _selecting("top(2, block = 16, by = overview, shared = group, share = group)"),
    "duplicate-argument": _where("window(4, w = 4)"),
    "missing-argument": _where("window"),
    "missing-argument-attend": "pattern p {\n    output attend(tokens)\n}\n",
    "missing-argument-choice": _selecting("top(2, by = overview, share = group)"),
    "missing-share": _selecting("top(2, block = 16, by = overview)"),
    "wrong-arity": _where("window(4, 5)"),
    "wrong-arity-term": _set("abs(i, j) < 4"),
    "wrong-arity-merge": "pattern p {\n    near = attend(tokens, window(4))\n    output merge(near)\n}\n",
    "reserved-name": "relation top(n) = { i, j : j < n }\n",
    "reserved-name-parameter": "relation r(N) = { i, j : j < N }\n",
    "shadowed-name": "relation r(i) = { i, j : j < 4 }\n",
    "shadowed-name-binding": "pattern p(w = 4) {\n    w = attend(tokens, window(w))\n    output w\n}\n",
    "duplicate-variable": "relation r = { i, i : i < 4 }\n",
    "duplicate-parameter": "relation r(w, w) = { i, j : j < w }\n",
    "duplicate-declaration": "relation near = window(4)\nrelation near = window(8)\n",
    "duplicate-declaration-prelude": "relation window(w) = { i, j : i - w <= j <= i }\n",
    "duplicate-name": "pattern p {\n    near = attend(tokens, window(4))\n    near = attend(tokens, window(8))\n    output near\n}\n",
    "used-before-definition": "pattern p {\n    output gate(near)\n    near = attend(tokens, window(4))\n}\n",
    "used-before-definition-score": """pattern p {
    selected = attend(tokens, causal & top(2, block = 16, by = overview, share = group))
    overview = attend(compress(block = 16, stride = 16, by = mean), causal)
    output gate(overview, selected)
}
""",
    # Kinds.
    "wrong-kind": _where("4"),
    "wrong-kind-condition": _where("causal & 1 < 2"),
    "wrong-kind-integer": _where("window(causal)"),
    "wrong-kind-real": _where("window(0.5)"),
    "wrong-kind-term": _set("j <= window(4)"),
    "wrong-kind-memory": "pattern p {\n    output attend(causal, causal)\n}\n",
    "wrong-kind-binding": "pattern p {\n    near = window(4)\n    output near\n}\n",
    "wrong-kind-output": "pattern p {\n    summary = compress(block = 4, stride = 4, by = mean)\n    output summary\n}\n",
    "wrong-kind-parameter": "pattern p(w = 4) { output attend(tokens, window(w)) }\nmodel m { layers 2 { repeat p(w = mean) } }\n",
    "wrong-kind-layer": "relation r = causal\nmodel m { layers 2 { repeat r } }\n",
    "wrong-operator": _where("window(4) + first(4)"),
    "wrong-operator-condition": _set("(i < 4) & (j < 4)"),
    "not-an-option": "pattern p {\n    output attend(compress(block = 4, stride = 4, by = group), causal)\n}\n",
    # Integers.
    "not-affine": _set("i * j < 4"),
    "not-affine-modulo": _set("j % i == 0"),
    "not-affine-power": _set("i ** 2 < j"),
    "not-constant": "relation r = { i, j : j < 4 } | union p in 0..N { i, j : j == p }\n",
    "not-positive": _set("j // (4 - 4) < i"),
    "not-positive-scale": "pattern p {\n    output attend(tokens, causal, scale = -1.0)\n}\n",
    "bad-exponent": _set("j < 2 ** (1 - 4)"),
    "number-too-large": _set("i - j < 2147483648"),
    "number-too-large-folded": _set("i - j < 65536 * 65536"),
    "too-small": _where("window(0)"),
    "too-small-compress": "pattern p {\n    output attend(compress(block = 0, stride = 0, by = mean), causal)\n}\n",
    "too-small-count": _selecting("top(0, block = 0, by = overview, share = group)"),
    "exceeds-grid": _where("neighborhood(4, 4, 3, 5)"),
    "bad-range": "relation r = union p in 4..0 { i, j : j == p }\n",
    "union-too-long": "relation r = union p in 0..1_025 { i, j : j == p }\n",
    # Relations.
    "relation-cycle": "relation a = b & causal\nrelation b = c | first(4)\nrelation c = a\n",
    "relation-too-large": "relation a(n) = union p in 0..64 { i, j : j == p + n }\nrelation b = union q in 0..64 a(q * 64)\n",
    "too-deep": "".join(f"relation r_{n} = r_{n + 1}\n" for n in range(120)) + "relation r_120 = causal\n",
    "spec-too-complex": "relation r = union p in 0..1_000 union q in 0..1_000 { i, j : p < q }\n",
    "document-opaque": _where("causal & (document | first(4))"),
    "document-opaque-slots": """pattern p {
    output attend(compress(block = 8, stride = 8, by = mean), causal & (document | first(3)))
}
""",
    "document-opaque-assert": "pattern p {\n    output attend(tokens, causal & document)\n    assert document\n}\n",
    "choice-not-allowed": "relation r = causal & top(2, block = 16, by = mean, share = head)\n",
    # Choices.
    "choice-on-slots": """pattern p {
    summary = compress(block = 16, stride = 16, by = mean)
    output attend(summary, causal & top(2, block = 16, by = mean, share = head))
}
""",
    "selection-misaligned": _selecting("top(2, block = 40, by = overview, share = group)"),
    "among-misaligned": """pattern p {
    coarse = attend(tokens, causal & top(8, block = 96, by = mean, share = all))
    fine = attend(tokens, causal & top(2, block = 64, by = mean, share = all, among = coarse))
    output fine
}
""",
    "among-too-deep": """pattern p {
    c0 = attend(tokens, causal & top(8, block = 16, by = mean, share = all))
"""
    + "".join(f"    c{n} = attend(tokens, causal & top(8, block = 16, by = mean, share = all, among = c{n - 1}))\n" for n in range(1, 10))
    + "    output c9\n}\n",
    "score-not-compressed": """pattern p {
    near = attend(tokens, window(4))
    selected = attend(tokens, causal & top(2, block = 16, by = near, share = group))
    output gate(near, selected)
}
""",
    "every-with-queries": _selecting("top(2, block = 16, by = overview, share = group, every = 4, queries = 16)"),
    "lookahead": _selecting("top(2, block = 16, by = overview, share = group, queries = 16)"),
    "indices-without-top": _selecting("over(0.5, block = 16, by = indices, share = group)"),
    "bad-probability": _selecting("mass(1.5, block = 16, by = overview, share = group)"),
    "keep-per-head": _selecting("top(2, block = 16, by = overview, share = group, keep = { i, j, h : j == h })"),
    "keep-exceeds-count": _selecting("top(2, block = 16, by = overview, share = group, keep = first(1) | window(2))"),
    # Patterns.
    "too-many-assertions": "pattern p {\n    output attend(tokens, causal)\n" + 65 * "    assert causal\n" + "}\n",
    "missing-output": "pattern p {\n    near = attend(tokens, window(4))\n}\n",
    "duplicate-statement": "pattern p {\n    output attend(tokens, causal)\n    output attend(tokens, full)\n}\n",
    "duplicate-branch": "pattern p {\n    near = attend(tokens, window(4))\n    output gate(near, near)\n}\n",
    "unnamed-branch": "pattern p {\n    output gate(attend(tokens, window(4)))\n}\n",
    "sinks-merged": """pattern p {
    near = attend(tokens, window(4), sink = learned)
    far = attend(tokens, causal - window(4), sink = learned)
    output merge(near, far)
}
""",
    "bad-layer-count-reach": "pattern p {\n    output attend(tokens, causal)\n    assert reach causal within 4_097\n}\n",
    "length-too-long": "pattern p {\n    output attend(tokens, causal)\n    assert density <= 1 at 4_097k\n}\n",
    "number-too-large-real": "pattern p {\n    output attend(tokens, causal, scale = 1e309)\n}\n",
    "bad-density": "pattern p {\n    output attend(tokens, causal)\n    assert density <= 2 at 64k\n}\n",
    # Models.
    "missing-layers": _model("assert causal"),
    "duplicate-statement-layers": _model("layers 2 { repeat local } layers 4 { repeat local }"),
    "bad-layer-count": _model("layers 0 { repeat local }"),
    "bad-layer-count-many": _model("layers 4_097 { repeat local }"),
    "uncovered-layers": _model("layers 8 { 0..2: local 4: local }"),
    "overlapping-layers": _model("layers 8 { 0..4: local 3..8: choosing }"),
    "overlapping-layers-rest": _model("layers 8 { repeat local rest: choosing }"),
    "layer-out-of-range": _model("layers 8 { 6..9: local rest: choosing }"),
    "times-in-rule": _model("layers 8 { 0..4: local * 2 rest: choosing }"),
    "nothing-to-reuse": _model("layers 8 { repeat choosing reuse(selected) }"),
    "reuse-mismatch": _model("layers 8 { 0: choosing rest: choosing(b = 32) reuse(selected) }"),
    "unknown-name-reuse": _model("layers 8 { repeat local reuse(selected) }"),
    "too-small-called": "pattern p(b) {\n    output attend(tokens, blocks(b))\n}\nmodel m { layers 2 { repeat p(b = 0) } }\n",
    # Everything at once: independent errors are all reported.
    "not-affine-and-more": """relation a = { i, j : i * j < 4 }
pattern p(w = 0) {
    near = attend(tokens, windw(w))
    far = attend(token, first(4, 5))
    output gate(near, far, wide)
}
model m { layers 0 { repeat q } }
""",
}
"""Golden's name -> text. The name begins with the code of the first diagnostic."""
