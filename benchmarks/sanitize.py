"""Every kernel of NSA, ASA, causal attention, blocks and given lists once, forward and backward, at small odd sizes: for compute-sanitizer.

    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck python benchmarks/sanitize.py
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool racecheck python benchmarks/sanitize.py

Without torch's caching allocator every tensor has bounds that the tool knows. The kernels that ran are printed. Run it once without the
tool first: then the kernels come from Triton's cache. With --dims 64 64 --tokens 200 the Gluon kernels of Hopper run, otherwise the plain
ones. Of Gluon kernels racecheck reports hazards at a kernel's `def` and its `gl.warp_specialize`, as it does of a hand-written kernel
of the same build (benchmarks/NOTES.md); what it reports elsewhere is ours.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks.cases import DTYPES, TORCH, Sizes, make_inputs
from benchmarks.cases_backward import make_cotangents, op_gradients
from benchmarks.suite import example
from nsa_dsl.bench.timing import launches
from nsa_dsl.op import AttentionOp

SMALL = (
    ("nsa", "nsa", {"l": 8, "d": 4, "b": 16, "n": 3, "w": 20}),
    ("asa", "global", {"b": 16, "n": 3}),
    ("asa", "local", {"w": 20}),
    ("causal", "causal", {}),
    ("blocks", "blocks_of_64", {}),
    ("choices", "selected", {"b": 16, "n": 3}),
)
"""Parameters at which everything shows within a hundred tokens."""

BY_BLOCKS = {"choices": {"BY_BLOCKS_LISTS": 0, "BY_BLOCKS_SHARE": 10**6}}
"""What modules of these files take small groups by blocks with, however few lists there are: constants of theirs."""

HEADS, KV_HEADS = 4, 2


def run(file: str, name: str, parameters: dict[str, int], dtype: str, tokens: int, sizes: Sizes, device: str) -> dict[str, int]:
    """Choose, forward and backward; the kernels launched and how often."""
    pattern = example(file, name, **parameters)
    op, inputs = AttentionOp(pattern), make_inputs(pattern, TORCH[dtype], tokens, sizes, device=device)
    counts: dict[str, int] = {}

    def counted(kernel: str, launch: Callable[[], None]) -> None:
        counts[kernel] = counts.get(kernel, 0) + 1
        launch()
        if device == "cuda":
            torch.cuda.synchronize()

    modules = [op.module(inputs.q, sizes.dim_v, backward=backward) for backward in (False, True)]
    vars(modules[0]).update(BY_BLOCKS.get(file, {}))
    with launches(modules, counted):
        made = op_gradients(op, inputs, make_cotangents(pattern, inputs)[1])
    bad = [name for name, each in made.items() if not bool(each.isfinite().all())]
    if bad:
        raise RuntimeError(f"{file}.{name}: gradients of {', '.join(bad)} are not finite")
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", nargs="*", choices=DTYPES, default=["bf16"])
    parser.add_argument("--tokens", type=int, nargs="*", default=[77])
    parser.add_argument("--dims", type=int, nargs=2, metavar=("D_QK", "D_V"), default=(24, 40))
    parser.add_argument("--device", default="cuda", help="cpu runs under Triton's interpreter, to try this script")
    options = parser.parse_args()
    sizes = Sizes(heads=HEADS, kv_heads=KV_HEADS, dim_qk=options.dims[0], dim_v=options.dims[1])
    for file, name, parameters in SMALL:
        for dtype in options.dtype:
            for tokens in options.tokens:
                ran = run(file, name, parameters, dtype, tokens, sizes, options.device)
                print(f"{file}.{name} {dtype} N={tokens}: {', '.join(f'{kernel} x {count}' for kernel, count in ran.items())}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
