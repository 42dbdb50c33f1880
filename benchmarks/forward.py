"""The forward suite on a GPU: every example compiled for real and held to the dense reference, then timed beside its peers.

    python benchmarks/forward.py [--out DIR] [--workers N] [--only NAME ...] [--skip-times] [--skip-checks] [--long] [--commit HASH]

Correctness first: each example, bf16/fp16/fp32, lengths 1 to 8,192, by the rules of `nsa_dsl.compare` and by the mask probe; NSA at
65,536 on sampled rows. Then times: medians of CUDA events, L2 flushed before every run, random inputs, outputs poisoned by
allocation. One table last; everything as JSON under DIR.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, astuple, dataclass
from multiprocessing import get_context
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402 - the checkout comes before an installed package

from benchmarks.cases import UNUSUAL, USUAL, Sizes, check_example, check_long_nsa  # noqa: E402
from benchmarks.timing import describe_machine, time_forward_cases  # noqa: E402
from nsa_dsl.loader import load_spec  # noqa: E402

LENGTHS = (1, 63, 64, 65, 1000, 8192)
DTYPES = ("bf16", "fp16", "fp32")


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


def check_pattern(path: str, name: str, dtype: str, cases: tuple[tuple[int, Sizes], ...]) -> list[Outcome]:
    """All cases (length, sizes) of one pattern in one dtype: one process, so that kernels compile in parallel with others."""
    outcomes = []
    for tokens, sizes in cases:
        begin = time.perf_counter()
        try:
            found = check_example(load_spec(path).pattern(name), dtype, tokens, sizes)
        except Exception as error:  # a case that dies is a finding, and the others still count
            found = [f"{type(error).__name__}: {str(error)[:300]}"]
        outcomes.append(Outcome(Path(path).stem, name, dtype, tokens, astuple(sizes), round(time.perf_counter() - begin, 2), found))
        torch.cuda.empty_cache()
    return outcomes


def run_checks(only: list[str], workers: int, lengths: tuple[int, ...]) -> list[Outcome]:
    """Every pattern of every example, all dtypes."""
    usual = tuple((tokens, USUAL) for tokens in lengths)
    # Every way to walk keys once: static, chosen by probabilities, chosen by pooled keys, shared by runs of queries.
    unusual = tuple((tokens, sizes) for sizes in UNUSUAL for tokens in ((17,) if sizes.batch > 2 else (1, 300)))
    tasks = [
        (str(path), name, dtype, usual + (unusual if path.stem in ("nsa", "moba", "asa", "s2", "streaming") else ()))
        for path in sorted((ROOT / "examples").glob("*.nsa"))
        if not only or path.stem in only
        for name in load_spec(path).patterns
        for dtype in DTYPES
    ]
    outcomes: list[Outcome] = []
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(check_pattern, *task) for task in tasks]
        for done in as_completed(futures):
            outcomes += done.result()
            bad = sum(bool(each.found) for each in outcomes)
            print(f"checked {len(outcomes)} of {sum(len(task[3]) for task in tasks)} cases, {bad} wrong", flush=True)
    return sorted(outcomes, key=lambda each: (each.example, each.pattern, each.dtype, each.tokens))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--workers", type=int, default=6)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--lengths", type=int, nargs="*", default=list(LENGTHS))
    parser.add_argument("--skip-checks", action="store_true")
    parser.add_argument("--skip-times", action="store_true")
    parser.add_argument("--long", action="store_true", help="also NSA at 65,536 tokens, on sampled rows")
    parser.add_argument("--commit", help="what is measured, where git cannot tell")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    report: dict[str, object] = {"machine": describe_machine(options.commit)}
    outcomes = [] if options.skip_checks else run_checks(options.only, options.workers, tuple(options.lengths))
    if options.long:
        begin = time.perf_counter()
        found = check_long_nsa(load_spec(ROOT / "examples/nsa.nsa").pattern("nsa"), 65536)
        outcomes.append(Outcome("nsa", "nsa", "bf16", 65536, (1, 64, 4, 128, 128), round(time.perf_counter() - begin, 2), found))
    report["checks"] = [asdict(each) for each in outcomes]
    times = [] if options.skip_times else time_forward_cases(load_spec(ROOT / "examples/nsa.nsa").pattern("nsa"))
    report["times"] = times
    (options.out / "forward.json").write_text(json.dumps(report, indent=1) + "\n")
    wrong = [each for each in outcomes if each.found]
    for each in wrong:
        print(f"WRONG {each.example}.{each.pattern} {each.dtype} N={each.tokens} {each.sizes}: {each.found[0]}")
    print(f"{len(outcomes)} cases, {len(wrong)} wrong")
    for row in times:
        print("  ".join(f"{key}={value}" for key, value in row.items()))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
