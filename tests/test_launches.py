"""How generated modules launch: Triton looks a launch up once, and again for whatever it may specialise a kernel by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import patterns
import pytest
import torch
import triton
from triton.compiler import CompiledKernel

from nsa_dsl.compiler import compile_source
from nsa_dsl.execute import load_module
from nsa_dsl.launch import LaunchShape


class Compiled(CompiledKernel):  # type: ignore[misc]
    """Notes what it is launched with."""

    def __init__(self) -> None:
        self.launches: list[tuple[Any, ...]] = []

    def __getitem__(self, grid: Sequence[int]) -> Any:
        return lambda *arguments: self.launches.append((grid, *arguments))


class Kernel(triton.JITFunction):  # type: ignore[misc]
    """A kernel (x, n, scale, FLAG, SIZE) that notes when a launch is looked up."""

    def __init__(self) -> None:
        self.looked_up: list[dict[str, Any]] = []
        self.compiled = Compiled()
        self.arg_names = ["x", "n", "scale", "FLAG", "SIZE"]

    def __getitem__(self, _: Any) -> Any:
        def launch(*_: Any, **options: Any) -> Compiled:
            self.looked_up.append(options)
            return self.compiled

        return launch


@pytest.fixture(scope="module")
def module() -> Any:
    return load_module(compile_source(patterns.causal(), LaunchShape()), "causal")


def test_a_launch_is_looked_up_once(module: Any) -> None:
    kernel, x = Kernel(), torch.zeros(64)
    for n_programs, each, scale in ((3, x, 0.5), (5, torch.ones(64), 0.25), (0, x, 0.5)):
        module._launch(kernel, n_programs, each, 7, scale, SIZE=64, FLAG=True, warps=4, stages=2)
    assert kernel.looked_up == [{"SIZE": 64, "FLAG": True, "num_warps": 4, "num_stages": 2}]
    (grid, _, *rest) = kernel.compiled.launches[0]
    assert len(kernel.compiled.launches) == 1
    assert (grid, rest) == ((5, 1, 1), [7, 0.25, True, 64])


@pytest.mark.parametrize(
    "other",
    [{"x": torch.zeros(65)[1:]}, {"x": torch.zeros(64, dtype=torch.int32)}, {"n": 8}, {"SIZE": 32}, {"warps": 8}, {"stages": 3}],
)
def test_a_launch_of_another_kind_is_looked_up_again(module: Any, other: dict[str, Any]) -> None:
    kernel, usual = Kernel(), {"x": torch.zeros(64), "n": 7, "SIZE": 64, "warps": 4, "stages": 2}
    for given in (usual, usual | other):
        options = {name: given[name] for name in ("SIZE", "warps", "stages")}
        module._launch(kernel, 1, given["x"], given["n"], 0.5, FLAG=True, **options)
    assert len(kernel.looked_up) == 2


def test_what_is_only_compiled_is_never_launched(module: Any) -> None:
    kernel = Kernel()
    for _ in range(2):
        module._launch(Standing(kernel), 1, torch.zeros(64), 7, 0.5, FLAG=True, SIZE=64, warps=4, stages=2)
    assert len(kernel.looked_up) == 2


class Standing:
    """Stands for a kernel where `nsa_dsl.warmup` compiles."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel

    def __getitem__(self, grid: Any) -> Any:
        return self.kernel[grid]
