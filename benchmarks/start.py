"""What a second process waits for until its first results: the first one has filled the caches.

    python benchmarks/start.py [--runs N] [--out DIR] [--commit HASH]

NSA in the paper's shape at 8,192 tokens, forward and backward. Every run is a process of its own; the first is not counted. Torch's start
and Triton's first kernel, which every program with Triton kernels waits for, are told apart from what comes after them. Medians of each
part; leaves DIR/start-CARD.json. Exit status 2 without a GPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

CHILD = "--child"
THEIRS = ("torch", "triton")
"""What is not this project's: importing torch and making a CUDA context; a kernel of one line and a product of matrices."""

OURS = ("import", "spec", "inputs", "forward", "backward")


def child() -> None:
    """One process: seconds of every part, as JSON on standard output."""
    seconds, begin = {}, time.perf_counter()

    def done(part: str) -> None:
        nonlocal begin
        torch.cuda.synchronize()
        seconds[part] = time.perf_counter() - begin
        begin = time.perf_counter()

    import torch

    x = torch.zeros(1024, device="cuda")
    done("torch")
    from benchmarks.one_kernel import fill

    fill[(1,)](x, 1024)
    torch.ones(4096, 128, device="cuda", dtype=torch.bfloat16) @ torch.ones(128, 4096, device="cuda", dtype=torch.bfloat16)
    done("triton")
    from nsa_dsl.arguments import Shape
    from nsa_dsl.bench.inputs import make_inputs
    from nsa_dsl.loader import load_spec
    from nsa_dsl.op import AttentionOp
    from nsa_dsl.verify.leaves import watch

    done("import")
    pattern = load_spec(ROOT / "examples" / "nsa.nsa").pattern("nsa")
    op = AttentionOp(pattern)
    done("spec")
    made, leaves = watch(make_inputs(pattern, torch.bfloat16, Shape(1, 64, 4, 8192, 128, 128)))
    done("inputs")
    out = op(made.q, made.k, made.v, **made.options)
    done("forward")
    # As training does: from one number. Given gradients to begin with, torch imports its symbolic shapes, for seconds.
    torch.autograd.grad(out.sum(), list(leaves.values()))
    done("backward")
    print(json.dumps(seconds))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--commit", help="what is measured, where git cannot tell")
    parser.add_argument(CHILD, action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    from benchmarks.parts import card_of, has_gpu
    from nsa_dsl.bench.timing import describe_machine

    if not has_gpu(__file__):
        return 2
    runs = [_run() for _ in range(1 + given.runs)][1:]
    median = {part: round(statistics.median(run[part] for run in runs), 3) for part in (*THEIRS, *OURS)}
    whole = round(statistics.median(sum(run[part] for part in OURS) for run in runs), 3)
    machine = describe_machine(given.commit)
    path = given.out / f"start-{card_of(machine)}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps({"machine": machine, "runs": len(runs), "seconds": median, "ours": whole}, indent=1) + "\n", encoding="utf-8"
    )
    for part, seconds in median.items():
        print(f"{part:>10}  {seconds:6.2f} s")
    print(f"{'ours':>10}  {whole:6.2f} s")
    return 0


def _run() -> dict[str, float]:
    ran = subprocess.run([sys.executable, __file__, CHILD], stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(ran.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    if CHILD in sys.argv[1:]:
        child()
        sys.exit(0)
    sys.exit(main())
