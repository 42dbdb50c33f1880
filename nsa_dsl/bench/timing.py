"""Times and memory on a GPU: medians of CUDA events with a cold L2, and the time of each kernel of a generated module."""

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

RUNS = 10
LEAST_RUNS = 3
PATIENCE = 4.0
"""Seconds after which a median is taken of the runs that there are, if they are at least LEAST_RUNS."""

LAUNCHERS = ("_launch", "_launch_hopper")
"""The functions by which generated modules launch their kernels."""

BESIDE = "(beside them)"

L2_BYTES = 256 * 1024 * 1024
"""More than any card's L2 holds."""


def describe_machine(commit: str | None = None) -> dict[str, str]:
    """Card, versions and commit. commit: None asks git, which a copy without history cannot answer."""
    if commit is None:
        commit = _git_head()
    return {
        "card": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "python": platform.python_version(),
        "commit": commit or "unknown",
    }


def _git_head() -> str | None:
    try:
        asked = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return asked.stdout.strip() if asked.returncode == 0 else None


def median_ms(call: Callable[[], Any], runs: int = RUNS, patience: float = PATIENCE, before: Callable[[], Any] = lambda: None) -> float:
    """Median time of a call in milliseconds. Every run starts with a cold L2; the first two are not counted.

    Runs follow each other without waiting, so that the CPU is ahead of the card as far as the calls let it (as in training, and as
    triton.testing.do_bench measures). patience: seconds after which fewer runs than asked for will do. before: called before every run,
    and not timed.
    """
    flush = torch.empty(L2_BYTES, dtype=torch.int8, device="cuda")
    first = _timed(call, flush, 2, before)[-1]
    wanted = max(LEAST_RUNS, min(runs, int(patience * 1000 / max(first, 1e-3))))
    return statistics.median(_timed(call, flush, wanted, before))


def _timed(call: Callable[[], Any], flush: torch.Tensor, runs: int, before: Callable[[], Any]) -> list[float]:
    """Milliseconds of each of these runs."""
    marks = []
    for _ in range(runs):
        before()
        flush.zero_()
        begin, end = _events()
        begin.record()
        call()
        end.record()
        marks.append((begin, end))
    torch.cuda.synchronize()
    return [begin.elapsed_time(end) for begin, end in marks]


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


def _events() -> tuple[Any, Any]:
    """Two events that record times."""
    event: Any = torch.cuda.Event
    return event(enable_timing=True), event(enable_timing=True)


@contextmanager
def launches(modules: Sequence[types.ModuleType], around: Callable[[str, Callable[[], None]], None]) -> Iterator[None]:
    """Call `around(kernel, launch)` in place of every launch of these generated modules."""
    own = [(module, name, vars(module)[name]) for module in modules for name in LAUNCHERS if name in vars(module)]

    def instead(launch: Callable[..., None]) -> Callable[..., None]:
        return lambda kernel, *arguments, **options: around(kernel.__name__, lambda: launch(kernel, *arguments, **options))

    for module, name, launch in own:
        setattr(module, name, instead(launch))
    try:
        yield
    finally:
        for module, name, launch in own:
            setattr(module, name, launch)


def time_kernels(modules: Sequence[types.ModuleType], call: Callable[[], Any]) -> dict[str, float]:
    """Milliseconds of each kernel of these modules in one call, launches of one kernel added up; under BESIDE the rest of the call: torch's
    own kernels, and the card waiting."""
    marks = []

    def marked(kernel: str, launch: Callable[[], Any]) -> None:
        begin, end = _events()
        begin.record()
        launch()
        end.record()
        marks.append((kernel, begin, end))

    with launches(modules, marked):
        marked("", call)
    torch.cuda.synchronize()
    total: dict[str, float] = {}
    for name, begin, end in marks:
        total[name] = total.get(name, 0.0) + begin.elapsed_time(end)
    whole = total.pop("")
    return {name: round(ms, 3) for name, ms in (*total.items(), (BESIDE, whole - sum(total.values())))}
