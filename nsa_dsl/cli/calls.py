"""What commands about calls of one shape share: their options, and the GPU that measuring needs."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from nsa_dsl.cli.compile import Dtype
from nsa_dsl.cli.outcome import UserError, busy

if TYPE_CHECKING:
    from nsa_dsl.launch import Tiles

MOST_TOKENS = 1 << 22

Heads: TypeAlias = Annotated[int, typer.Option(min=1, help="Query heads.")]
KvHeads: TypeAlias = Annotated[int, typer.Option(min=1, help="KV heads.")]
Dim: TypeAlias = Annotated[int, typer.Option(min=1, max=256, help="Features of a query and key head.")]
DimV: TypeAlias = Annotated[int | None, typer.Option(min=1, max=256, help="Of a value head. Default: the same.", show_default=False)]
DtypeOption: TypeAlias = Annotated[Dtype, typer.Option(help="Of queries, keys and values.")]


def parse_lengths(text: str) -> tuple[int, ...]:
    """`8k,1000` as numbers of tokens. Raises UserError."""
    found = []
    for each in text.split(","):
        written = re.fullmatch(r"\s*([0-9]{1,9})(k?)\s*", each)
        tokens = int(written[1]) * (1024 if written[2] else 1) if written else 0
        if not 1 <= tokens <= MOST_TOKENS:
            known = f"a number of tokens from 1 to {MOST_TOKENS // 1024}k"
            raise UserError(f"--lengths {text}: {each.strip()!r} is not {known}; write for example 8k,64k")
        found.append(tokens)
    return tuple(dict.fromkeys(found))


def require_groups(heads: int, kv_heads: int) -> None:
    """Raises UserError unless every KV head serves as many query heads."""
    if heads % kv_heads:
        raise UserError(f"--heads {heads}: not a multiple of --kv-heads {kv_heads}")


def require_gpu(command: str) -> None:
    """Raises UserError where PyTorch has no GPU."""
    with busy("starting torch"):
        import torch
    if not torch.cuda.is_available():
        raise UserError(
            f"nsa {command} needs a GPU that PyTorch can use, and torch.cuda.is_available() is False: run it on a machine with a CUDA card "
            "and a PyTorch built for it; `nsa verify`, `nsa check` and `nsa cost` work without one"
        )


def tiles_text(tiles: Tiles, *, gluon: bool) -> str:
    """A kernel's tiles as tables print them."""
    return f"{tiles.rows}x{tiles.cols} w{tiles.warps} s{tiles.stages}{' gluon' if gluon else ''}"
