"""`nsa bench`: a pattern's kernels beside dense attention, FlexAttention and fla's NSA, on the same inputs in the same run."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from nsa_dsl.bench.rows import OWN, PEERS, Peer, Row, Settings, write_json
from nsa_dsl.cli.calls import Dim, DimV, DtypeOption, Heads, KvHeads, parse_lengths, require_gpu, require_groups
from nsa_dsl.cli.compile import Dtype, sources_of
from nsa_dsl.cli.inputs import File, PatternName, the_patterns
from nsa_dsl.cli.inputs import Settings as Parameters
from nsa_dsl.cli.outcome import UserError, busy, for_each_file

if TYPE_CHECKING:
    from nsa_dsl.pattern import Pattern


class Choices(StrEnum):
    """How much neighbouring queries agree on what they choose."""

    random = "random"
    clustered = "clustered"
    identical = "identical"


def bench(
    file: File,
    pattern: PatternName = None,
    parameters: Parameters = None,
    lengths: Annotated[str, typer.Option(metavar="N,...", help="Tokens, `k` for 1,024.")] = "8k,16k,32k,64k",
    heads: Heads = 64,
    kv_heads: KvHeads = 4,
    dim: Dim = 128,
    dim_v: DimV = None,
    dtype: DtypeOption = Dtype.bf16,
    choices: Annotated[Choices, typer.Option(help="How much 64 neighbouring queries agree on the blocks they choose.")] = Choices.random,
    backward: Annotated[bool, typer.Option("--backward/--forward-only", help="Measure the backward pass, too.")] = True,
    graphs: Annotated[bool, typer.Option("--graphs", help="Time replays of CUDA graphs, without the host's part of a call.")] = False,
    peers: Annotated[str, typer.Option(metavar="NAME,...", help=f"Of {', '.join(PEERS)}; or none.")] = ",".join(PEERS),
    json: Annotated[Path | None, typer.Option(metavar="PATH", help="Write the results here.", show_default=False)] = None,
    png: Annotated[Path | None, typer.Option(metavar="PATH", help="Draw them here; needs matplotlib.", show_default=False)] = None,
    budget: Annotated[
        float | None, typer.Option(min=1, metavar="SECONDS", help="Begin no measurement after so long.", show_default=False)
    ] = None,
) -> None:
    """Time every pattern of a file, forward and backward, beside SDPA (cuDNN and FlashAttention), FlexAttention and fla's NSA: same inputs,
    same run, medians, memory. Needs a GPU. Exit status 1 if the pattern's own kernels could not be measured."""
    settings = Settings(
        lengths=parse_lengths(lengths),
        heads=heads,
        kv_heads=kv_heads,
        dim_qk=dim,
        dim_v=dim if dim_v is None else dim_v,
        dtype=dtype.value,
        sharing=choices.value,
        peers=parse_peers(peers),
        backward=backward,
        graphs=graphs,
        budget=budget,
    )
    require_groups(heads, kv_heads)

    for path in (json, png):
        if path is not None and not path.parent.is_dir():
            raise UserError(f"{path}: there is no folder {path.parent}")

    for_each_file([file], lambda path: _bench_file(path, the_patterns(path, pattern, parameters), settings, json, png))


def parse_peers(text: str) -> tuple[Peer, ...]:
    """`cudnn,flex` as names; `none` is nobody. Raises UserError."""
    if text.strip() == "none":
        return ()
    names = tuple(dict.fromkeys(each.strip() for each in text.split(",")))
    for each in names:
        if each not in PEERS:
            raise UserError(f"--peers {text}: there is no peer {each!r}; known are {', '.join(PEERS)}, or none")
    return cast("tuple[Peer, ...]", names)


def _bench_file(file: Path, patterns: list[Pattern], settings: Settings, json: Path | None, png: Path | None) -> bool:
    from nsa_dsl.launch import LaunchShape

    # What has no kernels is refused before torch is imported, which takes seconds.
    for each in patterns:
        sources_of(each, file, LaunchShape())
    require_gpu("bench")
    import time

    from rich.console import Console

    from nsa_dsl.bench.plot import NoMatplotlibError, draw, new_figure, save
    from nsa_dsl.bench.run import run
    from nsa_dsl.bench.table import notes, tables
    from nsa_dsl.bench.timing import describe_machine

    if png is not None:
        try:
            new_figure(1, 1)
        except NoMatplotlibError as lacking:
            raise UserError(f"--png {png}: {lacking}") from lacking
    machine, rows, started = describe_machine(), list[Row](), time.perf_counter()
    with busy(f"measuring {file}", len(patterns) * len(settings.lengths) * (1 + len(settings.peers))) as advance:
        for each in patterns:
            for row in run(each, settings, started=started):
                rows.append(row)
                advance(len(rows))
                if json is not None:
                    write_json(json, machine, rows)
    console = Console()
    console.print(f"{machine['card']}, torch {machine['torch']}, triton {machine['triton']}", highlight=False)
    for table in tables(rows):
        console.print(table)
    for note in notes(rows):
        console.print(note, style="dim", highlight=False, markup=False)
    if png is not None:
        save(draw(rows, machine), png)
    return all(row.forward_ms is not None for row in rows if row.contender == OWN)
