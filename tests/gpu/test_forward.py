"""Every example on the GPU: the same cases that `benchmarks/forward.py` checks before it measures."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.cases import UNUSUAL, Sizes, check_example, check_long_nsa
from nsa_dsl.loader import load_spec

EXAMPLES = Path(__file__).parents[2] / "examples"
PATTERNS = [(path.stem, name) for path in sorted(EXAMPLES.glob("*.nsa")) for name in load_spec(path).patterns]


@pytest.mark.parametrize("tokens", [1, 63, 64, 65, 1000, 8192])
@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize(("example", "name"), PATTERNS)
def test_example(example: str, name: str, dtype: str, tokens: int) -> None:
    assert check_example(load_spec(EXAMPLES / f"{example}.nsa").pattern(name), dtype, tokens) == []


@pytest.mark.parametrize("sizes", UNUSUAL, ids=str)
@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize(("example", "name"), [each for each in PATTERNS if each[0] in ("nsa", "moba", "asa", "s2", "streaming")])
def test_unusual_sizes(example: str, name: str, dtype: str, sizes: Sizes) -> None:
    tokens = 17 if sizes.batch > 2 else 300
    assert check_example(load_spec(EXAMPLES / f"{example}.nsa").pattern(name), dtype, tokens, sizes) == []


def test_nsa_at_65536_tokens() -> None:
    assert check_long_nsa(load_spec(EXAMPLES / "nsa.nsa").pattern("nsa"), 65536) == []
