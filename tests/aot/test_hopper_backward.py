"""The Hopper kernels of attention's gradient compile, fit the card, and keep their sums in registers."""

from __future__ import annotations

from pathlib import Path

import pytest

from nsa_dsl.ahead import compile_launch, record_launches
from nsa_dsl.launch import LaunchShape
from nsa_dsl.loader import load_spec

EXAMPLES = Path(__file__).parents[2] / "examples"

MOST_SPILLED = 96
"""Bytes a thread may keep in local memory: numbers that no loop changes, which the loop over masked tiles reads again."""

KERNELS = {
    "nsa": {
        "attend_compressed_queries_with_windowed_hopper",
        "attend_compressed_keys_hopper",
        "attend_windowed_keys_hopper",
        "pad_rows",
    },
    "causal": {"attend_output_queries_hopper", "attend_output_keys_hopper", "pad_rows"},
}


SHAPES = [("nsa", LaunchShape(128, 128, "bf16")), ("nsa", LaunchShape(192, 128, "bf16")), ("causal", LaunchShape(64, 64, "fp16"))]


@pytest.mark.parametrize(("name", "shape"), SHAPES, ids=lambda each: str(getattr(each, "dim_qk", each)))
def test_kernels_fit(name: str, shape: LaunchShape) -> None:
    pattern = load_spec(EXAMPLES / f"{name}.nsa").pattern(name)
    launches = {each.kernel.__name__: each for each in record_launches(pattern, shape, backward=True)}
    # Rows are padded where the last tile of queries is not whole.
    uneven = record_launches(pattern, shape, tokens=4097, backward=True)
    launches |= {each.kernel.__name__: each for each in uneven if each.kernel.__name__ == "pad_rows"}
    assert launches.keys() >= KERNELS[name]
    for kernel in KERNELS[name]:
        report = compile_launch(launches[kernel], "sm_90")
        assert report.shared <= report.limit
        assert report.spills is None or report.spills <= MOST_SPILLED, f"{kernel} spills {report.spills} bytes a thread"


def test_portable_has_none() -> None:
    pattern = load_spec(EXAMPLES / "causal.nsa").pattern("causal")
    shape = LaunchShape(templates="portable")
    assert not any(each.kernel.is_gluon() for each in record_launches(pattern, shape, backward=True))
