"""What the backward pass looks at to learn whether the queries are finite: log-sum-exps if they tell, all of q if not."""

from __future__ import annotations

import re

import pytest

from nsa_dsl.compiler import compile_backward
from nsa_dsl.launch import LaunchShape
from nsa_dsl.loader import load_spec

CHOSEN = "attend(tokens, causal & top(2, block = 16, by = scores, share = group){})"
SLOTS = "s = compress(block = 8, stride = 8, by = mean) b = attend(s, causal{})"


@pytest.mark.parametrize(
    ("text", "vouching"),
    [
        (f"output {CHOSEN.format('')}", ["output"]),
        (f"output {CHOSEN.format(', sink = learned')}", []),
        (f"output {CHOSEN.format(', softcap = 2.0')}", []),
        (f"output {CHOSEN.format(', bias = alibi')}", ["output"]),
        (f"a = {CHOSEN.format('')} {SLOTS.format(', sink = learned')} output gate(a, b)", ["a"]),
        (f"a = {CHOSEN.format(', softcap = 2.0')} {SLOTS.format('')} c = attend(s, causal) output mix(a, c, b)", ["b"]),
        (f"a = {CHOSEN.format('')} {SLOTS.format('')} output merge(a, b)", ["merge"]),
        (f"a = {CHOSEN.format('')} {SLOTS.format(', softcap = 2.0')} output merge(a, b)", []),
    ],
)
def test_log_sum_exps_that_vouch(text: str, vouching: list[str]) -> None:
    pattern = load_spec(f"pattern p {{ {text} }}").pattern("p")
    source = compile_backward(pattern, LaunchShape())
    looked_at = re.search(r"_find_wild\((.*), wild=wild\)", source)
    assert looked_at
    assert ("q" in looked_at[1].split(", ")) == (not vouching)
    # Nobody reads what is found out before all have been looked at.
    before = source[: looked_at.start()]
    assert re.findall(r"_launch\w*\(\n\s+(\w+),", before[before.rindex("wild = torch.zeros(1,") :]) == ["rows_backward"]
    rows = source[source.index("def rows_backward(") :].split("\n\n\n")[0]
    # Every log-sum-exp is loaded, then asked or not.
    asked = re.findall(r"lse = tl\.load\(lse_(\w+)_ptr.*\n    unknown =", rows)
    assert asked == vouching
    assert ("q_ptr" in rows) == bool(vouching)


def test_without_fast_kernels_nothing_is_looked_at() -> None:
    source = compile_backward(load_spec("pattern p { output attend(tokens, causal) }").pattern("p"), LaunchShape(templates="portable"))
    assert "wild" not in source
    assert "unknown" not in source
