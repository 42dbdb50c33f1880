"""Every example on the GPU: the same cases that `benchmarks/forward.py` checks before it measures."""

from __future__ import annotations

import pytest

from benchmarks.cases import DTYPES, LISTED_TOKENS, MANY_LISTS, SQUARE, UNUSUAL, Sizes, check_example, check_lists, check_long_nsa
from benchmarks.suite import LENGTHS, WALKS, example, examples
from nsa_dsl.bench.rows import Sharing

PATTERNS = examples()


@pytest.mark.parametrize("tokens", LENGTHS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("file", "name"), PATTERNS)
def test_example(file: str, name: str, dtype: str, tokens: int) -> None:
    assert check_example(example(file, name), dtype, tokens) == []


@pytest.mark.parametrize("sizes", SQUARE, ids=str)
@pytest.mark.parametrize(("file", "name"), PATTERNS)
def test_sizes_of_hopper(file: str, name: str, sizes: Sizes) -> None:
    assert check_example(example(file, name), "bf16", 700, sizes) == []


@pytest.mark.parametrize("sizes", UNUSUAL, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("file", "name"), [each for each in PATTERNS if each[0] in WALKS])
def test_unusual_sizes(file: str, name: str, dtype: str, sizes: Sizes) -> None:
    assert check_example(example(file, name), dtype, 17 if sizes.batch > 2 else 300, sizes) == []


@pytest.mark.parametrize("sizes", MANY_LISTS, ids=str)
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("sharing", ["random", "clustered"])
def test_small_groups_of_many_lists(sharing: Sharing, dtype: str, sizes: Sizes) -> None:
    assert check_lists(example("choices", "selected"), dtype, LISTED_TOKENS, sizes, sharing=sharing) == []


def test_nsa_at_65536_tokens() -> None:
    assert check_long_nsa(example("nsa", "nsa"), "bf16", 65536) == []
