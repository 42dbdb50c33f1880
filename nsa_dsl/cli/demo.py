"""`nsa demo`: two specs from text to kernels that agree with the dense reference on real text, and a model that trains with kernels."""

from __future__ import annotations

import typer

from nsa_dsl.cli.outcome import CHECK_FAILED, busy


def demo() -> None:
    """Show NSA and ASA as text, picture and kernels; run the kernels on real text, compare them with the dense reference, and train a
    small language model with them.

    On the GPU if there is one, with the papers' parameters; else by Triton's interpreter on the CPU, with smaller ones.
    """
    with busy("starting torch"):
        from rich.console import Console

        from nsa_dsl.demo import run_demo
    if not run_demo(Console()):
        raise typer.Exit(CHECK_FAILED)
