"""Compile a pattern's kernels for a card that is not there: what they need of it, before anyone runs them.

A generated module runs on tensors without storage while its launches are recorded; every kernel is then compiled for each
distinct launch.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.experimental.gluon._runtime import GluonASTSource
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from nsa_dsl.compiler import compile_backward, compile_source
from nsa_dsl.execute import load_module
from nsa_dsl.launch import CARDS, LaunchShape
from nsa_dsl.pattern import GivenIndices, GivenScores, Pattern
from nsa_dsl.relation import SameDocument, walk
from nsa_dsl.signing import sign

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}

_TYPES = {
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
_TORCH = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True, slots=True)
class KernelReport:
    """What one compiled kernel needs. shared: bytes of shared memory; limit: what the card allows; registers, spills: per
    thread, None where the compiler does not tell."""

    kernel: str
    card: str
    shared: int
    limit: int
    registers: int | None
    spills: int | None


@dataclass(frozen=True, slots=True)
class RecordedLaunch:
    """One launch of a kernel: argument types by name, arguments that are multiples of 16, constants, Triton's options. registers: the
    most a thread may have, None where Triton decides."""

    kernel: Any
    signature: tuple[tuple[str, str], ...]
    aligned: tuple[str, ...]
    constants: tuple[tuple[str, int], ...]
    warps: int
    stages: int
    registers: int | None = None


def record_launches(
    pattern: Pattern, shape: LaunchShape, *, tokens: int = 4096, heads: int = 16, kv_heads: int = 4, backward: bool = False
) -> list[RecordedLaunch]:
    """The distinct launches of one call: batch 1, `tokens` tokens, nothing computed. backward: and those of its gradients, of every
    input, for a loss of the output alone and for one that uses the log-sum-exps too."""
    launches: dict[RecordedLaunch, None] = {}

    def record(kernel: Any, _: int, *arguments: Any, warps: int, stages: int, registers: int | None = None, **constants: int) -> None:
        names = [each for each in kernel.arg_names if each not in constants]
        values = dict(zip(names, arguments, strict=True))
        fixed = {name for name in kernel.do_not_specialize if isinstance(name, str)}
        ones = {name: 1 for name, value in values.items() if isinstance(value, int) and value == 1 and name not in fixed}
        types = tuple((name, _type_of(value)) for name, value in values.items() if name not in ones)
        aligned = tuple(name for name, _ in types if name not in fixed and _is_aligned(values[name]))
        launches[RecordedLaunch(kernel, types, aligned, (*constants.items(), *ones.items()), warps, stages, registers)] = None

    def record_hopper(kernel: Any, programs: int, *arguments: Any, warps: int, **constants: int) -> None:
        record(kernel, programs, *arguments, warps=4, stages=1, registers=65536 // (32 * (warps + 4)) // 8 * 8, **constants)

    def recording(source: str) -> dict[str, Any]:
        module = vars(load_module(source, pattern.name))
        module.update(_launch=record, _launch_hopper=record_hopper, _on_hopper=lambda *_: shape.card == "sm_90")
        return module

    q, k, v, rest = _arguments(pattern, shape, tokens, heads, kv_heads)
    out, lse, chosen, slots, branches = recording(compile_source(pattern, shape))["run"](q, k, v, **rest)
    if backward:
        signature, run_backward = sign(pattern), recording(compile_backward(pattern, shape))["run_backward"]
        inputs = {name: each for name, each in rest.items() if name in ("gates", "weights", "documents", "sinks")}
        wanted = tuple(name for name in signature.inputs if name in signature.differentiable)
        outs = {"merge": out} if signature.kind == "merge" else branches
        for grad_lse in (dict[str, torch.Tensor](), lse):
            run_backward(torch.empty_like(out), grad_lse, q, k, v, outs, lse, slots=slots, chosen=chosen, wanted=wanted, **inputs)
    return list(launches)


def compile_launch(launch: RecordedLaunch, card: str) -> KernelReport:
    """Compile one launch for a card of TARGETS. Raises what Triton raises when it cannot."""
    constants = dict(launch.constants)
    signature = {name: dict(launch.signature).get(name, "constexpr") for name in launch.kernel.arg_names}
    place = {name: (n,) for n, name in enumerate(launch.kernel.arg_names)}
    source = (GluonASTSource if launch.kernel.is_gluon() else ASTSource)(
        launch.kernel,
        signature,
        constexprs={place[name]: value for name, value in constants.items()},
        attrs={place[name]: [["tt.divisibility", 16]] for name in launch.aligned},
    )
    options = {"num_warps": launch.warps, "num_stages": launch.stages, "maxnreg": launch.registers}
    if launch.registers is None:
        del options["maxnreg"]  # not every back end knows it
    compiled: Any = triton.compile(source, target=TARGETS[card], options=options)
    registers, spills = _resources(compiled.asm["cubin"]) if "cubin" in compiled.asm else (None, None)
    return KernelReport(launch.kernel.__name__, card, compiled.metadata.shared, CARDS[card].shared_memory, registers, spills)


def compile_ahead(pattern: Pattern, card: str, shape: LaunchShape | None = None, *, backward: bool = True) -> list[KernelReport]:
    """Compile every kernel of a pattern for a card, with tiles chosen for that card. backward: those of its gradients as well."""
    wanted = replace(shape or LaunchShape(), card=card)
    return [compile_launch(each, card) for each in record_launches(pattern, wanted, backward=backward)]


def _type_of(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return _TYPES[value.dtype]
    if isinstance(value, TensorDescriptor):
        box = ", ".join(str(each) for each in value.block_shape)
        return f"tensordesc<{_TYPES[value.base.dtype][1:]}[{box}],{value.layout!r}>"
    if isinstance(value, float):
        return "fp32"
    return "i32" if -(2**31) <= value < 2**31 else "i64"


def _is_aligned(value: Any) -> bool:
    """Whether a launch would tell the compiler that the argument is a multiple of 16."""
    return isinstance(value, torch.Tensor) or (isinstance(value, int) and value % 16 == 0)


def _arguments(pattern: Pattern, shape: LaunchShape, tokens: int, heads: int, kv_heads: int) -> tuple[Any, Any, Any, dict[str, Any]]:
    dtype = _TORCH[shape.dtype]

    def tensor(*size: int, of: torch.dtype = dtype) -> torch.Tensor:
        return torch.empty(*size, dtype=of, device="meta")

    def per_branch(*size: int) -> Any:
        return {each.name: tensor(*size) for each in pattern.branches} if pattern.kv_per_branch else tensor(*size)

    units = {"group": kv_heads, "head": heads, "all": 1}
    made = [choice for branch in pattern.branches for choice in branch.choices]
    rest: dict[str, Any] = {
        "gates": tensor(1, heads, tokens, len(pattern.output.branches)),
        "weights": {
            each.name: (tensor(kv_heads, each.block), tensor(kv_heads, each.block)) for each in pattern.memories if each.by == "weighted"
        },
        "compressors": {each.name: _mean_of_blocks for each in pattern.memories if each.by == "mlp"},
        "scores": {
            each.name: tensor(1, units[each.share], -(-tokens // each.every), -(-tokens // each.block), of=torch.float32)
            for each in made
            if isinstance(each.score, GivenScores)
        },
        "indices": {
            each.name: tensor(1, units[each.share], -(-tokens // each.every), each.count or 0, of=torch.int32)
            for each in made
            if isinstance(each.score, GivenIndices)
        },
        "sinks": {each.name: tensor(heads, of=torch.float32) for each in pattern.branches if each.sink},
    }
    if any(isinstance(node, SameDocument) for branch in pattern.branches for node in walk(branch.where)):
        rest["documents"] = tensor(tokens, of=torch.int32)
    return (
        tensor(1, heads, tokens, shape.dim_qk),
        per_branch(1, kv_heads, tokens, shape.dim_qk),
        per_branch(1, kv_heads, tokens, shape.dim_v),
        rest,
    )


def _mean_of_blocks(k_blocks: torch.Tensor, v_blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Stands in for a compressor where only shapes matter."""
    return k_blocks.mean(3), v_blocks.mean(3)


def _resources(cubin: bytes) -> tuple[int | None, int | None]:
    """Registers and spilled bytes a thread, as cuobjdump reads them; (None, None) without cuobjdump."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if not tool.is_file():
        return None, None
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([str(tool), "-res-usage", file.name], capture_output=True, text=True, check=False)
    found = re.search(r"REG:(\d+) STACK:(\d+)", done.stdout)
    return (int(found[1]), int(found[2])) if found else (None, None)
