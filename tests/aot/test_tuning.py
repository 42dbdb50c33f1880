"""What tuning counts on: how much shared memory a Gluon kernel takes, and that what a worker compiled is found by whoever launches it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget

from nsa_dsl.ahead import compile_launch, record_launches
from nsa_dsl.bench.compilers import Compilers, Prepared
from nsa_dsl.execute import load_module
from nsa_dsl.launch import LaunchShape, Tiles
from nsa_dsl.loader import load_spec
from nsa_dsl.pattern import Pattern
from nsa_dsl.sources import compile_source
from nsa_dsl.tuning.candidates import find_stands, hopper_bytes


@pytest.fixture
def window() -> Pattern:
    return load_spec("pattern p { output attend(tokens, window(512)) }").pattern("p")


@pytest.mark.parametrize(
    ("relation", "shape", "kernels"),
    [
        ("window(512)", LaunchShape(), 3),
        ("window(512)", LaunchShape(dim_qk=192), 3),
        ("{ i, j : (j // 64 + i // 64) % 9 == 0 }", LaunchShape(), 1),
    ],
    ids=["window", "wide", "blocks of 64"],
)
def test_shared_memory_is_what_the_template_allocates(relation: str, shape: LaunchShape, kernels: int) -> None:
    pattern = load_spec(f"pattern p {{ output attend(tokens, {relation}) }}").pattern("p")
    launches = {each.kernel.__name__: each for each in record_launches(pattern, shape, heads=16, kv_heads=4, backward=True)}
    stands = {name: each for name, each in find_stands(pattern, shape, backward=True).items() if each.hopper is not None}
    assert len(stands) == kernels
    for name, stand in stands.items():
        assert stand.hopper is not None
        taken = compile_launch(launches[f"{name}_hopper"], "sm_90").shared
        assert 0 <= hopper_bytes(stand.hopper, stand, shape) - taken <= 1024, name
    if kernels == 3 and shape == LaunchShape():
        # The card refused it: 262,248 bytes.
        assert 0 <= hopper_bytes(Tiles(128, 128, 8, 2), stands["attend_output_queries"], shape) - 262_248 <= 1024


class NoCard:
    """Triton's driver where there is no card: enough to compile."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:  # noqa: ARG002
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


def test_what_a_worker_compiled_is_found(window: Pattern, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    asked: list[tuple[str, bool]] = []

    def listen(*, src: Any, cache_hit: bool, **_: Any) -> None:
        asked.append((src.name, cache_hit))

    monkeypatch.setattr(triton.knobs.compilation, "listener", listen)
    module = load_module(compile_source(window, LaunchShape()), "p")
    monkeypatch.setattr(module, "_on_hopper", lambda *_: True)
    q, k, v = (torch.zeros(1, heads, 256, 128, dtype=torch.bfloat16) for heads in (4, 2, 2))
    monkeypatch.setattr(triton.runtime.driver, "_active", NoCard())
    with Compilers(1) as compilers:
        compilers.take_over(module, "p")
        compilers.compile([Prepared(module, "run", (q, k, v), {})], "p", "sm_90")
    assert {"attend_output", "attend_output_hopper"} <= {name for name, _ in asked}
    assert all(hit for _, hit in asked)
