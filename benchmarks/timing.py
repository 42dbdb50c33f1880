"""Times on a GPU: medians of CUDA events with the L2 flushed, and the peers in the same run."""

from __future__ import annotations

import platform
import statistics
import subprocess
from collections.abc import Callable
from typing import Any

import torch
import triton
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.cases import Sizes, make_inputs
from nsa_dsl.op import AttentionOp
from nsa_dsl.pattern import Pattern

HEADS, KV_HEADS, DIM = 64, 4, 128


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


def time_forward_cases(pattern: Pattern, lengths: tuple[int, ...] = (8192, 16384, 32768, 65536)) -> list[dict[str, Any]]:
    """NSA in the paper's shape beside dense attention: time, and memory above the inputs."""
    rows = []
    for tokens in lengths:
        inputs = make_inputs(pattern, torch.bfloat16, tokens, Sizes(1, HEADS, KV_HEADS, DIM, DIM))
        op = AttentionOp(pattern)

        def nsa(op: AttentionOp = op, given: Any = inputs) -> Any:
            with torch.no_grad():
                return op(given.q, given.k, given.v, **given.rest)

        nsa()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        nsa()
        memory = torch.cuda.max_memory_allocated() - before
        q, k, v = (each.contiguous() for each in (inputs.q, inputs.k, inputs.v))
        row: dict[str, Any] = {"tokens": tokens, "nsa_ms": round(median_ms(nsa), 3), "nsa_gib": round(memory / 2**30, 2)}
        for name, backend in (("cudnn", SDPBackend.CUDNN_ATTENTION), ("flash", SDPBackend.FLASH_ATTENTION)):

            def dense(backend: SDPBackend = backend, q: Any = q, k: Any = k, v: Any = v) -> Any:
                with torch.no_grad(), sdpa_kernel(backend):
                    return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

            try:
                row[f"dense_{name}_ms"] = round(median_ms(dense, 5), 3)
            except RuntimeError as error:
                row[f"dense_{name}_ms"] = f"refused: {str(error)[:60]}"
        rows.append(row | time_kernels(op, inputs))
        del inputs, q, k, v
        torch.cuda.empty_cache()
    return rows


def time_kernels(op: AttentionOp, inputs: Any) -> dict[str, float]:
    """Milliseconds of each generated kernel in one call, launches of one kernel added up."""
    module = op._module(inputs.q, inputs.v.shape[3])
    launch, marks = module._launch, []

    def marked(kernel: Any, *arguments: Any, **options: Any) -> None:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        launch(kernel, *arguments, **options)
        end.record()
        marks.append((kernel.__name__, begin, end))

    module._launch = marked
    try:
        with torch.no_grad():
            op(inputs.q, inputs.k, inputs.v, **inputs.rest)
        torch.cuda.synchronize()
    finally:
        module._launch = launch
    total: dict[str, float] = {}
    for name, begin, end in marks:
        total[name] = round(total.get(name, 0.0) + begin.elapsed_time(end), 3)
    return total
