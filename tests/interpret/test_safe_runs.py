"""Safe kernels beside fast ones: fewer programs, each with a run of tiles, make the same as one tile a program."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from interpret.support import parse

from nsa_dsl.compiler import compile_backward, compile_source
from nsa_dsl.execute import load_module
from nsa_dsl.launch import LaunchShape

PATTERN = parse("output attend(tokens, window(9))")


def module(source: str, programs: dict[str, int], **changes: Any) -> dict[str, Any]:
    """A module for Hopper whose fast kernels, which no interpreter runs, leave all to the safe ones. programs: by kernel."""
    made = vars(load_module(source, "safe"))
    launch = made["_launch"]

    def note(kernel: Any, count: int, *arguments: Any, **constants: Any) -> None:
        programs[kernel.__name__] = count
        launch(kernel, count, *arguments, **constants)

    made.update(changes, _launch=note, _launch_hopper=lambda *_, **__: None)
    return made


def results(*, templates: Literal["best", "portable"] = "best", beside: bool = False) -> tuple[list[torch.Tensor], list[int]]:
    """Output, log-sum-exp and queries' gradient, and the programs of the kernels for the first and the last. beside: fast kernels."""
    draw = torch.Generator().manual_seed(7)
    q, k, v, sent = (torch.randn(2, heads, 130, 64, generator=draw).half() for heads in (2, 1, 1, 2))
    v[0, 0, 33] = torch.inf
    shape, programs = LaunchShape(64, 64, "fp16", "sm_90", templates=templates), dict[str, int]()
    changes = {"_on_hopper": lambda *_: beside, "_run_length": lambda _: 3}
    out, lse, chosen, slots, branches = module(compile_source(PATTERN, shape), programs, **changes)["run"](q, k, v)
    backward = module(compile_backward(PATTERN, shape), programs, **changes)["run_backward"]
    grads = backward(sent, {}, q, k, v, branches, lse, slots=slots, chosen=chosen, wanted=("q",))
    return [out, lse["output"], grads["q"]], [programs["attend_output"], programs["attend_output_queries"]]


def test_runs_make_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the kernels that have nothing beside them, which other tests compare with the reference."""
    # What nobody writes shows.
    monkeypatch.setattr(torch, "empty", lambda *size, **options: torch.full(size[0] if isinstance(size[0], tuple) else size, 7, **options))
    expected, _ = results(templates="portable")
    for beside, counts in ((False, [8, 8]), (True, [3, 3])):
        found, programs = results(beside=beside)
        assert programs == counts
        for one, other in zip(expected, found, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
