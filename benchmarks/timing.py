"""What the suites time: NSA in its paper's shape, and static patterns, beside their peers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from benchmarks.suite import example
from nsa_dsl.bench.rows import Row, Settings
from nsa_dsl.bench.run import run
from nsa_dsl.pattern import Pattern

LENGTHS = (8192, 16384, 32768, 65536)
STATIC = (("causal", "causal"), ("gemma", "local"), ("power_attention", "power_attention"))
"""Example and pattern: dense causal, a window of 1,024, blocks of 256 (block-sparse)."""


def time_nsa(pattern: Pattern, *, backward: bool) -> list[dict[str, Any]]:
    """NSA beside dense attention, its compressor included: times, memory above the inputs, each kernel."""
    return _shown(run(pattern, Settings(LENGTHS, peers=("cudnn", "flash"), backward=backward)))


def time_static(tokens: int = 16384) -> list[dict[str, Any]]:
    """Static patterns at 32 query and 8 KV heads, forward and backward, beside dense attention and FlexAttention."""
    settings = Settings((tokens,), heads=32, kv_heads=8, peers=("cudnn", "flash", "flex"))
    return [row for file, name in STATIC for row in _shown(run(example(file, name), settings))]


def _shown(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Rows without what was not measured."""
    return [{name: value for name, value in asdict(row).items() if value not in (None, "", {})} for row in rows]
