"""Train a small language model, whose attention a spec describes, on the source of Python's standard library.

    python examples/train/train.py examples/train/alternating.nsa --context 8192 --steps 300
    python examples/train/train.py examples/train/nsa_small.nsa --set l=8 d=4 b=8 n=4 w=16 \\
        --context 96 --dim 32 --heads 2 --kv-heads 1 --head-dim 16 --hidden 64

One JSON line a step on standard output, and a last one with the loss on files that were not learned from. Without a GPU the kernels run
under Triton's interpreter, slowly.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import get_args

import torch
from torch import Tensor
from torch.nn import functional

import nsa_dsl
from nsa_dsl.examples.train.data import Text, batch_of, read_library
from nsa_dsl.examples.train.model import VOCABULARY, Attention, Config, LanguageModel
from nsa_dsl.program import AttentionPattern
from nsa_dsl.verify import use_device


@dataclass(frozen=True, slots=True)
class Options:
    """How to train. rate: the highest learning rate, reached after `warmup` steps; a cosine takes it down to a tenth. clip: of the
    gradient's norm. half: matrix products in bfloat16, by autocast; parameters stay float32. seed: of parameters and batches."""

    steps: int = 300
    context: int = 8192
    batch: int = 1
    rate: float = 1e-3
    warmup: int = 20
    decay: float = 0.1
    clip: float = 1.0
    half: bool = True
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Step:
    """One step done. loss: nats a byte, before the step; norm: of the gradient before clipping; seconds: of this step alone."""

    step: int
    loss: float
    norm: float
    rate: float
    seconds: float
    tokens_per_second: float


def make_model(
    layers: Iterable[AttentionPattern],
    config: Config,
    options: Options,
    attention: Attention = "kernels",
    device: torch.device | str = "cpu",
) -> LanguageModel:
    """The model, with parameters that depend on the seed and the spec alone: kernels and reference begin from the same."""
    torch.manual_seed(options.seed)
    return LanguageModel(list(layers), config, attention).to(device)


def train(model: LanguageModel, text: Text, options: Options) -> Iterator[Step]:
    """Train in place; yields after every step."""
    device = model.embedding.weight.device
    matrices, others = ([p for p in model.parameters() if (p.dim() > 1) == wanted] for wanted in (True, False))
    groups = [{"params": matrices, "weight_decay": options.decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=options.rate, betas=(0.9, 0.95))
    for step in range(options.steps):
        started = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, options)
        given, wanted = (each.to(device) for each in batch_of(text.train, options.context, options.batch, options.seed * 1_000_003 + step))
        loss = _loss(model, given, wanted, half=options.half)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), options.clip)
        optimizer.step()
        # Reading the loss waits for the device, so the clock sees the whole step.
        done = Step(step, loss.item(), norm.item(), rate_at(step, options), 0.0, 0.0)
        seconds = time.perf_counter() - started
        yield Step(done.step, done.loss, done.norm, done.rate, seconds, options.batch * options.context / seconds)


def rate_at(step: int, options: Options) -> float:
    """The learning rate of a step: a straight rise, then a cosine down to a tenth."""
    if step < options.warmup:
        return options.rate * (step + 1) / options.warmup
    progress = (step - options.warmup) / max(1, options.steps - options.warmup)
    return options.rate * (0.55 + 0.45 * math.cos(math.pi * progress))


@torch.no_grad()
def validate(model: LanguageModel, text: Text, options: Options, windows: int = 8) -> float:
    """Nats a byte on windows of files that were not learned from; the same windows every time."""
    device = model.embedding.weight.device
    losses = []
    for window in range(windows):
        given, wanted = (each.to(device) for each in batch_of(text.validation, options.context, 1, window))
        losses.append(_loss(model, given, wanted, half=options.half).item())
    return sum(losses) / len(losses)


def _loss(model: LanguageModel, given: Tensor, wanted: Tensor, *, half: bool) -> Tensor:
    with torch.autocast(given.device.type, torch.bfloat16, enabled=half):
        logits = model(given)
    return functional.cross_entropy(logits.float().view(-1, VOCABULARY), wanted.flatten())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spec", help="a spec with a model")
    parser.add_argument("--model", help="which model of the spec; default its first")
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="NAME=VALUE", dest="parameters", help="whole numbers for the model's parameters"
    )
    parser.add_argument("--backend", choices=get_args(Attention), default="kernels")
    parser.add_argument("--compress", choices=("post-rotary", "pre-rotary"), default=Config().compress)
    parser.add_argument("--device", help="default: a GPU if there is one")
    parser.add_argument("--validate", type=int, default=8, metavar="WINDOWS", help="windows of the last line's loss")
    for name in ("dim", "heads", "kv_heads", "head_dim", "hidden"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(Config(), name))
    for name in ("steps", "context", "batch", "warmup", "seed"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Options(), name))
    parser.add_argument("--rate", type=float, default=Options().rate)
    given = parser.parse_args()
    device = use_device(given.device)
    program = nsa_dsl.load(given.spec)
    if not program.models:
        parser.error(f"{given.spec} declares no model")
    layers = program.model(given.model or program.models[0], **dict(_parameter(parser, each) for each in given.parameters))
    config = Config(given.dim, given.heads, given.kv_heads, given.head_dim, given.hidden, given.compress)
    options = Options(given.steps, given.context, given.batch, given.rate, given.warmup, seed=given.seed, half=device.type == "cuda")
    model, text = make_model(layers, config, options, given.backend, device), read_library()
    for step in train(model, text, options):
        print(json.dumps(asdict(step)), flush=True)
    print(json.dumps({"validation": validate(model, text, options, given.validate)}))
    return 0


def _parameter(parser: argparse.ArgumentParser, text: str) -> tuple[str, int]:
    name, _, value = text.partition("=")
    if not value.isdecimal():
        parser.error(f"--set: expected NAME=VALUE with a whole number, got {text!r}")
    return name, int(value)


if __name__ == "__main__":
    sys.exit(main())
