"""Fit the cost model's rates to measured kernels, and say how far prediction and measurement lie apart.

    python benchmarks/fit_cost.py [--write] [--card h100] [FILES...]

Files: `forward-*.json` and `backward-*.json` of benchmarks/results (default: those of the card), and what `nsa bench --json` or
benchmarks/performance.py wrote. Every case is printed with both times; last, the share of pairs of cases in the right order. --write puts
the rates into nsa_dsl/tuned/cost.json.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from nsa_dsl.cost import Model, Rate, load_model, milliseconds, predict_ms
from nsa_dsl.launch import LaunchShape, Tiles
from nsa_dsl.loader import load_spec
from nsa_dsl.pattern import Pattern
from nsa_dsl.work import Call, Work, kernels

ROOT = Path(__file__).resolve().parent.parent
COST = ROOT / "nsa_dsl" / "tuned" / "cost.json"
EXAMPLES = ROOT / "examples"

PARTIAL = (1.0, 1.15, 1.3, 1.5, 1.75, 2.0, 2.5)
PROGRAM_US = (0.0, 0.5, 1.0, 2.0, 3.0, 5.0, 8.0, 12.0)

VARIANTS: tuple[tuple[str, Tiles, float], ...] = (
    ("attend_compressed_keys", Tiles(64, 128, 8, 2), 26.9),
    ("attend_compressed_keys", Tiles(32, 64, 4, 3), 27.8),
    ("attend_compressed_keys", Tiles(64, 64, 4, 2), 29.1),
    ("attend_compressed_keys", Tiles(64, 64, 4, 3), 51.0),
    ("attend_windowed_keys", Tiles(64, 128, 8, 2), 11.0),
    ("attend_windowed_keys", Tiles(32, 64, 4, 3), 9.5),
    ("attend_windowed_keys", Tiles(64, 64, 4, 2), 11.5),
    ("attend_windowed_keys", Tiles(64, 64, 4, 3), 21.0),
    ("chosen_keys_selected", Tiles(64, 64, 4, 3), 48.0),
    ("chosen_keys_selected", Tiles(16, 64, 4, 3), 31.0),
)
"""Other tiles of plain kernels: NSA in its paper's shape at 64k on an H100, from benchmarks/NOTES.md."""

SAME_MS = 1.05
"""Times closer than this have no right order."""


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """One kernel of one case."""

    label: str
    work: Work
    ms: float

    @property
    def group(self) -> str:
        return f"{self.work.engine}/{self.work.kind}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--card", default="h100", choices=("h100", "h200"))
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    found = measured(options.card, options.files)
    if not found:
        print(f"nothing measured on the {options.card} was found", file=sys.stderr)
        return 2
    model = fit(found, load_model(options.card))
    right, pairs = report(found, model)
    if options.write:
        write(options.card, model)
    return 0 if right >= 0.9 * pairs else 1


def measured(card: str, files: Sequence[Path]) -> list[Measured]:
    """The kernels measured in these files; without any in those kept for the card. Of a kernel that was measured again with the same tiles
    the last file counts."""
    results = ROOT / "benchmarks" / "results"
    known = [results / f"{each}-{card}.json" for each in ("forward", "backward", "kernels", "performance")]
    found = (each for path in files or [each for each in known if each.exists()] for each in read(path))
    return list({_task(each.work): each for each in found}.values())


def _task(work: Work) -> tuple[object, ...]:
    """What a kernel had to do: the same where two measurements are of the same thing."""
    return work.kernel, work.tiles, work.engine, work.visible, work.copies, int(work.full.sum() + work.partial.sum())


def read(path: Path) -> Iterator[Measured]:
    """The kernels measured in a file of results."""
    content = json.loads(path.read_text(encoding="utf-8"))
    if "rows" in content:
        yield from _read_bench(path.stem, content["rows"])
    else:
        portable = LaunchShape(templates="portable")
        nsa = load_spec(EXAMPLES / "nsa.nsa").pattern("nsa")
        for row in content.get("times", ()):
            yield from _kernels(f"{path.stem} nsa {row['tokens']}", nsa, portable, Call(row["tokens"], 64, 4), row)
        if content.get("times") and path.stem.startswith("backward"):
            yield from _variants(nsa, portable)


def _variants(nsa: Pattern, shape: LaunchShape) -> Iterator[Measured]:
    known = kernels(nsa, shape, Call(65536, 64, 4))
    for name, tiles, ms in VARIANTS:
        if name in known:
            yield Measured(f"{name} {tiles.rows}x{tiles.cols} w{tiles.warps} s{tiles.stages}", known[name].recipe(tiles, "triton"), ms)


def _read_bench(stem: str, rows: Sequence[dict[str, Any]]) -> Iterator[Measured]:
    """Rows of `nsa_dsl.bench`: settings read `64/4 heads, D = 192/128, bf16`."""
    for row in rows:
        written = re.fullmatch(r"(\d+)/(\d+) heads, D = (\d+)(?:/(\d+))?, (\w+)", row["settings"])
        pattern = find_pattern(row["case"])
        if written is None or pattern is None or not row.get("kernels"):
            continue
        dim = int(written[3])
        shape = LaunchShape(dim, int(written[4] or dim), written[5])  # type: ignore[arg-type]
        call = Call(row["tokens"], int(written[1]), int(written[2]), sharing=row["choices"] or "random")
        yield from _kernels(f"{stem} {row['case']} {row['tokens']} {row['choices']}".strip(), pattern, shape, call, row["kernels"])


def find_pattern(case: str) -> Pattern | None:
    """The pattern of a case: a job's of performance.py, or the example's of that name; None if there is neither."""
    # Imports torch, which the kept results of single patterns do without.
    from benchmarks.sections import SECTIONS

    job = next((each for jobs in SECTIONS.values() for each in jobs if each.case == case), None)
    if job is not None:
        return load_spec(ROOT / job.file).pattern(job.pattern, **dict(job.parameters))
    specs = map(load_spec, sorted(EXAMPLES.glob("*.nsa")))
    return next((spec.pattern(case) for spec in specs if case in spec.patterns), None)


def _kernels(label: str, pattern: Pattern, shape: LaunchShape, call: Call, times: dict[str, Any]) -> Iterator[Measured]:
    """The kernels of a case that the model knows. The Gluon kernel of a step counts where it was launched."""
    planned = kernels(pattern, shape, call)
    plain = kernels(pattern, replace(shape, templates="portable"), call)
    joined = [re.split("_queries_with_|_with_", each[len("attend_") : -len("_hopper")]) for each in times if "_queries_with_" in each]
    leave = {f"attend_{branch}_queries" for branches in joined for branch in branches}
    for name in planned:
        both = f"{name}_union", f"{name}_by_blocks"
        if all(each in times for each in both):
            # Both were launched, and the unions decided which one left at once.
            leave |= {both[0]} if times[both[1]] > times[both[0]] else {both[1], f"{name}_merged"}
    for name, kernel in planned.items():
        beside = {f"{name}_union", f"{name}_by_blocks", f"slopes_{name.removeprefix('attend_')}"}
        if f"{name}_hopper" in times:
            yield Measured(f"{label} {name} (gluon)", kernel.work(), float(times[f"{name}_hopper"]))
        elif name in times and name not in leave and not beside & times.keys():
            # A kernel beside one of these, or beside one that does the work of several, leaves at once.
            yield Measured(f"{label} {name}", plain[name].work(), float(times[name]))


def fit(found: Sequence[Measured], model: Model) -> Model:
    """The model with rates of every kind of kernel that was measured. Per kind: the rate, the price of a partial tile and that of a program
    whose predictions lie nearest in ratio; of the usual tiles, those measured most often."""
    groups: dict[str, list[Measured]] = defaultdict(list)
    for each in found:
        groups[each.group].append(each)
    rates, usual = dict(model.rates), dict(model.tiles)
    for name, members in groups.items():
        tiles = [each.work.tiles for each in members]
        usual[name] = max(tiles, key=tiles.count)
        plain = [each for each in members if each.work.tiles == usual[name]]
        rates[name] = min((_fit_rate(plain, model, *each) for each in product(PARTIAL, PROGRAM_US)), key=lambda each: each[0])[1]
    return replace(model, rates=rates, tiles=usual)


def _fit_rate(members: Sequence[Measured], model: Model, partial: float, program_us: float) -> tuple[float, Rate]:
    """The rate that fits best with these prices, and its error: the sum of squared logarithms of predicted over measured."""

    def error(rate: Rate) -> float:
        return sum(math.log(milliseconds(each.work, model, rate) / each.ms) ** 2 for each in members)

    low, high = math.log(10.0), math.log(2000.0)
    golden = (math.sqrt(5) - 1) / 2
    for _ in range(40):
        one, two = high - golden * (high - low), low + golden * (high - low)
        if error(Rate(math.exp(one), partial, program_us)) < error(Rate(math.exp(two), partial, program_us)):
            high = two
        else:
            low = one
    rate = Rate(round(math.exp((low + high) / 2), 1), partial, program_us)
    return error(rate), rate


def report(found: Sequence[Measured], model: Model) -> tuple[int, int]:
    """Print every case, and count the pairs in the right order."""
    both = [(each, predict_ms(each.work, model) or math.nan) for each in found]
    print(f"{'case':78} {'measured':>9} {'predicted':>9} {'ratio':>6}")
    for each, ms in both:
        print(f"{each.label[:78]:78} {each.ms:9.3f} {ms:9.3f} {ms / each.ms:6.2f}")
    apart = [pair for pair in combinations(both, 2) if max(pair[0][0].ms, pair[1][0].ms) > SAME_MS * min(pair[0][0].ms, pair[1][0].ms)]
    right = sum((one.ms < other.ms) == (mine < yours) for (one, mine), (other, yours) in apart)
    tiles_apart = [pair for pair in apart if _same_task(pair[0][0], pair[1][0])]
    tiles_right = sum((one.ms < other.ms) == (mine < yours) for (one, mine), (other, yours) in tiles_apart)
    spread = math.exp(math.sqrt(sum(math.log(ms / each.ms) ** 2 for each, ms in both) / len(both)))
    print(f"{len(both)} cases, off by a factor of {spread:.2f} (root mean square)")
    print(f"pairs in the right order: {right} of {len(apart)} ({right / max(1, len(apart)):.1%})")
    if tiles_apart:
        print(f"of these, other tiles of one kernel: {tiles_right} of {len(tiles_apart)} ({tiles_right / len(tiles_apart):.1%})")
    return right, len(apart)


def _same_task(one: Measured, other: Measured) -> bool:
    return one.work.kernel == other.work.kernel and one.work.visible == other.work.visible and one.work.tiles != other.work.tiles


def write(card: str, model: Model) -> None:
    """Put the rates into the package's data."""
    content = json.loads(COST.read_text(encoding="utf-8"))
    content[card]["rates"] = {name: [each.tflops, each.partial, each.program_us] for name, each in sorted(model.rates.items())}
    content[card]["tiles"] = {name: [each.rows, each.cols, each.warps, each.stages] for name, each in sorted(model.tiles.items())}
    COST.write_text(dump(content), encoding="utf-8")


def dump(content: dict[str, Any]) -> str:
    """JSON with one rate a line."""
    text = json.dumps(content, indent=1)
    return re.sub(r"\[\s+([^\]]*?)\s+\]", lambda found: "[" + re.sub(r"\s+", " ", found[1]) + "]", text) + "\n"


if __name__ == "__main__":
    sys.exit(main())
