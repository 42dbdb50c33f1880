"""Language models that train through the generated kernels, held to dense twins: the same model, seed, batches, rule of choice; dense math.

    python benchmarks/train.py [--steps 200] [--only RUN ...] [--out DIR] [--add FILE] [--commit HASH]
    python benchmarks/plot.py benchmarks/results/train.json

Four layers on the source of Python's standard library, for each spec of examples/train:

- kernels: attention by the generated kernels, products in bfloat16 by autocast;
- reference: the twin. Attention by the pattern's dense definition in float32, which shares nothing with the kernels but the pattern;
- nudged: the kernels again, from parameters each moved by at most half a unit in bfloat16's last place.

And `dense`: plain causal attention (PyTorch's own kernels) whatever a spec says, to compare throughput.

What noise is, said before anything was measured: two runs that differ by rounding alone drift apart, and `nudged` shows how far. Curves
agree when the root mean square over all steps of kernels minus reference is at most twice that of kernels minus nudged.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402 - the checkout comes before an installed package

import nsa_dsl  # noqa: E402
from nsa_dsl.bench.timing import describe_machine  # noqa: E402
from nsa_dsl.examples.train.data import Text, read_library  # noqa: E402
from nsa_dsl.examples.train.model import Attention, Config, LanguageModel  # noqa: E402
from nsa_dsl.examples.train.train import Options, make_model, train, validate  # noqa: E402

SPECS = ("alternating", "nsa_small")
KINDS: dict[str, Attention] = {"kernels": "kernels", "nudged": "kernels", "reference": "reference"}
RUNS = (*(f"{spec}/{kind}" for spec in SPECS for kind in KINDS), "dense")

WARM = 5
"""First steps left out of throughput: they compile kernels."""


@dataclass(frozen=True, slots=True)
class Run:
    """What a run gave. loss: by step, nats a byte; validation: after the last, on files not learned from; tokens_per_second: median of the
    steps after the first few; gib: the most memory at once; seconds: the whole run, compilation included."""

    name: str
    loss: list[float]
    validation: float
    tokens_per_second: float
    gib: float
    seconds: float
    machine: dict[str, str]
    config: dict[str, Any]
    options: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Agreement:
    """Kernels beside their twin. first: |difference| of the first loss, before anything drifts. gap, noise: root mean squares over steps
    of kernels minus reference and minus nudged. late: mean of kernels minus reference over the second half, with its sign."""

    spec: str
    first: float
    gap: float
    noise: float
    late: float
    validation: float
    agree: bool


def run(name: str, text: Text, config: Config, options: Options, commit: str | None) -> Run:
    """Train one of RUNS from its beginning, on the GPU."""
    spec, _, kind = name.partition("/")
    layers = nsa_dsl.load(ROOT / f"examples/train/{spec if kind else SPECS[0]}.nsa").model(spec if kind else SPECS[0])
    model = make_model(layers, config, options, KINDS[kind] if kind else "dense", "cuda")
    if kind == "nudged":
        nudge(model, options.seed + 1)
    torch.cuda.reset_peak_memory_stats()
    steps = []
    for step in train(model, text, options):
        steps.append(step)
        if step.step % 20 == 0:
            print(f"{name} {step.step} loss {step.loss:.4f} {step.tokens_per_second:,.0f} tokens/s", flush=True)
    gib = torch.cuda.max_memory_allocated() / 2**30
    judged = validate(model, text, options, windows=4)
    speed = statistics.median(each.tokens_per_second for each in steps[min(WARM, len(steps) - 1) :])
    seconds = sum(each.seconds for each in steps)
    return Run(name, [each.loss for each in steps], judged, speed, gib, seconds, describe_machine(commit), asdict(config), asdict(options))


@torch.no_grad()
def nudge(model: LanguageModel, seed: int) -> None:
    """Multiply every parameter by 1 + u, u uniform in +-2**-9: what rounding to bfloat16 does to a number at most."""
    random = torch.Generator(device=model.embedding.weight.device).manual_seed(seed)
    for each in model.parameters():
        each.mul_(1 + 2**-9 * (2 * torch.rand(each.shape, generator=random, device=each.device) - 1))


def compare(spec: str, runs: dict[str, Run]) -> Agreement | None:
    """The kernels' curve and the twin's; None if one of the three runs is missing. Raises ValueError if they are not the same training."""
    if not all(f"{spec}/{kind}" in runs for kind in KINDS):
        return None
    kernels, nudged, reference = (runs[f"{spec}/{kind}"] for kind in KINDS)
    if not (kernels.options == nudged.options == reference.options and kernels.config == nudged.config == reference.config):
        raise ValueError(f"{spec}: the runs were not made with the same sizes and steps")
    gap, noise = (distance(kernels.loss, other.loss) for other in (reference, nudged))
    half = len(kernels.loss) // 2
    return Agreement(
        spec=spec,
        first=abs(kernels.loss[0] - reference.loss[0]),
        gap=gap,
        noise=noise,
        late=statistics.fmean(a - b for a, b in zip(kernels.loss[half:], reference.loss[half:], strict=True)),
        validation=kernels.validation - reference.validation,
        # Written so that NaN does not agree.
        agree=gap <= 2 * noise,
    )


def distance(a: list[float], b: list[float]) -> float:
    """Root mean square of the difference of two curves."""
    return math.sqrt(statistics.fmean((x - y) ** 2 for x, y in zip(a, b, strict=True)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--add", type=Path, help="results of earlier calls: their runs are kept, unless they are run again")
    parser.add_argument("--only", nargs="*", default=list(RUNS), choices=RUNS, metavar="RUN", help=", ".join(RUNS))
    for name in ("steps", "context", "batch", "seed"):
        parser.add_argument(f"--{name}", type=int, default=200 if name == "steps" else getattr(Options(), name))
    parser.add_argument("--commit", help="what is measured, where git cannot tell")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    options = Options(steps=given.steps, context=given.context, batch=given.batch, seed=given.seed)
    earlier = json.loads(given.add.read_text())["runs"] if given.add else []
    runs = {each["name"]: Run(**each) for each in earlier}
    text = read_library()
    for name in given.only:
        runs[name] = run(name, text, Config(), options, given.commit)
        write(given.out / "train.json", runs)
        print(f"{name}: validation {runs[name].validation:.4f}, {runs[name].seconds:.0f} s, {runs[name].gib:.1f} GiB", flush=True)
    found = write(given.out / "train.json", runs)
    dense = runs.get("dense")
    for each in runs.values():
        beside = f", {each.tokens_per_second / dense.tokens_per_second:.2f} of dense" if dense else ""
        print(f"{each.name:24} last losses {statistics.fmean(each.loss[-20:]):.4f}  {each.tokens_per_second:10,.0f} tokens/s{beside}")
    for verdict in found:
        print("  ".join(f"{key}={value:.5f}" if isinstance(value, float) else f"{key}={value}" for key, value in asdict(verdict).items()))
    return 0 if all(each.agree for each in found) else 1


def write(path: Path, runs: dict[str, Run]) -> list[Agreement]:
    """Keep what there is, after every run: a call may be cut off. Returns the comparisons that the runs allow."""
    found = [each for spec in SPECS if (each := compare(spec, runs)) is not None]
    path.write_text(json.dumps({"runs": [asdict(each) for each in runs.values()], "agreement": [asdict(each) for each in found]}) + "\n")
    return found


if __name__ == "__main__":
    sys.exit(main())
