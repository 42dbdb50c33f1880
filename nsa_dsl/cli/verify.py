"""`nsa verify`: a spec's kernels, run on random calls and held to the dense reference."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nsa_dsl.cli.compile import source_of
from nsa_dsl.cli.inputs import Files, the_patterns
from nsa_dsl.cli.outcome import busy, for_each_file


def verify(
    files: Files,
    examples: Annotated[int, typer.Option(min=1, help="Calls to try, for each pattern.")] = 50,
    seed: Annotated[int, typer.Option(min=0, help="The same seed draws the same calls.")] = 0,
) -> None:
    """Run every pattern's kernels on random calls and compare them with the dense reference; show the smallest call that fails.

    On the GPU if there is one, else by Triton's interpreter on the CPU: slowly, and on short sequences.
    """

    from nsa_dsl.schedule import LaunchShape

    def verify_file(file: Path) -> bool:
        # What is wrong, or has no kernels, is refused before torch is imported, which takes seconds.
        for each in the_patterns(file, None, None):
            source_of(each, file, LaunchShape())
        with busy("starting torch"):
            from nsa_dsl.verify import patterns_to_try, use_device, verify_spec

            scaled = use_device().type == "cpu"
        total = examples * len(patterns_to_try(file, scaled=scaled))
        with busy(f"verifying {file}", total) as advance:
            reports = verify_spec(file, examples=examples, seed=seed, progress=advance)
        for report in reports:
            typer.echo(f"{file}: {report}")
        return all(each.ok for each in reports)

    for_each_file(files, verify_file)
