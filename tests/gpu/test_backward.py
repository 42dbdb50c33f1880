"""Every example's gradients on the GPU: the cases that `benchmarks/backward.py` checks before it measures, the longest in one dtype."""

from __future__ import annotations

import pytest

from benchmarks.backward import FEW_HEADS, REPEATED
from benchmarks.cases import DTYPES, SQUARE, UNUSUAL, Sizes
from benchmarks.cases_backward import Captured, Repeats, check_gradients
from benchmarks.literal_nsa import check_long_gradients
from benchmarks.suite import WALKS, example, examples

PATTERNS = examples()


@pytest.mark.parametrize("tokens", [1, 63, 64, 65, 1000])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("file", "name"), PATTERNS)
def test_example(file: str, name: str, dtype: str, tokens: int) -> None:
    assert check_gradients(example(file, name), dtype, tokens) == []


@pytest.mark.parametrize(("file", "name"), PATTERNS)
def test_example_at_8192_tokens(file: str, name: str) -> None:
    assert check_gradients(example(file, name), "bf16", 8192, FEW_HEADS) == []


@pytest.mark.parametrize("sizes", SQUARE, ids=str)
@pytest.mark.parametrize(("file", "name"), PATTERNS)
def test_sizes_of_hopper(file: str, name: str, sizes: Sizes) -> None:
    assert check_gradients(example(file, name), "bf16", 700, sizes) == []


@pytest.mark.parametrize("sizes", UNUSUAL, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("file", "name"), [each for each in PATTERNS if each[0] in WALKS])
def test_unusual_sizes(file: str, name: str, dtype: str, sizes: Sizes) -> None:
    assert check_gradients(example(file, name), dtype, 17 if sizes.batch > 2 else 300, sizes) == []


@pytest.mark.parametrize(("file", "name"), REPEATED)
def test_runs_repeat_bit_by_bit(file: str, name: str) -> None:
    assert Repeats(20)(example(file, name), "bf16", 4096, SQUARE[0]) == []


@pytest.mark.parametrize(("file", "name"), REPEATED)
def test_graphs_replay_calls(file: str, name: str) -> None:
    assert Captured()(example(file, name), "bf16", 700, SQUARE[0]) == []


def test_nsa_at_65536_tokens() -> None:
    assert check_long_gradients(example("nsa", "nsa"), "bf16", 65536) == []
