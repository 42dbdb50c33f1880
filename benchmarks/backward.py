"""The gradient suite on a GPU: every example's gradients held to float64 autograd through the dense reference, then timed.

    python benchmarks/backward.py [--out DIR] [--workers N] [--only NAME ...] [--lengths N ...] [--skip-times] [--skip-checks] [--long]
                                  [--repeats N] [--commit HASH]

Correctness first: gradients of q, k, v, gates, weights, compressors' parameters and sinks for every pattern of every example, in
bf16/fp16/fp32, at lengths 1 to 8,192, in memory that holds NaN before it is written; repeats, and replays of CUDA graphs, bit by bit; with
--long, NSA at 65,536 tokens against the paper's equations on runs of rows in float32. Then times: medians of CUDA events, L2 flushed before
every run, random inputs. One table last; everything as JSON under DIR.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.cases import LONG_NSA, SQUARE, UNUSUAL, USUAL
from benchmarks.cases_backward import Captured, Repeats, check_gradients
from benchmarks.literal_nsa import check_long_gradients
from benchmarks.suite import Outcome, attempt_alone, command_line, example, report, run_checks
from benchmarks.timing import time_nsa, time_static
from nsa_dsl.bench.timing import describe_machine

FEW_HEADS = replace(USUAL, heads=4, kv_heads=2)
"""Where the reference keeps several (heads x tokens x tokens) tensors in float64: at 8,192 tokens 2 GiB each."""

REPEATED = (("nsa", "nsa"), ("asa", "global"), ("moba", "moba"), ("streaming", "streaming"))


def check_all(only: list[str], workers: int, lengths: list[int], seconds: float) -> list[Outcome]:
    """Every example; the long lengths apart, a few at a time, for the reference's memory. seconds: after which no pattern is begun."""
    ends = time.monotonic() + seconds
    usual = [(tokens, USUAL) for tokens in lengths if tokens <= 2000]
    unusual = [(tokens, sizes) for sizes in UNUSUAL for tokens in ((17,) if sizes.batch > 2 else (1, 300))]
    square = [(tokens, sizes) for sizes in SQUARE for tokens in (1, 700)]
    outcomes = run_checks(check_gradients, only, workers, usual, unusual, seconds, square)
    if time.monotonic() >= ends:
        return outcomes
    long = [(tokens, FEW_HEADS) for tokens in lengths if tokens > 2000]
    return outcomes + run_checks(check_gradients, only, min(2, workers), long, seconds=ends - time.monotonic())


def main() -> int:
    parser = command_line(__doc__)
    parser.add_argument("--repeats", type=int, default=20, help="runs that must give the same bits")
    options = parser.parse_args()
    outcomes = []
    if options.long:
        outcomes.append(attempt_alone(check_long_gradients, "nsa", "nsa", "bf16", 65536, LONG_NSA))
    if not options.skip_checks:
        repeated = [each for each in REPEATED if not options.only or each[0] in options.only]
        outcomes += [attempt_alone(Repeats(options.repeats), *each, "bf16", 4096, SQUARE[0]) for each in repeated]
        outcomes += [attempt_alone(Captured(), *each, "bf16", 700, SQUARE[0]) for each in repeated]
        outcomes += check_all(options.only, options.workers, options.lengths, options.seconds)
    times = [] if options.skip_times else [*time_nsa(example("nsa", "nsa"), backward=True), *time_static()]
    return report(options.out / "backward.json", describe_machine(options.commit), outcomes, times)


if __name__ == "__main__":
    sys.exit(main())
