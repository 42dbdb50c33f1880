"""What the suites share: cases of every example in parallel processes, the command line, and the table at the end."""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, astuple, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeAlias

import torch

from benchmarks.cases import DTYPES, Sizes
from nsa_dsl.loader import load_spec
from nsa_dsl.pattern import Pattern

ROOT = Path(__file__).resolve().parent.parent
LENGTHS = (1, 63, 64, 65, 1000, 8192)

WALKS = ("nsa", "moba", "asa", "s2", "streaming")
"""Every way to walk keys once: chosen by probabilities, by pooled keys, shared by runs of queries, static by head and for all heads."""

Check: TypeAlias = Callable[[Pattern, str, int, Sizes], list[str]]
"""(pattern, dtype, tokens, sizes) -> what was refused, as text."""

Case: TypeAlias = tuple[int, Sizes]

Task: TypeAlias = tuple[Check, str, str, str, Sequence[Case]]
"""What one process does: check, file, pattern, dtype, cases."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One checked case. sizes: as in `cases.Sizes`. found: what was refused, worst first; empty is right."""

    example: str
    pattern: str
    dtype: str
    tokens: int
    sizes: tuple[int, ...]
    seconds: float
    found: list[str]


OWN = dict.fromkeys(("blocks", "choices"), "benchmarks/patterns.nsa")
"""Patterns that are no examples, and their files: two heads that share tiles of 64 rows, on Hopper; lists that are given."""


def example(file: str, name: str, **parameters: int) -> Pattern:
    """A pattern of `examples/FILE.nsa`, or one of OWN."""
    return load_spec(ROOT / OWN.get(file, f"examples/{file}.nsa")).pattern(name, **parameters)


def examples() -> list[tuple[str, str]]:
    """Every pattern of every example: file and name; and those of OWN."""
    found = [(path.stem, name) for path in sorted((ROOT / "examples").glob("*.nsa")) for name in load_spec(path).patterns]
    return [*found, ("blocks", "blocks_of_64")]


def check_pattern(check: Check, file: str, name: str, dtype: str, cases: Sequence[Case]) -> list[Outcome]:
    """All cases of one pattern in one dtype: one process, so that kernels compile in parallel with others."""
    return [attempt(check, file, name, dtype, *case) for case in cases]


def attempt(check: Check, file: str, name: str, dtype: str, tokens: int, sizes: Sizes) -> Outcome:
    """One case. One that dies is a finding, and the others still count."""
    begin = time.perf_counter()
    try:
        found = check(example(file, name), dtype, tokens, sizes)
    except Exception as error:
        found = [f"{type(error).__name__}: {str(error)[:300]}"]
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return Outcome(file, name, dtype, tokens, astuple(sizes), round(time.perf_counter() - begin, 2), found)


def attempt_alone(check: Check, file: str, name: str, dtype: str, tokens: int, sizes: Sizes) -> Outcome:
    """A case whose verdict is printed at once: what comes after it may be cut off."""
    outcome = attempt(check, file, name, dtype, tokens, sizes)
    verdict = f"WRONG: {outcome.found[0]}" if outcome.found else "right"
    print(f"{file}.{name} {dtype} N={tokens}: {verdict}, after {outcome.seconds:.0f} s", flush=True)
    return outcome


def run_checks(
    check: Check,
    only: Sequence[str],
    workers: int,
    usual: Sequence[Case],
    unusual: Sequence[Case] = (),
    seconds: float = math.inf,
    square: Sequence[Case] = (),
    further: Sequence[Task] = (),
) -> list[Outcome]:
    """Every pattern of every example, one dtype after the other. unusual: further cases for the examples that are enough for them.
    seconds: after which no pattern is begun. square: cases for Hopper's kernels, all patterns in bf16 and those examples in fp16.
    further: other tasks."""
    tasks: list[Task] = [
        (check, file, name, dtype, cases)
        for dtype in ("bf16", "fp16")
        for file, name in examples()
        if (not only or file in only) and (dtype == "bf16" or file in WALKS)
        for cases in _by_sizes(square)
    ] + [
        (check, file, name, dtype, cases)
        for dtype in DTYPES
        for file, name in examples()
        if not only or file in only
        for cases in (usual, *(_by_sizes(unusual) if file in WALKS else ()))
        if cases
    ]
    tasks += [each for each in further if not only or each[1] in only]
    outcomes: list[Outcome] = []
    ends = time.monotonic() + seconds
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(check_pattern, *task) for task in tasks]
        for done in as_completed(futures):
            if done.cancelled():
                continue
            outcomes += done.result()
            for each in done.result():
                if each.found:
                    print(f"WRONG {each.example}.{each.pattern} {each.dtype} N={each.tokens} {each.sizes}: {each.found[0]}", flush=True)
            bad = sum(bool(each.found) for each in outcomes)
            print(f"checked {len(outcomes)} of {sum(len(task[4]) for task in tasks)} cases, {bad} wrong", flush=True)
            if time.monotonic() > ends:
                for each in futures:
                    each.cancel()
    return sorted(outcomes, key=lambda each: (each.example, each.pattern, each.dtype, each.tokens))


def _by_sizes(cases: Sequence[Case]) -> list[list[Case]]:
    """Cases of equal sizes together: they share kernels."""
    return [[each for each in cases if each[1] == sizes] for sizes in dict.fromkeys(sizes for _, sizes in cases)]


def command_line(doc: str | None) -> argparse.ArgumentParser:
    """The options of a suite."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--workers", type=int, default=6)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--lengths", type=int, nargs="*", default=list(LENGTHS))
    parser.add_argument("--seconds", type=float, default=math.inf, help="after which no further pattern is begun; default: none")
    parser.add_argument("--skip-checks", action="store_true")
    parser.add_argument("--skip-times", action="store_true")
    parser.add_argument("--long", action="store_true", help="also NSA at 65,536 tokens")
    parser.add_argument("--commit", help="what is measured, where git cannot tell")
    return parser


def report(path: Path, machine: dict[str, str], outcomes: list[Outcome], times: list[dict[str, Any]]) -> int:
    """Write everything as JSON, print what is wrong and the table; 1 if anything is wrong."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine, "checks": [asdict(each) for each in outcomes], "times": times}, indent=1) + "\n")
    wrong = [each for each in outcomes if each.found]
    for each in wrong:
        print(f"WRONG {each.example}.{each.pattern} {each.dtype} N={each.tokens} {each.sizes}: {each.found[0]}")
    print(f"{len(outcomes)} cases, {len(wrong)} wrong")
    for row in times:
        print("  ".join(f"{key}={value}" for key, value in row.items()))
    return 1 if wrong else 0
