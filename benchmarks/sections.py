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
from nsa_dsl.op import AttentionOp
from nsa_dsl.pattern import Pattern

K = 1024
DENSE: tuple[Peer, ...] = ("cudnn", "flash")
SHARINGS: tuple[Sharing, ...] = ("random", "clustered", "identical")
HERE = "benchmarks/patterns.nsa"


@dataclass(frozen=True, slots=True)
class Job:
    """A pattern of a file, with these parameters, at these settings. case: what the table calls it."""

    case: str
    file: str
    pattern: str
    settings: Settings
    parameters: tuple[tuple[str, int], ...] = ()


def _nsa(sharing: Sharing, *lengths: int, peers: tuple[Peer, ...] = ()) -> Job:
    """The paper's shape. peers: measured alone, without the op."""
    return Job("NSA", "examples/nsa.nsa", "nsa", Settings(lengths, sharing=sharing, peers=peers, own=not peers))


def _static(case: str, file: str, pattern: str, tokens: int, dim: int = 128, **parameters: int) -> Job:
    settings = Settings((tokens,), heads=32, kv_heads=8, dim_qk=dim, dim_v=dim, peers=("cudnn",))
    return Job(case, file, pattern, settings, tuple(parameters.items()))


def _shape(case: str, shape: Settings, sharing: Sharing) -> Job:
    """NSA in another shape; its peer takes as long whatever is chosen."""
    peers: tuple[Peer, ...] = ("cudnn",) if sharing == SHARINGS[0] else ()
    return Job(case, "examples/nsa.nsa", "nsa", replace(shape, sharing=sharing, peers=peers))


def _group(group: int, sharing: Sharing) -> Job:
    settings = Settings((32 * K,), kv_heads=64 // group, sharing=sharing, peers=(), backward=False)
    return Job(f"selected, groups of {group}", HERE, "selected", settings)


def _in_graphs(case: str, heads: int, kv_heads: int) -> Job:
    settings = Settings((4 * K, 8 * K, 16 * K), heads=heads, kv_heads=kv_heads, peers=("cudnn",), graphs=True)
    return Job(f"{case}, in CUDA graphs", "examples/nsa.nsa", "nsa", settings)


def _alone(job: Job, *peers: Peer) -> Job:
    """These peers at the settings of a job, without the op."""
    return replace(job, settings=replace(job.settings, peers=peers, own=False))


LENGTHS = (8 * K, 16 * K, 32 * K, 64 * K)
SHAPES = (
    ("NSA, d_qk = 192, d_v = 128", Settings(LENGTHS, dim_qk=192)),
    ("NSA, 32/2 heads", Settings(LENGTHS, heads=32, kv_heads=2)),
)
SCALES = Settings(tuple(n * K for n in (8, 16, 32, 64, 128, 256)), peers=())
CLUSTERED_SCALES = replace(SCALES, lengths=(8 * K, 32 * K, 64 * K, 256 * K), sharing="clustered")

CAUSAL, WINDOW = ("examples/causal.nsa", "causal"), ("examples/sliding_window.nsa", "sliding_window")
BESIDE_FLEX = (
    _static("causal", *CAUSAL, 32 * K),
    _static("window 1,024", *WINDOW, 64 * K, w=1024),
    _static("blocks of 128, 10%", HERE, "blocks", 32 * K, b=128),
    _static("blocks of 64, 10%", HERE, "blocks", 32 * K, b=64),
)

# What matters most comes first: a section may be cut off.
SECTIONS: dict[str, tuple[Job, ...]] = {
    "nsa": (
        *(_nsa(sharing, tokens * K) for tokens in (64, 8, 32) for sharing in SHARINGS[:2]),
        _nsa("random", 64 * K, 8 * K, 32 * K, peers=DENSE),
        _nsa("identical", 64 * K, 8 * K, 32 * K),
        *(_nsa(sharing, 16 * K) for sharing in SHARINGS),
        _nsa("random", 16 * K, peers=DENSE),
    ),
    "shapes": tuple(_shape(*each, sharing) for sharing in SHARINGS for each in SHAPES),
    # Of short calls the host's part is as long as the card's: replays of CUDA graphs show the card's alone, of peers as well.
    "graphs": (_in_graphs("NSA", 64, 4), _in_graphs("NSA, 32/2 heads", 32, 2)),
    "groups": tuple(_group(each, sharing) for sharing in SHARINGS for each in (1, 2, 4, 8, 16)),
    # FlexAttention is compiled anew for every mask and length, half a minute with its gradients: after what needs no such wait.
    "static": (
        _static("causal", *CAUSAL, 16 * K),
        _static("window 4,096", *WINDOW, 64 * K, w=4096),
        _static("causal, D = 64", *CAUSAL, 32 * K, dim=64),
        *BESIDE_FLEX,
        *(_alone(each, "flex") for each in BESIDE_FLEX),
    ),
    "scaling": (
        Job("window 512 alone", "examples/sliding_window.nsa", "sliding_window", SCALES, (("w", 512),)),
        Job("selected alone", HERE, "selected", SCALES),
        Job("selected alone", HERE, "selected", CLUSTERED_SCALES),
    ),
    # fla tries about 90 launch options, one after the other, when it is first called: last, so that nothing else waits for it.
    "fla": (_nsa("random", 8 * K, 64 * K, peers=("fla",)),),
}

BUDGETS = {"nsa": 140.0, "shapes": 150.0, "graphs": 90.0, "groups": 120.0, "static": 280.0, "scaling": 120.0, "fla": 300.0}
"""Seconds of each section, starting included."""


def contenders(job: Job) -> tuple[str, ...]:
    """Whom a job measures."""
    return (*((OWN,) if job.settings.own else ()), *job.settings.peers)


def measure(section: str, budget: float, report: Callable[[Row], None], peers: tuple[Peer, ...] = PEERS) -> None:
    """Every job of a section; rows as they come, those whose backward pass may take long to compile once before it is begun. peers: those
    to measure of those that a job names."""
    begin, dense, ops = time.perf_counter(), Measured(), _ops(section)
    with Compilers() as compilers:
        Warming(compilers).compile([(ops[_spec(job)], job.settings) for job in _different(section)])
        for job in SECTIONS[section]:
            settings = replace(job.settings, budget=budget, peers=tuple(each for each in job.settings.peers if each in peers))
            op = ops[_spec(job)]
            rows = run(op.pattern, settings, case=job.case, started=begin, compilers=compilers, dense=dense, op=op, early=report)
            try:
                for row in rows:
                    report(row)
            except Exception as error:  # one job that dies is a line of the table
                report(Row(job.case, str(settings), settings.lengths[0], OWN, refused=reason(error)))
            clean()


def _spec(job: Job) -> tuple[object, ...]:
    return job.file, job.pattern, job.parameters


def _ops(section: str) -> dict[tuple[object, ...], AttentionOp]:
    """One op for all jobs of a pattern, so that they share what is compiled."""
    jobs = {_spec(job): job for job in SECTIONS[section]}
    return {spec: AttentionOp(_pattern(job)) for spec, job in jobs.items()}


def _different(section: str) -> list[Job]:
    """One job of each set that runs the same kernels of this project's."""
    jobs = [job for job in SECTIONS[section] if job.settings.own]
    return list({(*_spec(job), str(job.settings)): job for job in jobs}.values())


def _pattern(job: Job) -> Pattern:
    return load_spec(ROOT / job.file).pattern(job.pattern, **dict(job.parameters))
