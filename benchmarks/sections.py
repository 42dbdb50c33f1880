"""What performance.py measures: the sections of its table, each a list of jobs, and the loop over them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from benchmarks.suite import ROOT
from nsa_dsl.bench.rows import OWN, PEERS, Peer, Row, Settings, Sharing
from nsa_dsl.bench.run import clean, reason, run
from nsa_dsl.loader import load_spec

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
    """The paper's shape. Dense peers are measured once: what is chosen is nothing to them."""
    return Job("NSA", "examples/nsa.nsa", "nsa", Settings((8 * K, 16 * K, 32 * K, 64 * K), sharing=sharing, peers=peers, own=own))


def _static(case: str, file: str, pattern: str, tokens: tuple[int, ...], dim: int = 128, **parameters: int) -> Job:
    settings = Settings(tokens, heads=32, kv_heads=8, dim_qk=dim, dim_v=dim, peers=("cudnn", "flex"))
    return Job(case, file, pattern, settings, tuple(parameters.items()))


SHAPES = Settings((8 * K, 32 * K, 64 * K), peers=("cudnn",))
SCALES = Settings(tuple(n * K for n in (8, 16, 32, 64, 128, 256)), peers=())

SECTIONS: dict[str, tuple[Job, ...]] = {
    # fla tries many launch options when it is first called, which takes minutes: last, so that nothing else waits for it.
    "nsa": (_nsa("random", DENSE), _nsa("clustered", ()), _nsa("identical", ()), _nsa("random", ("fla",), own=False)),
    "shapes": (
        Job("NSA, d_qk = 192, d_v = 128", "examples/nsa.nsa", "nsa", replace(SHAPES, dim_qk=192)),
        Job("NSA, 32/2 heads", "examples/nsa.nsa", "nsa", replace(SHAPES, heads=32, kv_heads=2)),
    ),
    "groups": tuple(
        Job(f"selected, groups of {group}", HERE, "selected", Settings((32 * K,), kv_heads=64 // group, peers=(), backward=False))
        for group in (1, 2, 4, 8, 16)
    ),
    "static": (
        _static("causal", "examples/causal.nsa", "causal", (16 * K, 32 * K)),
        _static("window 1,024", "examples/sliding_window.nsa", "sliding_window", (64 * K,), w=1024),
        _static("window 4,096", "examples/sliding_window.nsa", "sliding_window", (64 * K,), w=4096),
        _static("blocks of 128, 10%", HERE, "blocks", (32 * K,), b=128),
        _static("blocks of 64, 10%", HERE, "blocks", (32 * K,), b=64),
        _static("causal, D = 64", "examples/causal.nsa", "causal", (32 * K,), dim=64),
    ),
    "scaling": (
        Job("window 512 alone", "examples/sliding_window.nsa", "sliding_window", SCALES, (("w", 512),)),
        Job("selected alone", HERE, "selected", SCALES),
    ),
}

BUDGETS = {"nsa": 260.0, "shapes": 120.0, "groups": 60.0, "static": 150.0, "scaling": 100.0}
"""Seconds of each section, starting included."""


def measure(section: str, budget: float, report: Callable[[Row], None], peers: tuple[Peer, ...] = PEERS) -> None:
    """Every job of a section; rows as they come. peers: those to measure of those that a job names."""
    begin = time.perf_counter()
    for job in SECTIONS[section]:
        settings = replace(job.settings, budget=budget, peers=tuple(each for each in job.settings.peers if each in peers))
        try:
            pattern = load_spec(ROOT / job.file).pattern(job.pattern, **dict(job.parameters))
            for row in run(pattern, settings, case=job.case, started=begin):
                report(row)
        except Exception as error:  # one job that dies is a line of the table
            report(Row(job.case, str(settings), settings.lengths[0], OWN, refused=reason(error)))
        clean()
