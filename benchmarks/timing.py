"""Times on a GPU: medians of CUDA events with the L2 flushed, and the peers in the same run."""

from __future__ import annotations

import platform
import statistics
import subprocess
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import triton
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.cases import LONG_NSA, make_inputs
from nsa_dsl.op import AttentionOp
from nsa_dsl.pattern import Pattern

BACKENDS = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}


def describe_machine(commit: str | None) -> dict[str, str]:
    """Card, versions and commit. commit: None asks git, which a copy without history cannot answer."""
    if commit is None:
        asked = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
        commit = asked.stdout.strip() if asked.returncode == 0 else None
    return {
        "card": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "python": platform.python_version(),
        "commit": commit or "unknown",
    }


def median_ms(call: Callable[[], Any], runs: int = 10) -> float:
    """Median time of a call in milliseconds. Every run starts with a cold L2; the first two are not counted."""
    flush = torch.empty(256 * 1024 * 1024, dtype=torch.int8, device="cuda")
    times = []
    for turn in range(runs + 2):
        flush.zero_()
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        call()
        end.record()
        end.synchronize()
        if turn >= 2:
            times.append(begin.elapsed_time(end))
    return statistics.median(times)


def try_ms(call: Callable[[], Any], runs: int = 10) -> float | str:
    """`median_ms`, or why a peer would not run."""
    try:
        return round(median_ms(call, runs), 3)
    except Exception as error:  # a peer that refuses is a line of the table, not the end of the run
        return f"refused: {type(error).__name__}: {str(error)[:80]}"


def peak_bytes(call: Callable[[], Any]) -> int:
    """The most memory that a call holds above what is held already, what it returns included."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    kept = call()
    torch.cuda.synchronize()
    most = torch.cuda.max_memory_allocated() - before
    del kept
    return most


def dense(backend: SDPBackend, q: Any, k: Any, v: Any) -> Any:
    """Causal dense attention by one of torch's own kernels."""
    with sdpa_kernel(backend):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


def time_forward_cases(pattern: Pattern, lengths: tuple[int, ...] = (8192, 16384, 32768, 65536)) -> list[dict[str, Any]]:
    """NSA in the paper's shape beside dense attention: time, and memory above the inputs."""
    return [_time_forward(AttentionOp(pattern), tokens) for tokens in lengths]


@torch.no_grad()
def _time_forward(op: AttentionOp, tokens: int) -> dict[str, Any]:
    inputs = make_inputs(op.pattern, torch.bfloat16, tokens, LONG_NSA)

    def nsa() -> Any:
        return op(inputs.q, inputs.k, inputs.v, **inputs.options)

    nsa()
    memory = peak_bytes(nsa)
    q, k, v = (each.contiguous() for each in (inputs.q, inputs.k, inputs.v))
    row: dict[str, Any] = {"tokens": tokens, "nsa_ms": round(median_ms(nsa), 3), "nsa_gib": round(memory / 2**30, 2)}
    row |= {f"dense_{name}_ms": try_ms(lambda each=each: dense(each, q, k, v), 5) for name, each in BACKENDS.items()}
    row |= time_kernels([op.module(inputs.q, inputs.v.shape[3])], nsa)
    torch.cuda.empty_cache()
    return row


@contextmanager
def launches(modules: Sequence[types.ModuleType], around: Callable[[str, Callable[[], None]], None]) -> Iterator[None]:
    """Call `around(kernel, launch)` in place of every launch of these generated modules."""
    own = [each._launch for each in modules]

    def instead(launch: Callable[..., None]) -> Callable[..., None]:
        return lambda kernel, *arguments, **options: around(kernel.__name__, lambda: launch(kernel, *arguments, **options))

    for module, launch in zip(modules, own, strict=True):
        module._launch = instead(launch)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for module, launch in zip(modules, own, strict=True):
            module._launch = launch  # type: ignore[attr-defined]


def time_kernels(modules: Sequence[types.ModuleType], call: Callable[[], Any]) -> dict[str, float]:
    """Milliseconds of each kernel of these modules in one call, launches of one kernel added up."""
    marks = []

    def marked(kernel: str, launch: Callable[[], None]) -> None:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        launch()
        end.record()
        marks.append((kernel, begin, end))

    with launches(modules, marked):
        call()
    torch.cuda.synchronize()
    total: dict[str, float] = {}
    for name, begin, end in marks:
        total[name] = round(total.get(name, 0.0) + begin.elapsed_time(end), 3)
    return total
