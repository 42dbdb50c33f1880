"""Merges whose branches may share a key are refused, with the smallest key they share."""

from __future__ import annotations

import pytest

from nsa_dsl.loader import load_spec
from nsa_dsl.overlap import refuse_overlap
from nsa_dsl.pattern import NotSupported

FAR = "causal - window(8)"


def merge(*branches: str) -> None:
    bindings = "\n".join(f"    branch_{n} = attend({each})" for n, each in enumerate(branches))
    names = ", ".join(f"branch_{n}" for n, _ in enumerate(branches))
    refuse_overlap(load_spec(f"pattern p {{\n{bindings}\n    output merge({names})\n}}\n").pattern("p"))


@pytest.mark.parametrize(
    "branches",
    [
        ("tokens, window(8)", f"tokens, {FAR}"),
        ("tokens, window(8)", f"tokens, ({FAR}) & top(4, block = 8, by = scores, share = group)"),
        ("tokens, causal", "compress(block = 4, stride = 4, by = mean), causal"),
        ("tokens, causal & { i, j, h : (i + j + h) % 2 == 0 }", "tokens, causal & { i, j, h : (i + j + h) % 2 == 1 }"),
    ],
)
def test_branches_without_a_common_key_merge(branches: tuple[str, ...]) -> None:
    merge(*branches)


@pytest.mark.parametrize(
    ("branches", "message"),
    [
        (("tokens, window(9)", f"tokens, {FAR}"), r"branches branch_0 and branch_1 may share a key \(N = 9: query 8 sees key 0\)"),
        (("tokens, window(8)", "tokens, causal & top(4, block = 8, by = scores, share = group)"), r"may share a key \(N = 1: query 0"),
        (("tokens, window(8)", f"tokens, {FAR}", "tokens, first(1)"), "branch_0 and branch_2"),
    ],
)
def test_a_common_key_is_refused_and_named(branches: tuple[str, ...], message: str) -> None:
    with pytest.raises(NotSupported, match=message):
        merge(*branches)
