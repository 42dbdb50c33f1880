"""The demonstration: two specs from text to kernels, the kernels held to the dense reference on real text, and a model that they train."""

from __future__ import annotations

import math
import statistics
import sysconfig
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import torch
from rich.console import Console
from rich.text import Text
from torch import Tensor

from nsa_dsl.compare import Mismatch
from nsa_dsl.compiler import compile_source
from nsa_dsl.compressors import make_modules
from nsa_dsl.examples.train.data import read_library
from nsa_dsl.examples.train.model import Config
from nsa_dsl.examples.train.train import Options, make_model, train
from nsa_dsl.launch import Dtype
from nsa_dsl.loader import load_spec
from nsa_dsl.op import AttentionOp
from nsa_dsl.pattern import Pattern
from nsa_dsl.picture import Frame, draw_pattern
from nsa_dsl.program import load
from nsa_dsl.verify import describe, patterns_to_try, use_device
from nsa_dsl.verify.cases import Case
from nsa_dsl.verify.checks import check_results, check_visibility
from nsa_dsl.verify.inputs import TYPES, Inputs

EXAMPLES = Path(__file__).resolve().parent / "examples"
SPECS = ("nsa.nsa", "asa.nsa")
BOOKS = ("textwrap.py", "heapq.py", "statistics.py", "argparse.py", "typing.py")
"""Modules of Python's standard library: prose and code that every machine has."""

WIDTH = 64
"""Features of an embedded byte."""


@dataclass(frozen=True, slots=True)
class Scale:
    """How large a demonstration a device bears. d_qk, d_v: head dimensions; dtype: of q, k and v."""

    tokens: int
    heads: int
    kv_heads: int
    d_qk: int
    d_v: int
    dtype: Dtype


@dataclass(frozen=True, slots=True)
class Lesson:
    """How large a model a device trains in a minute. layers: of the spec's model, from the first on; parameters: of the model."""

    layers: int
    config: Config
    options: Options
    parameters: dict[str, int] = field(default_factory=dict)


ON_GPU = Scale(tokens=4096, heads=32, kv_heads=2, d_qk=192, d_v=128, dtype="bf16")
ON_CPU = Scale(tokens=256, heads=4, kv_heads=1, d_qk=24, d_v=16, dtype="fp32")

MODEL = "alternating"
"""The model that is trained, and its spec in examples/train."""

LESSON_ON_GPU = Lesson(4, Config(), Options(steps=100))
LESSON_ON_CPU = Lesson(
    2,
    Config(dim=32, heads=2, kv_heads=1, head_dim=16, hidden=64),
    Options(steps=20, context=64, rate=1e-2, warmup=4, half=False),
    {"w": 16, "b": 8, "n": 3},
)

SEEN = 1_000_000
"""Bytes of the library that are read for training; a minute sees fewer."""

LEVELS = "▁▂▃▄▅▆▇█"


def run_demo(
    console: Console,
    *,
    folder: Path = EXAMPLES,
    device: torch.device | str | None = None,
    scale: Scale | None = None,
    lesson: Lesson | None = None,
) -> bool:
    """Show nsa.nsa and asa.nsa as text, picture and kernels, run the kernels on text and compare, and train a language model with kernels;
    True if all agree and the model learned.

    With a GPU: the papers' parameters and thousands of tokens. Without: Triton's interpreter, a few hundred tokens and, so that they show
    at that length, smaller parameters. folder: where the specs lie. Raises SpecError, OSError.
    """
    place = use_device(device)
    scale = scale or (ON_GPU if place.type == "cuda" else ON_CPU)
    lesson = lesson or (LESSON_ON_GPU if place.type == "cuda" else LESSON_ON_CPU)
    where = torch.cuda.get_device_name(place) if place.type == "cuda" else "no GPU here: Triton's interpreter, with smaller parameters"
    text = read_text(scale.tokens)
    agreed = True
    for name in SPECS:
        _show_spec(console, folder / name)
        _title(console, f"{name}: the kernels on {scale.tokens} bytes of Python's standard library ({where})")
        for group in patterns_to_try(folder / name, scaled=place.type == "cpu"):
            agreed &= _hold_to_reference(console, group[0], text, scale, place)
    verdict = "all kernels agree with the dense reference" if agreed else "some kernels DISAGREE with the dense reference"
    console.print(Text(verdict, style="bold green" if agreed else "bold red"))
    learned = _teach(console, folder / "train" / f"{MODEL}.nsa", lesson, place)
    return agreed and learned


def _show_spec(console: Console, path: Path) -> None:
    _title(console, f"{path.name}: the spec")
    console.print(Text(path.read_text(encoding="ascii")))
    spec = load_spec(path)
    for name in spec.patterns:
        pattern = spec.pattern(name)
        _title(console, f"{path.name}: what {describe(pattern)} sees")
        console.print(Text(draw_pattern(pattern, Frame()) + "\n"))
        started = time.perf_counter()
        lines = compile_source(pattern).splitlines()
        took = time.perf_counter() - started
        kernels = [after.split("(")[0].removeprefix("def ") for line, after in pairwise(lines) if "@triton.jit" in line]
        _say(console, f"{len(lines)} lines of Triton in {took:.2f} s: {', '.join(kernels)}\n")


def _hold_to_reference(console: Console, pattern: Pattern, text: bytes, scale: Scale, device: torch.device) -> bool:
    """Whether the kernels agree, said in a line or two."""
    _say(console, f"{describe(pattern)}: running ...")
    op, case = AttentionOp(pattern), _case(scale)
    started = time.perf_counter()
    with console.status("comparing choices, outputs and log-sum-exps"):
        found = check_results(op, case, text_inputs(pattern, text, scale, device))
    _say(console, f"  choices, outputs and log-sum-exps {_outcome(found)} ({time.perf_counter() - started:.1f} s)")
    started = time.perf_counter()
    with console.status("probing which keys every row sees"):
        seen = check_visibility(op, case, device)
    _say(console, f"  the exact set of keys of every row {_outcome(seen)} ({time.perf_counter() - started:.1f} s)\n")
    return not found and not seen


def _teach(console: Console, path: Path, lesson: Lesson, device: torch.device) -> bool:
    """Whether a language model's loss falls when the kernels of a spec compute its attention and its gradient; said with its curve."""
    options = lesson.options
    layers = list(load(path).model(MODEL, **lesson.parameters))[: lesson.layers]
    model = make_model(layers, lesson.config, options, "kernels", device)
    size = sum(each.numel() for each in model.parameters())
    _title(
        console, f"\n{path.name}: a byte-level language model of {len(layers)} layers learns from the library's text, through these kernels"
    )
    _say(console, f"{size:,} parameters, {options.steps} steps of {options.batch * options.context:,} bytes: training ...")
    started, losses = time.perf_counter(), []
    with console.status("training"):
        for step in train(model, read_library(most=SEEN), options):
            losses.append(step.loss)
    # Every step sees other text: single losses differ by more than a step's progress.
    last = statistics.fmean(losses[-3:])
    learned = last < losses[0]
    _say(console, f"  {draw_curve(losses)}  ({time.perf_counter() - started:.1f} s)")
    verdict = f"loss {losses[0]:.3f} at first, {last:.3f} at last, in nats a byte"
    console.print(Text(verdict if learned else f"{verdict}: NOTHING LEARNED", style="bold green" if learned else "bold red"))
    return learned


def draw_curve(losses: list[float], width: int = 40) -> str:
    """Losses as bars in one line, highest for the greatest, each the mean of neighbouring steps if there are more than `width`."""
    step = -(-len(losses) // width)
    means = [statistics.fmean(losses[start : start + step]) for start in range(0, len(losses), step)]
    low, span = min(means), max(means) - min(means) or 1.0
    return "".join(LEVELS[round((each - low) / span * (len(LEVELS) - 1))] for each in means)


def _outcome(found: list[Mismatch]) -> str:
    return "agree" if not found else "DISAGREE: " + "; ".join(map(str, found[:4]))


def _case(scale: Scale) -> Case:
    return Case(
        tokens=scale.tokens, batch=1, heads=scale.heads, kv_heads=scale.kv_heads, d_qk=scale.d_qk, d_v=scale.d_v, dtype=scale.dtype,
        layout="contiguous", values="ordinary", damage="none", damaged=0, documents=1, rows=None, cols=None, seed=0,
    )  # fmt: skip


def read_text(length: int) -> bytes:
    """The first `length` bytes of the books, one after the other. Raises OSError if they are missing or too short."""
    library = Path(sysconfig.get_path("stdlib"))
    text = b"".join((library / name).read_bytes() for name in BOOKS)
    if len(text) < length:
        raise OSError(f"{library} holds {len(text)} bytes of {', '.join(BOOKS)}, and {length} are needed")
    return text[:length]


def text_inputs(pattern: Pattern, text: bytes, scale: Scale, device: torch.device) -> Inputs:
    """q, k, v and gates of a layer that reads text: bytes embedded and projected by fixed random matrices. A byte is embedded together with
    the one before it, so that queries can look for more than single letters."""
    random = torch.Generator().manual_seed(0)
    table = torch.randn(2, 256, WIDTH, generator=random)
    byte = torch.tensor(list(text))
    embedded = (table[0][byte] + table[1][byte.roll(1)]) / math.sqrt(2)

    def projected(heads: int, dim: int) -> Tensor:
        matrix = torch.randn(WIDTH, heads * dim, generator=random) / math.sqrt(WIDTH)
        return (embedded @ matrix).view(len(text), heads, dim).transpose(0, 1)[None].to(device, TYPES[scale.dtype])

    q, k, v = projected(scale.heads, scale.d_qk), projected(scale.kv_heads, scale.d_qk), projected(scale.kv_heads, scale.d_v)
    options: dict[str, object] = {}
    if pattern.output.kind == "gate":
        options["gates"] = projected(scale.heads, len(pattern.output.branches))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        modules = make_modules(pattern, kv_heads=scale.kv_heads, d_qk=scale.d_qk, d_v=scale.d_v)
    if modules:
        options["compressors"] = {name: each.to(device, TYPES[scale.dtype]).requires_grad_(False) for name, each in modules.items()}
    return Inputs(q, k, v, options)


def _title(console: Console, text: str) -> None:
    console.print(Text(text, style="bold"))


def _say(console: Console, text: str) -> None:
    console.print(Text(text))
