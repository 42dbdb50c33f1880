"""What performance.py measures: the sections of its table, each a list of jobs, and the loop over them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from benchmarks.suite import ROOT
from nsa_dsl.bench.compilers import Compilers
from nsa_dsl.bench.rows import OWN, PEERS, Peer, Row, Settings, Sharing
from nsa_dsl.bench.run import Measured, clean, reason, run
from nsa_dsl.bench.warm import Warming
from nsa_dsl.loader import load_spec
from nsa_dsl.pattern import Pattern

K = 1024
DENSE: tuple[Peer, ...] = ("cudnn", "flash")
HERE = "benchmarks/patterns.nsa"


@dataclass(frozen=True, slots=True)
class Job:
    """A pattern of a file, with these parameters, at these settings. case: what the table calls it."""

    case: str
    file: str
    pattern: str
    settings: Settings
    parameters: tuple[tuple[str, int], ...] = ()


def _nsa(sharing: Sharing, peers: tuple[Peer, ...], *, own: bool = True) -> Job:
    """The paper's shape."""
    return Job("NSA", "examples/nsa.nsa", "nsa", Settings((8 * K, 16 * K, 32 * K, 64 * K), sharing=sharing, peers=peers, own=own))


def _static(case: str, file: str, pattern: str, tokens: int, peers: tuple[Peer, ...], dim: int = 128, **parameters: int) -> Job:
    settings = Settings((tokens,), heads=32, kv_heads=8, dim_qk=dim, dim_v=dim, peers=peers)
    return Job(case, file, pattern, settings, tuple(parameters.items()))


SHAPES = Settings((8 * K, 32 * K, 64 * K), peers=("cudnn",))
SCALES = Settings(tuple(n * K for n in (8, 16, 32, 64, 128, 256)), peers=())

# FlexAttention is compiled anew for every mask and length, 20 s or so: where it tells most, and after what needs no such wait.
BOTH: tuple[Peer, ...] = ("cudnn", "flex")
CAUSAL, WINDOW = ("examples/causal.nsa", "causal"), ("examples/sliding_window.nsa", "sliding_window")

SECTIONS: dict[str, tuple[Job, ...]] = {
    "nsa": (_nsa("random", DENSE), _nsa("clustered", ()), _nsa("identical", ())),
    "shapes": (
        Job("NSA, d_qk = 192, d_v = 128", "examples/nsa.nsa", "nsa", replace(SHAPES, dim_qk=192)),
        Job("NSA, 32/2 heads", "examples/nsa.nsa", "nsa", replace(SHAPES, heads=32, kv_heads=2)),
    ),
    "groups": tuple(
        Job(f"selected, groups of {group}", HERE, "selected", Settings((32 * K,), kv_heads=64 // group, peers=(), backward=False))
        for group in (1, 2, 4, 8, 16)
    ),
    "static": (
        _static("causal", *CAUSAL, 16 * K, ("cudnn",)),
        _static("window 4,096", *WINDOW, 64 * K, ("cudnn",), w=4096),
        _static("causal, D = 64", *CAUSAL, 32 * K, ("cudnn",), dim=64),
        _static("causal", *CAUSAL, 32 * K, BOTH),
        _static("window 1,024", *WINDOW, 64 * K, BOTH, w=1024),
        _static("blocks of 128, 10%", HERE, "blocks", 32 * K, BOTH, b=128),
        _static("blocks of 64, 10%", HERE, "blocks", 32 * K, BOTH, b=64),
    ),
    "scaling": (
        Job("window 512 alone", "examples/sliding_window.nsa", "sliding_window", SCALES, (("w", 512),)),
        Job("selected alone", HERE, "selected", SCALES),
    ),
    # fla tries many launch options when it is first called, which takes minutes: last, so that nothing else waits for it.
    "fla": (replace(_nsa("random", ("fla",), own=False), settings=Settings((8 * K, 64 * K), peers=("fla",), own=False)),),
}

BUDGETS = {"nsa": 110.0, "shapes": 90.0, "groups": 70.0, "static": 200.0, "scaling": 70.0, "fla": 180.0}
"""Seconds of each section, starting included."""


def contenders(job: Job) -> tuple[str, ...]:
    """Whom a job measures."""
    return (*((OWN,) if job.settings.own else ()), *job.settings.peers)


def measure(section: str, budget: float, report: Callable[[Row], None], peers: tuple[Peer, ...] = PEERS) -> None:
    """Every job of a section; rows as they come. peers: those to measure of those that a job names."""
    begin, dense = time.perf_counter(), Measured()
    with Compilers() as compilers:
        Warming(compilers).compile([(_pattern(job), job.settings) for job in _different(section)])
        for job in SECTIONS[section]:
            settings = replace(job.settings, budget=budget, peers=tuple(each for each in job.settings.peers if each in peers))
            try:
                for row in run(_pattern(job), settings, case=job.case, started=begin, compilers=compilers, dense=dense):
                    report(row)
            except Exception as error:  # one job that dies is a line of the table
                report(Row(job.case, str(settings), settings.lengths[0], OWN, refused=reason(error)))
            clean()


def _different(section: str) -> list[Job]:
    """One job of each set that runs the same kernels of this project's."""
    jobs = [job for job in SECTIONS[section] if job.settings.own]
    return list({(job.file, job.pattern, job.parameters, str(job.settings)): job for job in jobs}.values())


def _pattern(job: Job) -> Pattern:
    return load_spec(ROOT / job.file).pattern(job.pattern, **dict(job.parameters))
