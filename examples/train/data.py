"""Real text that every machine has: the source of Python's own standard library, as bytes."""

from __future__ import annotations

import os
import sysconfig
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test"}
"""Folders that are not the library's own, or that some systems install without."""

ONE_IN = 20
"""One file in so many is kept for validation."""


@dataclass(frozen=True, slots=True, eq=False)
class Text:
    """Bytes to learn from and bytes of other files to judge by, each uint8 (bytes,)."""

    train: Tensor
    validation: Tensor


def read_library(folder: Path | None = None, *, most: int | None = None) -> Text:
    """The library's modules in a fixed order, one after the other, NUL between them; the same on every machine with this Python.

    folder: default the running Python's library. most: read no more once there are so many bytes to learn from and some to judge by.
    Raises OSError if there is no module for one of the parts.
    """
    root = folder or Path(sysconfig.get_paths()["stdlib"])
    learned: list[bytes] = []
    kept: list[bytes] = []
    for path in _modules(root):
        # By name, so that a file stays on its side where another is missing.
        side = learned if zlib.crc32(path.relative_to(root).as_posix().encode()) % ONE_IN else kept
        side.append(path.read_bytes())
        if most is not None and kept and sum(map(len, learned)) >= most:
            break
    if not (learned and kept):
        raise OSError(f"{root} does not hold enough Python modules to learn from some and to judge by others")
    return Text(_bytes(learned), _bytes(kept))


def _modules(root: Path) -> Iterator[Path]:
    """The library's modules in one order everywhere."""
    for folder, inside, names in os.walk(root):
        inside[:] = sorted(set(inside) - LEFT_OUT)
        for name in sorted(names):
            # The build's settings name folders of the machine.
            if name.endswith(".py") and not name.startswith("_sysconfigdata"):
                yield Path(folder) / name


def _bytes(files: list[bytes]) -> Tensor:
    return torch.frombuffer(bytearray(b"\0".join(files)), dtype=torch.uint8)


def batch_of(text: Tensor, context: int, batch: int, seed: int) -> tuple[Tensor, Tensor]:
    """Inputs and what follows each of them, int64 (batch, context): windows of the text, drawn from the seed alone.

    Raises ValueError if the text is shorter than context + 1.
    """
    if len(text) <= context:
        raise ValueError(f"context: {context} tokens and the next are more than the text's {len(text)} bytes")
    starts = torch.randint(0, len(text) - context, (batch,), generator=torch.Generator().manual_seed(seed))
    windows = torch.stack([text[start : start + context + 1] for start in starts.tolist()]).to(torch.int64)
    return windows[:, :-1], windows[:, 1:]
