"""How generated modules launch: Triton looks a launch up once, and again for whatever it may specialise a kernel by."""

from __future__ import annotations

import types
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import patterns
import pytest
import torch
import triton
from triton.compiler import CompiledKernel

from nsa_dsl import warmup
from nsa_dsl.compiler import compile_backward, compile_source
from nsa_dsl.execute import load_module
from nsa_dsl.launch import LaunchShape


class Compiled(CompiledKernel):  # type: ignore[misc]
    """Notes what it is launched with."""

    def __init__(self) -> None:
        self.launches: list[tuple[Any, ...]] = []

    def __getitem__(self, grid: Sequence[int]) -> Any:
        return lambda *arguments, stream: self.launches.append((grid, stream, *arguments))


class Driver:
    """Of two cards, whose streams count from 100 and 200; each question for one is counted."""

    def __init__(self) -> None:
        self.device, self.asked = 1, 0

    def get_current_device(self) -> int:
        return self.device

    def get_current_stream(self, device: int) -> int:
        self.asked += 1
        return 100 * device + self.asked


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


@dataclass
class Descriptor:
    """A view of a tensor in boxes."""

    base: torch.Tensor
    block_shape: list[int]


@pytest.fixture(scope="module")
def module() -> Any:
    return load_module(compile_source(patterns.causal(), LaunchShape()), "causal")


@pytest.fixture(autouse=True)
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    driver = Driver()
    monkeypatch.setattr(triton.runtime.driver, "_active", driver)
    return driver


def test_a_launch_is_looked_up_once(module: Any) -> None:
    kernel, x = Kernel(), torch.zeros(64)
    for n_programs, each, scale in ((3, x, 0.5), (5, torch.ones(64), 0.25), (0, x, 0.5)):
        module._launch(kernel, n_programs, each, 7, scale, SIZE=64, FLAG=True, warps=4, stages=2)
    assert kernel.looked_up == [{"SIZE": 64, "FLAG": True, "num_warps": 4, "num_stages": 2}]
    (grid, stream, _, *rest) = kernel.compiled.launches[0]
    assert len(kernel.compiled.launches) == 1
    assert (grid, stream, rest) == ((5, 1, 1), 101, [7, 0.25, True, 64])


def test_every_launch_goes_to_the_stream_of_its_moment(module: Any, driver: Driver) -> None:
    kernel = Kernel()
    for driver.device in (1, 1, 2, 2, 1):
        module._launch(kernel, 1, torch.zeros(64), 7, 0.5, FLAG=True, SIZE=64, warps=4, stages=2)
    assert len(kernel.looked_up) == 2
    assert [stream for _, stream, *_ in kernel.compiled.launches] == [101, 202, 103]


@pytest.mark.parametrize(
    "other",
    [
        {"x": torch.zeros(65)[1:]},
        {"x": torch.zeros(64, dtype=torch.int32)},
        {"x": Descriptor(torch.zeros(64), [16])},
        {"x": 64},
        {"n": 8},
        {"n": 7.0},
        {"n": torch.zeros(7)},
        {"SIZE": 32},
        {"warps": 8},
        {"stages": 3},
    ],
)
def test_a_launch_of_another_kind_is_looked_up_again(module: Any, other: dict[str, Any]) -> None:
    kernel, usual = Kernel(), {"x": torch.zeros(64), "n": 7, "SIZE": 64, "warps": 4, "stages": 2}
    for given in (usual, usual | other):
        options = {name: given[name] for name in ("SIZE", "warps", "stages")}
        module._launch(kernel, 1, given["x"], given["n"], 0.5, FLAG=True, **options)
    assert len(kernel.looked_up) == 2


@pytest.mark.parametrize(
    "other",
    [Descriptor(torch.zeros(64), [32]), Descriptor(torch.zeros(64, dtype=torch.float16), [16]), Descriptor(torch.zeros(64), [4, 4])],
)
def test_a_descriptor_is_known_by_its_type_and_boxes(module: Any, other: Descriptor) -> None:
    kernel, usual = Kernel(), Descriptor(torch.zeros(64), [16])
    for x in (usual, other, Descriptor(torch.ones(64), [16])):
        module._launch(kernel, 1, x, 7, 0.5, FLAG=True, SIZE=64, warps=4, stages=2)
    assert len(kernel.looked_up) == 2


def test_constants_are_known_by_name(module: Any) -> None:
    kernel = Kernel()
    for constants in ({"FLAG": 1, "SIZE": 0}, {"SIZE": 1, "FLAG": 0}):
        module._launch(kernel, 1, torch.zeros(64), 7, 0.5, **constants, warps=4, stages=2)
    assert len(kernel.looked_up) == 2


def test_a_tensor_is_described_once_a_pass() -> None:
    hopper: Any = load_module(compile_backward(patterns.causal(), LaunchShape()), "causal")
    described: dict[Any, Any] = {}
    x = torch.zeros(1, 2, 70, 128, dtype=torch.bfloat16)
    first = hopper._describe_once(described, x, 64)
    assert first.base is x
    assert hopper._describe_once(described, x, 64) is first
    assert hopper._describe_once(described, x, 128).block_shape == [1, 1, 128, 128]
    # A copy of what the card cannot read in place is made once, too.
    odd = torch.zeros(1, 2, 70, 136, dtype=torch.bfloat16)[..., 4:132]
    assert hopper._describe_once(described, odd, 64).base.is_contiguous()
    assert hopper._describe_once(described, odd, 64) is hopper._describe_once(described, odd, 64)
    # Tensors that nobody else holds do not hand their places on.
    for _ in range(3):
        hopper._describe_once(described, odd[:], 64)
    assert len({each.base.data_ptr() for _, each in described.values()}) == 5


def test_what_is_only_compiled_is_never_launched(module: Any) -> None:
    kernel = Kernel()
    for _ in range(2):
        module._launch(Standing(kernel), 1, torch.zeros(64), 7, 0.5, FLAG=True, SIZE=64, warps=4, stages=2)
    assert len(kernel.looked_up) == 2


def test_every_kind_of_call_is_compiled_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[tuple[Any, ...]] = []
    monkeypatch.setattr(warmup, "compile_kernels", lambda _, *call: compiled.append(call))
    host = types.ModuleType("host")
    vars(host)["run"] = lambda *_, **__: None
    warmup.compile_before_calls(host, "run", "title", "sm_90")
    q, pair = torch.zeros(1, 4, 100, 64), {"a": (torch.zeros(4, 8), torch.zeros(4, 8))}
    usual: dict[str, Any] = {"q": q, "gates": None, "slots": pair, "scale": 0.5, "wanted": ("q", "k")}
    others: list[dict[str, Any]] = [
        {"q": q.half()},
        {"q": torch.zeros(1, 4, 100, 72)[..., :64]},
        {"q": torch.zeros(1, 4, 200, 64)},
        {"gates": q},
        {"slots": {}},
        {"slots": {"b": pair["a"]}},
        {"slots": {"a": (torch.zeros(4, 8), torch.zeros(4, 8).half())}},
        {"scale": None},
        {"wanted": ("q", "v")},
    ]
    for each in (usual, {**usual, "q": q[:, :, :99].clone(), "scale": 0.25}, *({**usual, **other} for other in others)):
        for _ in range(2):
            host.run(q, **each)
    assert len(compiled) == 1 + len(others)


class Standing:
    """Stands for a kernel where `nsa_dsl.warmup` compiles."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel

    def __getitem__(self, grid: Any) -> Any:
        return self.kernel[grid]
