"""What a benchmark left, as a picture: training curves (train.py), or times (`nsa bench`, performance.py, scaling.py).

    python benchmarks/plot.py benchmarks/results/train.json [--out FILE.png] [--case NAME]

Of training, one column a spec: the loss of kernels, twin and plain dense attention above, smoothed; below, how far the twin and the nudged
kernels are from the kernels at every step. Needs matplotlib.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from nsa_dsl.bench import plot as bench_plot
from nsa_dsl.bench.plot import new_figure
from nsa_dsl.bench.rows import Row, from_json

SMOOTH = 10
"""Steps in the running mean of the losses; the differences below are not smoothed."""

LINES = {"reference": ("dense twin, float32", "tab:orange", 4.0), "kernels": ("generated kernels, bfloat16", "tab:blue", 1.2)}


def smooth(values: list[float], width: int = SMOOTH) -> list[float]:
    """Running means over the last `width` values, of fewer at the beginning."""
    return [statistics.fmean(values[max(0, end - width) : end]) for end in range(1, len(values) + 1)]


def draw(results: dict[str, Any]) -> Any:
    """The matplotlib figure of what train.json holds; runs that are missing are left out. Raises ValueError if nothing can be drawn."""
    runs = {each["name"]: each for each in results["runs"]}
    specs = list(dict.fromkeys(name.split("/")[0] for name in runs if "/" in name))
    if not specs:
        raise ValueError("no run of a spec in the results: run benchmarks/train.py first")
    figure = new_figure(6 * len(specs), 6)
    grid = figure.subplots(2, len(specs), squeeze=False, sharex=True, height_ratios=[3, 1])
    for column, spec in enumerate(specs):
        above, below = grid[:, column]
        _curves(above, runs, spec)
        _differences(below, runs, spec)
    machine = next(iter(runs.values()))["machine"]
    figure.suptitle(f"{machine['card']}, torch {machine['torch']}, triton {machine['triton']}, {machine['commit'][:12]}", fontsize=9)
    return figure


def _curves(axes: Any, runs: dict[str, Any], spec: str) -> None:
    if "dense" in runs:
        axes.plot(smooth(runs["dense"]["loss"]), color="0.6", linewidth=1, label=_label("causal attention, dense", runs["dense"]))
    for kind, (label, color, width) in LINES.items():
        if f"{spec}/{kind}" in runs:
            each = runs[f"{spec}/{kind}"]
            axes.plot(smooth(each["loss"]), color=color, linewidth=width, label=_label(label, each))
    options = next(each["options"] for name, each in runs.items() if name.startswith(spec))
    axes.set(title=f"{spec}, context {options['context']:,}", ylabel=f"loss, nats a byte (mean of {SMOOTH} steps)")
    axes.legend(fontsize=8)


def _label(name: str, run: dict[str, Any]) -> str:
    return f"{name}: {run['tokens_per_second']:,.0f} tokens/s"


def _differences(axes: Any, runs: dict[str, Any], spec: str) -> None:
    kernels = runs.get(f"{spec}/kernels")
    others = (("nudged", "0.6", "kernels, nudged: the noise"), ("reference", "tab:orange", "dense twin"))
    for kind, color, label in others:
        other = runs.get(f"{spec}/{kind}")
        if kernels and other:
            axes.plot([a - b for a, b in zip(kernels["loss"], other["loss"], strict=True)], color=color, linewidth=1, label=label)
    axes.set(xlabel="step", ylabel="kernels minus ...")
    if axes.lines:
        axes.legend(fontsize=8)


def draw_times(rows: list[Row], machine: dict[str, str], case: str | None) -> Any:
    """The matplotlib figure of times. case: None is all of them. Raises ValueError if nothing can be drawn."""
    return bench_plot.draw([row for row in rows if case in (None, row.case)], machine)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--out", type=Path, help="default: beside the results, with .png")
    parser.add_argument("--case", help="of times: this case only")
    given = parser.parse_args()
    text = given.results.read_text()
    results = json.loads(text)
    try:
        figure = draw(results) if "runs" in results else draw_times(from_json(text), results["machine"], given.case)
    except bench_plot.NoMatplotlibError as lacking:
        print(lacking, file=sys.stderr)
        return 2
    path = given.out or given.results.with_suffix(".png")
    bench_plot.save(figure, path)
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
