"""Parts of a long measurement, each in a process of its own: a kernel that hangs costs its part's time and nothing else."""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from nsa_dsl.bench.rows import Row, from_json

GRACE = 30.0
"""Seconds that a part may run over: a measurement that has begun may end."""


def command_line(about: str | None, what: str, budgets: Mapping[str, float]) -> argparse.ArgumentParser:
    """The options of a script that runs parts. what: they are called; budgets: seconds of each, by name."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=names_of(budgets), default=list(budgets), help=f"of {', '.join(budgets)}; default: all")
    default = ", ".join(f"{name} {seconds:.0f}" for name, seconds in budgets.items())
    parser.add_argument("--budget", type=float, help=f"seconds a {what}; default: {default}")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--commit", help="what is measured, where git cannot tell")
    parser.add_argument("--part", type=Path, help=argparse.SUPPRESS)
    return parser


def names_of(known: Collection[str]) -> Callable[[str], list[str]]:
    """How to read an option that lists some of the known names."""

    def parse(text: str) -> list[str]:
        names = text.split(",")
        unknown = [each for each in names if each not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(known)}")
        return names

    return parse


def has_gpu(script: str) -> bool:
    """Whether there is one; if not, standard error says that the script needs it."""
    if not torch.cuda.is_available():
        print(f"{Path(script).name} needs a GPU that PyTorch can use: torch.cuda.is_available() is False", file=sys.stderr)
    return torch.cuda.is_available()


def run_part(script: Path, arguments: Sequence[str], seconds: float, grace: float = GRACE) -> str | None:
    """Run a script in a process of its own, its output shown as it comes; None if it ended well, else what happened. grace: seconds more
    after which it is ended."""
    child = subprocess.Popen([sys.executable, str(script), *arguments], start_new_session=True)
    try:
        status = child.wait(seconds + grace)
    except subprocess.TimeoutExpired:
        return f"cut off after {seconds + grace:.0f} s"
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    return None if status == 0 else f"ended with status {status}"


def read_rows(path: Path) -> list[Row]:
    """What a part wrote before it ended; nothing if it wrote nothing."""
    return from_json(path.read_text(encoding="utf-8")) if path.exists() else []


def card_of(machine: dict[str, Any]) -> str:
    """A card's name for a file's: `h100` of `NVIDIA H100 80GB HBM3`."""
    found = re.search(r"\b[A-Za-z]{1,3} ?[0-9]{1,4}[A-Za-z]*\b", str(machine.get("card", "")))
    return found[0].replace(" ", "").lower() if found else "gpu"


def line(row: Row) -> str:
    """A row for those who watch."""
    times = ", ".join(
        f"{name} {value:.2f} ms" for name, value in (("forward", row.forward_ms), ("backward", row.backward_ms)) if value is not None
    )
    choices = f" {row.choices}" if row.choices else ""
    return f"{row.case} {row.tokens:,} {row.contender}{choices}: {times}{' ' if times and row.refused else ''}{row.refused}"
