"""What the tests of the small backward kernels share: generated host code run alone, and NaN around all that it reads and writes."""

from __future__ import annotations

import types
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from nsa_dsl.codegen import build
from nsa_dsl.codegen.contexts import Launch
from nsa_dsl.codegen.emit import _environment, render
from nsa_dsl.execute import load_module
from nsa_dsl.launch import Dtype, LaunchShape

DTYPES = {"fp16": torch.float16, "fp32": torch.float32, "fp64": torch.float64}
ERROR = {torch.float16: 2e-3, torch.float32: 2e-5, torch.float64: 1e-12}
MARGIN = 64

HEADER = """import torch
import triton
import triton.language as tl

{{ kernels | join("\n\n\n") }}


def _cdiv(a, b):
    return -(-a // b)


def _power_of_2(n):
    return 1 << (n - 1).bit_length()


def _pad(dim):
    return max(16, triton.next_power_of_2(dim))


def _launch(kernel, programs, *arguments, warps, stages, **constants):
    if programs > 0:
        kernel[(programs,)](*arguments, **constants, num_warps=warps, num_stages=stages)


{% import "macros/host_gradient.j2" as host -%}
def run_backward({{ names | join(", ") }}):
    grads = {}
    {{ host[macro](launch) | indent(4) }}
    return {{ result }}
"""


def framed(x: Tensor, kind: torch.dtype | None = None) -> Tensor:
    """A contiguous copy with NaN before and after it."""
    frame = torch.full((x.numel() + 2 * MARGIN,), float("nan"), dtype=kind or x.dtype)
    inner = frame[MARGIN : MARGIN + x.numel()].view(x.shape)
    inner.copy_(x)
    return inner


@dataclass
class Frames:
    """Stands in for torch inside generated code: allocations are framed, and the frames are kept."""

    made: list[Tensor] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def empty(self, *size: Any, device: torch.device, dtype: torch.dtype) -> Tensor:
        self.made.append(framed(torch.full(torch.Size(*size) if len(size) == 1 else size, float("nan"), dtype=dtype, device=device)))
        return self.made[-1]

    def check(self) -> None:
        for each in self.made:
            frame = each.as_strided((each.numel() + 2 * MARGIN,), (1,), each.storage_offset() - MARGIN)
            assert bool(frame[:MARGIN].isnan().all())
            assert bool(frame[MARGIN + each.numel() :].isnan().all())


def backward(templates: Sequence[str], context: object, launch: Launch, macro: str, result: str, dtype: Dtype, **values: Any) -> Any:
    """What the host code that the macro writes leaves in `result`."""
    shared = render("shared.py.j2", build.shared((), LaunchShape(dtype=dtype)))
    kernels = [shared, *(render(each, context) for each in templates)]
    text = _environment().from_string(HEADER)
    module: types.ModuleType = load_module(
        text.render(kernels=kernels, names=list(values), macro=macro, launch=launch, result=result), macro
    )
    frames = Frames()
    module.__dict__["torch"] = frames
    made = module.__dict__["run_backward"](**values)
    frames.check()
    return made


def close(made: Tensor, expected: Tensor) -> None:
    assert made.is_contiguous()
    assert torch.equal(made.isnan(), expected.isnan())
    allowed = ERROR[made.dtype] * (1.0 + expected.nan_to_num().abs().max().item() if expected.numel() else 0.0)
    worst = (made.double() - expected).nan_to_num().abs()
    assert worst.numel() == 0 or worst.max().item() <= allowed, f"{worst.max().item():.3g} > {allowed:.3g}"


def random(*size: int, dtype: str, seed: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(DTYPES[dtype])


def token_major(x: Tensor, extra: int = 0) -> Tensor:
    """The same (batch, heads, tokens, d) as a view of (batch, tokens, heads, d + extra) whose further columns are NaN."""
    wide = torch.full((*x.transpose(1, 2).shape[:3], x.shape[3] + extra), float("nan"), dtype=x.dtype)
    wide[..., : x.shape[3]] = x.transpose(1, 2)
    return framed(wide)[..., : x.shape[3]].transpose(1, 2)
