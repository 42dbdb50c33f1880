"""The search for a whole pattern that the compiler gets wrong, and the assertion that it gets a given one right."""

from __future__ import annotations

import os
import time

import hypothesis
import torch
from hypothesis import strategies as st

from nsa_dsl.compare import Mismatch
from nsa_dsl.loader import load_spec
from nsa_dsl.op import AttentionOp
from nsa_dsl.pattern import NotSupported, Pattern
from nsa_dsl.testing.patterns import patterns
from nsa_dsl.verify import Failure, Report, verify_spec
from nsa_dsl.verify.cases import Case, Range, cases
from nsa_dsl.verify.example import check_case
from nsa_dsl.verify.search import Progress, Search, bounds_on, device_name


def assert_correct(spec: str | os.PathLike[str], *, examples: int = 20, seed: int = 0, device: torch.device | str | None = None) -> None:
    """Fail unless the kernels of every pattern of a spec agree with the dense reference, forward and backward.

    spec: a file or a text, as `load` takes it; see `verify_spec` for the rest. Raises AssertionError with the smallest failing call,
    SpecError or NotSupported for a spec that has no kernels.
    """
    failed = [str(each) for each in verify_spec(spec, examples=examples, seed=seed, device=device) if not each.ok]
    assert not failed, "\n".join(failed)


def verify_random(
    examples: int = 50, *, seed: int = 0, device: torch.device | str | None = None, progress: Progress | None = None
) -> Report:
    """Hold the kernels of random patterns to the dense reference, each on one random call; see `verify_pattern` for what is checked.

    A failure is reported with the text of the smallest pattern that still fails. Patterns that the compiler refuses count as nothing.
    """
    place, bounds = bounds_on(device)
    differentiated = 0

    def check(drawn: tuple[str, Case]) -> list[Mismatch]:
        nonlocal differentiated
        text, case = drawn
        try:
            op = AttentionOp(pattern_of(text), rows=case.rows, cols=case.cols)
        except NotSupported:
            hypothesis.reject()
        found = check_case(op, case, place)
        differentiated += case.gradients != "none"
        return found

    search = Search(check, examples, progress)
    started = time.monotonic()
    found = search.run(seed, calls(bounds))
    failure = None if found is None else Failure(found[0][1], found[1], found[0][0])
    return Report("random patterns", search.done, differentiated, device_name(place), time.monotonic() - started, failure)


@st.composite
def calls(draw: st.DrawFn, bounds: Range) -> tuple[str, Case]:
    """A pattern's text and a call of it within bounds."""
    text = draw(patterns())
    return text, draw(cases(pattern_of(text), bounds, bounds.dtypes))


def pattern_of(text: str) -> Pattern:
    """The only pattern of a spec's text. Raises SpecError."""
    spec = load_spec(text)
    (name,) = spec.patterns
    return spec.pattern(name)
