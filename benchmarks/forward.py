"""The forward suite on a GPU: every example compiled for real and held to the dense reference, then timed beside its peers.

    python benchmarks/forward.py [--out DIR] [--workers N] [--only NAME ...] [--skip-times] [--skip-checks] [--long] [--commit HASH]

Correctness first: each example, bf16/fp16/fp32, lengths 1 to 8,192, by the rules of `nsa_dsl.compare` and by the mask probe; NSA at
65,536 on sampled rows. Then times: medians of CUDA events, L2 flushed before every run, random inputs, outputs poisoned by
allocation. One table last; everything as JSON under DIR.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.cases import LISTED_TOKENS, LONG_NSA, MANY_LISTS, SQUARE, UNUSUAL, USUAL, check_example, check_lists, check_long_nsa
from benchmarks.suite import Task, attempt_alone, command_line, example, report, run_checks
from benchmarks.timing import time_nsa
from nsa_dsl.bench.timing import describe_machine


def main() -> int:
    options = command_line(__doc__).parse_args()
    usual = [(tokens, USUAL) for tokens in options.lengths]
    unusual = [(tokens, sizes) for sizes in UNUSUAL for tokens in ((17,) if sizes.batch > 2 else (1, 300))]
    square = [(tokens, sizes) for sizes in SQUARE for tokens in (1, 700)]
    lists: list[Task] = [
        (partial(check_lists, sharing=sharing), "choices", "selected", dtype, [(LISTED_TOKENS, sizes)])
        for dtype in ("bf16", "fp32")
        for sizes in MANY_LISTS
        for sharing in ("random", "clustered")
    ]
    outcomes = [attempt_alone(check_long_nsa, "nsa", "nsa", "bf16", 65536, LONG_NSA)] if options.long else []
    if not options.skip_checks:
        outcomes += run_checks(check_example, options.only, options.workers, usual, unusual, options.seconds, square, lists)
    times = [] if options.skip_times else time_nsa(example("nsa", "nsa"), backward=False)
    return report(options.out / "forward.json", describe_machine(options.commit), outcomes, times)


if __name__ == "__main__":
    sys.exit(main())
