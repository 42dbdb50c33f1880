"""`nsa verify`: a spec's kernels, run on random calls and held to the dense reference."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nsa_dsl.cli.compile import sources_of
from nsa_dsl.cli.inputs import the_patterns
from nsa_dsl.cli.outcome import CHECK_FAILED, UserError, busy, for_each_file


def verify(
    files: Annotated[list[Path] | None, typer.Argument(help="Spec files (*.nsa).", metavar="FILES...", show_default=False)] = None,
    examples: Annotated[int, typer.Option(min=1, help="Calls to try, for each pattern.")] = 50,
    seed: Annotated[int, typer.Option(min=0, help="The same seed draws the same calls.")] = 0,
    random: Annotated[int, typer.Option("--random", min=0, metavar="N", help="Random patterns to try, too, or instead of files.")] = 0,
) -> None:
    """Run every pattern's kernels, forward and backward, on random calls and compare results and gradients with the dense reference; show
    the smallest call that fails.

    On the GPU if there is one, else by Triton's interpreter on the CPU: slowly, and on short sequences.
    """
    if not files and not random:
        raise UserError("nothing to verify: name spec files, or ask for random patterns with --random N")
    held = _verify_random(random, seed) if random else True
    for_each_file(files or (), lambda file: _verify_file(file, examples, seed))
    if not held:
        raise typer.Exit(CHECK_FAILED)


def _verify_file(file: Path, examples: int, seed: int) -> bool:
    from nsa_dsl.launch import LaunchShape

    # What is wrong, or has no kernels, is refused before torch is imported, which takes seconds.
    for each in the_patterns(file, None, None):
        sources_of(each, file, LaunchShape())
    with busy("starting torch"):
        from nsa_dsl.verify import patterns_to_try, use_device, verify_spec

        scaled = use_device().type == "cpu"
    total = examples * len(patterns_to_try(file, scaled=scaled))
    with busy(f"verifying {file}", total) as advance:
        reports = verify_spec(file, examples=examples, seed=seed, progress=advance)
    for report in reports:
        typer.echo(f"{file}: {report}")
    return all(each.ok for each in reports)


def _verify_random(count: int, seed: int) -> bool:
    with busy("starting torch"):
        from nsa_dsl.testing import verify_random
    with busy("verifying random patterns", count) as advance:
        report = verify_random(count, seed=seed, progress=advance)
    typer.echo(str(report))
    return report.ok
